"""Contacts: which positions touch in space, read from the attention between them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Scores


class ContactHead(Component):
    """``sigmoid(sum_h W_h F_h + b)``: the probability that two positions touch (Rao et al. 2021).

    ``F_ij = S_ij - S_i S_j / S`` is the attention ``S_ij = A_ij + A_ji`` between two positions beyond what each of them has
    with all (``S_i`` is a row's sum, ``S`` that of all rows; Dunn et al. 2008), of head h of all layers' heads.

    A head without any such attention has the feature 0. The token in front and the last position are left out, and attention
    from and to padding, or the end of a sequence, is zero.

    Args:
        eos: the id of the token at the end of each sequence.
        n_layers, n_heads: whose patterns are read.
    """

    W = WeightView("regression.weight", "1 (layer head) -> layer head")
    b = WeightView("regression.bias")

    def __init__(self, eos: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.eos = n_heads, eos
        self.regression = Linear(n_layers * n_heads, 1)
        self.hook_features = HookPoint("batch layer_head residue residue")
        self.hook_out = HookPoint("batch residue residue")

    def forward(
        self, patterns: list[Scores], tokens: Int[Tensor, "batch pos"], sequence: Sequence
    ) -> Float[Tensor, "batch residue residue"]:
        """The probability of each pair, residue i being position i + 1.

        Args:
            patterns: of each layer.
        """
        inside = self.inside(tokens, sequence)
        outside = ~(inside.unsqueeze(1) & inside.unsqueeze(2)).unsqueeze(1)
        attention = torch.cat([pattern.masked_fill(outside, 0.0) for pattern in patterns], 1)[..., 1:-1, 1:-1]
        features = self.hook_features(_corrected(attention + attention.mT))
        logits = torch.einsum("bhij,h->bij", features, self.W.flatten()) + self.b
        return self.hook_out(logits).sigmoid()

    def inside(self, tokens: Int[Tensor, "batch pos"], sequence: Sequence) -> Bool[Tensor, "batch pos"]:
        """True at positions that are neither padding nor the end of a sequence."""
        inside = tokens != self.eos
        return inside if sequence.mask is None else inside & sequence.mask


def _corrected(attention: Float[Tensor, "*rows residue residue"]) -> Float[Tensor, "*rows residue residue"]:
    """The average product correction (Dunn et al. 2008). Of attention that is zero everywhere there is nothing to correct."""
    rows, columns = attention.sum(-1, keepdim=True), attention.sum(-2, keepdim=True)
    empty = (attention == 0).all(-1, keepdim=True).all(-2, keepdim=True)
    return attention - rows * (columns / attention.sum((-2, -1), keepdim=True).masked_fill(empty, 1.0))
