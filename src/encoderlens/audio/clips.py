"""Waveforms of every form that people have them in, checked, at the model's rate, and joined for the front end."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoderlens.audio.files import read_audio
from encoderlens.audio.processor import Processing
from encoderlens.audio.rates import check_rate, resampled
from encoderlens.config import FrontendPart
from encoderlens.errors import InputError
from encoderlens.given import as_tensor, described, dtype_name

NORM_EPS = 1e-7  # under the square root, where a processor gives each clip zero mean and unit variance
MAX_CHANNELS = 32
ASSUMED_RATE = 16_000  # of an array that comes without its rate, in Hz
LOUDEST = 2.0**32  # sums of squares of what is larger overflow, and nothing that was recorded is
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}

PATHS = str | PathLike
ARRAYS = Tensor | np.ndarray

Clip = Float[Tensor, " sample"]
Clips = Items[Float[Tensor, " _"]]  # each of a length of its own


@dataclass(frozen=True)
class Waveforms:
    """Clips at a model's rate.

    Attributes:
        clips: the samples of each, as floating-point numbers.
        single: the input was one bare waveform or file, so that predictions are not a list.
        resampled: whether any of them came at another rate.
    """

    clips: Clips
    single: bool
    resampled: bool


def as_clips(inputs: Any, sampling_rate: Any, rate: int) -> Waveforms:
    """Waveforms of every form, at the model's rate.

    Args:
        inputs: one waveform [sample]; the path of an audio file; a list of these, stereo ones as [channel sample] or
            [sample channel]; or clips of one length [batch sample]. Tensors, arrays, or lists of floats.
        sampling_rate: in Hz; ``...`` for that of each file, and ASSUMED_RATE for arrays.
        rate: of the model.

    Raises:
        InputError: for what is no waveform, is empty, or holds NaN, infinities or samples beyond all loudness; for a sampling
            rate outside 1 kHz to 1 MHz, or another one than a file has.
        GradientError: for a waveform with gradients at another rate than the model's.
    """
    single = isinstance(inputs, PATHS) or (isinstance(inputs, ARRAYS) and inputs.ndim == 1) or _are_floats(inputs)
    if not single and not (isinstance(inputs, list | tuple) or (isinstance(inputs, ARRAYS) and inputs.ndim == 2)):
        raise InputError(
            f"the input is {described(inputs)}; give one waveform [sample], a list of waveforms, clips of one length "
            "[batch sample] (tensors or arrays), the path of an audio file, or projected frames [batch frame d_model]"
        )
    if isinstance(inputs, Tensor) and inputs.is_nested:
        raise InputError("the input is a nested tensor; give its clips as a list: tensor.unbind()")
    items: Any = [inputs] if single else inputs
    if not len(items):
        raise InputError("the list of waveforms is empty")
    clips, rates = [], []
    for index, item in enumerate(items):
        samples, found, where = _read(item, sampling_rate, "the waveform" if single else f"clip {index}")
        clips.append(resampled(_checked(_mono(samples, where), where), found, rate, where))
        rates.append(found)
    return Waveforms(clips, single, any(found != rate for found in rates))


def _read(item: Any, sampling_rate: Any, where: str) -> tuple[Any, Any, str]:
    """The samples of an item, their rate, and what to call it in messages."""
    if isinstance(item, PATHS):
        samples, found = read_audio(item)
        check_rate(found, str(item))
        if sampling_rate not in (..., found):
            raise InputError(f"sampling_rate={sampling_rate!r} is given, and {item} has {found} Hz: leave it out for files")
        return samples, found, str(item)
    if _are_floats(item):
        item = np.array(item, dtype=np.float64)
    elif isinstance(item, int | float | np.number):
        raise InputError(
            f"{where} is {described(item)}; a list of numbers is one waveform if all are floats: otherwise give an array of "
            "floating-point numbers, int16 or int32. A rate is given as sampling_rate"
        )
    return item, ASSUMED_RATE if sampling_rate is ... else sampling_rate, where


def _are_floats(value: Any) -> bool:
    """Whether a value is a list of floats, which is a waveform. Of whole numbers nobody knows the scale."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, float | np.floating) for item in value)


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
        raise InputError(f"{where} has dtype {dtype_name(item)}; samples are floating-point numbers, int16 or int32")
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


def as_values(values: Any, dtype: torch.dtype) -> Float[Tensor, "batch sample"]:
    """What a feature extractor made of clips, as it is: [batch sample], or [sample] for a single clip.

    Args:
        dtype: of the result.

    Raises:
        InputError: for a wrong type or shape, NaN, infinities, and samples too large for this dtype.
    """
    given = as_tensor(values, "input_values")
    if given.ndim not in (1, 2) or given.numel() == 0 or not given.is_floating_point():
        raise InputError(
            f"input_values is {described(values)}; give floating-point numbers [batch sample], not empty, as a feature "
            "extractor returns them"
        )
    rows = torch.atleast_2d(given)
    for index, row in enumerate(rows):
        _checked(row, f"row {index} of input_values")
    _check_peaks(rows.unbind(), dtype)
    return rows.to(dtype, copy=True)


def _peak(clip: Clip) -> float:
    """The largest magnitude; NaN or infinite if any sample is."""
    low, high = torch.aminmax(clip.detach())
    return float(torch.maximum(-low, high))


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
                f"clip {index} has samples of {peak:.3g}, too large for {dtype_name(dtype)} (at most "
                f"{limit:.3g}); waveforms lie between -1 and 1"
            )
