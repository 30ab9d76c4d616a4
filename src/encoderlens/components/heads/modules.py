"""Modules that heads are made of."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.components.norm import ScaledNorm
from encoderlens.errors import ConfigError
from encoderlens.hook_points import HookPoint
from encoderlens.names import check_word
from encoderlens.sequence import Sequence

Biases = dict[str, tuple[nn.Module, str]]  # by row label: the module to whose output each is added, and its name there


class MLMTransform(Component):
    """``LN(act(x W + b))``, in front of the unembedding (Devlin et al. 2019).

    Args:
        d_out: the width of the unembedding, which factorised embeddings have apart from the stream's.
    """

    W = WeightView("dense.weight", "out d_model -> d_model out")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int, d_out: int, act_fn: str, bias: bool, norm: Callable[..., ScaledNorm]) -> None:
        super().__init__()
        width = "d_model" if d_out == d_model else "d_embed"
        self.act_fn = Activation(act_fn)
        self.dense = Linear(d_model, d_out, bias)
        self.hook_pre = HookPoint(f"batch pos {width}")
        self.hook_post = HookPoint(f"batch pos {width}")
        self.ln = norm(d_out, width)

    def forward(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_out"]:
        return self.ln(self.hook_post(self.act_fn(self.hook_pre(self.dense(resid)))))


class Unembed(Component):
    """``x W_U + b_U``; the weight is the embedding's own where the checkpoint ties them."""

    W_U = WeightView("weight", "d_vocab d_embed -> d_embed d_vocab")
    b_U = WeightView("bias")

    def __init__(self, weight: nn.Parameter, d_model: int, bias: bool) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.empty(weight.shape[0])) if bias else None
        self.hook_in = HookPoint("batch pos d_model" if weight.shape[1] == d_model else "batch pos d_embed")
        self.hook_out = HookPoint("batch pos d_vocab")

    def forward(self, x: Float[Tensor, "*rows d_embed"]) -> Float[Tensor, "*rows d_vocab"]:
        return self.hook_out(F.linear(self.hook_in(x), self.weight, self.bias))


class Pooler(Component):
    """``tanh(x_CLS W + b)`` (Devlin et al. 2019)."""

    W = WeightView("dense.weight", "out d_model -> d_model out")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_model)
        self.act_fn = Activation("tanh")
        self.hook_pooler_out = HookPoint("batch d_model")

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence | None = None
    ) -> Float[Tensor, "batch d_model"]:
        first = resid[:, 0] if sequence is None else sequence.first(resid)
        return self.hook_pooler_out(self.act_fn(self.dense(first)))

    def biases(self) -> Biases:
        """Its bias by row label."""
        return {"pooler_b": (self.dense, "bias")}


class PreClassifier(Component):
    """``LN(act(x W + b))`` in front of a classifier that has a transform of its own, with dropout in front of it in training.

    Args:
        reads: what x is: the stream at the "first" position, its "mean" over real positions, or "every" position.
        normed: whether there is a norm.

    Raises:
        ConfigError: for another ``reads``.
    """

    W = WeightView("dense.weight", "out d_model -> d_model out")
    b = WeightView("dense.bias")

    def __init__(
        self,
        act_fn: str,
        reads: Literal["first", "mean", "every"],
        normed: bool,
        bias: bool,
        dropout: float,
        d_model: int,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__()
        check_word("reads", reads, ("first", "mean", "every"), ConfigError)
        self.reads, self.dropout = reads, dropout
        rows = "batch pos" if reads == "every" else "batch"
        self.dense = Linear(d_model, d_model, bias)
        self.act_fn = Activation(act_fn)
        self.hook_pre = HookPoint(f"{rows} d_model")
        self.hook_post = HookPoint(f"{rows} d_model")
        self.ln = norm(d_model, "d_model", rows) if normed else None

    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch *pos d_model"]:
        x = F.dropout(self._read(resid, sequence), self.dropout, self.training)
        post = self.hook_post(self.act_fn(self.hook_pre(self.dense(x))))
        return post if self.ln is None else self.ln(post)

    def _read(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch *pos d_model"]:
        if self.reads == "every":
            return resid
        return sequence.first(resid) if self.reads == "first" else sequence.mean(resid)

    def biases(self) -> Biases:
        """Its biases by row label."""
        norm = {} if self.ln is None else {"pre_classifier_ln_b": (self.ln, "b")}
        return {"pre_classifier_b": (self.dense, "bias"), **norm}


class Projector(Component):
    """A linear layer over every position, in front of a mean over positions."""

    W = WeightView("dense.weight", "d_pooled d_model -> d_model d_pooled")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int, d_pooled: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_pooled)
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_out = HookPoint("batch pos d_pooled")

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_pooled"]:
        return self.hook_out(self.dense(self.hook_in(resid)))


class NSPHead(Component):
    """Two logits for the pooled vector: the second sentence follows the first; it does not."""

    W = WeightView("dense.weight", "label d_model -> d_model label")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, 2)
        self.hook_nsp_out = HookPoint("batch label")

    def forward(self, pooled: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch 2"]:
        return self.hook_nsp_out(self.dense(pooled))


class Classifier(Component):
    """A linear layer with dropout in front, for a vector a sequence (``batch``) or a position (``batch pos``).

    Args:
        rows: the axes in front of the vector.
        width, outputs: the names of its axis, and of that of the logits.
    """

    W = WeightView("dense.weight", "label d_model -> d_model label")
    b = WeightView("dense.bias")

    def __init__(
        self, d_model: int, n_outputs: int, dropout: float, rows: str, width: str = "d_model", outputs: str = "label"
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.dense = Linear(d_model, n_outputs)
        self.hook_in = HookPoint(f"{rows} {width}")
        self.hook_out = HookPoint(f"{rows} {outputs}")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows label"]:
        return self.hook_out(self.dense(F.dropout(self.hook_in(x), self.dropout, self.training)))
