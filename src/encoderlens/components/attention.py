"""Bidirectional multi-head attention (Vaswani et al. 2017)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.freezing import Freezable
from encoderlens.components.linear import Linear, WeightView
from encoderlens.components.residual import Writer
from encoderlens.components.stand_ins import check_unhooked
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import HeadVectors, KVHeadVectors, Scores, Stream


class Attention(Writer, Freezable):
    """``softmax(q k^T / sqrt(d_head)) v``, heads joined by ``W_O``.

    With a hook on scores or pattern the pattern is computed explicitly, otherwise by ``scaled_dot_product_attention``.
    Padded keys have score minus infinity. Frozen, the pattern takes no gradient. Several heads may share a key and value head
    (Ainslie et al. 2023): head h reads key head ``h // (n_heads / n_kv_heads)``.

    Attention with positions of its own overrides ``placed`` (turned queries and keys), ``allowed`` (who sees whom) or
    ``relative_scores`` (what is added to the scores).

    Args:
        n_kv_heads: heads of keys and values.
        bias: whether its four layers have biases.
    """

    quantity = "pattern"
    part, parts_axis, bias_name = "H", -2, "b_O"

    W_Q = WeightView("q.weight", "(head d_head) d_model -> head d_model d_head")
    W_K = WeightView("k.weight", "(kv_head d_head) d_model -> kv_head d_model d_head")
    W_V = WeightView("v.weight", "(kv_head d_head) d_model -> kv_head d_model d_head")
    W_O = WeightView("o.weight", "d_model (head d_head) -> head d_head d_model")
    b_Q = WeightView("q.bias", "(head d_head) -> head d_head")
    b_K = WeightView("k.bias", "(kv_head d_head) -> kv_head d_head")
    b_V = WeightView("v.bias", "(kv_head d_head) -> kv_head d_head")
    b_O = WeightView("o.bias")

    def __init__(self, n_heads: int, n_kv_heads: int, d_head: int, bias: bool, dropout: float, d_model: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.d_head = d_head
        self.scale = d_head**-0.5
        self.dropout = dropout
        self.q = Linear(d_model, n_heads * d_head, bias)
        self.k = Linear(d_model, n_kv_heads * d_head, bias)
        self.v = Linear(d_model, n_kv_heads * d_head, bias)
        self.o = Linear(n_heads * d_head, d_model, bias)
        kv_axes = "batch pos head d_head" if n_kv_heads == n_heads else "batch pos kv_head d_head"
        self.hook_q = HookPoint("batch pos head d_head")
        self.hook_k = HookPoint(kv_axes)
        self.hook_v = HookPoint(kv_axes)
        self.hook_attn_scores = HookPoint("batch head query key")
        self.hook_pattern = HookPoint("batch head query key")
        self.hook_z = HookPoint("batch pos head d_head")
        self.hook_result = HookPoint("batch pos head d_model", on_demand="use_attn_result")

    def forward(
        self, q_input: Tensor, k_input: Tensor, v_input: Tensor, sequence: Sequence | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Inputs are the stream [batch pos d_model], or one stream for each (key and value) head [batch pos head d_model].
        Without a sequence, every position is real.
        """
        sequence = Sequence.of(q_input) if sequence is None else sequence
        q = self.hook_q(self._project(q_input, self.q))
        k = self.hook_k(self._project(k_input, self.k))
        v = self.hook_v(self._project(v_input, self.v))
        z = self.hook_z(self._mix(q, k, v, sequence))
        if self.hook_result.active:
            self._check_unhooked(self.o)
            result, bias = self.hook_result(self.spread(z, self.W_O)), self.out_bias
            return result.sum(-2) if bias is None else result.sum(-2) + bias
        return self.o(z.flatten(-2))

    def _project(self, x: Tensor, linear: nn.Module) -> HeadVectors:
        if x.ndim == 3:
            return linear(x).unflatten(-1, (-1, self.d_head))
        self._check_unhooked(linear)
        weight, bias = effective(linear), effective_bias(linear)
        projected = torch.einsum("...hm,hdm->...hd", x, weight.unflatten(0, (-1, self.d_head)))
        return projected if bias is None else projected + bias.unflatten(0, (-1, self.d_head))

    def _check_unhooked(self, layer: nn.Module) -> None:
        """Refuse hooks that act on a whole layer where its weights are used a head at a time."""
        check_unhooked(layer, f"a layer of {str(self.hook_z.name).removesuffix('.hook_z')}")

    def _mix(self, q: HeadVectors, k: KVHeadVectors, v: KVHeadVectors, sequence: Sequence) -> HeadVectors:
        q, k = self.placed(q, k, sequence)
        q, k, v = (x.transpose(-3, -2) for x in (q, self.per_head(k), self.per_head(v)))
        relative, allowed = self.relative_scores(q, k, sequence), self.allowed(sequence)
        dropout = self.dropout if self.training else 0.0
        if self.hook_attn_scores.active or self.hook_pattern.active or self.frozen:
            z = F.dropout(self._pattern(q, k, relative, allowed), dropout) @ v
        else:
            mask = allowed if relative is None else _masked(relative, allowed)
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        return z.transpose(-3, -2)

    def _pattern(self, q: Tensor, k: Tensor, relative: Tensor | None, allowed: Tensor | None) -> Scores:
        scores = (q * self.scale) @ k.mT
        scores = _masked(scores if relative is None else scores + relative, allowed)
        return self.hook_pattern(self.hold(self.hook_attn_scores(scores).softmax(-1)))

    def placed(self, q: HeadVectors, k: KVHeadVectors, sequence: Sequence) -> tuple[HeadVectors, KVHeadVectors]:
        """Queries and keys as they are multiplied."""
        return q, k

    def allowed(self, sequence: Sequence) -> Bool[Tensor, "..."] | None:
        """True where a query may attend to a key, broadcast over [batch head query key]; None when every one may."""
        return sequence.key_mask

    def relative_scores(
        self, q: Float[Tensor, "batch head query d_head"], k: Float[Tensor, "batch head key d_head"], sequence: Sequence
    ) -> Scores | None:
        """What is added to the scores, of queries and keys that are placed; None for nothing."""
        return None

    def per_head(self, grouped: Float[Tensor, "..."], dim: int = -2) -> Float[Tensor, "..."]:
        """Keys or values [... kv_head d_head], or whatever counts ``kv_head`` along ``dim``, repeated: one for each head."""
        return grouped if self.n_kv_heads == self.n_heads else grouped.repeat_interleave(self.n_heads // self.n_kv_heads, dim)

    def check_bilinear(self) -> None:
        """Refuse to say that scores are ``x_query W_Q W_K^T x_key`` and constants, where they are not.

        Raises:
            AnalysisError: with what to read instead.
        """

    @property
    def parts_point(self) -> HookPoint:
        return self.hook_z

    @property
    def after_parts(self) -> list[HookPoint]:
        return [self.hook_result]

    @property
    def out_layer(self) -> nn.Module:
        return self.o

    @property
    def out_weight(self) -> Float[Tensor, "head d_head d_model"]:
        return self.W_O

    @property
    def out_bias(self) -> Float[Tensor, " d_model"] | None:
        return effective_bias(self.o)

    def spread(self, activation: HeadVectors, weight: Float[Tensor, "head d_head out"]) -> Float[Tensor, "*rows head out"]:
        return torch.einsum("...hd,hdm->...hm", activation, weight)

    def dot(self, activation: HeadVectors, gradient: Stream) -> Float[Tensor, "*rows head"]:
        return ((gradient @ effective(self.o)).unflatten(-1, activation.shape[-2:]) * activation).sum(-1)


def _masked(scores: Tensor, allowed: Tensor | None) -> Scores:
    return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)


def split_heads(x: Stream, n_heads: int) -> Float[Tensor, "*rows head d_model"]:
    """The same stream for every head, as a view."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], n_heads, x.shape[-1])
