"""Waveforms of every form that people have them in, checked, at the model's rate, and joined for the front end."""

from collections.abc import Sequence as Items
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoderlens.audio.processor import Processing
from encoderlens.config import FrontendPart
from encoderlens.errors import GradientError, InputError
from encoderlens.given import as_tensor, described

NORM_EPS = 1e-7  # under the square root, where a processor gives each clip zero mean and unit variance
MAX_CHANNELS = 32
RATES = (1_000, 1_000_000)  # in Hz; what lies outside is another unit
LOUDEST = 2.0**32  # sums of squares of what is larger overflow, and nothing that was recorded is
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}

Clip = Float[Tensor, " sample"]
Clips = Items[Float[Tensor, " _"]]  # each of a length of its own


def as_clips(inputs: Any, sampling_rate: Any, rate: int) -> tuple[Clips, bool]:
    """Each clip as floating-point samples at the model's rate, and whether the input was one bare waveform.

    Args:
        inputs: one waveform [sample]; a list of waveforms, stereo ones as [channel sample] or [sample channel]; or clips of one
            length [batch sample]. Tensors or arrays.
        sampling_rate: of the input, in Hz.
        rate: of the model.

    Raises:
        InputError: for what is no waveform, is empty, or holds NaN, infinities or samples beyond all loudness; for a sampling
            rate outside 1 kHz to 1 MHz.
        GradientError: for a waveform with gradients at another rate than the model's.
    """
    check_rate(sampling_rate)
    single = isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 1
    if not single and not (isinstance(inputs, list | tuple) or (isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 2)):
        raise InputError(
            f"the input is {described(inputs)}; give one waveform [sample], a list of waveforms, clips of one length "
            "[batch sample] (tensors or arrays), or projected frames [batch frame d_model]"
        )
    items: list[Any] = [inputs] if single else list(inputs)
    if not items:
        raise InputError("the list of waveforms is empty")
    clips = []
    for index, item in enumerate(items):
        where = "the waveform" if single else f"clip {index}"
        clips.append(resampled(_checked(_mono(item, where), where), sampling_rate, rate, where))
    return clips, single


def check_rate(sampling_rate: Any) -> None:
    """Refuse what is no sampling rate in Hz.

    Raises:
        InputError: for anything but a number from 1 kHz to 1 MHz.
    """
    number = isinstance(sampling_rate, int | float | np.integer | np.floating) and not isinstance(sampling_rate, bool)
    if not number or not RATES[0] <= sampling_rate <= RATES[1]:
        raise InputError(f"sampling_rate={sampling_rate!r}; it is a number of samples a second, such as 16000 or 44100")


def _mono(item: Any, where: str) -> Tensor:
    """One waveform as a tensor [sample], channels averaged."""
    item = as_tensor(item, where)
    if item.ndim == 1:
        return _scaled(item, where)
    if item.ndim != 2:
        raise InputError(f"{where} has shape {list(item.shape)}; a waveform is [sample], or with channels [channel sample]")
    if item.numel() == 0:
        raise InputError(f"{where} is empty")
    channels = min(item.shape)
    if channels > MAX_CHANNELS or item.shape[0] == item.shape[1]:
        raise InputError(f"{where} has shape {list(item.shape)}, where neither axis can be channels; give one waveform a clip")
    return _scaled(item, where).mean(0 if item.shape[0] == channels else 1)


def _scaled(item: Tensor, where: str) -> Tensor:
    """Whole numbers as what they are of full scale."""
    if item.is_floating_point():
        return item if item.dtype == torch.float64 else item.float()
    if item.dtype not in FULL_SCALE:
        raise InputError(
            f"{where} has dtype {str(item.dtype).removeprefix('torch.')}; samples are floating-point numbers, int16 or int32"
        )
    return item.float() / FULL_SCALE[item.dtype]


def _checked(clip: Tensor, where: str) -> Clip:
    if clip.numel() == 0:
        raise InputError(f"{where} is empty")
    peak = _peak(clip)
    if not isfinite(peak):
        bad = (~clip.detach().isfinite()).nonzero()
        raise InputError(f"{where} holds {len(bad)} samples that are NaN or infinite, the first at sample {int(bad[0])}")
    if peak > LOUDEST:
        raise InputError(f"{where} has samples of {peak:.3g}; waveforms lie between -1 and 1")
    return clip


def _peak(clip: Clip) -> float:
    """The largest magnitude; NaN or infinite if any sample is."""
    low, high = torch.aminmax(clip.detach())
    return float(torch.maximum(-low, high))


def resampled(clip: Clip, sampling_rate: Any, rate: int, where: str) -> Float[Tensor, " resampled"]:
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


def check_lengths(clips: Clips, frontend: FrontendPart, rate: int, hint: str = "") -> None:
    """Refuse clips that are too short for one frame.

    Raises:
        InputError: with how much is needed.
    """
    needed = frontend.receptive_field
    for index, clip in enumerate(clips):
        if len(clip) < needed:
            raise InputError(
                f"clip {index} has {len(clip)} samples at {rate} Hz; one frame needs {needed} ({1000 * needed / rate:g} ms)"
                f"{hint}"
            )


def joined(
    clips: Clips, processing: Processing, lengths: Items[int] | None, dtype: torch.dtype
) -> Float[Tensor, "batch sample"]:
    """Clips as the front end reads them, padded to the longest.

    Args:
        processing: what is done to them.
        lengths: how many samples are real in each, where only these are read and normalised; None to normalise what is padded.
        dtype: of the result.

    Raises:
        InputError: for samples too large for this dtype, if the processor does not normalise.
    """
    longest = max(map(len, clips))
    padded = [_padded(clip, longest, processing.padding) for clip in clips]
    real = padded if lengths is None else [clip[:length] for clip, length in zip(padded, lengths, strict=True)]
    if processing.normalizes:
        real = [_standardised(clip) for clip in real]
    else:
        _check_peaks(real, dtype)
    return torch.stack([_padded(clip, longest, processing.padding).to(dtype) for clip in real])


def _padded(clip: Clip, length: int, value: float) -> Float[Tensor, " padded"]:
    return F.pad(clip, (0, length - len(clip)), value=value)


def _standardised(clip: Clip) -> Clip:
    """Zero mean and unit variance, in float64."""
    samples = clip.double()
    return (samples - samples.mean()) / (samples.var(correction=0) + NORM_EPS).sqrt()


def _check_peaks(clips: Clips, dtype: torch.dtype) -> None:
    """The front end squares sums of samples."""
    limit = torch.finfo(dtype).max ** 0.25
    for index, clip in enumerate(clips):
        peak = _peak(clip)
        if peak > limit:
            raise InputError(
                f"clip {index} has samples of {peak:.3g}, too large for {str(dtype).removeprefix('torch.')} (at most "
                f"{limit:.3g}); waveforms lie between -1 and 1"
            )
