"""EncoderConfig: what an encoder is made of, as a frozen sum of parts.

A part names the component that it becomes (``component``), and its fields are that component's keyword arguments. Families
choose parts; nothing else decides what a model looks like.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn

from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean


@dataclass(frozen=True)
class Part:
    """One part of a configuration; ``takes`` names what its component needs of the model around it."""

    component: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("d_model",)

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
    d_vocab: int
    n_token_types: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class AbsolutePositionsPart(Part):
    """One learned vector a position."""

    component = "AbsolutePositions"
    positional_embedding_type: ClassVar[str] = "standard"
    n_ctx: int


@dataclass(frozen=True)
class AttentionPart(Part):
    component = "Attention"
    n_heads: int
    d_head: int
    dropout: float = 0.0


@dataclass(frozen=True)
class MLPPart(Part):
    component = "MLP"
    d_mlp: int
    act_fn: str = "gelu"


@dataclass(frozen=True)
class PostLNPart(Part):
    """LayerNorm after attention and after the MLP (Vaswani et al. 2017)."""

    component = "PostLNBlock"
    takes = ("attn", "mlp", "norm")
    dropout: float = 0.0


@dataclass(frozen=True)
class PoolerPart(Part):
    """[CLS] through a linear layer and tanh (Devlin et al. 2019)."""

    component = "Pooler"


@dataclass(frozen=True)
class HeadPart(Part):
    """A head, for the task that it names."""

    task: ClassVar[str]
    needs_pooler: ClassVar[bool] = False


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
class EncoderConfig:
    """A whole encoder.

    Attributes:
        family: the registry's name of its family.
        original_architecture: the Hugging Face class that it came from or would be saved as.
        heads: every head that it carries; the first is the default task.
        model_name: the name or folder that it was loaded from.
    """

    family: str
    original_architecture: str
    d_model: int
    n_layers: int
    embed: EmbeddingPart
    positions: AbsolutePositionsPart
    attention: AttentionPart
    norm: LayerNormPart
    mlp: MLPPart
    block: PostLNPart
    pooler: PoolerPart | None = None
    heads: tuple[HeadPart, ...] = ()
    initializer_range: float = 0.02
    model_name: str = "custom"

    def __post_init__(self) -> None:
        sizes = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a positive whole number")
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
    def d_vocab(self) -> int:
        return self.embed.d_vocab

    @property
    def d_vocab_out(self) -> int:
        return self.embed.d_vocab

    @property
    def n_token_types(self) -> int:
        return self.embed.n_token_types

    @property
    def n_ctx(self) -> int:
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
        self.__dict__["_model"] = model
        self.__dict__.update(dict.fromkeys(self.FLAGS, False))

    @property
    def device(self) -> torch.device:
        return next(self.__dict__["_model"].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.__dict__["_model"].parameters()).dtype

    @property
    def n_params(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.__dict__["_model"].parameters())

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


@dataclass(frozen=True)
class ModelRequest:
    """What a TransformerLens-style dictionary asks for: a configuration, and how to make a model of it."""

    encoder: EncoderConfig
    device: str | torch.device | None
    dtype: torch.dtype
    seed: int | None
    tokenizer_name: str | None
    flags: dict[str, bool]


# Fields of TransformerLens' configuration that ask for something which an encoder here does not have, and their neutral value.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("LN",),
    "positional_embedding_type": ("standard",),
    "use_attn_scale": (True,),
    "init_mode": ("gpt2",),
    "n_devices": (1,),
    "final_rms": (False,),
    "attn_only": (False,),
    "gated_mlp": (False,),
    "parallel_attn_mlp": (False,),
    "use_local_attn": (False,),
    "use_attn_in": (False,),
    "use_hook_tokens": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "post_embedding_ln": (False,),
    "trust_remote_code": (False,),
    "load_in_4bit": (False,),
    "from_checkpoint": (False,),
    "init_weights": (True,),
    "n_key_value_heads": (None,),
    "uses_rms_norm": (False,),
    "layer_norm_folding": (False,),
    "num_experts": (None,),
    "experts_per_token": (None,),
    "norm_topk_prob": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (None,),
    "use_logn_attn": (False,),
    "use_dynamic_ntk_rope": (False,),
    "use_NTK_by_parts_rope": (False,),
    "use_yarn_rope": (False,),
    "use_attention_sinks": (False,),
    "use_normalization_before_and_after": (False,),
    "ungroup_grouped_query_attention": (False,),
    "attn_scores_soft_cap": (-1.0,),
    "output_logits_soft_cap": (-1.0,),
    "checkpoint_index": (None,),
    "checkpoint_label_type": (None,),
    "checkpoint_value": (None,),
    "window_size": (None,),
    "attn_types": (None,),
    "rotary_dim": (None,),
    "relative_attention_max_distance": (None,),
    "relative_attention_num_buckets": (None,),
    "quantization_method": (None,),
}
# Fields that tune one of those, or describe text and provenance; whatever they say changes nothing.
_IDLE = (
    *("original_architecture", "n_params", "default_prepend_bos", "tokenizer_prepends_bos", "decoder_start_token_id"),
    *("train_seq_length", "rotary_base", "rotary_base_local", "rotary_scaling_factor", "rotary_adjacent_pairs"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor", "NTK_original_ctx_len"),
    *("yarn_factor", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_original_max_position_embeddings"),
    *("yarn_truncate", "yarn_global_attn_only"),
)
_READ = ("d_model", "n_layers", "n_ctx", "d_vocab", "n_heads", "d_head", "d_mlp", "act_fn", "eps", "initializer_range")
_RUNTIME = ("device", "dtype", "seed", "tokenizer_name", "model_name", "attention_dir", "attn_scale", "d_vocab_out")
_OWN = ("n_token_types", "tie_word_embeddings", *ModelConfig.FLAGS)
_WHOLE = ("d_model", "n_layers", "n_ctx", "d_vocab", "n_heads", "d_head", "n_token_types")


def request_from_dict(values: dict[str, Any]) -> ModelRequest:
    """A TransformerLens-style dictionary as a BERT with masked-LM and next-sentence heads.

    Required: ``d_model``, ``n_layers``, ``n_ctx``, ``d_vocab``, and ``d_head`` or ``n_heads``. ``d_mlp`` is ``4 * d_model``
    when left out, ``act_fn`` gelu, ``eps`` 1e-12, ``n_token_types`` 2, ``tie_word_embeddings`` True.

    Raises:
        ConfigError: for a missing or unknown field, ``attention_dir="causal"``, or a field that asks for something that this
            encoder does not have.
    """
    _refuse_unknown(values)
    missing = [name for name in ("d_model", "n_layers", "n_ctx", "d_vocab") if name not in values]
    if missing:
        raise ConfigError(f"the configuration lacks {', '.join(missing)}")
    for name in _WHOLE:
        if not isinstance(values.get(name, 1), int):
            raise ConfigError(f"{name} is {values[name]!r}; it must be a positive whole number")
    d_model = values["d_model"]
    n_heads, d_head = _heads(values, d_model)
    attn_scale = values.get("attn_scale", -1.0)
    if attn_scale != -1.0 and not math.isclose(attn_scale, d_head**0.5):
        raise ConfigError(f"attn_scale={attn_scale!r}: scores are scaled by the square root of d_head ({d_head**0.5:.4g})")
    if values.get("d_vocab_out", -1) not in (-1, values["d_vocab"]):
        raise ConfigError("d_vocab_out differs from d_vocab: the masked-LM head scores the word pieces of the embedding")
    act_fn = values.get("act_fn", "gelu")
    encoder = EncoderConfig(
        family="bert",
        original_architecture="BertForPreTraining",
        d_model=d_model,
        n_layers=values["n_layers"],
        embed=EmbeddingPart(values["d_vocab"], values.get("n_token_types", 2)),
        positions=AbsolutePositionsPart(values["n_ctx"]),
        attention=AttentionPart(n_heads, d_head),
        norm=LayerNormPart(values.get("eps", 1e-12)),
        mlp=MLPPart(values.get("d_mlp") or 4 * d_model, act_fn),
        block=PostLNPart(),
        pooler=PoolerPart(),
        heads=(MaskedLMPart(act_fn, values.get("tie_word_embeddings", True)), NextSentencePart()),
        initializer_range=_initializer_range(values),
        model_name=values.get("model_name", "custom"),
    )
    flags = {flag: values[flag] for flag in ModelConfig.FLAGS if flag in values}
    dtype = values.get("dtype", torch.float32)
    return ModelRequest(encoder, values.get("device"), dtype, values.get("seed"), values.get("tokenizer_name"), flags)


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = (*_READ, *_RUNTIME, *_OWN, *_NEUTRAL, *_IDLE)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{name!r} is not a field of an encoder's configuration{did_you_mean(name, known)}")
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise ConfigError(f"{name}={value!r} is not implemented for an encoder; leave it out, or set {_NEUTRAL[name][0]!r}")
    if values.get("attention_dir", "bidirectional") != "bidirectional":
        raise ConfigError(
            f"attention_dir={values['attention_dir']!r}: encoders attend both ways; leave it out or set 'bidirectional'"
        )


def _heads(values: dict[str, Any], d_model: int) -> tuple[int, int]:
    n_heads, d_head = values.get("n_heads", -1), values.get("d_head", -1)
    if n_heads == -1 and d_head == -1:
        raise ConfigError("the configuration lacks d_head (or n_heads)")
    given = n_heads if n_heads != -1 else d_head
    if (n_heads == -1 or d_head == -1) and (given < 1 or d_model % given):
        raise ConfigError(f"d_model={d_model} is not a multiple of {'n_heads' if n_heads != -1 else 'd_head'}={given}")
    return (n_heads if n_heads != -1 else d_model // d_head), (d_head if d_head != -1 else d_model // n_heads)


def _initializer_range(values: dict[str, Any]) -> float:
    asked = values.get("initializer_range", -1.0)
    return 0.02 if asked == -1.0 else asked
