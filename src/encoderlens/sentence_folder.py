"""Folders of sentence-transformers: what follows the transformer, and how text is prepared for it, from ``modules.json``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encoderlens.components.heads.sentence_embedding import POOLING_MODES
from encoderlens.config import (
    SentenceDensePart,
    SentenceEmbeddingPart,
    SentenceLayerNormPart,
    SentenceModulePart,
    SentenceNormalizePart,
    SentencePoolingPart,
)
from encoderlens.config.fields import check_value, frozen
from encoderlens.errors import CheckpointNotFoundError, ConfigError
from encoderlens.given import check_text
from encoderlens.names import did_you_mean
from encoderlens.tensor_source import TensorSource, open_folder
from encoderlens.weights import Row, linear, norm

MODULES = "modules.json"
PACKAGE = "sentence_transformers."
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
SETTINGS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says of a sentence encoder.

    Attributes:
        transformer: the folder of the transformer's configuration and weights.
        part: what follows it, and how text is prepared.
        sources: the weights of modules that have some, by their folder.
    """

    transformer: Path
    part: SentenceEmbeddingPart
    sources: dict[str, TensorSource]


def score_function(folder: Path | None, config: Mapping[str, Any]) -> str | None:
    """The activation function that a cross-encoder puts on its logit: from its settings, or from where earlier versions of
    sentence-transformers kept it; None for a model that is no cross-encoder.

    Raises:
        ConfigError: for one that is not implemented.
    """
    settings = {} if folder is None else _read_if_there(folder / SETTINGS)
    inside = config.get("sentence_transformers") or {}
    if not isinstance(inside, Mapping):
        raise ConfigError(f"{folder or 'the configuration'}: sentence_transformers={inside!r}; it must hold settings by name")
    found = settings.get("activation_fn") or inside.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if found is None:
        return None
    return _activation(folder or "the configuration", found)


def module_folders(modules: Path) -> list[str]:
    """The folders that a ``modules.json`` names, in the order in which they run; "" is its own.

    Raises:
        ConfigError: for a file that is no list of modules.
    """
    return [str(entry["path"]) for entry in _entries(modules)]


def read_sentence_folder(folder: Path, open_weights: Callable[[Path], TensorSource] = open_folder) -> SentenceFolder | None:
    """What a folder says of a sentence encoder; None for one that holds just a transformer.

    Args:
        open_weights: opens the weights of a module by its folder.

    Raises:
        ConfigError: for a module, or an option of one, that is not implemented.
        CheckpointNotFoundError: for a module whose files are missing.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    kinds = [(_kind(str(entry["type"])), str(entry["path"])) for entry in _entries(path)]
    first, where = kinds[0]
    if first not in _TRANSFORMERS:
        raise ConfigError(f"{path}: the first module is {first}; only {' and '.join(_TRANSFORMERS)} are implemented")
    kinds = [(kind, name) for kind, name in kinds[1:] if kind != "Dropout"]
    transformer = folder / where
    if not kinds:
        return None  # a cross-encoder: the transformer has a head of its own
    if kinds[0][0] != "Pooling":
        raise ConfigError(f"{path}: {first} is followed by {kinds[0][0]}; only Pooling is implemented")
    unknown = [kind for kind, _ in kinds[1:] if kind not in _READERS]
    if unknown:
        raise ConfigError(
            f"{path}: the module {unknown[0]} is not implemented; behind Pooling there may be {', '.join(_READERS)}"
        )
    prompts, prompt = _prompts(folder / SETTINGS)
    pooling = _pooling(folder / kinds[0][1] / "config.json", has_prompt=bool(prompts))
    layers = tuple(_READERS[kind](folder / name / "config.json", name) for kind, name in kinds[1:])
    part = SentenceEmbeddingPart(pooling, layers, prompts=prompts, prompt=prompt)
    sources = {layer.folder: open_weights(folder / layer.folder) for layer in layers if layer.name != "normalize"}
    return SentenceFolder(transformer, _with_text_options(part, transformer), sources)


def _kind(module: str) -> str:
    """What a module of sentence-transformers is called; of code of the folder's own, the whole path."""
    return module.rpartition(".")[2] if module.startswith(PACKAGE) else module


def sentence_rows(part: SentenceEmbeddingPart) -> list[Row]:
    """The table of a sentence encoder's own weights."""
    rows: list[Row] = []
    for name, layer in zip(part.names, part.layers, strict=True):
        source, target = layer.folder, f"sentence.{name}"
        rows += [*linear(f"{source}/linear", f"{target}.dense"), Row(f"{source}/residual.weight", f"{target}.residual.weight")]
        rows += norm(f"{source}/norm", f"{target}.ln")
    return rows


def _prompts(path: Path) -> tuple[tuple[tuple[str, str], ...], str]:
    """The prompts by name, and the one that stands in front of every text."""
    settings = _read_if_there(path)
    if settings.get("truncate_dim") is not None:
        raise ConfigError(f"{path}: truncate_dim={settings['truncate_dim']} is not implemented; cut the embeddings yourself")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{path}: prompts={prompts!r} is no object of texts, each under its name")
    for name, text in prompts.items():
        check_text(text or "", f"{path}: the prompt {name!r}", ConfigError)
    if not isinstance(default, str | None):
        raise ConfigError(f"{path}: default_prompt_name={default!r}; it is the name of a prompt")
    if default is not None and default not in prompts:
        raise ConfigError(
            f"{path}: default_prompt_name={default!r} is none of its prompts: {', '.join(prompts) or 'it has none'}"
        )
    return tuple((name, text) for name, text in prompts.items() if text), prompts.get(default) or ""


def _with_text_options(part: SentenceEmbeddingPart, transformer: Path) -> SentenceEmbeddingPart:
    path = next((transformer / name for name in TRANSFORMER_FILES if (transformer / name).is_file()), None)
    if path is None:
        return part
    values = _read(path)
    for key in ("processing_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"):
        if values.get(key):
            raise ConfigError(f"{path}: {key}={values[key]!r} is not implemented")
    lowercases = values.get("do_lower_case", False)
    check_value(f"{path}: do_lower_case", lowercases, bool | None)
    return replace(part, max_tokens=values.get("max_seq_length"), lowercases=bool(lowercases))


def _pooling(path: Path, has_prompt: bool) -> SentencePoolingPart:
    values = _read(path)
    modes = _modes(path, values)
    for mode in modes:
        if mode not in POOLING_MODES:
            known = f"{', '.join(POOLING_MODES)} are{did_you_mean(mode, POOLING_MODES)}"
            raise ConfigError(f"{path}: pooling mode {mode!r} is not implemented; {known}")
    if has_prompt and not values.get("include_prompt", True):
        raise ConfigError(f"{path}: include_prompt=False is not implemented: prompts would have to be left out of the pooling")
    return SentencePoolingPart(modes)


def _modes(path: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    named = frozen(values.get("pooling_mode"))
    if named is None:
        legacy = tuple(mode for key, mode in _LEGACY_MODES.items() if values.get(key))
        return legacy or ("mean",)
    modes = (named,) if isinstance(named, str) else named
    check_value(f"{path}: pooling_mode", modes, tuple[str, ...])
    if not modes:
        raise ConfigError(f"{path}: pooling_mode names no mode; {', '.join(POOLING_MODES)} are implemented")
    return modes


def _dense(path: Path, name: str) -> SentenceModulePart:
    values = _read(path)
    _check_names(path, values)
    return SentenceDensePart(
        name,
        _size(path, values, "in_features"),
        _size(path, values, "out_features"),
        _activation(path, values.get("activation_function", "torch.nn.modules.activation.Tanh")),
        values.get("bias", True),
        values.get("use_residual", False),
    )


def _layer_norm(path: Path, name: str) -> SentenceModulePart:
    return SentenceLayerNormPart(name, _size(path, _read(path), "dimension"))


def _normalize(path: Path, name: str) -> SentenceModulePart:
    _check_names(path, _read_if_there(path))  # earlier versions of sentence-transformers keep no file of it
    return SentenceNormalizePart(name)


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a module that reads or writes anything but the embedding."""
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise ConfigError(f"{path}: {key}={values[key]!r} is not implemented; only 'sentence_embedding' is")


def _activation(where: Path | str, name: Any) -> str:
    """What an activation function of torch is called here."""
    kind = str(name).rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        raise ConfigError(f"{where}: the activation function {name} is not implemented; {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[kind]


def _size(path: Path, values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path}: {key} is {value!r}; it must be a positive whole number")
    return value


_TRANSFORMERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT", "XLMRoBERTa", "CamemBERT")
_READERS: dict[str, Callable[[Path, str], SentenceModulePart]] = {  # of a module's configuration, and its folder's name
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
}
_ACTIVATIONS = {"Tanh": "tanh", "Identity": "linear", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Sigmoid": "sigmoid"}
_LEGACY_MODES = {  # in the order in which several of them stand side by side
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = _parse(path)
    known = isinstance(entries, list) and all(isinstance(entry, dict) and {"type", "path"} <= set(entry) for entry in entries)
    if not entries or not known:
        raise ConfigError(f"{path} is no list of modules, each with a type and a path")
    return sorted(entries, key=lambda entry: entry.get("idx", 0))


def _read_if_there(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    values = _parse(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return values


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is missing: {MODULES} names its module; download it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def transformer_folder(folder: Path) -> Path:
    """The folder of a checkpoint's transformer: its own, unless a ``modules.json`` names another."""
    path = folder / MODULES
    return folder / module_folders(path)[0] if path.is_file() else folder
