"""Where weights are read from: safetensors and ``.bin`` files, single or sharded, or tensors in memory.

A safetensors file is read straight into the parameters' memory: no second copy, and no memory map that would die when the
file is saved over. Pickles are opened with ``weights_only=True`` only.
"""

import json
import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from encoderlens import state_dicts
from encoderlens.errors import CheckpointNotFoundError, WeightsError
from encoderlens.given import described, fault_of

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor without reading it.

    Attributes:
        origin: the file, or what else holds it.
        fault: why it cannot be read, and the remedy; empty if it can.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    fault: str = ""


class TensorSource(ABC):
    """Named tensors that can be read by rows."""

    tensors: dict[str, TensorInfo]

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of the first axis (of a scalar: all of it)."""

    @abstractmethod
    def read_into(self, name: str, target: Tensor, start: int = 0) -> None:
        """``len(target)`` rows from ``start`` on, into a contiguous CPU tensor of the stored dtype."""


class MemorySource(TensorSource):
    """Tensors that are in memory already, such as a state dict.

    Raises:
        WeightsError: for what is no tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise WeightsError(
                    f"{origin}: {name} is {described(value)}, not a tensor. If the model is quantised, take the one that it "
                    "was made from"
                )
        self._values = tensors
        self.tensors = {name: TensorInfo(_shape(value), value.dtype, origin, _fault(value)) for name, value in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        value = self._values[name].detach()
        return value[start:stop] if value.ndim else value

    def read_into(self, name: str, target: Tensor, start: int = 0) -> None:
        target.copy_(self.read(name, start, start + (len(target) if target.ndim else 1)))


def _shape(value: Tensor) -> tuple[int, ...]:
    """A tensor's shape; empty for one that has none, which cannot be read either."""
    return () if value.is_nested or is_lazy(value) else tuple(value.shape)


def _fault(value: Tensor) -> str:
    """Why a weight in memory cannot be read, and the remedy; empty if it can."""
    if type(value) in (Tensor, nn.Parameter) or is_lazy(value):
        return fault_of(value)
    return f"is a {type(value).__name__}, not a plain tensor: make one of it first (dequantise it, or gather its shards)"


class SafetensorsSource(TensorSource):
    """One safetensors file.

    Raises:
        WeightsError: if the file is no safetensors file, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start, header = _read_header(path)
        self._offsets = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        self.tensors = {
            name: TensorInfo(tuple(entry["shape"]), _dtype(entry["dtype"], name, path), str(path))
            for name, entry in header.items()
        }
        self._check_size()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        info = self.tensors[name]
        rows = (stop - start, *info.shape[1:]) if info.shape else ()
        values = torch.empty(rows, dtype=info.dtype)
        self._fill(name, values, skip=start)
        return values

    def read_into(self, name: str, target: Tensor, start: int = 0) -> None:
        self._fill(name, target, skip=start)

    def _fill(self, name: str, target: Tensor, skip: int) -> None:
        row_bytes = math.prod(self.tensors[name].shape[1:]) * target.element_size()
        memory = target.detach().flatten().view(torch.uint8).numpy().data
        with self.path.open("rb") as file:
            file.seek(self._start + self._offsets[name][0] + skip * row_bytes)
            if file.readinto(memory) != len(memory):
                raise WeightsError(f"{self.path} ended inside {name}: the file changed while it was read; load it again")

    def _check_size(self) -> None:
        for name, (begin, end) in self._offsets.items():
            info = self.tensors[name]
            if end - begin != math.prod(info.shape) * info.dtype.itemsize:
                raise WeightsError(f"{self.path}: the header gives {name} {end - begin} bytes, not what its shape needs")
        needed = self._start + max((end for _, end in self._offsets.values()), default=0)
        actual = self.path.stat().st_size
        if actual < needed:
            last = max(self._offsets, key=lambda name: self._offsets[name][1])
            raise WeightsError(
                f"{self.path} is truncated: its header needs {needed:,} bytes (up to {last}), it has {actual:,}; "
                "download or copy it again"
            )


def _read_header(path: Path) -> tuple[int, dict]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise WeightsError(
                f"{path} is no safetensors file, or is cut off inside its header; download or copy it again (after a git "
                "clone: git lfs pull)"
            )
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise WeightsError(f"{path} is no safetensors file: its header is not JSON; download or copy it again") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} is no safetensors file: its header is not a JSON object; download or copy it again")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise WeightsError(f"{path}: the header says of {name} {entry!r}, not its dtype, shape and data_offsets")
    return 8 + length, header


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and _are_counts(entry.get("shape"))
        and _are_counts(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, int) and value >= 0 for value in values)


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise WeightsError(
            f"{path}: {tensor} has dtype {name}; supported are {', '.join(_DTYPES)}. If the weights are quantised, take "
            "those that they were made from"
        )
    return _DTYPES[name]


def open_bin(path: Path) -> MemorySource:
    """A ``.bin`` file (``torch.save`` of a state dict), mapped where its format allows.

    Raises:
        WeightsError: if it is truncated, or holds anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever the byte at which it breaks leads to
        raise WeightsError(
            f"{path} cannot be read as a PyTorch state dict: it is truncated, holds more than tensors, or was never written by "
            "torch.save; download it again (after a git clone: git lfs pull), or convert it to safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a state dict (names and tensors)")
    return MemorySource(state, str(path))


class ShardedSource(TensorSource):
    """Several files that an index lists."""

    def __init__(self, shards: Iterable[TensorSource]) -> None:
        self._shard_of = {name: shard for shard in shards for name in shard.tensors}
        self.tensors = {name: shard.tensors[name] for name, shard in self._shard_of.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._shard_of[name].read(name, start, stop)

    def read_into(self, name: str, target: Tensor, start: int = 0) -> None:
        self._shard_of[name].read_into(name, target, start)


class NamedSource(TensorSource):
    """Tensors of other sources, under other names.

    Args:
        found: by the name here, the source and the name there.
    """

    def __init__(self, found: Mapping[str, tuple[TensorSource, str]]) -> None:
        self._found = found
        self.tensors = {name: source.tensors[own] for name, (source, own) in found.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        source, own = self._found[name]
        return source.read(own, start, stop)

    def read_into(self, name: str, target: Tensor, start: int = 0) -> None:
        source, own = self._found[name]
        source.read_into(own, target, start)


class JoinedSource(NamedSource):
    """Several sources, each under a prefix of its own."""

    def __init__(self, sources: Mapping[str, TensorSource]) -> None:
        super().__init__({f"{prefix}{name}": (source, name) for prefix, source in sources.items() for name in source.tensors})


def without_wrappers(source: TensorSource, where: str) -> TensorSource:
    """A source without what wrappers such as torch.compile and DataParallel have added to its names.

    Raises:
        WeightsError: for two names that would become one.
    """
    names = state_dicts.without_wrappers(source.tensors, where)
    return NamedSource({name: (source, stored) for name, stored in names.items()})


_OPENERS: dict[str, Callable[[Path], TensorSource]] = {"model.safetensors": SafetensorsSource, "pytorch_model.bin": open_bin}
INDEX = ".index.json"
WEIGHT_FILES = tuple(f"{name}{end}" for name in _OPENERS for end in ("", INDEX))


def open_folder(folder: Path) -> TensorSource:
    """The weights of a checkpoint folder: safetensors before ``.bin``, a single file before shards.

    Raises:
        CheckpointNotFoundError: without weights, or without a shard that the index lists.
        WeightsError: for a file that is truncated or not what it should be.
    """
    for name in WEIGHT_FILES:
        path = folder / name
        if not path.is_file():
            continue
        open_file = _OPENERS[name.removesuffix(INDEX)]
        source = _open_shards(path, open_file) if name.endswith(INDEX) else open_file(path)
        return without_wrappers(source, str(path))
    raise CheckpointNotFoundError(f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")


def shard_names(index: Path) -> dict[str, list[str]]:
    """The tensors of each shard that an index file lists."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {str(shard): [] for shard in weight_map.values()}
        for tensor, shard in weight_map.items():
            shards[str(shard)].append(tensor)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{index} is no shard index: it needs a JSON object with a weight_map of tensors and files"
        ) from error
    return shards


def _open_shards(index: Path, open_file: Callable[[Path], TensorSource]) -> ShardedSource:
    shards = []
    for name, tensors in shard_names(index).items():
        path = index.parent / name
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"{path} is missing: {index.name} keeps {len(tensors)} tensors there, {tensors[0]} among them; download it"
            )
        shard = open_file(path)
        absent = [tensor for tensor in tensors if tensor not in shard.tensors]
        if absent:
            raise WeightsError(f"{path} lacks {absent[0]}, which {index.name} keeps there")
        shards.append(shard)
    return ShardedSource(shards)
