"""Embedding of projected frames: padding zeroed, positions from a convolution, and a norm in post-LN encoders."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.effective import effective
from encoderlens.components.linear import Gains
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Step, Write
from encoderlens.components.spec_augment import mask_spans
from encoderlens.config import SpecAugment
from encoderlens.errors import InputError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence

BATCH_NORM_EPS = 1e-5


class ConvPositions(Gains, ABC):
    """Positions from a grouped convolution over time: what each frame's neighbours are (Mohamed et al. 2019)."""

    def __init__(self, kernel: int, groups: int, act_fn: str, d_model: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.bias = nn.Parameter(torch.empty(d_model))
        self.act_fn = Activation(act_fn)

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        """The positions of each frame."""

    def convolved(
        self, x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "d_model group kernel"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The convolution, padded with zeros to keep the length, and its activation."""
        conv = F.conv1d(x.mT, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return self.act_fn(conv[..., : x.shape[1]]).mT


class WeightNormConvPositions(ConvPositions):
    """The weight is kept as the direction ``v`` and the length ``g`` of each tap (weight norm, Salimans & Kingma 2016)."""

    gains = ("g",)

    def __init__(self, kernel: int, groups: int, act_fn: str, d_model: int) -> None:
        super().__init__(kernel, groups, act_fn, d_model)
        self.g = nn.Parameter(torch.empty(1, 1, kernel))
        self.v = nn.Parameter(torch.empty(d_model, d_model // groups, kernel))

    @property
    def weight(self) -> Float[Tensor, "d_model group kernel"]:
        """The convolution's weight, ``g v / |v|`` for each tap."""
        return torch._weight_norm(effective(self, "v"), effective(self, "g"), 2)  # pyright: ignore[reportPrivateImportUsage]  (one pass, not three)

    def forward(self, x: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        return self.convolved(x, self.weight)


class BatchNormConvPositions(ConvPositions):
    """A plain weight, and a batch norm in front (Ioffe & Szegedy 2015), with running statistics ``mean`` and ``var``.

    The norm moves padding away from zero, as Hugging Face has it; where each clip is to be as alone, padding is zeroed again.
    """

    gains = ("w", "var")

    def __init__(self, kernel: int, groups: int, act_fn: str, d_model: int) -> None:
        super().__init__(kernel, groups, act_fn, d_model)
        self.w = nn.Parameter(torch.empty(d_model))
        self.b = nn.Parameter(torch.empty(d_model))
        self.mean = nn.Parameter(torch.empty(d_model), requires_grad=False)
        self.var = nn.Parameter(torch.empty(d_model), requires_grad=False)
        self.weight = nn.Parameter(torch.empty(d_model, d_model // groups, kernel))

    def forward(self, x: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        normed = F.batch_norm(x.mT, self.mean.detach(), self.var.detach(), self.w, self.b, self.training, eps=BATCH_NORM_EPS).mT
        return self.convolved(sequence.zeroed(normed) if sequence.alone else normed, self.weight)


class AudioEmbed(nn.Module):
    """Frames with padding zeroed, plus their positions; then a norm, unless the encoder is pre-LN.

    Args:
        masks: whether the checkpoint has the vector that stands for masked frames.
        normed: whether there is a norm.
        dropout: after the norm.
        augment: what is masked in training; frames only with the vector that stands for them.
    """

    def __init__(
        self,
        masks: bool,
        normed: bool,
        dropout: float,
        augment: SpecAugment | None,
        d_model: int,
        pos_embed: ConvPositions,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__()
        self.dropout, self.augment = dropout, augment
        self.mask_embed = nn.Parameter(torch.empty(d_model)) if masks else None
        self.pos_embed = pos_embed
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.ln = norm() if normed else None

    def forward(
        self,
        frames: Float[Tensor, "batch pos d_model"],
        masked: Bool[Tensor, "batch pos"] | None = None,
        sequence: Sequence | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream that enters block 0. Without a sequence, every frame is real.

        Raises:
            InputError: for masked frames without a vector that stands for them.
        """
        sequence = Sequence.of(frames) if sequence is None else sequence
        embed = self.hook_embed(sequence.zeroed(self._masked(frames, masked, sequence)))
        resid = embed + self.hook_pos_embed(self.pos_embed(embed, sequence))
        return F.dropout(resid if self.ln is None else self.ln(resid), self.dropout, self.training)

    def _masked(
        self, frames: Float[Tensor, "batch pos d_model"], masked: Bool[Tensor, "batch pos"] | None, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_model"]:
        self.check_masked(masked)
        augment = self.augment if self.training else None
        if masked is None and augment is not None and augment.time_share > 0 and self.mask_embed is not None:
            masked = mask_spans(
                sequence.lengths, sequence.pos, augment.time_share, augment.time_length, augment.time_spans, frames.device
            )
        if masked is not None and self.mask_embed is not None:
            frames = torch.where(masked.unsqueeze(-1), self.mask_embed, frames)
        if augment is not None and augment.channel_share > 0:
            width, rows = frames.shape[-1], [frames.shape[-1]] * len(frames)
            channels = mask_spans(
                rows, width, augment.channel_share, augment.channel_length, augment.channel_spans, frames.device
            )
            frames = frames.masked_fill(channels.unsqueeze(1), 0.0)
        return frames

    def check_masked(self, masked: Bool[Tensor, "batch pos"] | None) -> None:
        """Refuse masked frames without a vector that stands for them.

        Raises:
            InputError: with what is missing.
        """
        if masked is not None and self.mask_embed is None:
            raise InputError("frames cannot be masked: the checkpoint has no vector that stands for masked frames")

    @property
    def shared(self) -> dict[str, Any]:
        """What heads may share with it: nothing."""
        return {}

    @property
    def residual_path(self) -> list[Step]:
        """The residual path up to block 0."""
        writes: list[Step] = [Write(self.hook_embed), Write(self.hook_pos_embed)]
        return writes if self.ln is None else [*writes, Norm(self.ln)]
