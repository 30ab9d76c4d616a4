"""Parts of what reads waveforms."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from encoderlens.config.fields import ActivationName, Checked, Count, NotNegative, Share, Size
from encoderlens.config.part import Part
from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean

NORMS = ("group", "layer")


@dataclass(frozen=True)
class FrontendPart(Part):
    """Strided convolutions from the waveform to frames."""

    component = "Frontend"
    takes = ()
    channels: tuple[Size, ...]
    kernels: tuple[Size, ...]
    strides: tuple[Size, ...]
    bias: bool = False
    norm: Literal["group", "layer"] = "group"
    act_fn: ActivationName = "gelu"

    def check(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(
                f"the norm of the front end is {self.norm!r}; it is 'group' or 'layer'{did_you_mean(self.norm, NORMS)}"
            )
        super().check()
        sizes = {"channels": self.channels, "kernels": self.kernels, "strides": self.strides}
        if not self.channels or len({len(values) for values in sizes.values()}) > 1:
            raise ConfigError(f"channels, kernels and strides have one entry a convolution, not {sizes}")

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        field = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            field = (field - 1) * stride + kernel
        return field

    def n_frames(self, n_samples: int) -> int:
        """How many frames a waveform has; none if it is shorter than the receptive field."""
        return self.frames_after(len(self.kernels), n_samples)

    def frames_after(self, n_convs: int, n_samples: int) -> int:
        """How many frames the first so many convolutions give."""
        for kernel, stride in zip(self.kernels[:n_convs], self.strides, strict=False):
            n_samples = (n_samples - kernel) // stride + 1
        return max(n_samples, 0)


@dataclass(frozen=True)
class ProjectionPart(Part):
    """From frames to the stream; ``norm_eps`` None for no norm in front."""

    component = "FeatureProjection"
    d_in: Size
    norm_eps: NotNegative | None = 1e-5
    dropout: Share = 0.0


@dataclass(frozen=True)
class SpecAugment(Checked):
    """What is masked in training (Park et al. 2019): spans of frames, and spans of channels.

    Attributes:
        time_share, channel_share: the share that spans would cover if none overlapped.
        time_length, channel_length: the length of a span.
        time_spans, channel_spans: at least so many spans.
    """

    time_share: NotNegative
    time_length: Size
    time_spans: Count
    channel_share: NotNegative
    channel_length: Size
    channel_spans: Count


@dataclass(frozen=True)
class AudioEmbedPart(Part):
    """Projected frames + positions, then a norm in post-LN encoders."""

    component = "AudioEmbed"
    takes = ("d_model", "pos_embed", "norm")
    d_vocab: ClassVar[None] = None
    n_token_types: ClassVar[None] = None
    masks: bool = True
    normed: bool = True
    dropout: Share = 0.0
    augment: SpecAugment | None = None


@dataclass(frozen=True)
class ConvPositionsPart(Part):
    """Positions from a convolution over neighbouring frames, whose weight has direction and length of its own."""

    component = "WeightNormConvPositions"
    positional_embedding_type: ClassVar[str] = "convolution"
    n_ctx: ClassVar[None] = None
    kernel: Size = 128
    groups: Size = 16
    act_fn: ActivationName = "gelu"


@dataclass(frozen=True)
class BatchNormConvPositionsPart(ConvPositionsPart):
    """The same with a plain weight, behind a batch norm."""

    component = "BatchNormConvPositions"
