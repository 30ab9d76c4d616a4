"""Disentangled attention (He et al. 2021): content and relative positions meet in terms of their own."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoderlens.components.attention import Attention
from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.linear import Component, Gains, Linear, WeightView
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import HeadVectors, Scores


class RelativeEmbedding(Gains, Component):
    """A vector for each bucket of distances, then a LayerNorm where there is one; all layers' attention reads it.

    Row ``span + b`` of the table is that of bucket b, which runs from ``-span`` (the query comes first) to ``span - 1``.

    Args:
        max_distance: from here on, everything is in the last bucket.
        n_buckets: buckets to each side. Half of them are single distances, the others logarithmic; None: all are single.
        norm_eps: of the LayerNorm; None for none.
        dropout: on the vectors, in training.

    Attributes:
        span: buckets to each side.
        w, b: the parameters of the LayerNorm, or None.
    """

    gains = ("w",)

    W_rel = WeightView("weight")

    def __init__(self, max_distance: int, n_buckets: int | None, norm_eps: float | None, dropout: float, d_model: int) -> None:
        super().__init__()
        self.max_distance, self.n_buckets, self.norm_eps, self.dropout = max_distance, n_buckets, norm_eps, dropout
        self.span = max_distance if n_buckets is None else n_buckets
        self.weight = nn.Parameter(torch.empty(2 * self.span, d_model))
        self.w = None if norm_eps is None else nn.Parameter(torch.empty(d_model))
        self.b = None if norm_eps is None else nn.Parameter(torch.empty(d_model))

    def forward(self, sequence: Sequence) -> tuple[Float[Tensor, "bucket d_model"], Int[Tensor, "query key"]]:
        """The vectors of all buckets that a batch has, and which of them stands between each query and key."""
        weight = self.weight
        device = weight.device
        key = ("relative rows", self.n_buckets, self.max_distance, device)
        first, last, which = sequence.once(key, lambda: self._within(sequence.pos, device))
        return F.dropout(self.normed(weight), self.dropout, self.training)[first : last + 1], which

    def normed(self, vectors: Float[Tensor, "bucket d_model"]) -> Float[Tensor, "bucket d_model"]:
        """Vectors as attention reads them."""
        if self.norm_eps is None:
            return vectors
        return F.layer_norm(vectors, vectors.shape[-1:], effective(self, "w"), effective_bias(self, "b"), self.norm_eps)

    def _within(self, n_positions: int, device: torch.device) -> tuple[int, int, Int[Tensor, "query key"]]:
        """The first and the last row that so many positions need, and the row of each pair, counted from the first."""
        rows = self.rows(n_positions, device)
        first, last = (int(row) for row in torch.aminmax(rows))
        return first, last, rows - first

    def rows(self, n_positions: int, device: torch.device | None = None) -> Int[Tensor, "query key"]:
        """The row of the table for each pair of positions."""
        at = torch.arange(n_positions, device=device)
        bucket = self._buckets(at.unsqueeze(1) - at)
        return (bucket + self.span).clamp(0, 2 * self.span - 1)

    def _buckets(self, distance: Int[Tensor, "query key"]) -> Int[Tensor, "query key"]:
        if self.n_buckets is None:
            return distance
        near = self.n_buckets // 2
        far = distance.abs().clamp_min(near).float() / near
        most = far.new_tensor((self.max_distance - 1) / near)  # a tensor, so that its logarithm rounds as that of far
        logarithmic = near + (far.log() / most.log() * (near - 1)).ceil().clamp_max(self.span)
        return torch.where(distance.abs() <= near, distance, distance.sign() * logarithmic.long())


class ContentAttention(Attention):
    """``softmax(q k^T / sqrt(n d_head)) v``, where n counts a term of content, and terms that others add.

    Queries at padding attend to everything evenly, as in Hugging Face, where question answering has a loss over padding too.

    Args:
        terms: the names of the terms that others add.
    """

    def __init__(
        self, n_heads: int, n_kv_heads: int, d_head: int, bias: bool, dropout: float, terms: tuple[str, ...], d_model: int
    ) -> None:
        super().__init__(n_heads, n_kv_heads, d_head, bias, dropout, d_model)
        self.scale = ((1 + len(terms)) * d_head) ** -0.5

    def placed(self, q: HeadVectors, k: HeadVectors, sequence: Sequence) -> tuple[HeadVectors, HeadVectors]:
        return sequence.zeroed(q), k

    def allowed(self, sequence: Sequence) -> Bool[Tensor, "..."] | None:
        return sequence.open_at_padding


class DisentangledAttention(ContentAttention):
    """``softmax((q_i . k_j + q_i . K_r + k_j . Q_r) / sqrt(3 d_head)) v_j``, r the bucket of the distance from j to i.

    ``K_r`` and ``Q_r`` are the key and the query of a relative position, made of ``EncoderConfig.relative``'s vectors. Content
    to position (c2p) and position to content (p2c) may each be left out, and count in the scale if they are there.

    ``model.QK`` is the term of content alone, unscaled and without biases. The other terms pass ``hook_c2p`` and ``hook_p2c``,
    scaled. With ``position_keys`` and ``position_queries``, ``W_Q @ K_r`` says what each direction of the query's stream adds
    to the score of keys at a distance, and ``W_K @ Q_r`` each direction of the key's.

    Args:
        terms: "c2p" and "p2c", or one of them, or none.
        shares: the layers that make queries and keys of content make those of positions too; otherwise they have their own.
        relative: the vectors of relative positions.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        bias: bool,
        dropout: float,
        terms: tuple[str, ...],
        shares: bool,
        d_model: int,
        relative: RelativeEmbedding,
    ) -> None:
        super().__init__(n_heads, n_kv_heads, d_head, bias, dropout, terms, d_model)
        self.relative, self.shares, self.terms = relative, shares, terms
        if "c2p" in terms:
            self.hook_c2p = HookPoint("batch head query key")
            if not shares:
                self.pos_k = Linear(d_model, n_kv_heads * d_head, bias)
        if "p2c" in terms:
            self.hook_p2c = HookPoint("batch head query key")
            if not shares:
                self.pos_q = Linear(d_model, n_heads * d_head, bias)
        if terms:
            self.hook_rel_bias = HookPoint("batch head query key")

    def relative_scores(self, q: Tensor, k: Tensor, sequence: Sequence) -> Scores | None:
        if not self.terms:
            return None
        vectors, which = self.relative(sequence)
        parts = []
        if "c2p" in self.terms:
            products = _products(q * self.scale, self.position_keys(vectors))  # batch head query bucket
            parts.append(self.hook_c2p(_picked(products, which)))
        if "p2c" in self.terms:
            products = _products(k * self.scale, self.position_queries(vectors))  # batch head key bucket
            of_queries = _picked(products, which.mT).permute(0, 3, 1, 2)  # batch query head key
            parts.append(self.hook_p2c(sequence.zeroed(of_queries).transpose(1, 2)))
        return self.hook_rel_bias(parts[0] if len(parts) == 1 else parts[0] + parts[1])

    def position_keys(self, vectors: Float[Tensor, "bucket d_model"]) -> Float[Tensor, "bucket head d_head"]:
        """Keys of relative positions, from their vectors (``relative.normed(relative.W_rel)``), where there is c2p."""
        linear = self.k if self.shares else self.pos_k
        return self.per_head(linear(vectors).unflatten(-1, (-1, self.d_head)))

    def position_queries(self, vectors: Float[Tensor, "bucket d_model"]) -> Float[Tensor, "bucket head d_head"]:
        """Queries of relative positions, from their vectors, where there is p2c."""
        linear = self.q if self.shares else self.pos_q
        return linear(vectors).unflatten(-1, (-1, self.d_head))


def _products(
    content: Float[Tensor, "batch head pos d_head"], positions: Float[Tensor, "bucket head d_head"]
) -> Float[Tensor, "batch head pos bucket"]:
    """Of each head, each content vector times that of each bucket; all sequences at once, so that nothing is copied."""
    by_head = content.transpose(0, 1).flatten(1, 2) @ positions.permute(1, 2, 0)
    return by_head.unflatten(1, (content.shape[0], content.shape[2])).transpose(0, 1)


def _picked(
    products: Float[Tensor, "batch head pos bucket"], which: Int[Tensor, "pos other"]
) -> Float[Tensor, "batch head pos other"]:
    """Of each position, the products for the buckets of its pairs; the index is never copied over batch and heads."""
    return products.gather(-1, which.expand(*products.shape[:2], -1, -1))
