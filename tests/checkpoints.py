"""Checkpoint folders on disk: real ones from tiny Hugging Face models, and the ways in which they come and go wrong."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny import tiny_hf

BERT_CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
SAFETENSORS = "model.safetensors"
BIN = "pytorch_model.bin"


def save_tiny(hf_class: str, folder: Path, seed: int = 0, **overrides: Any) -> Any:
    """A tiny Hugging Face model, saved to ``folder``."""
    hf_model = tiny_hf(hf_class, seed, **overrides)
    hf_model.save_pretrained(folder)
    return hf_model


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / SAFETENSORS)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / SAFETENSORS, metadata={"format": "pt"}
    )


def edit_tensors(folder: Path, **edits: Tensor | None) -> None:
    """Set tensors of the safetensors file; None takes one out. Dots in names are written ``__``."""
    tensors = read_tensors(folder)
    for spelled, value in edits.items():
        name = spelled.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    write_tensors(folder, tensors)


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    write_tensors(folder, {rename(name): tensor for name, tensor in read_tensors(folder).items()})


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def write_shards(tensors: Mapping[str, Tensor], folder: Path, name: str, save: Callable[[Any, Path], None]) -> None:
    """Three shards and their index, as transformers names them."""
    stem, end = name.rsplit(".", 1)
    weight_map = {}
    for number in range(3):
        shard = f"{stem}-{number + 1:05}-of-00003.{end}"
        part = {key: value for index, (key, value) in enumerate(tensors.items()) if index % 3 == number}
        save(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def save_old_bin(tensors: Any, path: Path) -> None:
    """``torch.save`` as before PyTorch 1.6: a stream of pickles, not a zip file."""
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


FORMATS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": lambda tensors, folder: save_file(tensors, folder / SAFETENSORS),
    "bin": lambda tensors, folder: torch.save(tensors, folder / BIN),
    "old bin": lambda tensors, folder: save_old_bin(tensors, folder / BIN),
    "safetensors shards": lambda tensors, folder: write_shards(tensors, folder, SAFETENSORS, save_file),
    "bin shards": lambda tensors, folder: write_shards(tensors, folder, BIN, torch.save),
    "old bin shards": lambda tensors, folder: write_shards(tensors, folder, BIN, save_old_bin),
}


def assert_same_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    """Bit by bit, and with the same tying."""
    left = dict(ours.named_parameters(remove_duplicate=False))
    right = dict(theirs.named_parameters(remove_duplicate=False))
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name
