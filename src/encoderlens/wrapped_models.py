"""Models in memory that come inside another object: a SentenceTransformer, a CrossEncoder, a pipeline, a PeftModel."""

import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from encoderlens.errors import ConfigError
from encoderlens.sentence_folder import MODULES, PACKAGE, SETTINGS, SentenceFolder, read_sentence_folder
from encoderlens.tensor_source import MemorySource


@dataclass(frozen=True)
class ModelInMemory:
    """A model, and what came with it.

    Attributes:
        model: usually one of transformers.
        tokenizer, extractor: of its input; None without one.
        sentence: what follows it in a sentence encoder; None for any other model.
        settings: what to add to its configuration.
        absent: names of tensors that hold no trained weights.
    """

    model: Any
    tokenizer: Any = None
    extractor: Any = None
    sentence: SentenceFolder | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


def taken_out(given: Any) -> ModelInMemory:
    """A model without what is around it; anything that is no known wrapper as it is.

    Raises:
        ConfigError: for a sentence encoder or cross-encoder with modules that are not implemented.
    """
    for module, name, take_out in _WRAPPERS:
        # An object of a class can only be there if its module has been imported.
        wrapper = getattr(sys.modules.get(module), name, None)
        if wrapper is not None and isinstance(given, wrapper):
            found = take_out(given)
            inside = taken_out(found.model)
            return replace(found, model=inside.model)
    return ModelInMemory(given)


def _of_sentence_transformer(encoder: Any) -> ModelInMemory:
    names = _module_folders(encoder)
    sources = {name: MemorySource(module.state_dict(), name) for name, module in zip(names, encoder, strict=True)}
    with TemporaryDirectory() as folder:
        _describe(encoder, names, Path(folder))
        sentence = read_sentence_folder(Path(folder), lambda path: sources[path.name])
    return ModelInMemory(encoder[0].auto_model, encoder.tokenizer, sentence=sentence)


def _module_folders(encoder: Any) -> list[str]:
    """The folder of each module, as sentence-transformers names them when it saves."""
    return [f"{index}_{type(module).__name__}" if index else "" for index, module in enumerate(encoder)]


def _describe(encoder: Any, names: list[str], folder: Path) -> None:
    """Write what sentence-transformers saves of an encoder, all but weights and tokenizer."""
    entries = []
    for index, (name, module) in enumerate(zip(names, encoder, strict=True)):
        kind = f"{type(module).__module__}.{type(module).__name__}"
        entries.append({"idx": index, "name": str(index), "path": name, "type": kind})
        (folder / name).mkdir(exist_ok=True)
        if kind.startswith(PACKAGE):  # any other is refused by its name
            module.save_config(str(folder / name))
    prompts = {"prompts": encoder.prompts, "default_prompt_name": encoder.default_prompt_name}
    (folder / MODULES).write_text(json.dumps(entries), encoding="utf-8")
    settings = prompts | {"truncate_dim": encoder.truncate_dim}
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")


def _of_cross_encoder(encoder: Any) -> ModelInMemory:
    if len(encoder) > 1:
        kinds = ", ".join(type(module).__name__ for module in list(encoder)[1:])
        raise ConfigError(f"hf_model is a CrossEncoder with further modules ({kinds}), which are not implemented")
    activation = type(encoder.activation_fn)
    settings = {"activation_fn": f"{activation.__module__}.{activation.__name__}"}
    return ModelInMemory(encoder.model, encoder.tokenizer, settings={"sentence_transformers": settings})


def _of_pipeline(pipeline: Any) -> ModelInMemory:
    return ModelInMemory(pipeline.model, pipeline.tokenizer, pipeline.feature_extractor)


def _of_peft_model(model: Any) -> ModelInMemory:
    """The model with its adapters merged into the weights of a copy."""
    if model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            f"hf_model is a PeftModel of kind {model.active_peft_config.peft_type}, which puts vectors in front of the "
            "input: it cannot be merged into weights"
        )
    return ModelInMemory(copy.deepcopy(model).merge_and_unload())


_WRAPPERS: tuple[tuple[str, str, Callable[[Any], ModelInMemory]], ...] = (
    ("sentence_transformers", "SentenceTransformer", _of_sentence_transformer),
    ("sentence_transformers", "CrossEncoder", _of_cross_encoder),
    ("transformers.pipelines.base", "Pipeline", _of_pipeline),
    ("peft", "PeftModel", _of_peft_model),
)
