"""HookedTransformerConfig: TransformerLens' field names, for code that builds a model from them."""

import pprint
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch

from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean

UNSAID = -1  # of a size: it is computed


@runtime_checkable
class HasFields(Protocol):
    """A configuration of another library that gives its fields as a dictionary."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass
class HookedTransformerConfig:
    """An encoder's configuration under TransformerLens' field names, which can be read and set.

    The fields and their units are those of TransformerLens. Defaults are an encoder's, not a language model's: attention is
    bidirectional and the activation function is GELU. A field that asks for something an encoder does not have is refused
    when a model is built. New code can use ``EncoderConfig``.

    Args:
        d_model, n_layers: width of the residual stream, and number of layers.
        n_ctx: longest input in tokens; an audio encoder has no such limit.
        d_head, n_heads: one is computed from the other if it is left out.
        d_mlp: ``4 * d_model`` if left out.
        d_vocab: -1 takes it from the tokenizer.
        eps: of the norms; None is 1e-12 for text and 1e-5 for audio, as in BERT and HuBERT.

    Raises:
        ConfigError: if neither ``d_head`` nor ``n_heads`` is given.
    """

    n_layers: int
    d_model: int
    n_ctx: int = UNSAID
    d_head: int = UNSAID
    n_heads: int = UNSAID
    d_mlp: int | None = None
    d_vocab: int = UNSAID
    d_vocab_out: int = UNSAID
    act_fn: str = "gelu"
    eps: float | None = None
    model_name: str = "custom"
    initializer_range: float = -1.0
    attn_scale: float = -1.0
    attention_dir: str = "bidirectional"
    tie_word_embeddings: bool = True
    tokenizer_name: str | None = None
    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float32
    seed: int | None = None
    init_weights: bool = True
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False

    # What an encoder has in one form only: other values are refused.
    normalization_type: str | None = "LN"
    positional_embedding_type: str = "standard"
    use_attn_scale: bool = True
    init_mode: str = "gpt2"
    n_devices: int = 1
    final_rms: bool = False
    uses_rms_norm: bool = False
    layer_norm_folding: bool = False
    attn_only: bool = False
    gated_mlp: bool = False
    parallel_attn_mlp: bool = False
    scale_attn_by_inverse_layer_idx: bool = False
    post_embedding_ln: bool = False
    use_normalization_before_and_after: bool = False
    use_attn_in: bool = False
    use_hook_tokens: bool = False
    use_qk_norm: bool = False
    clip_qkv: float | None = None
    n_key_value_heads: int | None = None
    ungroup_grouped_query_attention: bool = False
    use_local_attn: bool = False
    window_size: int | None = None
    attn_types: list[str] | None = None
    use_logn_attn: bool = False
    use_attention_sinks: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    rotary_dim: int | None = None
    use_dynamic_ntk_rope: bool = False
    use_NTK_by_parts_rope: bool = False
    use_yarn_rope: bool = False
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    norm_topk_prob: bool = False
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    quantization_method: str | None = None

    # Provenance, and settings of what an encoder does not have: they change nothing.
    original_architecture: str | None = None
    n_params: int | None = None
    default_prepend_bos: bool = True
    tokenizer_prepends_bos: bool | None = None
    decoder_start_token_id: int | None = None
    train_seq_length: int | None = None
    rotary_base: float = 10000.0
    rotary_base_local: float | None = None
    rotary_scaling_factor: float = 1.0
    rotary_adjacent_pairs: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    yarn_truncate: bool = True
    yarn_global_attn_only: bool = False

    def __post_init__(self) -> None:
        self.n_heads, self.d_head = head_sizes(self.d_model, self.n_heads, self.d_head)
        if self.d_mlp is None:
            self.d_mlp = 4 * self.d_model
        if self.d_vocab_out == UNSAID:
            self.d_vocab_out = self.d_vocab

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> "HookedTransformerConfig":
        """A configuration from a dictionary of its fields.

        Raises:
            ConfigError: for a name that is not a field.
        """
        known = [field.name for field in fields(cls)]
        for name in config_dict:
            if name not in known:
                raise ConfigError(f"{name!r} is not a field of HookedTransformerConfig{did_you_mean(name, known)}")
        return cls(**config_dict)

    @classmethod
    def unwrap(cls, config: Any) -> "HookedTransformerConfig":
        """A configuration as it is, or made from a dictionary, or from any object with ``to_dict()``.

        Raises:
            ConfigError: for anything else.
        """
        if isinstance(config, cls):
            return config
        return cls.from_dict(fields_of(config))

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        return f"HookedTransformerConfig:\n{pprint.pformat(self.to_dict())}"


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration: of a dictionary, or of any object with ``to_dict()``.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, HasFields) and not isinstance(config, type):
        return dict(config.to_dict())
    raise ConfigError(
        "a configuration is an EncoderConfig, a HookedTransformerConfig, a dictionary or a model's cfg, "
        f"not {type(config).__name__}; from_pretrained loads a checkpoint"
    )


def head_sizes(d_model: int, n_heads: int, d_head: int) -> tuple[int, int]:
    """``n_heads`` and ``d_head``, of which one may be ``UNSAID``: it then follows from the other.

    Raises:
        ConfigError: for neither, or one that does not divide ``d_model``.
    """
    if n_heads == UNSAID and d_head == UNSAID:
        raise ConfigError("the configuration lacks d_head (or n_heads)")
    if n_heads == UNSAID:
        return _divided(d_model, d_head, "d_head"), d_head
    if d_head == UNSAID:
        return n_heads, _divided(d_model, n_heads, "n_heads")
    return n_heads, d_head


def _divided(d_model: int, by: int, name: str) -> int:
    if by < 1 or d_model % by:
        raise ConfigError(f"d_model={d_model} is not a multiple of {name}={by}")
    return d_model // by


DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(HookedTransformerConfig) if field.name not in ("n_layers", "d_model")
}
