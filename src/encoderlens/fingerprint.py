"""Which weights a model has: a hash of what they hold, and whether they have changed since some time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_Stamp = tuple[int | None, int, torch.dtype]  # how often a tensor was written to, where it lies, and as what
_digests = WeakTensorKeyDictionary()  # of tensors that were hashed before, each with its stamp


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and contents of a model's parameters and buffers, as 64 hexadecimal digits.

    It is the same on every device. What has been hashed before is hashed again only if it has changed since. A change by way
    of ``tensor.data`` is not seen; edit under ``torch.no_grad()``.
    """
    whole = hashlib.sha256()
    for name, tensor in _weights(model):
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {_digest(tensor)}\n".encode())
    return whole.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _digest(tensor: Tensor) -> str:
    stamp = _stamp(tensor)
    known = _digests.get(tensor)
    if known is not None and known[0] == stamp:
        return known[1]
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.sha256(values.numpy().data).hexdigest()
    if stamp[0] is not None:
        _digests[tensor] = (stamp, digest)
    return digest


def _stamp(tensor: Tensor) -> _Stamp:
    version = None if tensor.is_inference() else tensor._version  # those of inference mode do not count
    return version, tensor.data_ptr(), tensor.dtype


class WeightsOfRun:
    """What a model's weights were when it ran: enough to tell whether they have changed since, and no copy of them.

    Moving the model to another device does not change its weights; casting it to another dtype does. A change by way of
    ``tensor.data`` is not seen.

    Args:
        model: the model.
        changed: modules, by name, whose weights had changed since the run already.
    """

    def __init__(self, model: Any, changed: Set[str] = frozenset()) -> None:
        self.model = model
        self.moves = model.moves
        self._changed = changed
        self._seen = {name: _seen(module) for name, module in modules_with_weights(model)}

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
            if name in self._changed or not self._same(before, now):
                yield name

    def _same(self, before: "_Seen", now: list[Tensor]) -> bool:
        if len(before) != len(now):
            return False
        return all(self._unchanged(*seen, tensor) for seen, tensor in zip(before, now, strict=True))

    def _unchanged(self, seen: ReferenceType[Tensor], stamp: _Stamp, tensor: Tensor) -> bool:
        if seen() is not tensor:
            return False
        version, place, dtype = stamp
        new_version, new_place, new_dtype = _stamp(tensor)
        same_place = place == new_place or self.moves != self.model.moves
        return version == new_version and same_place and dtype == new_dtype


_Seen = tuple[tuple[ReferenceType[Tensor], _Stamp], ...]


def _holds_weights(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _own(module: nn.Module) -> list[Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def modules_with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of ``model.named_modules()`` that have parameters or buffers of their own, in a fraction of its time, as every
    cached run asks for them.
    """
    seen: set[nn.Module] = set()
    left: list[tuple[str, nn.Module]] = [("", model)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if _holds_weights(module):
            yield name, module
        if module._modules:
            prefix = f"{name}." if name else ""
            inside = [(prefix + own, child) for own, child in module._modules.items() if child is not None and _may_hold(child)]
            left += reversed(inside)


def _may_hold(module: nn.Module) -> bool:
    """Whether a module or one inside it may have weights; most modules of an encoder are hook points, which have none."""
    return bool(module._modules or module._parameters or module._buffers)


def _seen(module: nn.Module) -> _Seen:
    return tuple((ref(tensor), _stamp(tensor)) for tensor in _own(module))
