"""Audio files."""

import os
from typing import Any

import numpy as np
import torch

from encoderlens.audio.rates import check_rate, resampled
from encoderlens.errors import InputError


def read_audio(path: Any, rate: Any = None) -> tuple[np.ndarray, int]:
    """An audio file (WAV, FLAC, OGG and what else libsndfile reads) as one waveform [sample], channels averaged, and its rate.

    Args:
        path: the file.
        rate: resample to this rate; None keeps the file's.

    Raises:
        InputError: for a file that is not there, is empty, or is no audio file, and for what is no rate.
    """
    import soundfile

    if rate is not None:
        check_rate(rate)
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"an audio file is named by its path, not by a {type(path).__name__}")
    if not os.path.isfile(path):
        raise InputError(f"there is no audio file {str(path)!r:.300}")
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path} cannot be read as audio: {error.error_string}") from error
    except TypeError as error:  # of a file without a header
        raise InputError(f"{path} cannot be read as audio: {error}") from error
    if not len(samples):
        raise InputError(f"{path} holds no samples")
    waveform = samples.mean(1)
    return (waveform, found) if rate is None else (resampled(torch.from_numpy(waveform), found, rate, str(path)).numpy(), rate)
