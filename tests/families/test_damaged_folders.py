"""Folders of every family that come damaged, incomplete or mixed up: the error names the file and the tensor."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.errors import CheckpointNotFoundError, TokenizerMissingError, WeightsError
from encoderlens.families import REGISTRY
from encoderlens.families.family import Family
from encoderlens.tensor_source import MemorySource
from encoderlens.weights import apply, find
from tests.checkpoints import SAFETENSORS, edit_tensors, read_tensors, save_file, write_shards, write_tensors
from tests.tiny import tiny_batch

FAMILIES = list(REGISTRY.values())
TEXT = [family for family in FAMILIES if family.modality == "text"]


def class_of(family: Family) -> str:
    """A class of a family with a head."""
    return next(name for name, tasks in family.classes.items() if tasks)


def open_(folder: Path, family: Family) -> Any:
    cls = HookedEncoder if family.modality == "text" else HookedAudioEncoder
    return cls.from_pretrained(folder, device="cpu")


@pytest.fixture(params=FAMILIES, ids=lambda family: family.model_type)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def folder(family: Family, folder_of: Callable[[str], Path]) -> Path:
    return folder_of(class_of(family))


def refused(folder: Path, family: Family, error: type[Exception], *said: str) -> None:
    with pytest.raises(error) as caught:
        open_(folder, family)
    for part in said:
        assert part in str(caught.value)


def a_weight(folder: Path) -> str:
    """The key of a matrix of the checkpoint."""
    return next(name for name, tensor in read_tensors(folder).items() if tensor.ndim == 2 and name.endswith("weight"))


def test_undamaged(folder: Path, family: Family) -> None:
    assert open_(folder, family).cfg.family == family.model_type


def test_extra_tensor(folder: Path, family: Family) -> None:
    edit_tensors(folder, adapter__weight=torch.ones(2, 3))
    refused(folder, family, WeightsError, str(folder / SAFETENSORS), "adapter.weight", "no part of the model takes")


def test_wrong_shape(folder: Path, family: Family) -> None:
    name = a_weight(folder)
    tensors = read_tensors(folder)
    write_tensors(folder, tensors | {name: tensors[name][:-1]})
    refused(folder, family, WeightsError, str(folder / SAFETENSORS), name, "has shape", "calls for")


def test_longer_tables(folder: Path, family: Family) -> None:
    """None loses its last rows in silence: of words, positions, token types or distances, a convolution's or a head's."""
    model, tensors = open_(folder, family), read_tensors(folder)
    rows = family.rows_of(model.cfg.encoder)
    found = {piece.name for row in rows if "blocks" not in row.target and (piece := find(row, tensors, family.base_prefix))}
    tables = [name for name in found if tensors[name].ndim > 1]
    assert len(tables) >= 2
    for name in tables:
        table = tensors[name]
        source = MemorySource(tensors | {name: torch.cat([table, table[-1:]])}, "the file")
        longer, expected = [len(table) + 1, *table.shape[1:]], list(table.shape)
        with pytest.raises(WeightsError, match=re.escape(f"{name} has shape {longer}, the configuration calls for {expected}")):
            apply(rows, source, model, sizes={"pos": len(table)}, base_prefix=family.base_prefix, kept=family.kept)


def test_missing_tensor(folder: Path, family: Family) -> None:
    """A norm of the first layer, or of the first convolution, under the name of today."""
    tensors = read_tensors(folder)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 1 and ".0." in name and "inv_freq" not in name)
    rows = family.rows_of(open_(folder, family).cfg.encoder)
    missing = next(row.source for row in rows if find(row, {name}, family.base_prefix))
    edit_tensors(folder, **{name.replace(".", "__"): None})
    refused(folder, family, WeightsError, str(folder / SAFETENSORS), missing, "lacks 1 tensors")


def test_truncated(folder: Path, family: Family) -> None:
    path = folder / SAFETENSORS
    path.write_bytes(path.read_bytes()[:-100])
    last = list(read_header(path))[-1]
    refused(folder, family, WeightsError, str(path), "is truncated", last)


def read_header(path: Path) -> dict[str, Any]:
    """What a file says of its tensors, in the order in which they lie."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return dict(sorted(header.items(), key=lambda entry: entry[1]["data_offsets"][1]))


def test_missing_shard(folder: Path, family: Family) -> None:
    tensors = read_tensors(folder)
    (folder / SAFETENSORS).unlink()
    write_shards(tensors, folder, SAFETENSORS, save_file)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    refused(folder, family, CheckpointNotFoundError, str(shard), "is missing", list(tensors)[1])


@pytest.mark.parametrize("family", TEXT, ids=lambda family: family.model_type)
def test_missing_tokenizer_files(folder: Path, family: Family) -> None:
    model = open_(folder, family)
    with pytest.raises(TokenizerMissingError, match=r"its folder held no tokenizer files \(tokenizer\.json, vocab\.txt"):
        model("some text")
    assert model(tiny_batch()["tokens"], "hidden").isfinite().all()


def test_swapped_folders(folder: Path, family: Family, saved: Callable[[str], tuple[Any, Path]]) -> None:
    """Another family's weights beside this one's configuration."""
    other = REGISTRY["distilbert" if family.model_type != "distilbert" else "albert"]
    shutil.copy(saved(class_of(other))[1] / SAFETENSORS, folder / SAFETENSORS)
    said = (str(folder / SAFETENSORS), str(folder / "config.json"), f"named like those of {other.name}", f"says {family.name}")
    refused(folder, family, WeightsError, *said)


def test_configuration_of_another_family(folder: Path, family: Family, saved: Callable[[str], tuple[Any, Path]]) -> None:
    """Its configuration beside this one's weights."""
    other = REGISTRY["distilbert" if family.model_type != "distilbert" else "albert"]
    shutil.copy(saved(class_of(other))[1] / "config.json", folder / "config.json")
    refused(folder, other, WeightsError, str(folder / SAFETENSORS), str(folder / "config.json"), f"says {other.name}")
