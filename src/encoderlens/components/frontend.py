"""The front end of a speech encoder: strided convolutions from the waveform to frames, and their projection to the stream."""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.linear import Gains, Linear
from encoderlens.components.norm import LayerNorm
from encoderlens.hook_points import HookPoint

ConvNorm = Literal["group", "layer", "none"]
EPS = 1e-5  # of the front end's norms, in every checkpoint


class ConvLayer(Gains):
    """A convolution over time, a norm, an activation (Baevski et al. 2020).

    Args:
        norm: "group": one group a channel, so that statistics run over time, padding included; "layer": over the channels of
            each frame; or "none".
    """

    gains = ("w",)

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int, bias: bool, norm: ConvNorm, act_fn: str) -> None:
        super().__init__()
        self.kernel, self.stride, self.norm = kernel, stride, norm
        self.weight = nn.Parameter(torch.empty(d_out, d_in, kernel))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None
        self.hook_conv = HookPoint("batch frame channel")
        self.w = nn.Parameter(torch.empty(d_out)) if norm != "none" else None
        self.b = nn.Parameter(torch.empty(d_out)) if norm != "none" else None
        self.act_fn = Activation(act_fn)
        self.hook_post = HookPoint("batch frame channel")

    def forward(
        self, x: Float[Tensor, "batch channel_in time"], lengths: Items[int] | None = None
    ) -> Float[Tensor, "batch channel frame"]:
        """``lengths``: how many frames each clip would have alone, where norms may not see its padding."""
        x = self.hook_conv(F.conv1d(x, self.weight, self.bias, self.stride).mT).mT
        x = self._normalized(x, lengths)  # under one name: of long clips, each of these is large
        return self.hook_post(self.act_fn(x).mT).mT

    def n_frames(self, n_samples: int) -> int:
        """How many frames it makes of so many samples (or frames before it)."""
        return (n_samples - self.kernel) // self.stride + 1

    def _normalized(
        self, x: Float[Tensor, "batch channel frame"], lengths: Items[int] | None
    ) -> Float[Tensor, "batch channel frame"]:
        if self.norm == "group":
            return self._over_time(x) if lengths is None else self._over_each(x, lengths)
        if self.norm == "layer":
            return F.layer_norm(x.mT, x.shape[1:2], self.w, self.b, EPS).mT
        return x

    def _over_time(self, x: Float[Tensor, "batch channel frame"]) -> Float[Tensor, "batch channel frame"]:
        return torch.group_norm(x, x.shape[1], self.w, self.b, EPS)  # F.group_norm refuses a single frame

    def _over_each(self, x: Float[Tensor, "batch channel frame"], lengths: Items[int]) -> Float[Tensor, "batch channel frame"]:
        """The norm over the real frames of each clip, zeros after them."""
        rows = [self._over_time(row[..., :length]) for row, length in zip(x.split(1), lengths, strict=True)]
        return torch.cat([F.pad(row, (0, x.shape[-1] - row.shape[-1])) for row in rows])


class Frontend(nn.ModuleList):
    """Convolutions from the waveform to frames.

    Args:
        channels, kernels, strides: one entry a convolution.
        bias: whether they have biases.
        norm: "group": the first one has a group norm and the others none; "layer": each has a layer norm over channels.
        act_fn: the activation after each.
    """

    def __init__(
        self,
        channels: Items[int],
        kernels: Items[int],
        strides: Items[int],
        bias: bool,
        norm: Literal["group", "layer"],
        act_fn: str,
    ) -> None:
        rest: ConvNorm = "layer" if norm == "layer" else "none"
        norms: tuple[ConvNorm, ...] = (norm, *(rest for _ in channels[1:]))
        sizes = zip((1, *channels), channels, kernels, strides, norms, strict=False)
        super().__init__(ConvLayer(d_in, d_out, k, s, bias, norm, act_fn) for d_in, d_out, k, s, norm in sizes)

    def forward(
        self, waves: Float[Tensor, "batch sample"], samples: Items[int] | None = None
    ) -> Float[Tensor, "batch frame channel"]:
        """``samples``: how many are real in each clip, where no norm may see the others."""
        x, lengths = waves.unsqueeze(1), samples
        for conv in cast(Iterable[ConvLayer], self):
            lengths = None if lengths is None else [conv.n_frames(length) for length in lengths]
            x = conv(x, lengths)
        return x.mT


class FeatureProjection(nn.Module):
    """A LayerNorm over channels (in most checkpoints) and a linear layer, from frames to the stream."""

    def __init__(self, d_in: int, norm_eps: float | None, dropout: float, d_model: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.ln = None if norm_eps is None else LayerNorm(d_in, norm_eps, width="channel")
        self.dense = Linear(d_in, d_model)
        self.hook_out = HookPoint("batch pos d_model")

    def forward(self, frames: Float[Tensor, "batch frame channel"]) -> Float[Tensor, "batch frame d_model"]:
        normed = frames if self.ln is None else self.ln(frames)
        return self.hook_out(F.dropout(self.dense(normed), self.dropout, self.training))
