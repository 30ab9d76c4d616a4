"""Parts of attention, and what all layers share of positions."""

from dataclasses import dataclass, replace
from typing import Any

from encoderlens.config.fields import NotNegative, Positive, Share, Size
from encoderlens.config.part import Part
from encoderlens.errors import ConfigError


@dataclass(frozen=True)
class AttentionPart(Part):
    """Attention; ``n_kv_heads`` None means one key and value head for each head."""

    component = "Attention"
    n_heads: Size
    d_head: Size
    dropout: Share = 0.0
    n_kv_heads: Size | None = None
    bias: bool = True

    def check(self) -> None:
        super().check()
        if self.n_heads % self.kv_heads:
            raise ConfigError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.kv_heads}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"n_kv_heads": self.kv_heads}


@dataclass(frozen=True)
class RelativeBiasPart(Part):
    """A learned bias for how far a key lies from a query (Raffel et al. 2020)."""

    component = "RelativeBias"
    takes = ()
    n_heads: Size
    n_buckets: Size = 32
    max_distance: Size = 128


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
    max_distance: Size
    n_buckets: Size | None = None
    norm_eps: NotNegative | None = None
    dropout: Share = 0.0

    def check(self) -> None:
        super().check()
        if self.n_buckets == 1:
            raise ConfigError("n_buckets=1: half of them are single distances, so there are two or more")


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
    theta: tuple[Positive, ...] = (10000.0,)
    window: tuple[Size | None, ...] = (None,)

    def check(self) -> None:
        super().check()
        check_pairs(self.d_head)

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
    theta: Positive = 10000.0


@dataclass(frozen=True)
class SharedRotaryAttentionPart(AttentionPart):
    """Rotary attention with the frequencies of ``EncoderConfig.relative``."""

    component = "SharedRotaryAttention"
    takes = ("d_model", "relative")

    def check(self) -> None:
        super().check()
        check_pairs(self.d_head)


def check_pairs(d_head: int) -> None:
    if d_head % 2:
        raise ConfigError(f"d_head={d_head}: rotary attention turns pairs of coordinates, so it must be even")
