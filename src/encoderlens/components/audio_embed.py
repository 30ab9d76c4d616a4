"""Embedding of projected frames: padding zeroed, positions from a convolution, and a norm in post-LN encoders."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.norm import LayerNorm
from encoderlens.components.residual import Norm, Step, Write
from encoderlens.errors import InputError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence


class ConvPositions(nn.Module):
    """Positions from a grouped convolution over time: what each frame's neighbours are (Mohamed et al. 2019).

    The weight is kept as the direction ``v`` and the length ``g`` of each tap (weight norm, Salimans & Kingma 2016).
    """

    def __init__(self, kernel: int, groups: int, act_fn: str, d_model: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.g = nn.Parameter(torch.empty(1, 1, kernel))
        self.v = nn.Parameter(torch.empty(d_model, d_model // groups, kernel))
        self.bias = nn.Parameter(torch.empty(d_model))
        self.act_fn = Activation(act_fn)

    @property
    def weight(self) -> Float[Tensor, "d_model group kernel"]:
        """The convolution's weight, ``g v / |v|`` for each tap."""
        return self.v * (self.g / torch.linalg.vector_norm(self.v, dim=(0, 1), keepdim=True))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        conv = F.conv1d(x.mT, self.weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return self.act_fn(conv[..., : x.shape[1]]).mT


class AudioEmbed(nn.Module):
    """Frames with padding zeroed, plus their positions; then a norm, unless the encoder is pre-LN.

    Args:
        masks: whether the checkpoint has the vector that stands for masked frames.
        normed: whether there is a norm.
        dropout: after the norm.
    """

    def __init__(
        self,
        masks: bool,
        normed: bool,
        dropout: float,
        d_model: int,
        pos_embed: ConvPositions,
        norm: Callable[[], LayerNorm],
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.mask_embed = nn.Parameter(torch.empty(d_model)) if masks else None
        self.pos_embed = pos_embed
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.ln = norm() if normed else None

    def forward(
        self,
        frames: Float[Tensor, "batch pos d_model"],
        masked: Bool[Tensor, "batch pos"] | None,
        sequence: Sequence,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream that enters block 0.

        Raises:
            InputError: for masked frames without a vector that stands for them.
        """
        if masked is not None:
            if self.mask_embed is None:
                raise InputError("frames cannot be masked: the checkpoint has no vector that stands for masked frames")
            frames = torch.where(masked.unsqueeze(-1), self.mask_embed, frames)
        embed = self.hook_embed(sequence.zeroed(frames))
        resid = embed + self.hook_pos_embed(self.pos_embed(embed))
        return F.dropout(resid if self.ln is None else self.ln(resid), self.dropout, self.training)

    @property
    def residual_path(self) -> list[Step]:
        """The residual path up to block 0."""
        writes: list[Step] = [Write(self.hook_embed), Write(self.hook_pos_embed)]
        return writes if self.ln is None else [*writes, Norm(self.ln)]
