"""Sequence: what attention, convolutions, positions and pooling need to know of a batch. Nothing else reads it.

Everything that depends on where a position lies goes through the methods here, so that a layout other than the padded
one is a change to this file, to HookPoint and to attention, and to no family.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from reprlib import repr as short_repr
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoderlens.errors import InputError
from encoderlens.given import as_indices
from encoderlens.precision import at_least_float32


@dataclass(frozen=True)
class Sequence:
    """One padded batch.

    Attributes:
        batch, pos: the size of the batch, padding included.
        mask: True at real positions [batch pos]; None when every position is real.
        alone: each sequence gets what it would get alone: nothing of its padding, also where the checkpoint would let it in.
    """

    batch: int
    pos: int
    mask: Bool[Tensor, "batch pos"] | None = None
    alone: bool = False
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, x: Float[Tensor, "batch pos *width"] | Int[Tensor, "batch pos"]) -> "Sequence":
        """That of a batch in which every position is real."""
        return cls(x.shape[0], x.shape[1])

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made only once for all layers and runs: it depends on the key and on the sizes of the batch, and
        on no parameter.
        """
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():  # a later run may need gradients
                self._made[key] = make()
        return self._made[key]

    def part(self, rows: slice, pos: int) -> "Sequence":
        """Some of its sequences, copied, at the first so many positions."""
        mask = None if self.mask is None else self.mask[rows, :pos].clone()
        return Sequence(len(range(self.batch)[rows]), pos, None if mask is None or bool(mask.all()) else mask, self.alone)

    def at(self, device: torch.device) -> "Sequence":
        """The same where a model is now; itself, with what was made once, if it is there."""
        mask = usable(self.mask, device)
        return self if mask is self.mask else replace(self, mask=mask)

    @property
    def key_mask(self) -> Bool[Tensor, "batch 1 1 pos"] | None:
        """True where a key may be attended to, broadcast over heads and queries; None when all may."""
        return None if self.mask is None else self.mask[:, None, None, :]

    @property
    def open_at_padding(self) -> Bool[Tensor, "batch 1 pos pos"] | None:
        """As ``key_mask``, but a query at padding may attend to everything; None when every position is real."""
        mask = self.mask
        return None if mask is None else self.once("open at padding", lambda: (mask[:, None] | ~mask[:, :, None])[:, None])

    def window_mask(self, reach: int, device: torch.device) -> Bool[Tensor, "batch 1 #pos pos"] | None:
        """True where a key may be attended to and is at most ``reach`` positions away; at padding that has no such key, where
        it is the query's own position. None when all may; ``key_mask`` when all are near.
        """
        if reach >= self.pos - 1:
            return self.key_mask

        def make() -> Bool[Tensor, "batch 1 pos pos"]:
            near = torch.ones(1, 1, self.pos, self.pos, dtype=torch.bool, device=device).triu(-reach).tril(reach)
            if self.key_mask is None:
                return near
            allowed = near & self.key_mask
            return allowed | (~allowed.any(-1, keepdim=True) & torch.eye(self.pos, dtype=torch.bool, device=device))

        return self.once(("window", reach, device), make)

    def position_rows(self, table: Float[Tensor, "n_ctx d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Row i of a table of positions for position i, as a view that repeats it over the batch."""
        return table[: self.pos].expand(self.batch, -1, -1)

    def zeroed(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos *width"]:
        """x with zeros at padding."""
        return x if self.mask is None else x.masked_fill(~self.mask.view(*self.mask.shape, *[1] * (x.ndim - 2)), 0.0)

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True at real positions."""
        return torch.ones(self.batch, self.pos, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def lengths(self) -> list[int]:
        """How many real positions each sequence has."""
        return [self.pos] * self.batch if self.mask is None else self.mask.sum(1).tolist()

    def real_first(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """x with the real positions of each sequence, in their order, in front of its padding."""
        return x if self.mask is None else at_positions(x, (~self.mask).long().argsort(dim=1, stable=True))

    def mean(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch width"]:
        """The mean of x over real positions."""
        if self.mask is None:
            return x.mean(1)
        total = at_least_float32(self.zeroed(x)).sum(1)  # which soon leaves the range of float16
        return (total / self.mask.sum(1, keepdim=True)).to(x.dtype)

    def last(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch width"]:
        """x at each sequence's last real position."""
        if self.mask is None:
            return x[:, -1]
        at = self.pos - 1 - self.mask.flip(1).long().argmax(1)
        return at_positions(x, at.unsqueeze(1)).squeeze(1)

    def first(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """The stream at each sequence's first position ([CLS])."""
        return resid[:, 0]


def usable(tensor: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A tensor, or None, where it is needed and as what; itself if it is that already. Outside of inference mode a copy of one
    from there, which could not have gradients.
    """
    if tensor is None:
        return None
    moved = tensor.to(device, dtype)
    return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved


def at_positions(x: Float[Tensor, "batch pos width"], at: Int[Tensor, "batch k"]) -> Float[Tensor, "batch k width"]:
    """x at some positions of each sequence."""
    index = at.to(x.device).unsqueeze(-1)
    return x.gather(1, index.expand(-1, -1, x.shape[-1]))


def check_positions(at: Any, sequence: Sequence) -> Int[Tensor, "batch k"]:
    """Chosen positions of each sequence, counted from the start.

    Raises:
        InputError: for anything but an int, a list of ints or an integer tensor [k] or [batch k], all within the sequence.
    """
    wrong = f"logits_at is an int, a list of ints, or an integer tensor [k] or [batch k], not {short_repr(at)}"
    chosen = torch.atleast_1d(as_indices(at, "logits_at", wrong))
    if chosen.ndim > 2 or chosen.numel() == 0:
        raise InputError(wrong)
    if chosen.ndim == 2 and len(chosen) != sequence.batch:
        raise InputError(f"logits_at has {len(chosen)} rows, the input {sequence.batch}")
    low, high = (int(value) for value in torch.aminmax(chosen))
    if low < -sequence.pos or high >= sequence.pos:
        raise InputError(f"logits_at asks for positions {low} to {high}; the input has {sequence.pos}")
    return (chosen % sequence.pos).expand(sequence.batch, chosen.shape[-1])
