"""What a checkpoint's processor does to waveforms, and its tokenizer to transcripts."""

from dataclasses import dataclass
from typing import Any

from encoderlens.audio.timing import Timing
from encoderlens.config import FrontendPart
from encoderlens.errors import ConfigError, InputError, TokenizerMissingError


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


def timing_of(processing: Processing, frontend: FrontendPart) -> Timing:
    """Where the frames of a front end lie in time, at a processor's rate."""
    return Timing(processing.rate, frontend.stride, frontend.receptive_field)


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


def require_ctc_tokenizer(tokenizer: Any, blank: int) -> Any:
    """The tokenizer of a CTC head, or an error that says how to get one.

    Raises:
        TokenizerMissingError: without one.
        InputError: for one whose padding token, which it reads as the blank, is another symbol than the head's blank.
    """
    if tokenizer is None:
        raise TokenizerMissingError(
            "a transcript needs a tokenizer, and this model has none: its folder held no tokenizer files (vocab.json); add "
            "them, set model.processor to a Wav2Vec2Processor, or take the logits. Files that could not be read "
            "are named in the log"
        )
    if tokenizer.pad_token_id not in (None, blank):
        raise InputError(
            f"the CTC head's blank is symbol {blank} (pad_token_id of the configuration), and the tokenizer's is "
            f"{tokenizer.pad_token_id} ({tokenizer.pad_token}): one of them is not this model's"
        )
    return tokenizer


def text_of(tokenizer: Any, symbols: list[int]) -> str:
    """The text of symbols in which repetitions are merged already.

    Raises:
        InputError: for a symbol that the tokenizer has no name for.
    """
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

    nameless = [symbol for symbol in symbols if tokenizer.convert_ids_to_tokens(symbol) is None]
    if nameless:
        raise InputError(
            f"the model predicts symbol {nameless[0]}, and its tokenizer has no name for it (it has {len(tokenizer)} symbols): "
            "set model.processor to one with the model's own tokenizer, or take the logits"
        )
    merges = isinstance(tokenizer, Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer)
    return tokenizer.decode(symbols, **({"group_tokens": False} if merges else {}))
