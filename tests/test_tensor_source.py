"""Reading weights: every format gives the same tensors, and damaged files say what is wrong with them."""

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoderlens.errors import CheckpointNotFoundError, WeightsError
from encoderlens.tensor_source import MemorySource, SafetensorsSource, open_bin, open_folder, shard_names
from tests.checkpoints import BIN, FORMATS, SAFETENSORS, save_old_bin, write_shards

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 3, generator=generator),
        "a.bias": torch.randn(7, generator=generator),
        "half": torch.randn(5, 2, generator=generator).half(),
        "scalar": torch.randn((), generator=generator),
        "ids": torch.arange(6)[None],
        "empty": torch.empty(0, 3),
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tensors(kind: str, tensors: dict[str, Tensor], tmp_path: Path):
    FORMATS[kind](tensors, tmp_path)
    source = open_folder(tmp_path)
    assert source.tensors.keys() == tensors.keys()
    for name, expected in tensors.items():
        info = source.tensors[name]
        assert (info.shape, info.dtype) == (tuple(expected.shape), expected.dtype)
        assert (tmp_path / info.origin).is_file()
        whole = source.read(name, 0, len(expected) if expected.ndim else 1)
        assert torch.equal(whole, expected)
        target = torch.empty_like(expected)
        source.read_into(name, target)
        assert torch.equal(target, expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_can_be_read_alone(kind: str, tensors: dict[str, Tensor], tmp_path: Path):
    FORMATS[kind](tensors, tmp_path)
    source = open_folder(tmp_path)
    assert torch.equal(source.read("a.weight", 2, 5), tensors["a.weight"][2:5])
    assert torch.equal(source.read("half", 4, 5), tensors["half"][4:5])
    first = torch.empty(3, 3)
    source.read_into("a.weight", first)
    assert torch.equal(first, tensors["a.weight"][:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_of_every_dtype(dtype: torch.dtype, tmp_path: Path):
    stored = {"odd": torch.ones(1, dtype=torch.uint8), "x": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)}
    save_file(stored, tmp_path / "x.safetensors")
    source = SafetensorsSource(tmp_path / "x.safetensors")
    assert source.tensors["x"].dtype == dtype
    assert torch.equal(source.read("x", 1, 2), stored["x"][1:])


def test_memory_source_reads_without_autograd():
    weight = torch.nn.Parameter(torch.randn(4, 2))
    source = MemorySource({"w": weight}, "a state dict")
    assert source.tensors["w"].origin == "a state dict"
    assert not source.read("w", 0, 4).requires_grad


@pytest.mark.parametrize("present", [SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json"])
def test_safetensors_come_before_bin_and_one_file_before_shards(present: str, tmp_path: Path):
    order = [SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json"]
    writers = [
        lambda folder: save_file({"x": torch.tensor([0.0])}, folder / SAFETENSORS),
        lambda folder: write_shards({name: torch.tensor([1.0]) for name in "xyz"}, folder, SAFETENSORS, save_file),
        lambda folder: torch.save({"x": torch.tensor([2.0])}, folder / BIN),
        lambda folder: write_shards({name: torch.tensor([3.0]) for name in "xyz"}, folder, BIN, torch.save),
    ]
    rank = order.index(present)
    for write in writers[rank:]:
        write(tmp_path)
    assert open_folder(tmp_path).read("x", 0, 1).item() == rank


def test_folder_without_weights(tmp_path: Path):
    with pytest.raises(CheckpointNotFoundError, match=r"holds no weights: expected one of model\.safetensors, .*pytorch_model"):
        open_folder(tmp_path)


# Damaged safetensors files


def _safetensors(header: Any, values: bytes = b"\0" * 64) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + values


def _entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file, or is cut off inside its header"),
        (b"\x08\0\0", "cut off inside its header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (_safetensors(_entry())[:30], "cut off inside its header; download or copy it again"),
        (_safetensors(b"\xff\xfe{}"), "its header is not JSON; download"),
        (_safetensors(b"{'w': 1}"), "its header is not JSON; download"),
        (_safetensors([1, 2]), "its header is not a JSON object"),
        (_safetensors({"w": "F32"}), "the header says of w 'F32', not its dtype, shape and data_offsets"),
        (_safetensors({"w": {"dtype": "F32", "shape": [2]}}), "the header says of w .*not its dtype, shape and data_offsets"),
        (_safetensors(_entry(dtype=None)), "the header says of w"),
        (_safetensors(_entry(shape=[-2])), "the header says of w"),
        (_safetensors(_entry(data_offsets=[0, 8, 9])), "the header says of w"),
        (_safetensors(_entry(data_offsets=[-8, 0])), "the header says of w"),
        (_safetensors(_entry(shape=[3])), "the header gives w 8 bytes, not what its shape needs"),
        (_safetensors(_entry(data_offsets=[8, 0])), "the header gives w -8 bytes"),
        (
            _safetensors(_entry(dtype="F8_E4M3", data_offsets=[0, 2])),
            "w has dtype F8_E4M3; supported are F64, F32, .* quantised, take those",
        ),
        (_safetensors(_entry(), b"\0" * 7), r"is truncated: its header needs \d+ bytes \(up to w\), it has \d+; download"),
    ],
)
def test_damaged_safetensors(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        SafetensorsSource(path)
    assert str(path) in str(caught.value)


def test_truncated_safetensors_names_the_last_tensor(tensors: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / SAFETENSORS
    save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        WeightsError, match=rf"truncated: its header needs {len(content):,} bytes .*it has {len(content) - 1:,}"
    ):
        SafetensorsSource(path)


def test_file_that_shrinks_while_it_is_read(tensors: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / SAFETENSORS
    save_file(tensors, path)
    source = SafetensorsSource(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"ended inside a\.weight: the file changed while it was read"):
        source.read_into("a.weight", torch.empty(7, 3))


# Damaged .bin files


@pytest.mark.parametrize("save", [torch.save, save_old_bin], ids=["zip", "old"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_bin(save: Any, kept: float, tensors: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / BIN
    save(tensors, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(WeightsError, match=r"it is truncated, .*; download it again") as caught:
        open_bin(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"not a pickle at all", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_bin_that_never_was_one(content: bytes, tmp_path: Path):
    path = tmp_path / BIN
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot be read as a PyTorch state dict.*git lfs pull.*safetensors"):
        open_bin(path)


RAN: list[str] = []


class _Code:
    """Unpickling it would run a function of ours."""

    def __reduce__(self) -> tuple:
        return RAN.append, ("code",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("held", [{"w": _Code()}, _Code(), torch.nn.Linear(2, 2)], ids=["entry", "object", "module"])
def test_pickled_code_is_not_run(held: Any, old: bool, tmp_path: Path):
    path = tmp_path / BIN
    torch.save(held, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        open_bin(path)
    assert RAN == []
    assert "weights_only" not in str(caught.value), "the message must not teach how to run the code"


@pytest.mark.parametrize(
    "held", [{"w": torch.ones(2), "epoch": 3}, {"state_dict": {"w": torch.ones(2)}}, [torch.ones(2)], torch.ones(2)]
)
def test_bin_that_holds_something_else(held: Any, tmp_path: Path):
    torch.save(held, tmp_path / BIN)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin does not hold a state dict \(names and tensors\)"):
        open_bin(tmp_path / BIN)


def test_plain_pickle_is_no_state_dict(tmp_path: Path):
    (tmp_path / BIN).write_bytes(pickle.dumps({"w": 1}, protocol=2))
    with pytest.raises(WeightsError, match="cannot be read as a PyTorch state dict"):
        open_bin(tmp_path / BIN)


# Shards


@pytest.mark.parametrize("kind", ["safetensors shards", "bin shards"])
def test_missing_shard(kind: str, tensors: dict[str, Tensor], tmp_path: Path):
    FORMATS[kind](tensors, tmp_path)
    shard = next(tmp_path.glob("*00002-of*"))
    shard.unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=rf"{shard.name} is missing: .*index\.json keeps 2 tensors there, a\.bias"
    ):
        open_folder(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors shards", "bin shards"])
def test_shard_that_lacks_a_tensor_of_the_index(kind: str, tensors: dict[str, Tensor], tmp_path: Path):
    FORMATS[kind](tensors, tmp_path)
    second, third = sorted(tmp_path.glob("*-of-00003*"))[1:]
    shutil.copy(third, second)
    with pytest.raises(WeightsError, match=rf"{second.name} lacks a\.bias, which .*index\.json keeps there"):
        open_folder(tmp_path)


def test_truncated_shard_names_itself(tensors: dict[str, Tensor], tmp_path: Path):
    FORMATS["safetensors shards"](tensors, tmp_path)
    shard = next(tmp_path.glob("*00002-of*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"{shard.name} is truncated"):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": null}', '{"weight_map": ["a"]}', "\u00e9"])
def test_index_that_is_none(content: str, tmp_path: Path):
    index = tmp_path / f"{SAFETENSORS}.index.json"
    index.write_text(content, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json is no shard index: it needs .* weight_map"):
        shard_names(index)
