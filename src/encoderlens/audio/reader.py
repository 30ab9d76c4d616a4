"""AudioReader: from what the user has to one checked batch of clips or frames, as a model with its processor reads it."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encoderlens.audio.batch import AudioBatch
from encoderlens.audio.clips import LOUDEST, as_clips, as_values, check_lengths, joined
from encoderlens.audio.masks import check_frame_mask, check_real, lengths_of_sample_mask, mask_of_lengths
from encoderlens.audio.processor import Processing, timing_of
from encoderlens.audio.rates import check_rate
from encoderlens.audio.timing import Timing
from encoderlens.config import FrontendPart
from encoderlens.errors import InputError
from encoderlens.given import as_rows, as_tensor, check_keys, check_once, dtype_name
from encoderlens.names import check_word
from encoderlens.sequence import Sequence
from encoderlens.shapes import Resid

HF_NAMES = ("input_values", "attention_mask")  # of what a speech model reads
PADDED = "feature_extractor(waves, sampling_rate=…, padding=True, return_tensors='pt')"


@dataclass(frozen=True)
class InputValues:
    """What a feature extractor made of clips: normalised and padded already, at the model's rate.

    Attributes:
        values: [batch sample].
    """

    values: Any


@dataclass(frozen=True)
class AudioArguments:
    """What a caller gives as one input, whatever it is called.

    Attributes:
        inputs: InputValues, waveforms, frames, a prepared batch or a residual stream.
        mask: of real samples or frames.
    """

    inputs: Any
    mask: Any


def audio_arguments(
    inputs: Any, one_zero_attention_mask: Any = None, *, input_values: Any = None, attention_mask: Any = None
) -> AudioArguments:
    """Arguments under our names and those of Hugging Face, and what a feature extractor returns, as one set.

    Args:
        inputs: also a dictionary or BatchFeature with the names of Hugging Face.
        one_zero_attention_mask, input_values, attention_mask: as for ``HookedAudioEncoder.forward``.

    Raises:
        InputError: for something that is given twice, nothing to read, and for names in a dictionary that are unknown.
    """
    values = [("input_values", InputValues(as_rows(input_values, "input_values", PADDED)))] if input_values is not None else []
    masks = [("one_zero_attention_mask", one_zero_attention_mask), ("attention_mask", attention_mask)]
    if isinstance(inputs, Mapping):
        check_keys(inputs, HF_NAMES)
        if inputs.get("input_values") is not None:
            rows = as_rows(inputs["input_values"], "the dictionary's input_values", PADDED)
            values.append(("the dictionary's input_values", InputValues(rows)))
        masks.append(("the dictionary's attention_mask", as_rows(inputs.get("attention_mask"), "attention_mask", PADDED)))
    elif inputs is not None:
        values.append(("inputs", inputs))
    masks = [(called, mask) for called, mask in masks if mask is not None]
    check_once(*(called for called, _ in values))
    check_once(*(called for called, _ in masks))
    if not values:
        raise InputError("there is no input: give waveforms, or what a feature extractor returns (input_values=)")
    return AudioArguments(values[0][1], masks[0][1] if masks else None)


@dataclass(frozen=True)
class AudioReader:
    """What a model needs to know to read clips.

    Attributes:
        processing: what its processor does to waveforms.
        frontend: its front end.
        d_model: the width of frames.
        device, dtype: of the model.
        tokenizer: of the symbols that it predicts; None without one.
    """

    processing: Processing
    frontend: FrontendPart
    d_model: int
    device: torch.device
    dtype: torch.dtype
    tokenizer: Any

    @property
    def timing(self) -> Timing:
        """Where frames lie in time."""
        return timing_of(self.processing, self.frontend)

    def batch(
        self,
        inputs: Any,
        mask: Any,
        sampling_rate: Any,
        move_to_device: bool,
        padding: Any,
        mask_time_indices: Any,
    ) -> AudioBatch:
        """Waveforms, InputValues, frames or (frames, mask) as one checked batch on the model's device.

        Raises:
            InputError, GradientError: for what the model cannot read.
        """
        check_word("padding", padding, ("batch", "independent"))
        if sampling_rate is not ...:
            check_rate(sampling_rate)
        alone = padding == "independent"
        if isinstance(inputs, InputValues):
            inputs, batch = inputs.values, self._of_values(inputs.values, mask, sampling_rate, alone)
        elif are_frames(inputs):
            batch = self._of_frames(inputs, mask, alone)
        else:
            batch = self._of_clips(inputs, mask, sampling_rate, alone)
        items = inputs if isinstance(inputs, list | tuple) else [inputs]
        elsewhere = [item.device for item in items if isinstance(item, Tensor) and item.device != batch.device]
        if elsewhere and not move_to_device:
            raise InputError(f"the input is on {elsewhere[0]}, the model on {batch.device}; leave move_to_device on")
        if mask_time_indices is None:
            return batch
        masked = check_frame_mask(mask_time_indices, batch.sequence.batch, batch.sequence.pos)
        return replace(batch, masked=masked.to(self.device))

    def _of_frames(self, inputs: Any, mask: Any, alone: bool) -> AudioBatch:
        frames, own = inputs if isinstance(inputs, tuple) else (inputs, None)
        if own is not None and mask is not None:
            raise InputError("the mask is given twice: as (frames, mask), and as one_zero_attention_mask")
        frames = as_tensor(frames, "the input")
        if frames.shape[-1] != self.d_model or 0 in frames.shape or not frames.is_floating_point():
            raise InputError(
                f"frames are {dtype_name(frames)} {list(frames.shape)}; they are floating-point numbers "
                f"[batch frame {self.d_model}], as to_frames makes them"
            )
        values = frames.detach().to(self.dtype)
        if not bool((values.isfinite() & (values.abs() <= LOUDEST)).all()):
            raise InputError(f"frames hold NaN, infinities, or values beyond {LOUDEST:.3g}, whose squares overflow")
        real = self._frame_mask(own if mask is None else mask, len(frames), frames.shape[1])
        sequence = Sequence(len(frames), frames.shape[1], real, alone)
        return self._batch(sequence, frames=frames.to(self.device, self.dtype, copy=True))

    def _of_clips(self, inputs: Any, mask: Any, sampling_rate: Any, alone: bool) -> AudioBatch:
        processing, frontend = self.processing, self.frontend
        mask = None if mask is None else as_tensor(mask, "the mask")
        given = as_clips(inputs, sampling_rate, processing.rate)
        clips = [clip.to(self._bench) for clip in given.clips]
        bare = isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 2
        hint = "; stereo [sample channel] goes in as [waveform], a list" if bare else ""
        check_lengths(clips, frontend, processing.rate, hint)
        longest = max(map(len, clips))
        lengths, of_samples = self._lengths(clips, mask, longest, given.resampled)
        masks = processing.masks or alone or of_samples
        waves = joined(clips, processing, lengths if masks else None, self.dtype)
        frame_mask = None if of_samples else mask
        return self._of_waves(waves, frame_mask, lengths if masks else None, alone, given.single)

    def _of_values(self, values: Any, mask: Any, sampling_rate: Any, alone: bool) -> AudioBatch:
        """What a feature extractor returned. As in Hugging Face, only a mask says that samples are padding."""
        if sampling_rate not in (..., self.processing.rate):
            raise InputError(
                f"sampling_rate={sampling_rate!r} is given, and input_values have the model's rate, {self.processing.rate} Hz: "
                "give the rate to the feature extractor, or give waveforms"
            )
        mask = None if mask is None else as_tensor(mask, "the mask")
        waves = as_values(values, self.dtype)
        check_lengths(waves.unbind(), self.frontend, self.processing.rate)
        lengths, of_samples = self._lengths(waves.unbind(), mask, waves.shape[1], resampled=False)
        single = as_tensor(values, "input_values").ndim == 1
        return self._of_waves(waves, None if of_samples else mask, lengths, alone, single)

    def _of_waves(
        self,
        waves: Float[Tensor, "batch sample"],
        frame_mask: Tensor | None,
        lengths: list[int] | None,
        alone: bool,
        single: bool,
    ) -> AudioBatch:
        """A batch of waves as the front end reads them.

        Args:
            frame_mask: of real frames; None if ``lengths`` says it.
            lengths: how many samples of each are real; None where padding is read as silence.
        """
        batch, longest = waves.shape
        n_frames = self.frontend.n_frames(longest)
        if frame_mask is None and lengths is not None:
            frame_mask = mask_of_lengths([self.frontend.n_frames(length) for length in lengths], n_frames).bool()
        sequence = Sequence(batch, n_frames, self._frame_mask(frame_mask, batch, n_frames), alone)
        padded = alone and lengths is not None and min(lengths) < longest
        samples = tuple(lengths) if padded and lengths is not None else None
        return self._batch(sequence, waves=waves.to(self.device), samples=samples, single=single)

    def _lengths(self, clips: Items[Tensor], mask: Tensor | None, longest: int, resampled: bool) -> tuple[list[int], bool]:
        """How many samples of each clip are real, and whether a mask over samples says so."""
        of_samples = mask is not None and tuple(mask.shape) in ((len(clips), longest), (longest,))
        if not of_samples:
            return [len(clip) for clip in clips], False
        if resampled:
            raise InputError("a mask over samples does not fit resampled clips; give a list of clips of their own lengths")
        given = check_frame_mask(mask, len(clips), longest)
        lengths = lengths_of_sample_mask(given)
        check_lengths([clip[:length] for clip, length in zip(clips, lengths, strict=True)], self.frontend, self.processing.rate)
        return lengths, True

    @property
    def _bench(self) -> torch.device:
        """Where clips are worked on, in float64: where the model is, unless Apple's GPU is, which has none."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def prepared(self, batch: AudioBatch) -> AudioBatch:
        """A batch that was made for this model, where it is now and as what it computes.

        Raises:
            InputError: for one that was made for another model, or another processor.
        """
        if (batch.processing, batch.frontend) != (self.processing, self.frontend):
            raise InputError("this batch was prepared by another model, or before its processor changed: prepare it again")
        if batch.frames is not None and batch.frames.shape[-1] != self.d_model:
            raise InputError(f"this batch has frames of {batch.frames.shape[-1]}, and the model's are of {self.d_model}")
        return batch.at(self.device, self.dtype)

    def of_stream(self, resid: Resid, mask: Any) -> AudioBatch:
        """What goes with a residual stream, for a run that starts inside.

        Raises:
            InputError: for a mask of another shape.
        """
        batch, pos, _ = resid.shape
        return self._batch(Sequence(batch, pos, self._frame_mask(mask, batch, pos)))

    def _batch(self, sequence: Sequence, **fields: Any) -> AudioBatch:
        unset: dict[str, Any] = {"waves": None, "samples": None, "frames": None, "masked": None, "single": False}
        made_for = {"processing": self.processing, "frontend": self.frontend, "tokenizer": self.tokenizer}
        return AudioBatch(sequence=sequence, **made_for, **(unset | fields))

    def _frame_mask(self, mask: Any, batch: int, pos: int) -> Bool[Tensor, "batch pos"] | None:
        if mask is None:
            return None
        real = check_real(check_frame_mask(mask, batch, pos))
        return None if real is None else real.to(self.device)


def are_frames(inputs: Any) -> bool:
    """Whether an input is projected frames, rather than waveforms."""
    if isinstance(inputs, AudioBatch):
        return inputs.waves is None
    if isinstance(inputs, tuple):
        return len(inputs) == 2 and isinstance(inputs[0], Tensor | np.ndarray) and inputs[0].ndim == 3
    return isinstance(inputs, Tensor | np.ndarray) and inputs.ndim == 3
