"""What speech models read: waveforms, files and masks, made into checked batches; time; and transcripts set against clips."""

from encoderlens.audio.batch import AudioBatch as AudioBatch
from encoderlens.audio.files import read_audio as read_audio
from encoderlens.audio.forced_alignment import AlignedSpan as AlignedSpan
from encoderlens.audio.forced_alignment import SpeechAlignment as SpeechAlignment
from encoderlens.audio.timing import Timing as Timing
