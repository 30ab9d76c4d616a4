"""EncoderConfig: what an encoder is made of, as a frozen sum of parts.

A part names the component that it becomes (``component``), and its fields are that component's keyword arguments. Families
choose parts; nothing else decides what a model looks like.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn

from encoderlens.errors import ConfigError

AnyPart = TypeVar("AnyPart", bound="Part")
Reads = Literal["first", "mean", "every"]  # which positions of the stream a classifier reads


@dataclass(frozen=True)
class Part:
    """One part of a configuration; ``takes`` names what its component needs of the model around it.

    A field that is a part itself becomes that part's component.
    """

    component: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("d_model",)
    sizes: ClassVar[tuple[str, ...]] = ()  # fields that are positive whole numbers

    def check(self) -> None:
        """Refuse sizes that are none.

        Raises:
            ConfigError: with the field and its value.
        """
        for name in self.sizes:
            _check_size(name, getattr(self, name))

    def arguments(self) -> dict[str, Any]:
        """The component's keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def at(self: AnyPart, layer: int) -> AnyPart:
        """The part as it is in one layer."""
        return self


@dataclass(frozen=True)
class NormPart(Part):
    """A norm; what it stands in says how wide it is, and in front of which axes."""

    takes = ("d_model", "width", "rows")
    normalization_type: ClassVar[str]
    eps: float = 1e-12


@dataclass(frozen=True)
class LayerNormPart(NormPart):
    component = "LayerNorm"
    normalization_type = "LN"
    bias: bool = True


@dataclass(frozen=True)
class RMSNormPart(NormPart):
    """A norm without a mean or a bias (Zhang & Sennrich 2019)."""

    component = "RMSNorm"
    normalization_type = "RMS"


@dataclass(frozen=True)
class EmbeddingPart(Part):
    """Word pieces, positions, token types and task types where there are some, then a norm where there is one.

    Attributes:
        d_embed: the width of factorised embeddings, which a linear layer brings to that of the stream; None for none.
        zeroes_padding: what leaves is zero at padding.
        projects_first: the linear layer of factorised embeddings stands in front of the norm, and has no bias.
    """

    component = "Embed"
    takes = ("d_model", "d_embed", "projected", "pos_embed", "norm")
    sizes = ("d_vocab",)
    d_vocab: int
    n_token_types: int = 2
    dropout: float = 0.0
    d_embed: int | None = None
    normed: bool = True
    n_task_types: int = 0
    zeroes_padding: bool = False
    projects_first: bool = False

    def check(self) -> None:
        super().check()
        for name in ("n_token_types", "n_task_types"):
            if getattr(self, name) != 0:
                _check_size(name, getattr(self, name))
        if self.d_embed is not None:
            _check_size("d_embed", self.d_embed)

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super().arguments().items() if name != "d_embed"}


@dataclass(frozen=True, kw_only=True)
class TokenDropoutEmbeddingPart(EmbeddingPart):
    """Embeddings that treat mask tokens as dropped out (Rives et al. 2021); ``mask`` is the mask token's id."""

    component = "TokenDropoutEmbed"
    mask: int


@dataclass(frozen=True)
class AbsolutePositionsPart(Part):
    """One learned vector a position."""

    component = "AbsolutePositions"
    takes = ("d_embed",)
    positional_embedding_type: ClassVar[str] = "standard"
    sizes = ("n_ctx",)
    n_ctx: int


@dataclass(frozen=True)
class PaddedPositionsPart(AbsolutePositionsPart):
    """One learned vector a position, counted from the first token that is not padding; ``pad`` is the padding token's id."""

    component = "PaddedPositions"
    pad: int


@dataclass(frozen=True)
class AttentionPositionsPart(Part):
    """Positions that enter in attention only, which then is of a kind that knows them; no table, and no component.

    Attributes:
        n_ctx: the longest input.
        positional_embedding_type: how attention knows them.
    """

    sizes = ("n_ctx",)
    n_ctx: int
    positional_embedding_type: str


@dataclass(frozen=True)
class FrontendPart(Part):
    """Strided convolutions from the waveform to frames."""

    component = "Frontend"
    takes = ()
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    bias: bool = False
    norm: Literal["group", "layer"] = "group"
    act_fn: str = "gelu"

    def check(self) -> None:
        sizes = {"channels": self.channels, "kernels": self.kernels, "strides": self.strides}
        if not self.channels or len({len(values) for values in sizes.values()}) > 1:
            raise ConfigError(f"channels, kernels and strides have one entry a convolution, not {sizes}")
        if self.norm not in ("group", "layer"):
            raise ConfigError(f"the norm of the front end is {self.norm!r}; it is 'group' or 'layer'")
        for name, values in sizes.items():
            for value in values:
                _check_size(f"an entry of {name}", value)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        field = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            field = (field - 1) * stride + kernel
        return field

    def n_frames(self, n_samples: int) -> int:
        """How many frames a waveform has; none if it is shorter than the receptive field."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n_samples = (n_samples - kernel) // stride + 1
        return max(n_samples, 0)


@dataclass(frozen=True)
class ProjectionPart(Part):
    """From frames to the stream; ``norm_eps`` None for no norm in front."""

    component = "FeatureProjection"
    sizes = ("d_in",)
    d_in: int
    norm_eps: float | None = 1e-5
    dropout: float = 0.0


@dataclass(frozen=True)
class SpecAugment:
    """What is masked in training (Park et al. 2019): spans of frames, and spans of channels.

    Attributes:
        time_share, channel_share: the share that spans would cover if none overlapped.
        time_length, channel_length: the length of a span.
        time_spans, channel_spans: at least so many spans.
    """

    time_share: float
    time_length: int
    time_spans: int
    channel_share: float
    channel_length: int
    channel_spans: int


@dataclass(frozen=True)
class AudioEmbedPart(Part):
    """Projected frames + positions, then a norm in post-LN encoders."""

    component = "AudioEmbed"
    takes = ("d_model", "pos_embed", "norm")
    d_vocab: ClassVar[None] = None
    n_token_types: ClassVar[None] = None
    masks: bool = True
    normed: bool = True
    dropout: float = 0.0
    augment: SpecAugment | None = None


@dataclass(frozen=True)
class ConvPositionsPart(Part):
    """Positions from a convolution over neighbouring frames, whose weight has direction and length of its own."""

    component = "WeightNormConvPositions"
    positional_embedding_type: ClassVar[str] = "convolution"
    n_ctx: ClassVar[None] = None
    sizes = ("kernel", "groups")
    kernel: int = 128
    groups: int = 16
    act_fn: str = "gelu"


@dataclass(frozen=True)
class BatchNormConvPositionsPart(ConvPositionsPart):
    """The same with a plain weight, behind a batch norm."""

    component = "BatchNormConvPositions"


@dataclass(frozen=True)
class AttentionPart(Part):
    """Attention; ``n_kv_heads`` None means one key and value head for each head."""

    component = "Attention"
    sizes = ("n_heads", "d_head")
    n_heads: int
    d_head: int
    dropout: float = 0.0
    n_kv_heads: int | None = None
    bias: bool = True

    def check(self) -> None:
        super().check()
        n_kv_heads = self.arguments()["n_kv_heads"]
        _check_size("n_kv_heads", n_kv_heads)
        if self.n_heads % n_kv_heads:
            raise ConfigError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={n_kv_heads}")

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        return arguments | {"n_kv_heads": self.n_heads if self.n_kv_heads is None else self.n_kv_heads}


@dataclass(frozen=True)
class RelativeBiasPart(Part):
    """A learned bias for how far a key lies from a query (Raffel et al. 2020)."""

    component = "RelativeBias"
    takes = ()
    sizes = ("n_heads", "n_buckets", "max_distance")
    n_heads: int
    n_buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class RelativeBiasAttentionPart(AttentionPart):
    """Attention that adds the relative bias of ``EncoderConfig.relative``."""

    component = "RelativeBiasAttention"
    takes = ("d_model", "relative")


@dataclass(frozen=True)
class RelativeEmbeddingPart(Part):
    """A vector for each bucket of distances between query and key (He et al. 2021).

    Attributes:
        max_distance: from here on, everything is in the last bucket.
        n_buckets: buckets to each side, of distances that are logarithmic when far; None for one bucket a distance.
        norm_eps: of a LayerNorm over the vectors; None for none.
    """

    component = "RelativeEmbedding"
    sizes = ("max_distance",)
    max_distance: int
    n_buckets: int | None = None
    norm_eps: float | None = None
    dropout: float = 0.0

    def check(self) -> None:
        super().check()
        if self.n_buckets is not None:
            _check_size("n_buckets", self.n_buckets)
            if self.n_buckets < 2:
                raise ConfigError(f"n_buckets={self.n_buckets}: half of them are single distances, so there are two or more")


TERMS = ("c2p", "p2c")  # what content's queries make of the keys of positions, and content's keys of the queries of positions


@dataclass(frozen=True)
class ContentAttentionPart(AttentionPart):
    """What is left of disentangled attention without relative positions: its scale.

    Attributes:
        terms: the terms that the scale is meant for, beside that of content: of ``TERMS``.
    """

    component = "ContentAttention"
    terms: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        if len(set(self.terms)) != len(self.terms) or not set(self.terms) <= set(TERMS):
            raise ConfigError(f"terms={self.terms}: disentangled attention has {' and '.join(TERMS)}, each at most once")


@dataclass(frozen=True)
class DisentangledAttentionPart(ContentAttentionPart):
    """Attention of content to content, of content to positions and of positions to content (He et al. 2021).

    Attributes:
        shares: keys and queries of positions are made by the layers that make those of content.
    """

    component = "DisentangledAttention"
    takes = ("d_model", "relative")
    shares: bool = False


@dataclass(frozen=True)
class RotaryAttentionPart(AttentionPart):
    """Attention whose queries and keys are turned by their positions (Su et al. 2021).

    Attributes:
        theta, window: the base of the frequencies, and how far a query sees (None: everywhere), of one layer after the other;
            repeated where there are more layers.
    """

    component = "RotaryAttention"
    theta: tuple[float, ...] = (10000.0,)
    window: tuple[int | None, ...] = (None,)

    def check(self) -> None:
        super().check()
        _check_pairs(self.d_head)
        for window in self.window:
            if window is not None:
                _check_size("window", window)

    def at(self, layer: int) -> "RotaryAttentionPart":
        theta, window = self.theta[layer % len(self.theta)], self.window[layer % len(self.window)]
        return replace(self, theta=(theta,), window=(window,))

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"theta": self.theta[0], "window": self.window[0]}


@dataclass(frozen=True)
class RotaryFrequenciesPart(Part):
    """The frequencies of rotary attention, where checkpoints store them; ``theta`` is their base if one does not."""

    component = "RotaryFrequencies"
    takes = ("d_head",)
    theta: float = 10000.0


@dataclass(frozen=True)
class SharedRotaryAttentionPart(AttentionPart):
    """Rotary attention with the frequencies of ``EncoderConfig.relative``."""

    component = "SharedRotaryAttention"
    takes = ("d_model", "relative")

    def check(self) -> None:
        super().check()
        _check_pairs(self.d_head)


@dataclass(frozen=True)
class MLPPart(Part):
    component = "MLP"
    sizes = ("d_mlp",)
    d_mlp: int
    act_fn: str = "gelu"
    dropout: float = 0.0
    bias: bool = True


@dataclass(frozen=True)
class GatedMLPPart(MLPPart):
    """A gate on a second, linear branch (Shazeer 2020)."""

    component = "GatedMLP"


@dataclass(frozen=True)
class BlockPart(Part):
    """A block; ``final_norm`` says whether one more norm follows the last of them.

    Attributes:
        dropout: on what its sublayers write.
        mlp_dropout: on what the MLP writes, where that is another.
    """

    takes = ("attn", "mlp", "norm")
    final_norm: ClassVar[bool]
    dropout: float = 0.0
    mlp_dropout: float | None = None

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        return arguments | {"mlp_dropout": self.dropout if self.mlp_dropout is None else self.mlp_dropout}


@dataclass(frozen=True)
class PostLNPart(BlockPart):
    """LayerNorm after attention and after the MLP (Vaswani et al. 2017)."""

    component = "PostLNBlock"
    final_norm = False


@dataclass(frozen=True)
class ConvolutionPart(Part):
    """A convolution over neighbouring positions; ``kernel`` of them, an odd number."""

    component = "Convolution"
    sizes = ("kernel", "groups")
    kernel: int = 3
    groups: int = 1
    act_fn: str = "tanh"
    dropout: float = 0.0

    def check(self) -> None:
        super().check()
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel={self.kernel}: the convolution has as many neighbours to each side, so it must be odd")


@dataclass(frozen=True)
class ConvFirstPostLNPart(PostLNPart):
    """The same, and in the first block a convolution of what enters it, and one more norm (He et al. 2021)."""

    component = "ConvPostLNBlock"
    conv: ConvolutionPart = field(kw_only=True)

    def check(self) -> None:
        super().check()
        self.conv.check()

    def at(self, layer: int) -> PostLNPart:
        return self if layer == 0 else PostLNPart(self.dropout, self.mlp_dropout)


@dataclass(frozen=True)
class PreLNPart(BlockPart):
    """LayerNorm before attention and before the MLP, and after the last block (Xiong et al. 2020)."""

    component = "PreLNBlock"
    final_norm = True
    norm_in_front: bool = True


@dataclass(frozen=True)
class BareFirstPreLNPart(PreLNPart):
    """The same, but for the first layer's attention, which reads the stream as it is (Warner et al. 2024)."""

    def at(self, layer: int) -> "BareFirstPreLNPart":
        return replace(self, norm_in_front=layer > 0)


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
    act_fn: str = "tanh"
    reads: Reads = "first"
    dropout: float = 0.0
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
    act_fn: str | None = "gelu"
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
    dropout: float = 0.0


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
    dropout: float = 0.0
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
    dropout: float = 0.0
    pre_classifier: PreClassifierPart | None = None


@dataclass(frozen=True)
class QuestionAnsweringPart(HeadPart):
    component = "QuestionAnsweringHead"
    task = "question_answering"
    dropout: float = 0.0
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
    sizes = ("d_vocab",)
    d_vocab: int
    blank: int = 0
    reduction: Literal["sum", "mean"] = "sum"
    zero_infinity: bool = False
    dropout: float = 0.0

    @property
    def vocabulary(self) -> int:
        return self.d_vocab


@dataclass(frozen=True)
class AudioClassificationPart(HeadPart):
    """Classes for a clip, from the mean of its projected frames; ``n_summed`` streams are summed first, if it is not None."""

    component = "AudioClassificationHead"
    task = "sequence_classification"
    sizes = ("d_pooled",)
    labels: tuple[str, ...]
    d_pooled: int = 256
    n_summed: int | None = None


@dataclass(frozen=True)
class SentenceModulePart(Part):
    """A module behind the pooling of a sentence encoder.

    Attributes:
        folder: where the checkpoint keeps its configuration and weights.
        name: what it is called in the model.
    """

    takes = ()
    name: ClassVar[str]
    folder: str

    def reads(self, width: int) -> int:
        """How wide a vector it reads, where it gets one of this width."""
        return width

    def makes(self, width: int) -> int:
        """How wide a vector it makes of one of this width."""
        return width

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super().arguments().items() if name != "folder"}


@dataclass(frozen=True)
class SentenceDensePart(SentenceModulePart):
    component = "SentenceDense"
    name = "dense"
    sizes = ("d_in", "d_out")
    d_in: int
    d_out: int
    act_fn: str = "tanh"
    bias: bool = True
    residual: bool = False

    def reads(self, width: int) -> int:
        return self.d_in

    def makes(self, width: int) -> int:
        return self.d_out


@dataclass(frozen=True)
class SentenceLayerNormPart(SentenceModulePart):
    component = "SentenceLayerNorm"
    name = "layer_norm"
    sizes = ("d_sentence",)
    d_sentence: int
    eps: float = 1e-5

    def reads(self, width: int) -> int:
        return self.d_sentence


@dataclass(frozen=True)
class SentenceNormalizePart(SentenceModulePart):
    component = "SentenceNormalize"
    name = "normalize"


@dataclass(frozen=True)
class SentencePoolingPart(Part):
    component = "SentencePooling"
    takes = ()
    modes: tuple[str, ...] = ("mean",)


@dataclass(frozen=True)
class SentenceEmbeddingPart(Part):
    """One vector for each text, as sentence-transformers makes it (Reimers & Gurevych 2019).

    Attributes:
        pooling: what makes one vector of all positions.
        layers: what the vector then passes through.
        max_tokens: longer texts are cut, special tokens included; None for the limits of the tokenizer and the encoder.
        prompts: what can stand in front of a text, by what the text is for.
        prompt: what stands in front of every text unless another one is chosen.
        lowercases: whether texts are made lower case, whatever the tokenizer does.
    """

    component = "SentenceEmbedding"
    takes = ()
    pooling: SentencePoolingPart
    layers: tuple[SentenceModulePart, ...] = ()
    max_tokens: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    lowercases: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "layers": self.layers, "names": self.names}

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each layer in the model; a second one of a kind has a number."""
        kinds = [layer.name for layer in self.layers]
        before = [kinds[:index].count(kind) for index, kind in enumerate(kinds)]
        return tuple(f"{kind}_{count + 1}" if count else kind for kind, count in zip(kinds, before, strict=True))

    def check(self) -> None:
        for part in (self.pooling, *self.layers):
            part.check()
        if self.max_tokens is not None:
            _check_size("max_tokens", self.max_tokens)

    def check_widths(self, d_model: int) -> None:
        """Refuse layers that do not fit one another.

        Raises:
            ConfigError: with the first that does not.
        """
        width = d_model * len(self.pooling.modes)
        for layer in self.layers:
            if layer.reads(width) != width:
                raise ConfigError(f"{layer.folder} reads a vector of {layer.reads(width)} numbers, and gets one of {width}")
            width = layer.makes(width)


@dataclass(frozen=True)
class LayerSharing:
    """Layers that share their parameters (Lan et al. 2020): a step runs the layers of one group, one after the other.

    Attributes:
        steps: how many steps there are.
        groups: how many groups, each of which stands for as many consecutive steps as the others.
        inner: how many layers a group has.
    """

    steps: int
    groups: int
    inner: int

    def check(self, n_layers: int) -> None:
        """Refuse numbers that do not make so many layers.

        Raises:
            ConfigError: with these numbers.
        """
        for name, value in (("steps", self.steps), ("groups", self.groups), ("inner", self.inner)):
            _check_size(name, value)
        if self.steps * self.inner != n_layers or self.groups > self.steps:
            raise ConfigError(
                f"{self.steps} steps of {self.inner} layers, in {self.groups} groups, do not make {n_layers} layers"
            )

    def place(self, layer: int) -> tuple[int, int]:
        """The group of a layer, and which one of the group it is."""
        step, inner = divmod(layer, self.inner)
        return int(step / (self.steps / self.groups)), inner

    def owner(self, layer: int) -> int:
        """The first layer with the parameters of a layer."""
        return next(first for first in range(layer + 1) if self.place(first) == self.place(layer))


@dataclass(frozen=True)
class EncoderConfig:
    """A whole encoder.

    Attributes:
        family: the registry's name of its family.
        original_architecture: the Hugging Face class that it came from or would be saved as.
        heads: every head that it carries; the first is the default task.
        sentence: how it makes one vector of a text, if it is a sentence encoder.
        contacts: what predicts contacts between positions, if anything does.
        frontend, projection: of encoders that read waveforms.
        sharing: which layers share their parameters; None if each has its own.
        relative: what attention of all layers shares to know how far apart positions are, if it does.
        layerdrop: the share of blocks that a training run leaves out (Fan et al. 2020).
        model_name: the name or folder that it was loaded from.
    """

    family: str
    original_architecture: str
    d_model: int
    n_layers: int
    embed: EmbeddingPart | AudioEmbedPart
    positions: AbsolutePositionsPart | ConvPositionsPart | AttentionPositionsPart
    attention: AttentionPart
    norm: NormPart
    mlp: MLPPart
    block: BlockPart
    pooler: PoolerPart | None = None
    heads: tuple[HeadPart, ...] = ()
    sentence: SentenceEmbeddingPart | None = None
    contacts: ContactPart | None = None
    frontend: FrontendPart | None = None
    projection: ProjectionPart | None = None
    sharing: LayerSharing | None = None
    relative: Part | None = None
    layerdrop: float = 0.0
    initializer_range: float = 0.02
    model_name: str = "custom"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers"):
            _check_size(name, getattr(self, name))
        for value in (getattr(self, own.name) for own in fields(self)):
            if isinstance(value, Part):
                value.check()
        for name in ("eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise ConfigError(f"{name} is {value!r}; it must be a number, not below zero")
        if ("relative" in self.attention.takes) != (self.relative is not None):
            raise ConfigError("relative goes with attention that reads it, such as RelativeBiasAttentionPart")
        if isinstance(self.positions, ConvPositionsPart) and self.d_model % self.positions.groups:
            raise ConfigError(
                f"d_model={self.d_model} is not a multiple of the positional convolution's groups={self.positions.groups}"
            )
        if self.sharing is not None:
            self.sharing.check(self.n_layers)
        if self.sentence is not None:
            self.sentence.check_widths(self.d_model)
        for head in self.heads:
            if head.needs_pooler and self.pooler is None:
                raise ConfigError(f"the {head.task} head reads the pooler, but the configuration has none")

    @property
    def n_heads(self) -> int:
        return self.attention.n_heads

    @property
    def d_head(self) -> int:
        return self.attention.d_head

    @property
    def n_kv_heads(self) -> int:
        return self.attention.arguments()["n_kv_heads"]

    @property
    def d_embed(self) -> int:
        """The width of the embeddings, the stream's own unless they are factorised."""
        own = self.embed.d_embed if isinstance(self.embed, EmbeddingPart) else None
        return self.d_model if own is None else own

    @property
    def factorised(self) -> bool:
        """Whether a linear layer brings the embeddings to the stream."""
        return isinstance(self.embed, EmbeddingPart) and self.embed.d_embed is not None

    @property
    def owners(self) -> tuple[int, ...]:
        """For each layer, the first one with its parameters: itself, unless layers share theirs."""
        layers = range(self.n_layers)
        return tuple(layers) if self.sharing is None else tuple(map(self.sharing.owner, layers))

    @property
    def d_mlp(self) -> int:
        return self.mlp.d_mlp

    @property
    def act_fn(self) -> str:
        return self.mlp.act_fn

    @property
    def eps(self) -> float:
        return self.norm.eps

    @property
    def d_vocab(self) -> int | None:
        return self.embed.d_vocab

    @property
    def d_vocab_out(self) -> int | None:
        return next((head.vocabulary for head in self.heads if head.vocabulary is not None), self.embed.d_vocab)

    @property
    def modality(self) -> Literal["text", "audio"]:
        """What the encoder reads."""
        return "text" if self.frontend is None else "audio"

    @property
    def n_token_types(self) -> int | None:
        return self.embed.n_token_types

    @property
    def n_ctx(self) -> int | None:
        return self.positions.n_ctx

    @property
    def positional_embedding_type(self) -> str:
        return self.positions.positional_embedding_type

    @property
    def tie_word_embeddings(self) -> bool:
        return all(head.tied for head in self.heads if isinstance(head, MaskedLMPart))

    @property
    def normalization_type(self) -> str:
        return self.norm.normalization_type

    @property
    def attention_dir(self) -> str:
        return "bidirectional"


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive whole number")


def _check_pairs(d_head: int) -> None:
    if d_head % 2:
        raise ConfigError(f"d_head={d_head}: rotary attention turns pairs of coordinates, so it must be even")


_FACTS: dict[str, Callable[[nn.Module], Any]] = {
    "device": lambda model: next(model.parameters()).device,
    "dtype": lambda model: next(model.parameters()).dtype,
    "n_params": lambda model: sum(parameter.numel() for parameter in model.parameters()),
}


class ModelConfig:
    """``model.cfg``: an EncoderConfig's properties, the device and dtype of the parameters, and the ``use_*`` flags.

    The flags choose which on-demand hook points a names filter of None includes; they are all that can be set.

    Attributes:
        encoder: the frozen EncoderConfig.
        use_attn_result: include ``attn.hook_result``.
        use_split_qkv_input: include ``hook_q_input``, ``hook_k_input``, ``hook_v_input``.
        use_hook_mlp_in: include ``hook_mlp_in``.
    """

    FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in")

    encoder: EncoderConfig
    use_attn_result: bool
    use_split_qkv_input: bool
    use_hook_mlp_in: bool

    def __init__(self, encoder: EncoderConfig, model: nn.Module) -> None:
        self.__dict__["encoder"] = encoder
        self.__dict__.update(dict.fromkeys(self.FLAGS, False))
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Read device, dtype and size from this model from now on."""
        self.__dict__["_model"] = model

    @property
    def device(self) -> torch.device:
        return self._read("device")

    @property
    def dtype(self) -> torch.dtype:
        return self._read("dtype")

    @property
    def n_params(self) -> int:
        """Parameters, tied ones counted once."""
        return self._read("n_params")

    def _read(self, fact: str) -> Any:
        model = self.__dict__["_model"]
        return self.__dict__["_kept"][fact] if model is None else _FACTS[fact](model)

    def __getstate__(self) -> dict[str, Any]:  # a copy keeps what the model is now, and not the model with its weights
        return self.__dict__ | {"_model": None, "_kept": {fact: self._read(fact) for fact in _FACTS}}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "encoder" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["encoder"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.FLAGS:
            raise ConfigError(f"cfg.{name} is read-only; what can be set is {', '.join(self.FLAGS)}")
        if not isinstance(value, bool):
            raise ConfigError(f"cfg.{name} is True or False, not {value!r}")
        self.__dict__[name] = value

    def __repr__(self) -> str:
        flags = ", ".join(f"{flag}={getattr(self, flag)}" for flag in self.FLAGS)
        return f"ModelConfig({self.encoder!r}, device={self.device}, dtype={self.dtype}, {flags})"
