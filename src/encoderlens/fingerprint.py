"""Which weights a model has: a hash of what they hold, and whether they have changed since some time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from operator import itemgetter
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from encoderlens.errors import WeightsError
from encoderlens.module_tree import modules_with_weights
from encoderlens.precision import same_numbers

SAMPLE = 256  # numbers of each tensor that are compared


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and contents of a model's parameters and buffers, as 64 hexadecimal digits.

    It is the same on every device, and in whatever order they were registered. Every number is read each time.

    Raises:
        WeightsError: for a model on the meta device.
    """
    whole, digests = hashlib.sha256(), {}
    for name, tensor in sorted(_weights(model), key=itemgetter(0)):
        if tensor.is_meta:
            raise WeightsError(f"{name} is on the meta device, which holds no numbers: load weights into a model elsewhere")
        if id(tensor) not in digests:
            digests[id(tensor)] = _digest(tensor)
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {digests[id(tensor)]}\n".encode())
    return whole.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each of them under all of its names, of which there are several where modules share it."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()


class WeightsOfRun:
    """What a model's weights were when it ran: enough to tell whether they have changed since, and no copy of them.

    A weight has changed if it is another tensor, if torch has counted a write into it, or if one of
    some numbers in it, evenly spread, is another. Moving the model to another device does not change
    its weights; casting it to another dtype does, and so does a cast there and back that rounds them.

    What torch does not count (fused optimizers, ``tensor.data``, arrays that share a weight's memory)
    is seen by these numbers alone. Not seen is an uncounted change of a few others, such as a fused
    optimizer's step on some rows of an embedding; and what a parametrization computes with beside
    parameters and buffers. A fingerprint sees every number.

    Args:
        model: the model.
        changed: modules, by name, whose weights had changed since the run already.
    """

    def __init__(self, model: Any, changed: Set[str] = frozenset()) -> None:
        self.model = model
        self._changed = changed
        self._seen = _stamps({name: _own(module) for name, module in modules_with_weights(model)})

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a cache has a copy of the model
        return WeightsOfRun, (self.model, frozenset(self.changed_in(self._seen)))

    def changed_in(self, names: Iterable[str], modules: Mapping[str, nn.Module] | None = None) -> Iterator[str]:
        """Those of these modules, by name, whose own weights have changed since the run.

        Args:
            names: of the modules.
            modules: what ``modules_with_weights`` gives of the model now; None to look it up.
        """
        modules = dict(modules_with_weights(self.model)) if modules is None else modules
        for name in names:
            before = self._seen.get(name, ())
            now = _own(modules[name]) if name in modules else []
            if name in self._changed or not _same(before, now):
                yield name


class _Stamp:
    """A tensor, as it was.

    Args:
        tensor: the tensor, which is not kept.
        numbers: some numbers of it.
    """

    def __init__(self, tensor: Tensor, numbers: Tensor) -> None:
        self._tensor: ReferenceType[Tensor] = ref(tensor)
        self._version, self._dtype, self._numbers = _version(tensor), tensor.dtype, numbers

    def is_of(self, tensor: Tensor) -> bool:
        """Whether this is the tensor, and nothing in it is seen to have changed."""
        if self._tensor() is not tensor or self._version != _version(tensor) or self._dtype != tensor.dtype:
            return False
        return tensor.is_meta or self._numbers.is_meta or same_numbers(self._numbers, _sample(tensor))


def _version(tensor: Tensor) -> int | None:
    """How often torch has counted a write into a tensor; it does not count for those of inference mode."""
    return None if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> Tensor:
    """Some numbers of a tensor, which may be a view of it."""
    return tensor.detach().reshape(-1)[:: tensor.numel() // SAMPLE | 1]  # at an odd distance: not all of one column


def _stamps(tensors: Mapping[str, list[Tensor]]) -> dict[str, tuple[_Stamp, ...]]:
    """A stamp of each tensor. Numbers of the same kind are copied at once, as every cached run does that."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in (one for of_module in tensors.values() for one in of_module):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    numbers: dict[int, Tensor] = {}
    for alike in kinds.values():
        samples = list(map(_sample, alike))
        copies = torch.cat(samples).split([len(sample) for sample in samples])
        numbers |= zip(map(id, alike), copies, strict=True)
    return {name: tuple(_Stamp(one, numbers[id(one)]) for one in of_module) for name, of_module in tensors.items()}


def _own(module: nn.Module) -> list[Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def _same(before: tuple[_Stamp, ...], now: list[Tensor]) -> bool:
    return len(before) == len(now) and all(stamp.is_of(tensor) for stamp, tensor in zip(before, now, strict=True))
