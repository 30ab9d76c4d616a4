"""Attention with a learned bias for how far a key lies from a query (Raffel et al. 2020), shared by all layers."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens.components.attention import Attention
from encoderlens.components.linear import Component, WeightView
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Scores


class RelativeBias(Component):
    """A number a head for each bucket of distances: single ones when near, logarithmic when far, half of them to each side.

    Args:
        max_distance: from here on, everything is in the last bucket.
    """

    W_rel = WeightView("weight")

    def __init__(self, n_heads: int, n_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = torch.nn.Parameter(torch.empty(n_buckets, n_heads))

    def forward(self, sequence: Sequence) -> Float[Tensor, "head query key"]:
        weight = self.weight
        key = ("relative buckets", len(weight), self.max_distance, weight.device)
        buckets = sequence.once(key, lambda: self.buckets(sequence.pos, weight.device))
        return F.embedding(buckets, weight).permute(2, 0, 1)

    def buckets(self, n_positions: int, device: torch.device | None = None) -> Int[Tensor, "query key"]:
        """The bucket of each pair of positions."""
        at = torch.arange(n_positions, device=device)
        ahead = at - at.unsqueeze(1)
        half = len(self.weight) // 2
        near, distance = half // 2, ahead.abs()
        spread = torch.log(distance.float() / near) / math.log(self.max_distance / near)
        far = (near + (spread * (half - near)).long()).clamp_max(half - 1)
        return half * (ahead > 0) + torch.where(distance < near, distance, far)


class RelativeBiasAttention(Attention):
    """``softmax(q k^T / sqrt(d_head) + bias) v``, the bias one of the distance between query and key."""

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        bias: bool,
        dropout: float,
        d_model: int,
        relative: RelativeBias,
    ) -> None:
        super().__init__(n_heads, n_kv_heads, d_head, bias, dropout, d_model)
        self.relative = relative
        self.hook_rel_bias = HookPoint("batch head query key")

    def relative_scores(self, q: Tensor, k: Tensor, sequence: Sequence) -> Scores:
        return self.hook_rel_bias(self.relative(sequence).expand(sequence.batch, -1, -1, -1))
