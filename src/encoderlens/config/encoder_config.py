"""EncoderConfig: what an encoder is made of, as a frozen sum of parts."""

from dataclasses import dataclass, replace
from typing import Literal

from encoderlens.config.attention import AttentionPart
from encoderlens.config.audio import AudioEmbedPart, ConvPositionsPart, FrontendPart, ProjectionPart
from encoderlens.config.block import BlockPart, MLPPart
from encoderlens.config.embedding import AbsolutePositionsPart, AttentionPositionsPart, EmbeddingPart, NormPart
from encoderlens.config.fields import Checked, NotNegative, Share, Size
from encoderlens.config.heads import ContactPart, HeadPart, MaskedLMPart, PoolerPart
from encoderlens.config.part import Part
from encoderlens.config.sentence import SentenceEmbeddingPart
from encoderlens.errors import ConfigError


@dataclass(frozen=True)
class LayerSharing(Checked):
    """Layers that share their parameters (Lan et al. 2020): a step runs the layers of one group, one after the other.

    Attributes:
        steps: how many steps there are.
        groups: how many groups, each of which stands for as many consecutive steps as the others.
        inner: how many layers a group has.
    """

    steps: Size
    groups: Size
    inner: Size

    def check_layers(self, n_layers: int) -> None:
        """Refuse numbers that do not make so many layers.

        Raises:
            ConfigError: with these numbers.
        """
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
class EncoderConfig(Checked):
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
    d_model: Size
    n_layers: Size
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
    layerdrop: Share = 0.0
    initializer_range: NotNegative = 0.02
    model_name: str = "custom"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if ("relative" in self.attention.takes) != (self.relative is not None):
            raise ConfigError("relative goes with attention that reads it, such as RelativeBiasAttentionPart")
        if isinstance(self.positions, ConvPositionsPart) and self.d_model % self.positions.groups:
            raise ConfigError(
                f"d_model={self.d_model} is not a multiple of the positional convolution's groups={self.positions.groups}"
            )
        if self.sharing is not None:
            self.sharing.check_layers(self.n_layers)
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
        return self.attention.kv_heads

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

    def untied(self) -> "EncoderConfig":
        """The same with an unembedding of its own."""
        heads = tuple(replace(head, tied=False) if isinstance(head, MaskedLMPart) else head for head in self.heads)
        return replace(self, heads=heads)

    @property
    def normalization_type(self) -> str:
        return self.norm.normalization_type

    @property
    def attention_dir(self) -> str:
        return "bidirectional"
