"""Bidirectional multi-head attention (Vaswani et al. 2017)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoderlens.components.freezing import Freezable
from encoderlens.components.linear import Linear, WeightView
from encoderlens.components.residual import Writer
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import HeadVectors, Stream


class Attention(Writer, Freezable):
    """``softmax(q k^T / sqrt(d_head)) v``, heads joined by ``W_O``.

    With a hook on scores or pattern the pattern is computed explicitly, otherwise by ``scaled_dot_product_attention``.
    Padded keys have score minus infinity. Frozen, the pattern takes no gradient.
    """

    quantity = "pattern"
    part, parts_axis, bias_name = "H", -2, "b_O"

    W_Q = WeightView("q.weight", "(head d_head) d_model -> head d_model d_head")
    W_K = WeightView("k.weight", "(head d_head) d_model -> head d_model d_head")
    W_V = WeightView("v.weight", "(head d_head) d_model -> head d_model d_head")
    W_O = WeightView("o.weight", "d_model (head d_head) -> head d_head d_model")
    b_Q = WeightView("q.bias", "(head d_head) -> head d_head")
    b_K = WeightView("k.bias", "(head d_head) -> head d_head")
    b_V = WeightView("v.bias", "(head d_head) -> head d_head")
    b_O = WeightView("o.bias")

    def __init__(self, n_heads: int, d_head: int, dropout: float, d_model: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_head
        self.dropout = dropout
        self.q = Linear(d_model, n_heads * d_head)
        self.k = Linear(d_model, n_heads * d_head)
        self.v = Linear(d_model, n_heads * d_head)
        self.o = Linear(n_heads * d_head, d_model)
        self.hook_q = HookPoint("batch pos head d_head")
        self.hook_k = HookPoint("batch pos head d_head")
        self.hook_v = HookPoint("batch pos head d_head")
        self.hook_attn_scores = HookPoint("batch head query key")
        self.hook_pattern = HookPoint("batch head query key")
        self.hook_z = HookPoint("batch pos head d_head")
        self.hook_result = HookPoint("batch pos head d_model", on_demand="use_attn_result")

    def forward(
        self, q_input: Tensor, k_input: Tensor, v_input: Tensor, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_model"]:
        """Inputs are the stream [batch pos d_model], or one stream a head [batch pos head d_model]."""
        q = self.hook_q(self._project(q_input, self.q))
        k = self.hook_k(self._project(k_input, self.k))
        v = self.hook_v(self._project(v_input, self.v))
        z = self.hook_z(self._mix(q, k, v, sequence))
        if self.hook_result.active:
            result = self.hook_result(self.spread(z, self.W_O))
            return result.sum(-2) + self.o.bias
        return self.o(z.flatten(-2))

    def _project(self, x: Tensor, linear: Linear) -> HeadVectors:
        if x.ndim == 3:
            return linear(x).unflatten(-1, (self.n_heads, self.d_head))
        weight = linear.weight.unflatten(0, (self.n_heads, self.d_head))
        bias = linear.bias.unflatten(0, (self.n_heads, self.d_head))
        return torch.einsum("...hm,hdm->...hd", x, weight) + bias

    def _mix(self, q: HeadVectors, k: HeadVectors, v: HeadVectors, sequence: Sequence) -> HeadVectors:
        q, k, v = q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)
        dropout = self.dropout if self.training else 0.0
        if self.hook_attn_scores.active or self.hook_pattern.active or self.frozen:
            z = F.dropout(self._pattern(q, k, sequence), dropout) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=sequence.key_mask, dropout_p=dropout)
        return z.transpose(-3, -2)

    def _pattern(self, q: Tensor, k: Tensor, sequence: Sequence) -> Float[Tensor, "batch head query key"]:
        scores = (q * self.d_head**-0.5) @ k.mT
        if sequence.key_mask is not None:
            scores = scores.masked_fill(~sequence.key_mask, -torch.inf)
        return self.hook_pattern(self.hold(self.hook_attn_scores(scores).softmax(-1)))

    @property
    def parts_point(self) -> HookPoint:
        return self.hook_z

    @property
    def after_parts(self) -> list[HookPoint]:
        return [self.hook_result]

    @property
    def out_weight(self) -> Float[Tensor, "head d_head d_model"]:
        return self.W_O

    @property
    def out_bias(self) -> Float[Tensor, " d_model"]:
        return self.o.bias

    def spread(self, activation: HeadVectors, weight: Float[Tensor, "head d_head out"]) -> Float[Tensor, "*rows head out"]:
        return torch.einsum("...hd,hdm->...hm", activation, weight)

    def dot(self, activation: HeadVectors, gradient: Stream) -> Float[Tensor, "*rows head"]:
        return ((gradient @ self.o.weight).unflatten(-1, activation.shape[-2:]) * activation).sum(-1)


def split_heads(x: Stream, n_heads: int) -> Float[Tensor, "*rows head d_model"]:
    """The same stream for every head, as a view."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], n_heads, x.shape[-1])
