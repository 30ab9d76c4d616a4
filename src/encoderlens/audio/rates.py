"""Sampling rates, and clips brought from one to another."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoderlens.errors import GradientError, InputError

RATES = (1_000, 1_000_000)  # in Hz; what lies outside is another unit


def check_rate(sampling_rate: Any, where: str = "") -> None:
    """Refuse what is no sampling rate in Hz.

    Args:
        where: what has it, for the message; by default it was given as ``sampling_rate``.

    Raises:
        InputError: for anything but a number from 1 kHz to 1 MHz.
    """
    number = isinstance(sampling_rate, int | float | np.integer | np.floating) and not isinstance(sampling_rate, bool)
    if not number or not RATES[0] <= sampling_rate <= RATES[1]:
        has = f"{where} has {sampling_rate} samples a second" if where else f"sampling_rate={sampling_rate!r}"
        raise InputError(f"{has}; it is a number of samples a second, such as 16000 or 44100")


def resampled(clip: Float[Tensor, " sample"], sampling_rate: Any, rate: int, where: str) -> Float[Tensor, " resampled"]:
    """A clip at another rate; as it is, if it has that rate.

    Raises:
        GradientError: for a clip with gradients, which resampling would cut.
    """
    if sampling_rate == rate:
        return clip
    if clip.requires_grad:
        raise GradientError(
            f"{where} carries gradients at {sampling_rate} Hz, and resampling to the model's {rate} Hz would cut them: "
            "resample it first"
        )
    import soxr

    samples = soxr.resample(clip.cpu().numpy(), float(sampling_rate), float(rate))
    return torch.from_numpy(samples).to(clip.device)
