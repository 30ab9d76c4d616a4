"""Slice: one spelling for "these entries of that axis", as TransformerLens users know it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encoderlens.errors import InputError

SliceInput = int | tuple[int | None, ...] | Sequence[int] | np.ndarray | Tensor | None


class Slice:
    """Entries along one axis: all of them, one (which drops the axis), a range or a list.

    Args:
        input_slice: None for all; an int for one entry (the axis goes); a tuple ``(stop,)``, ``(start, stop)`` or
            ``(start, stop, step)`` for a range; a list, array or 1-D tensor of indices for a choice.

    Raises:
        InputError: for anything else.
    """

    def __init__(self, input_slice: SliceInput = None) -> None:
        self.index: slice | int | Tensor
        if input_slice is None:
            self.index = slice(None)
        elif isinstance(input_slice, bool):
            raise InputError(f"a slice is an int, a tuple, a list of ints or None, not {input_slice!r}")
        elif isinstance(input_slice, int):
            self.index = input_slice
        elif isinstance(input_slice, tuple):
            if not 1 <= len(input_slice) <= 3:
                raise InputError(f"a slice tuple is (stop,), (start, stop) or (start, stop, step), not {input_slice!r}")
            self.index = slice(*input_slice)
        else:
            self.index = torch.as_tensor(input_slice)
            if self.index.ndim != 1 or self.index.dtype in (torch.bool, torch.float32, torch.float64):
                raise InputError("a slice by list, array or tensor takes a one-dimensional choice of integer indices")

    @classmethod
    def unwrap(cls, value: "Slice | SliceInput") -> "Slice":
        """A Slice as it is, anything else made into one."""
        return value if isinstance(value, Slice) else cls(value)

    @property
    def selects_all(self) -> bool:
        return self.index == slice(None) if isinstance(self.index, slice) else False

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The selected entries of ``tensor`` along ``dim``."""
        index = self.index.to(tensor.device) if isinstance(self.index, Tensor) else self.index
        return tensor[(slice(None),) * (dim % tensor.ndim) + (index,)]

    def indices(self, length: int) -> Tensor:
        """The selected indices of an axis of this length, as a 1-D tensor."""
        return torch.atleast_1d(self.apply(torch.arange(length)))

    def __repr__(self) -> str:
        return f"Slice({self.index!r})"
