"""Parts of sentence encoders: the pooling, and what follows it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from encoderlens.config.fields import ActivationName, NotNegative, Size
from encoderlens.config.part import Part
from encoderlens.errors import ConfigError
from encoderlens.given import check_text


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
    d_in: Size
    d_out: Size
    act_fn: ActivationName = "tanh"
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
    d_sentence: Size
    eps: NotNegative = 1e-5

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
    max_tokens: Size | None = None
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
        super().check()
        for prompt in (self.prompt, *(text for _, text in self.prompts)):
            check_text(prompt, f"the prompt {prompt!r}", ConfigError)

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
