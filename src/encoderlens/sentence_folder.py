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
from encoderlens.errors import CheckpointNotFoundError, ConfigError
from encoderlens.tensor_source import TensorSource, open_folder
from encoderlens.weights import Row, linear, norm

MODULES = "modules.json"
TRANSFORMER_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json")
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
    settings = {} if folder is None else _read(folder / SETTINGS, {})
    inside = config.get("sentence_transformers") or {}
    found = settings.get("activation_fn") or inside.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if found is None:
        return None
    kind = str(found).rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        raise ConfigError(f"{folder}: the activation function {found} is not implemented; {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[kind]


def module_folders(modules: Path) -> list[str]:
    """The folders that a ``modules.json`` names, in the order in which they run; "" is its own.

    Raises:
        ConfigError: for a file that is no list of modules.
    """
    return [str(entry["path"]) for entry in _entries(modules)]


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """What a folder says of a sentence encoder; None for one that holds just a transformer.

    Raises:
        ConfigError: for a module, or an option of one, that is not implemented.
        CheckpointNotFoundError: for a module whose files are missing.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    kinds = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in _entries(path)]
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
    settings = _read(folder / SETTINGS, {})
    prompts = {str(name): str(text) for name, text in (settings.get("prompts") or {}).items() if text}
    pooling = _pooling(folder / kinds[0][1], has_prompt=bool(prompts))
    layers = tuple(_READERS[kind](folder / name, name) for kind, name in kinds[1:])
    prompt = prompts.get(str(settings.get("default_prompt_name")), "")
    part = SentenceEmbeddingPart(pooling, layers, prompts=tuple(prompts.items()), prompt=prompt)
    sources = {layer.folder: open_folder(folder / layer.folder) for layer in layers if layer.name != "normalize"}
    return SentenceFolder(transformer, _with_text_options(part, transformer), sources)


def sentence_rows(part: SentenceEmbeddingPart) -> list[Row]:
    """The table of a sentence encoder's own weights."""
    rows: list[Row] = []
    for name, layer in zip(part.names, part.layers, strict=True):
        source, target = layer.folder, f"sentence.{name}"
        rows += [*linear(f"{source}/linear", f"{target}.dense"), Row(f"{source}/residual.weight", f"{target}.residual.weight")]
        rows += norm(f"{source}/norm", f"{target}.ln")
    return rows


def _with_text_options(part: SentenceEmbeddingPart, transformer: Path) -> SentenceEmbeddingPart:
    for name in TRANSFORMER_FILES:
        values = _read(transformer / name, {})
        if values:
            return replace(part, max_tokens=values.get("max_seq_length"), lowercases=bool(values.get("do_lower_case", False)))
    return part


def _pooling(folder: Path, has_prompt: bool) -> SentencePoolingPart:
    path = folder / "config.json"
    values = _read(path)
    named = values.get("pooling_mode")
    legacy = [mode for key, mode in _LEGACY_MODES.items() if values.get(key)]
    modes = (named,) if isinstance(named, str) else tuple(named or legacy or ["mean"])
    for mode in modes:
        if mode not in POOLING_MODES:
            raise ConfigError(f"{path}: pooling mode {mode!r} is not implemented; {', '.join(POOLING_MODES)} are")
    if has_prompt and not values.get("include_prompt", True):
        raise ConfigError(f"{path}: include_prompt=False is not implemented: prompts would have to be left out of the pooling")
    return SentencePoolingPart(modes)


def _dense(folder: Path, name: str) -> SentenceModulePart:
    path = folder / "config.json"
    values = _read(path)
    act_fn = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if act_fn not in _ACTIVATIONS:
        raise ConfigError(f"{path}: activation_function {act_fn} is not implemented; {', '.join(_ACTIVATIONS)} are")
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise ConfigError(f"{path}: {key}={values[key]!r} is not implemented; only 'sentence_embedding' is")
    return SentenceDensePart(
        name,
        values["in_features"],
        values["out_features"],
        _ACTIVATIONS[act_fn],
        values.get("bias", True),
        values.get("use_residual", False),
    )


def _layer_norm(folder: Path, name: str) -> SentenceModulePart:
    return SentenceLayerNormPart(name, _read(folder / "config.json")["dimension"])


def _normalize(folder: Path, name: str) -> SentenceModulePart:
    return SentenceNormalizePart(name)


_TRANSFORMERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT", "XLMRoBERTa", "CamemBERT")
_READERS: dict[str, Callable[[Path, str], SentenceModulePart]] = {
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
    entries = _read(path)
    known = isinstance(entries, list) and all(isinstance(entry, dict) and {"type", "path"} <= set(entry) for entry in entries)
    if not entries or not known:
        raise ConfigError(f"{path} is no list of modules, each with a type and a path")
    return sorted(entries, key=lambda entry: entry.get("idx", 0))


def _read(path: Path, default: Any = None) -> Any:
    if not path.is_file():
        if default is not None:
            return default
        raise CheckpointNotFoundError(f"{path} is missing: {MODULES} names its module; download it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def transformer_folder(folder: Path) -> Path:
    """The folder of a checkpoint's transformer: its own, unless a ``modules.json`` names another."""
    path = folder / MODULES
    return folder / module_folders(path)[0] if path.is_file() else folder
