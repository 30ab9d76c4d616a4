"""Slice: one spelling for "these entries of that axis", as TransformerLens users know it."""

from collections.abc import Sequence
from reprlib import repr as short_repr
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoderlens.errors import InputError
from encoderlens.given import as_indices, is_whole

SliceInput = int | np.integer | slice | tuple[int | None, ...] | Sequence[int] | np.ndarray | Tensor | None


class Slice:
    """Entries along one axis: all of them, one (which drops the axis), a range or a list.

    Args:
        input_slice: None for all; an int for one entry (the axis goes); a tuple ``(stop,)``, ``(start, stop)`` or
            ``(start, stop, step)``, or a Python slice, for a range; a list, array or 1-D tensor of indices for a choice.

    Raises:
        InputError: for anything else.
    """

    def __init__(self, input_slice: SliceInput = None) -> None:
        self.index: slice | int | Tensor
        if input_slice is None:
            self.index = slice(None)
        elif is_whole(input_slice):
            self.index = int(input_slice)
        elif isinstance(input_slice, tuple | slice):
            self.index = _range(input_slice)
        else:
            self.index = _choice(input_slice)

    @classmethod
    def unwrap(cls, value: "Slice | SliceInput") -> "Slice":
        """A Slice as it is, anything else made into one; an int becomes a choice of one entry, so that the axis stays."""
        if isinstance(value, Slice):
            return value
        return cls([int(value)] if is_whole(value) else value)

    @property
    def selects_all(self) -> bool:
        return self.index == slice(None) if isinstance(self.index, slice) else False

    @property
    def drops_axis(self) -> bool:
        return isinstance(self.index, int)

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The selected entries of ``tensor`` along ``dim``.

        Raises:
            InputError: for an index that the axis does not have.
        """
        self._check(tensor.shape[dim])
        index = self.index
        index = index.to(tensor.device) if isinstance(index, Tensor) else index
        return tensor[(slice(None),) * (dim % tensor.ndim) + (index,)]

    def indices(self, length: int) -> Tensor:
        """The selected indices of an axis of this length, as a 1-D tensor."""
        return torch.atleast_1d(self.apply(torch.arange(length)))

    def _check(self, length: int) -> None:
        if isinstance(self.index, slice):
            return
        for index in self.index.tolist() if isinstance(self.index, Tensor) else [self.index]:
            if not -length <= index < length:
                raise InputError(f"a slice takes entry {index} of an axis that has {length}")

    def __repr__(self) -> str:
        return f"Slice({self.index!r})"


def _range(value: tuple[int | None, ...] | slice) -> slice:
    parts = value if isinstance(value, tuple) else (value.start, value.stop, value.step)
    whole = all(part is None or is_whole(part) for part in parts)
    if not 1 <= len(parts) <= 3 or not whole or (len(parts) == 3 and parts[2] is not None and parts[2] < 1):
        raise InputError(
            f"a slice tuple is (stop,), (start, stop) or (start, stop, step), of ints and with a positive step, not {value!r}"
        )
    return slice(*parts)


def _choice(value: Any) -> Tensor:
    wrong = f"a slice is an int, a tuple, None, or a one-dimensional list, array or tensor of ints, not {short_repr(value)}"
    index = as_indices(value, "a slice", wrong)
    if index.ndim != 1:
        raise InputError(wrong)
    return index.cpu()
