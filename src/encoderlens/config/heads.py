"""Parts behind the blocks: the pooler, what stands in front of classifiers, and heads."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from encoderlens.config.fields import ActivationName, Share, Size
from encoderlens.config.part import Part

Reads = Literal["first", "mean", "every"]  # which positions of the stream a classifier reads


@dataclass(frozen=True)
class PoolerPart(Part):
    """[CLS] through a linear layer and tanh (Devlin et al. 2019)."""

    component = "Pooler"


@dataclass(frozen=True)
class PreClassifierPart(Part):
    """A classifier's own linear layer and activation function, and a norm where there is one.

    Attributes:
        reads: the stream at the "first" position, its "mean" over real ones, or "every" position.
    """

    component = "PreClassifier"
    takes = ("d_model", "norm")
    act_fn: ActivationName = "tanh"
    reads: Reads = "first"
    dropout: Share = 0.0
    normed: bool = False
    bias: bool = True


@dataclass(frozen=True)
class ContactPart(Part):
    """Contacts between positions, from the attention of all layers (Rao et al. 2021).

    Attributes:
        eos: the id of the token at the end of each sequence, which is no position of it.
    """

    component = "ContactHead"
    takes = ("n_layers", "n_heads")
    eos: int


@dataclass(frozen=True)
class HeadPart(Part):
    """A head, for the task that it names."""

    task: ClassVar[str]

    @property
    def needs_pooler(self) -> bool:
        """Whether it reads the model's pooler."""
        return "pooler" in self.takes

    @property
    def vocabulary(self) -> int | None:
        """How many symbols it predicts, if it has a vocabulary of its own."""
        return None


@dataclass(frozen=True)
class MaskedLMPart(HeadPart):
    """Word pieces for each position; ``act_fn`` None for an unembedding without a transform in front."""

    component = "MaskedLMHead"
    takes = ("d_model", "norm", "embedding")
    task = "masked_lm"
    act_fn: ActivationName | None = "gelu"
    tied: bool = True
    bias: bool = True
    unembed_bias: bool = True


@dataclass(frozen=True)
class NextSentencePart(HeadPart):
    component = "NextSentenceHead"
    takes = ("d_model", "pooler")
    task = "next_sentence"


@dataclass(frozen=True)
class SentenceOrderPart(HeadPart):
    component = "SentenceOrderHead"
    takes = ("d_model", "pooler")
    task = "sentence_order"
    dropout: Share = 0.0


@dataclass(frozen=True)
class SequenceClassificationPart(HeadPart):
    """Classes for a sequence, from the pooler or from what the classifier has in front of it.

    Attributes:
        score_fn: the activation function that makes a cross-encoder's score of a single logit; None for none.
    """

    component = "SequenceClassificationHead"
    takes = ("d_model", "pooler")
    task = "sequence_classification"
    labels: tuple[str, ...]
    problem_type: str | None = None
    dropout: Share = 0.0
    pre_classifier: PreClassifierPart | None = None
    score_fn: str | None = None

    @property
    def needs_pooler(self) -> bool:
        return self.pre_classifier is None


@dataclass(frozen=True)
class TokenClassificationPart(HeadPart):
    component = "TokenClassificationHead"
    task = "token_classification"
    labels: tuple[str, ...]
    dropout: Share = 0.0
    pre_classifier: PreClassifierPart | None = None


@dataclass(frozen=True)
class QuestionAnsweringPart(HeadPart):
    component = "QuestionAnsweringHead"
    task = "question_answering"
    dropout: Share = 0.0
    pre_classifier: PreClassifierPart | None = None


@dataclass(frozen=True)
class ReplacedTokenPart(HeadPart):
    component = "ReplacedTokenHead"
    task = "replaced_token_detection"
    pre_classifier: PreClassifierPart


@dataclass(frozen=True)
class CTCPart(HeadPart):
    """Symbols for each frame, and a blank (Graves et al. 2006)."""

    component = "CTCHead"
    task = "ctc"
    d_vocab: Size
    blank: int = 0
    reduction: Literal["sum", "mean"] = "sum"
    zero_infinity: bool = False
    dropout: Share = 0.0

    @property
    def vocabulary(self) -> int:
        return self.d_vocab


@dataclass(frozen=True)
class AudioClassificationPart(HeadPart):
    """Classes for a clip, from the mean of its projected frames; ``n_summed`` streams are summed first, if it is not None."""

    component = "AudioClassificationHead"
    task = "sequence_classification"
    labels: tuple[str, ...]
    d_pooled: Size = 256
    n_summed: Size | None = None
