"""Folders of PEFT adapters: which model they change, and that model with the adapter merged into its weights."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from encoderlens.errors import CheckpointNotFoundError, ConfigError
from encoderlens.names import check_word
from encoderlens.tensor_source import WEIGHT_FILES, SafetensorsSource, TensorSource, open_bin
from encoderlens.tokenizer_files import load_tokenizer
from encoderlens.wrapped_models import ModelInMemory

ADAPTER = "adapter_config.json"
_OPENERS: dict[str, Callable[[Path], TensorSource]] = {
    "adapter_model.safetensors": SafetensorsSource,
    "adapter_model.bin": open_bin,
}
ADAPTER_WEIGHTS = tuple(_OPENERS)
# The class of transformers for each task of peft that encoders have.
_CLASSES = {
    None: "AutoModel",
    "FEATURE_EXTRACTION": "AutoModel",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_LAST_LAYER = re.compile(r"(?:^|\.)(?:classifier|classifier\.out_proj|score)\.weight$")
_BASE_OF_NAMES = "base_model.model."  # in front of the names of an adapter's tensors


@dataclass(frozen=True)
class Adapter:
    """What a folder says of an adapter.

    Attributes:
        folder: where it is.
        base: the name or folder of the model that it changes.
        revision: of that model; None for the default one.
        hf_class: the class of transformers to load that model as.
    """

    folder: Path
    base: str
    revision: str | None
    hf_class: str


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in WEIGHT_FILES)


def read_adapter(folder: Path) -> Adapter:
    """What a folder's ``adapter_config.json`` says.

    Raises:
        ConfigError: for a file that is damaged, or an adapter of something that is no encoder.
    """
    path = folder / ADAPTER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path} does not name the model that it changes (base_model_name_or_path); add it")
    return Adapter(folder, base, values.get("revision"), _class_of(values, path))


def _class_of(values: dict[str, Any], path: Path) -> str:
    named = (values.get("auto_mapping") or {}).get("base_model_class")
    if named is not None:
        return str(named)
    check_word(f"{path}: task_type", values.get("task_type"), tuple(_CLASSES), ConfigError)
    return _CLASSES[values.get("task_type")]


def merged(adapter: Adapter, base: Path) -> ModelInMemory:
    """The model of a folder with an adapter merged into its weights, in float32, and the tokenizer of either.

    Raises:
        ConfigError: if peft is not installed or cannot merge this adapter.
        CheckpointNotFoundError: without the adapter's weights.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            f"{adapter.folder} holds a PEFT adapter for {adapter.base}, not a whole model, and the package that merges the two "
            "is not installed: pip install 'encoderlens[peft]', or save the merged model where it is (merge_and_unload(), "
            "then save_pretrained())"
        )
    tensors = _tensors(adapter.folder)
    model, absent = _base_model(adapter, base, tensors)
    tokenizer = load_tokenizer(adapter.folder) or load_tokenizer(base)
    saved = {name.removeprefix(_BASE_OF_NAMES) for name in tensors}
    # What neither folder holds was drawn at random by transformers, and must not pass for trained.
    return ModelInMemory(_with_adapter(model, adapter), tokenizer, absent=frozenset(absent - saved))


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors by name."""
    for name, open_file in _OPENERS.items():
        if (folder / name).is_file():
            return {tensor: about.shape for tensor, about in open_file(folder / name).tensors.items()}
    raise CheckpointNotFoundError(f"{folder} holds no weights of its adapter: expected {' or '.join(ADAPTER_WEIGHTS)}")


def _base_model(adapter: Adapter, base: Path, tensors: dict[str, tuple[int, ...]]) -> tuple[Any, set[str]]:
    """The model that an adapter changes, and the names of tensors that its folder lacks."""
    import transformers

    labels = [shape[0] for name, shape in tensors.items() if _LAST_LAYER.search(name)]
    where = adapter.folder if (adapter.folder / "config.json").is_file() else base
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        if labels and labels[0] != config.num_labels:
            config.num_labels = labels[0]
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, found = getattr(transformers, adapter.hf_class).from_pretrained(base, **options)
    except Exception as error:  # every class of transformers has errors of its own
        raise ConfigError(
            f"{adapter.folder}: the model that the adapter changes cannot be loaded as {adapter.hf_class} from {base}: "
            f"{_one_line(error)}"
        ) from error
    return model, set(found["missing_keys"])


def _with_adapter(model: Any, adapter: Adapter) -> Any:
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        if config.is_prompt_learning:
            raise ConfigError(
                f"{adapter.folder}: {config.peft_type} puts vectors in front of the input, and is no change of weights"
            )
        return PeftModel.from_pretrained(model, str(adapter.folder), config=config).merge_and_unload()
    except ConfigError:
        raise
    except Exception as error:  # every kind of adapter has errors of its own
        raise ConfigError(f"{adapter.folder}: peft cannot merge this adapter: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
