"""Parts of what reads waveforms."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from encoderlens.config.part import Part, check_size
from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean

NORMS = ("group", "layer")


@dataclass(frozen=True)
class FrontendPart(Part):
    """Strided convolutions from the waveform to frames."""

    component = "Frontend"
    takes = ()
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    bias: bool = False
    norm: Literal["group", "layer"] = "group"
    act_fn: str = "gelu"

    def check(self) -> None:
        sizes = {"channels": self.channels, "kernels": self.kernels, "strides": self.strides}
        if not self.channels or len({len(values) for values in sizes.values()}) > 1:
            raise ConfigError(f"channels, kernels and strides have one entry a convolution, not {sizes}")
        if self.norm not in NORMS:
            raise ConfigError(
                f"the norm of the front end is {self.norm!r}; it is 'group' or 'layer'{did_you_mean(self.norm, NORMS)}"
            )
        for name, values in sizes.items():
            for value in values:
                check_size(f"an entry of {name}", value)

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
    sizes = ("d_in",)
    d_in: int
    norm_eps: float | None = 1e-5
    dropout: float = 0.0


@dataclass(frozen=True)
class SpecAugment:
    """What is masked in training (Park et al. 2019): spans of frames, and spans of channels.

    Attributes:
        time_share, channel_share: the share that spans would cover if none overlapped.
        time_length, channel_length: the length of a span.
        time_spans, channel_spans: at least so many spans.
    """

    time_share: float
    time_length: int
    time_spans: int
    channel_share: float
    channel_length: int
    channel_spans: int


@dataclass(frozen=True)
class AudioEmbedPart(Part):
    """Projected frames + positions, then a norm in post-LN encoders."""

    component = "AudioEmbed"
    takes = ("d_model", "pos_embed", "norm")
    d_vocab: ClassVar[None] = None
    n_token_types: ClassVar[None] = None
    masks: bool = True
    normed: bool = True
    dropout: float = 0.0
    augment: SpecAugment | None = None


@dataclass(frozen=True)
class ConvPositionsPart(Part):
    """Positions from a convolution over neighbouring frames, whose weight has direction and length of its own."""

    component = "WeightNormConvPositions"
    positional_embedding_type: ClassVar[str] = "convolution"
    n_ctx: ClassVar[None] = None
    sizes = ("kernel", "groups")
    kernel: int = 128
    groups: int = 16
    act_fn: str = "gelu"


@dataclass(frozen=True)
class BatchNormConvPositionsPart(ConvPositionsPart):
    """The same with a plain weight, behind a batch norm."""

    component = "BatchNormConvPositions"
