"""Where frames lie in time."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Where frames lie in time, exactly: frame i sees the samples from ``i * stride`` on, as many as the receptive field has,
    and stands for one stride of samples around their middle, so that frames tile the time axis.

    Attributes:
        rate: samples a second.
        stride: samples from one frame to the next.
        receptive_field: samples that one frame sees.
    """

    rate: int
    stride: int
    receptive_field: int

    def times(self, n_frames: int) -> Float[Tensor, " frame"]:
        """The middle of each frame in seconds, in float64."""
        middles = torch.arange(n_frames, dtype=torch.float64) * self.stride + self.receptive_field / 2
        return middles / self.rate

    def span(self, first: int, last: int) -> tuple[float, float]:
        """The seconds that frames first to last stand for."""
        half = Fraction(self.receptive_field - self.stride, 2)
        start, end = first * self.stride + half, (last + 1) * self.stride + half
        return float(max(start, Fraction(0)) / self.rate), float(end / self.rate)

    def frames(self, start_s: float, end_s: float) -> range:
        """The frames whose middle lies in [start_s, end_s), counted from 0 without an upper end of the clip."""
        middle = Fraction(self.receptive_field, 2)
        first, stop = (self._at_least(seconds, middle) for seconds in (start_s, end_s))
        return range(max(first, 0), max(stop, 0))

    def _at_least(self, seconds: float, middle: Fraction) -> int:
        """The first frame whose middle is not before a time, which is taken to a millionth of a sample."""
        samples = Fraction(round(Fraction(seconds) * self.rate * 1_000_000), 1_000_000)
        return -((middle - samples) // self.stride)
