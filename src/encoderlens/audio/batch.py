"""AudioBatch: clips or frames that have been checked and are ready to run."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoderlens.audio.processor import Processing, require_ctc_tokenizer, text_of, timing_of
from encoderlens.audio.timing import Timing
from encoderlens.components.heads import AudioContext
from encoderlens.config import FrontendPart
from encoderlens.errors import InputError
from encoderlens.sequence import Sequence, usable


@dataclass(frozen=True, eq=False)
class AudioBatch(AudioContext):
    """One batch of clips, ready to run, with what decoding needs.

    Attributes:
        waves: as the front end reads them [batch sample]; None for frames.
        samples: how many samples of each clip are real, where no norm may see the others; None where it sees all.
        frames: projected frames [batch pos d_model], where the input was these.
        masked: True where the vector for masked frames stands [batch pos].
        sequence: mask and size, in frames.
        single: the input was one bare waveform, so that predictions are not a list.
        processing, frontend: what it was made for; a model with others does not take it.
        tokenizer: of the symbols that a CTC head predicts; None without one.
    """

    waves: Float[Tensor, "batch sample"] | None
    samples: tuple[int, ...] | None
    frames: Float[Tensor, "batch pos d_model"] | None
    masked: Bool[Tensor, "batch pos"] | None
    sequence: Sequence
    single: bool
    processing: Processing
    frontend: FrontendPart
    tokenizer: Any
    token_ids: Int[Tensor, "batch pos"] | None = None

    @property
    def timing(self) -> Timing:
        """Where frames lie in time."""
        return timing_of(self.processing, self.frontend)

    @property
    def times(self) -> Float[Tensor, " pos"]:
        """The middle of each frame in seconds."""
        return self.timing.times(self.sequence.pos)

    @property
    def device(self) -> torch.device:
        return self._read.device

    @property
    def _read(self) -> Tensor:
        read = self.frames if self.waves is None else self.waves
        if read is None:
            raise InputError("this batch is of a residual stream, without clips")
        return read

    @property
    def labels(self) -> tuple[str, ...]:
        """The number of each clip."""
        return tuple(map(str, range(self.sequence.batch)))

    @property
    def position_labels(self) -> tuple[str, ...]:
        """Number and time of each frame."""
        return tuple(f"{number} {time:.4f}s" for number, time in enumerate(self.times.tolist()))

    def part(self, rows: slice) -> "AudioBatch":
        """Some of its clips, copied; with all of their padding, which a group norm sees."""
        waves, frames, masked = (
            None if beside is None else beside[rows].clone() for beside in (self.waves, self.frames, self.masked)
        )
        samples = None if self.samples is None else self.samples[rows]
        sequence = self.sequence.part(rows, self.sequence.pos)
        return replace(self, waves=waves, samples=samples, frames=frames, masked=masked, sequence=sequence)

    def at(self, device: torch.device, dtype: torch.dtype) -> "AudioBatch":
        """The same batch where a model is now, and as what it computes."""
        waves, frames = (usable(beside, device, dtype) for beside in (self.waves, self.frames))
        masked, sequence = usable(self.masked, device), self.sequence.at(device)
        return replace(self, waves=waves, frames=frames, masked=masked, sequence=sequence)

    def transcript(self, symbols: list[int], blank: int) -> str:
        return text_of(require_ctc_tokenizer(self.tokenizer, blank), symbols)
