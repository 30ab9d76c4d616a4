"""Sequence: what attention, convolutions, positions and pooling need to know of a batch. Nothing else reads it.

Everything that depends on where a position lies goes through the methods here, so that a layout other than the padded
one is a change to this file, to HookPoint and to attention, and to no family.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """One padded batch.

    Attributes:
        batch, pos: the size of the batch, padding included.
        mask: True at real positions [batch pos]; None when every position is real.
    """

    batch: int
    pos: int
    mask: Bool[Tensor, "batch pos"] | None = None

    def part(self, rows: slice) -> "Sequence":
        """Some of its sequences, copied, without positions at the end that are padding in all of them."""
        if self.mask is None:
            return Sequence(len(range(self.batch)[rows]), self.pos)
        mask = self.mask[rows]
        pos = int(mask.any(0).nonzero().max()) + 1
        mask = mask[:, :pos].clone()
        return Sequence(len(mask), pos, None if bool(mask.all()) else mask)

    @property
    def key_mask(self) -> Bool[Tensor, "batch 1 1 pos"] | None:
        """True where a key may be attended to, broadcast over heads and queries; None when all may."""
        return None if self.mask is None else self.mask[:, None, None, :]

    def position_rows(self, table: Float[Tensor, "n_ctx d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Row i of a table of positions for position i, as a view that repeats it over the batch."""
        return table[: self.pos].expand(self.batch, -1, -1)

    def zeroed(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """x with zeros at padding."""
        return x if self.mask is None else x.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def first(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """The stream at each sequence's first position ([CLS])."""
        return resid[:, 0]


def at_positions(x: Float[Tensor, "batch pos width"], at: Int[Tensor, "batch k"]) -> Float[Tensor, "batch k width"]:
    """x at some positions of each sequence."""
    index = at.to(x.device).unsqueeze(-1)
    return x.gather(1, index.expand(-1, -1, x.shape[-1]))
