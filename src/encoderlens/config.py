"""EncoderConfig: what an encoder is made of, as a frozen sum of parts.

A part names the component that it becomes (``component``), and its fields are that component's keyword arguments. Families
choose parts; nothing else decides what a model looks like.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from encoderlens.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One part of a configuration; ``takes`` names what its component needs of the model around it."""

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


@dataclass(frozen=True)
class LayerNormPart(Part):
    component = "LayerNorm"
    eps: float = 1e-12


@dataclass(frozen=True)
class EmbeddingPart(Part):
    """Word pieces + positions + token types, then a norm."""

    component = "Embed"
    takes = ("d_model", "pos_embed", "norm")
    sizes = ("d_vocab", "n_token_types")
    d_vocab: int
    n_token_types: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class AbsolutePositionsPart(Part):
    """One learned vector a position."""

    component = "AbsolutePositions"
    positional_embedding_type: ClassVar[str] = "standard"
    sizes = ("n_ctx",)
    n_ctx: int


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
    component = "Attention"
    sizes = ("n_heads", "d_head")
    n_heads: int
    d_head: int
    dropout: float = 0.0


@dataclass(frozen=True)
class MLPPart(Part):
    component = "MLP"
    sizes = ("d_mlp",)
    d_mlp: int
    act_fn: str = "gelu"
    dropout: float = 0.0


@dataclass(frozen=True)
class GatedMLPPart(MLPPart):
    """A gate on a second, linear branch (Shazeer 2020)."""

    component = "GatedMLP"


@dataclass(frozen=True)
class BlockPart(Part):
    """A block; ``final_norm`` says whether one more norm follows the last of them."""

    takes = ("attn", "mlp", "norm")
    final_norm: ClassVar[bool]
    dropout: float = 0.0


@dataclass(frozen=True)
class PostLNPart(BlockPart):
    """LayerNorm after attention and after the MLP (Vaswani et al. 2017)."""

    component = "PostLNBlock"
    final_norm = False


@dataclass(frozen=True)
class PreLNPart(BlockPart):
    """LayerNorm before attention and before the MLP, and after the last block (Xiong et al. 2020)."""

    component = "PreLNBlock"
    final_norm = True


@dataclass(frozen=True)
class PoolerPart(Part):
    """[CLS] through a linear layer and tanh (Devlin et al. 2019)."""

    component = "Pooler"


@dataclass(frozen=True)
class HeadPart(Part):
    """A head, for the task that it names."""

    task: ClassVar[str]
    needs_pooler: ClassVar[bool] = False

    @property
    def vocabulary(self) -> int | None:
        """How many symbols it predicts, if it has a vocabulary of its own."""
        return None


@dataclass(frozen=True)
class MaskedLMPart(HeadPart):
    component = "MaskedLMHead"
    takes = ("d_model", "norm", "embedding")
    task = "masked_lm"
    act_fn: str = "gelu"
    tied: bool = True


@dataclass(frozen=True)
class NextSentencePart(HeadPart):
    component = "NextSentenceHead"
    takes = ("d_model", "pooler")
    task = "next_sentence"
    needs_pooler = True


@dataclass(frozen=True)
class SequenceClassificationPart(HeadPart):
    component = "SequenceClassificationHead"
    takes = ("d_model", "pooler")
    task = "sequence_classification"
    needs_pooler = True
    labels: tuple[str, ...]
    problem_type: str | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class TokenClassificationPart(HeadPart):
    component = "TokenClassificationHead"
    task = "token_classification"
    labels: tuple[str, ...]
    dropout: float = 0.0


@dataclass(frozen=True)
class QuestionAnsweringPart(HeadPart):
    component = "QuestionAnsweringHead"
    task = "question_answering"


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
class EncoderConfig:
    """A whole encoder.

    Attributes:
        family: the registry's name of its family.
        original_architecture: the Hugging Face class that it came from or would be saved as.
        heads: every head that it carries; the first is the default task.
        frontend, projection: of encoders that read waveforms.
        layerdrop: the share of blocks that a training run leaves out (Fan et al. 2020).
        model_name: the name or folder that it was loaded from.
    """

    family: str
    original_architecture: str
    d_model: int
    n_layers: int
    embed: EmbeddingPart | AudioEmbedPart
    positions: AbsolutePositionsPart | ConvPositionsPart
    attention: AttentionPart
    norm: LayerNormPart
    mlp: MLPPart
    block: BlockPart
    pooler: PoolerPart | None = None
    heads: tuple[HeadPart, ...] = ()
    frontend: FrontendPart | None = None
    projection: ProjectionPart | None = None
    layerdrop: float = 0.0
    initializer_range: float = 0.02
    model_name: str = "custom"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers"):
            _check_size(name, getattr(self, name))
        for value in (getattr(self, field.name) for field in fields(self)):
            if isinstance(value, Part):
                value.check()
        for name in ("eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise ConfigError(f"{name} is {value!r}; it must be a number, not below zero")
        if isinstance(self.positions, ConvPositionsPart) and self.d_model % self.positions.groups:
            raise ConfigError(
                f"d_model={self.d_model} is not a multiple of the positional convolution's groups={self.positions.groups}"
            )
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
        return "LN"

    @property
    def attention_dir(self) -> str:
        return "bidirectional"


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive whole number")


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
