"""The readout of sentence encoders: positions are pooled to one vector, which then passes through further modules."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.freezing import Freezable
from encoderlens.components.heads.head import Readout
from encoderlens.components.heads.modules import Biases
from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.components.norm import LayerNorm
from encoderlens.errors import ConfigError
from encoderlens.hook_points import HookPoint
from encoderlens.names import check_word
from encoderlens.precision import at_least_float32, lengths_of
from encoderlens.sequence import Sequence

Vectors = Float[Tensor, "batch d_sentence"]


class SentenceModule(Component, ABC):
    """A module behind the pooling."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d_in"]) -> Vectors:
        """The next vector."""

    def biases(self, name: str) -> Biases:
        """Its biases by row label.

        Args:
            name: its own name in the model.
        """
        return {}


class SentencePooling(nn.Module):
    """The stream at all real positions as one vector, or several side by side.

    Args:
        modes: "cls" (the first), "max", "mean", "mean_sqrt_len_tokens" (the sum over the root of their number), "weightedmean"
            (weights 1, 2, 3, …) and "lasttoken", of real positions.

    Raises:
        ConfigError: for another mode.
    """

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        for mode in modes:
            check_word("the pooling mode", mode, POOLING_MODES, ConfigError)
        self.modes = modes
        self.hook_out = HookPoint("batch d_sentence")

    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Vectors:
        return self.hook_out(torch.cat([_POOLS[mode](resid, sequence) for mode in self.modes], -1))


class SentenceDense(SentenceModule):
    """``act(x W + b)``; with a residual connection, x is added, through a matrix where widths differ."""

    W = WeightView("dense.weight", "out d_in -> d_in out")
    b = WeightView("dense.bias")

    def __init__(self, d_in: int, d_out: int, act_fn: str, bias: bool, residual: bool) -> None:
        super().__init__()
        self.adds_input = residual
        self.dense, self.act_fn = Linear(d_in, d_out, bias), Activation(act_fn)
        self.residual = Linear(d_in, d_out, bias=False) if residual and d_in != d_out else None
        self.hook_pre = HookPoint("batch d_sentence")
        self.hook_out = HookPoint("batch d_sentence")

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Vectors:
        out = self.act_fn(self.hook_pre(self.dense(x)))
        if self.adds_input:
            out = out + (x if self.residual is None else self.residual(x))
        return self.hook_out(out)

    def biases(self, name: str) -> Biases:
        return {f"{name}_b": (self.dense, "bias")}


class SentenceLayerNorm(SentenceModule):
    """A LayerNorm on the vector."""

    def __init__(self, d_sentence: int, eps: float) -> None:
        super().__init__()
        self.ln = LayerNorm(d_sentence, eps, width="d_sentence", rows="batch")
        self.hook_out = HookPoint("batch d_sentence")

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Vectors:
        return self.hook_out(self.ln(x))

    def biases(self, name: str) -> Biases:
        return {f"{name}_b": (self.ln, "b")}


class SentenceNormalize(SentenceModule, Freezable):
    """``x / |x|``, and 0 for 0. Frozen, the length takes no gradient.

    Half-precision input is divided in float32, which is also what the hook point sees.
    """

    quantity = "ln"

    def __init__(self) -> None:
        super().__init__()
        self.hook_scale = HookPoint("batch 1")
        self.hook_out = HookPoint("batch d_sentence")

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Vectors:
        length = self.hook_scale(lengths_of(self.hold(x)))
        return self.hook_out((x / length).to(x.dtype))


class SentenceEmbedding(Readout):
    """One vector for each sequence [batch d_sentence] (Reimers & Gurevych 2019).

    Args:
        pooling: what makes one vector of the stream.
        layers: what the vector then passes through.
        names: the name of each of them in the model, under ``sentence``.
    """

    task = "sentence_embedding"
    per_position = False

    def __init__(self, pooling: SentencePooling, layers: tuple[SentenceModule, ...], names: tuple[str, ...]) -> None:
        self._parts = nn.ModuleDict({"pooling": pooling, **dict(zip(names, layers, strict=True))})
        super().__init__(sentence=self._parts)

    @property
    def pooling(self) -> SentencePooling:
        """What makes one vector of the stream, as it is in the model now."""
        return cast(SentencePooling, self._parts["pooling"])

    @property
    def layers(self) -> dict[str, SentenceModule]:
        """What the vector then passes through, by name, as it is in the model now."""
        return {name: cast(SentenceModule, part) for name, part in self._parts.items() if name != "pooling"}

    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Vectors:
        vector = self.pooling(resid, sequence)
        for layer in self.layers.values():
            vector = layer(vector)
        return vector

    def all_biases(self) -> Biases:
        return {label: bias for name, layer in self.layers.items() for label, bias in layer.biases(name).items()}


def _max(resid: Tensor, sequence: Sequence) -> Tensor:
    return (resid if sequence.mask is None else resid.masked_fill(~sequence.mask.unsqueeze(-1), -torch.inf)).amax(1)


def _mean_sqrt(resid: Tensor, sequence: Sequence) -> Tensor:
    n_real = sequence.real.to(resid.device).sum(1, keepdim=True)
    return sequence.mean(resid) * n_real.to(resid.dtype).sqrt()


def _weighted_mean(resid: Tensor, sequence: Sequence) -> Tensor:
    wide = at_least_float32(resid)  # the sum of the weights soon leaves the range of float16
    weights = sequence.zeroed(sequence.real.to(resid.device).cumsum(1).unsqueeze(-1).to(wide.dtype))
    return ((wide * weights).sum(1) / weights.sum(1)).to(resid.dtype)


_POOLS: dict[str, Callable[[Tensor, Sequence], Tensor]] = {
    "cls": lambda resid, sequence: sequence.real_first(resid)[:, 0],
    "max": _max,
    "mean": lambda resid, sequence: sequence.mean(resid),
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda resid, sequence: sequence.last(resid),
}
POOLING_MODES = tuple(_POOLS)
