"""Parts of the embeddings, and the norms that stand everywhere."""

from dataclasses import dataclass
from typing import Any, ClassVar

from encoderlens.config.fields import Count, NotNegative, Share, Size
from encoderlens.config.part import Part
from encoderlens.errors import ConfigError


@dataclass(frozen=True)
class NormPart(Part):
    """A norm; what it stands in says how wide it is, and in front of which axes."""

    takes = ("d_model", "width", "rows")
    normalization_type: ClassVar[str]
    eps: NotNegative = 1e-12


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
        padding_idx: the token whose row the embedding does not train; None for none.
        zeroes_padding: what leaves is zero at padding.
        projects_first: the linear layer of factorised embeddings stands in front of the norm, and has no bias.
    """

    component = "Embed"
    takes = ("d_model", "d_embed", "projected", "pos_embed", "norm")
    d_vocab: Size
    n_token_types: Count = 2
    dropout: Share = 0.0
    d_embed: Size | None = None
    normed: bool = True
    n_task_types: Count = 0
    zeroes_padding: bool = False
    projects_first: bool = False
    padding_idx: int | None = None

    def check(self) -> None:
        super().check()
        if self.padding_idx is not None and not -self.d_vocab <= self.padding_idx < self.d_vocab:
            raise ConfigError(
                f"padding_idx (pad_token_id) is {self.padding_idx!r}; it is None, or one of the {self.d_vocab} tokens"
            )

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
    n_ctx: Size


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

    n_ctx: Size
    positional_embedding_type: str
