"""Waveforms of every form that people have them in, made into one checked batch; and audio files."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoderlens.components.heads import AudioContext
from encoderlens.config import FrontendPart
from encoderlens.errors import ConfigError, GradientError, InputError, TokenizerMissingError
from encoderlens.sequence import Sequence

NORM_EPS = 1e-7  # under the square root, where a processor gives each clip zero mean and unit variance
MAX_CHANNELS = 32
RATES = (1_000, 1_000_000)  # in Hz; what lies outside is another unit
LOUDEST = 2.0**32  # sums of squares of what is larger overflow, and nothing that was recorded is
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}

Clip = Float[Tensor, " sample"]
Clips = Items[Float[Tensor, " _"]]  # each of a length of its own


@dataclass(frozen=True)
class Processing:
    """What a checkpoint's processor does to waveforms.

    Attributes:
        rate: samples a second.
        normalizes: each clip gets zero mean and unit variance.
        masks: padding is masked. Checkpoints with a group norm were mostly trained without: padding is then read as silence.
        padding: the value of padded samples.
    """

    rate: int
    normalizes: bool
    masks: bool
    padding: float


def processing_of(processor: Any) -> Processing:
    """What a Hugging Face processor (or feature extractor) for waveforms does.

    Raises:
        ConfigError: for a processor of another kind.
    """
    from transformers import ProcessorMixin, Wav2Vec2FeatureExtractor

    extractor = processor.feature_extractor if isinstance(processor, ProcessorMixin) else processor
    if not isinstance(extractor, Wav2Vec2FeatureExtractor):
        raise ConfigError(
            f"processor is a Wav2Vec2Processor or a Wav2Vec2FeatureExtractor, as HuBERT and wav2vec 2.0 have, not "
            f"{type(extractor).__name__}"
        )
    if extractor.padding_side != "right" or extractor.feature_size != 1:
        raise ConfigError("a processor that pads on the left, or gives several features a sample, is not implemented")
    return Processing(
        int(extractor.sampling_rate), extractor.do_normalize, extractor.return_attention_mask, extractor.padding_value
    )


def default_processor(frontend: FrontendPart) -> Any:
    """The feature extractor that checkpoints with such a front end come with: 16 kHz, clips normalised, padding masked unless
    there is a group norm.
    """
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=frontend.norm == "layer")


def tokenizer_in(processor: Any) -> Any:
    """The tokenizer of a processor; None for a feature extractor."""
    from transformers import ProcessorMixin

    return processor.tokenizer if isinstance(processor, ProcessorMixin) else None


def is_ctc_tokenizer(tokenizer: Any) -> bool:
    """Whether a tokenizer is one of characters for CTC."""
    from transformers import Wav2Vec2CTCTokenizer

    return isinstance(tokenizer, Wav2Vec2CTCTokenizer)


def target_of(tokenizer: Any, transcript: Any) -> list[tuple[str, int]]:
    """The symbols of a transcript, each with its id; the delimiter between words as a space.

    Raises:
        InputError: for an empty transcript, characters that the tokenizer lacks, or a tokenizer that is not one of characters.
    """
    if not is_ctc_tokenizer(tokenizer):
        raise InputError(f"align reads transcripts with a Wav2Vec2CTCTokenizer, not a {type(tokenizer).__name__}")
    if not isinstance(transcript, str) or not transcript.split():
        raise InputError(f"the transcript is {transcript!r}; give what is said in the clip")
    tokens = tokenizer.tokenize(" ".join(transcript.split()))
    ids = tokenizer.convert_tokens_to_ids(tokens)
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id}
    missing = sorted({token for token, symbol in zip(tokens, ids, strict=True) if symbol in unknown})
    if missing:
        known = " ".join(sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)))
        raise InputError(f"the transcript has {', '.join(map(repr, missing))}, which the tokenizer lacks; it has {known}")
    delimiter = tokenizer.word_delimiter_token
    return [(" " if token == delimiter else token, symbol) for token, symbol in zip(tokens, ids, strict=True)]


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


@dataclass(frozen=True)
class AudioBatch(AudioContext):
    """One batch of clips, ready to run, with what decoding needs.

    Attributes:
        waves: as the front end reads them [batch sample]; None for frames.
        samples: how many samples of each clip are real, where no norm may see the others; None where it sees all.
        frames: projected frames [batch pos d_model], where the input was these.
        masked: True where the vector for masked frames stands [batch pos].
        sequence: mask and size, in frames.
        single: the input was one bare waveform, so that predictions are not a list.
        times: the middle of each frame in seconds [pos].
        tokenizer: of the symbols that a CTC head predicts; None without one.
    """

    waves: Float[Tensor, "batch sample"] | None
    samples: tuple[int, ...] | None
    frames: Float[Tensor, "batch pos d_model"] | None
    masked: Bool[Tensor, "batch pos"] | None
    sequence: Sequence
    single: bool
    times: Float[Tensor, " pos"]
    tokenizer: Any
    token_ids: Int[Tensor, "batch pos"] | None = None

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
        return tuple(f"{number} {time:.3f}s" for number, time in enumerate(self.times.tolist()))

    def part(self, rows: slice) -> "AudioBatch":
        """Some of its clips, copied; with all of their padding, which a group norm sees."""
        waves, frames, masked = (
            None if beside is None else beside[rows].clone() for beside in (self.waves, self.frames, self.masked)
        )
        samples = None if self.samples is None else self.samples[rows]
        sequence = self.sequence.rows(rows)
        return replace(self, waves=waves, samples=samples, frames=frames, masked=masked, sequence=sequence)

    def transcript(self, ids: list[int]) -> str:
        if self.tokenizer is None:
            raise TokenizerMissingError(
                "a transcript needs a tokenizer, and this model has none: its folder held no tokenizer files (vocab.json); add "
                "them, set model.processor to a Wav2Vec2Processor, or take the logits"
            )
        merged = {"group_tokens": False} if _merges(self.tokenizer) else {}
        return self.tokenizer.decode(ids, **merged)


def _merges(tokenizer: Any) -> bool:
    """Whether a tokenizer is one for CTC, of characters or phonemes, which would merge repetitions itself."""
    from transformers import Wav2Vec2PhonemeCTCTokenizer

    return is_ctc_tokenizer(tokenizer) or isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer)


# From what the user has to clips


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
            f"the input is {_described(inputs)}; give one waveform [sample], a list of waveforms, clips of one length "
            "[batch sample] (tensors or arrays), or projected frames [batch frame d_model]"
        )
    items: list[Any] = [inputs] if single else list(inputs)
    if not items:
        raise InputError("the list of waveforms is empty")
    clips = []
    for index, item in enumerate(items):
        where = "the waveform" if single else f"clip {index}"
        clips.append(_resampled(_checked(_mono(item, where), where), sampling_rate, rate, where))
    return clips, single


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor, or an array of any strides, byte order and flags, as a tensor.

    Raises:
        InputError: for anything else, and for arrays of what no tensor can hold.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise InputError(f"{what} is {_described(value)}; give a tensor or an array of numbers")
    try:
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise InputError(f"{what} is {_described(value)}; give one of a dtype that tensors have") from None


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
    return (item.double() / FULL_SCALE[item.dtype]).float()


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


def _resampled(clip: Clip, sampling_rate: Any, rate: int, where: str) -> Float[Tensor, " resampled"]:
    if sampling_rate == rate:
        return clip
    if clip.requires_grad:
        raise GradientError(
            f"{where} carries gradients at {sampling_rate} Hz, and resampling to the model's {rate} Hz would cut them: "
            "resample it first"
        )
    import soxr

    resampled = soxr.resample(clip.cpu().numpy(), float(sampling_rate), float(rate))
    return torch.from_numpy(resampled).to(clip.device)


# From clips to what the front end reads


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


def check_frame_mask(mask: Any, batch: int, n_frames: int) -> Bool[Tensor, "batch pos"]:
    """A mask over frames as booleans.

    Raises:
        InputError: for another shape or other values than 0 and 1, or a clip without a real frame.
    """
    given = torch.atleast_2d(as_tensor(mask, "the mask"))
    if tuple(given.shape) != (batch, n_frames):
        raise InputError(f"the mask has shape {list(given.shape)}; the clips have frames {[batch, n_frames]}")
    real = given.bool()
    if given.dtype != torch.bool and not torch.equal(real.to(given.dtype), given):
        raise InputError("a mask holds 1 (or True) and 0, and nothing else")
    return real


def check_real(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"] | None:
    """A frame mask; None when every frame is real.

    Raises:
        InputError: if a clip has no real frame.
    """
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"one_zero_attention_mask leaves clip {empty[0]} without a real frame")
    return None if bool(mask.all()) else mask


def lengths_of_sample_mask(mask: Bool[Tensor, "batch sample"]) -> list[int]:
    """How many samples of each clip are real, by a mask with padding at the end.

    Raises:
        InputError: for padding anywhere else.
    """
    lengths = mask.sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise InputError("a mask over samples has its ones first: padding stands at the end of a clip")
    return lengths.tolist()


def mask_of_lengths(lengths: Items[int], n_frames: int) -> Int[Tensor, "batch pos"]:
    """1 at the first so many frames of each clip."""
    return (torch.arange(n_frames) < torch.tensor(list(lengths))[:, None]).long()


# Files


def read_audio(path: Path | str, rate: int | None = None) -> tuple[np.ndarray, int]:
    """An audio file (WAV, FLAC, OGG and what else libsndfile reads) as one waveform [sample], channels averaged, and its rate.

    Args:
        path: the file.
        rate: resample to this rate; None keeps the file's.

    Raises:
        InputError: for a file that is not there, is empty, or is no audio file.
    """
    import soundfile

    if not Path(path).is_file():
        raise InputError(f"there is no audio file {path}")
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: of a file without a header
        raise InputError(f"{path} cannot be read as audio: {getattr(error, 'error_string', error)}") from error
    if not len(samples):
        raise InputError(f"{path} holds no samples")
    waveform = samples.mean(1)
    return (waveform, found) if rate is None else (_resampled(torch.from_numpy(waveform), found, rate, str(path)).numpy(), rate)


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {list(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
