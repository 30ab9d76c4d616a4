"""A TransformerLens-style dictionary as a configuration: its field names, its defaults where an encoder has them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    AudioEmbedPart,
    ConvPositionsPart,
    EmbeddingPart,
    EncoderConfig,
    FrontendPart,
    LayerNormPart,
    MaskedLMPart,
    MLPPart,
    ModelConfig,
    NextSentencePart,
    PoolerPart,
    PostLNPart,
    ProjectionPart,
)
from encoderlens.config.fields import ActivationName, Count, NotNegative, Seed, Size, check_value, frozen
from encoderlens.config.hooked_transformer_config import DEFAULTS, UNSAID, fields_of, head_sizes
from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean


@dataclass(frozen=True)
class ModelRequest:
    """What is asked for: a configuration, and how to make a model of it."""

    encoder: EncoderConfig
    device: str | torch.device | None
    dtype: torch.dtype
    seed: int | None
    flags: dict[str, bool]


# Fields of TransformerLens' configuration that describe text and provenance, or tune what an encoder does not have: whatever
# they say changes nothing.
_IDLE = (
    *("original_architecture", "n_params", "default_prepend_bos", "tokenizer_prepends_bos", "decoder_start_token_id"),
    *("train_seq_length", "rotary_base", "rotary_base_local", "rotary_scaling_factor", "rotary_adjacent_pairs"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor", "NTK_original_ctx_len"),
    *("yarn_factor", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_original_max_position_embeddings"),
    *("yarn_truncate", "yarn_global_attn_only"),
)
_READ = ("d_model", "n_layers", "n_ctx", "d_vocab", "n_heads", "d_head", "d_mlp", "act_fn", "eps", "initializer_range")
_RUNTIME = ("device", "dtype", "seed", "tokenizer_name", "model_name", "attention_dir", "attn_scale", "d_vocab_out")
_OWN = ("n_token_types", "tie_word_embeddings", "heads", "pooler", *ModelConfig.FLAGS)
# The others ask for something that an encoder here does not have, unless they hold their default.
_NEUTRAL: dict[str, Any] = {
    name: default for name, default in DEFAULTS.items() if name not in (*_READ, *_RUNTIME, *_OWN, *_IDLE)
}
# What fields hold; those with a sentinel are looked at again where they are read.
_HELD: dict[str, Any] = {
    **dict.fromkeys(("d_model", "n_layers", "n_ctx", "d_vocab"), Size),
    **dict.fromkeys(("n_heads", "d_head", "d_vocab_out"), int),
    **{"d_mlp": Size, "n_token_types": Count, "act_fn": ActivationName, "eps": NotNegative},
    **{"initializer_range": float, "attn_scale": float, "seed": Seed, "tie_word_embeddings": bool},
    **{"tokenizer_name": str | Path, "model_name": str, "heads": tuple[str, ...], "pooler": bool},
    **dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), tuple[Size, ...]),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"), Size),
    "mask_embed": bool,
}
_OPTIONAL = ("d_mlp", "eps", "seed", "tokenizer_name", "model_name", "device", "dtype")  # of which None says nothing
_COMPUTED = ("n_ctx", "d_vocab")  # of which -1 says nothing
_OF_TEXT = ("n_token_types", "tokenizer_name", "heads", "pooler")  # that models which read waveforms do not have


def request_of(cfg: Any, from_fields: Callable[[dict[str, Any]], ModelRequest]) -> ModelRequest:
    """What a configuration asks for: an EncoderConfig, the ``cfg`` of a model, or TransformerLens' fields in a dictionary, a
    HookedTransformerConfig or any object with ``to_dict()``.

    Args:
        from_fields: reads such fields.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(cfg, EncoderConfig):
        return ModelRequest(cfg, None, torch.float32, None, {})
    if isinstance(cfg, ModelConfig):
        flags = {flag: getattr(cfg, flag) for flag in ModelConfig.FLAGS}
        return ModelRequest(cfg.encoder, cfg.device, cfg.dtype, None, flags)
    return from_fields(fields_of(cfg))


def tokenizer_name_of(cfg: Any) -> str | Path | None:
    """The tokenizer that a configuration names, if it names one.

    Raises:
        ConfigError: for anything but a text or a path.
    """
    if isinstance(cfg, EncoderConfig | ModelConfig):
        return None
    name = fields_of(cfg).get("tokenizer_name")
    if name is not None:
        check_value("tokenizer_name", name, str | Path)
    return name


def sized_by(tokenizer: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """TransformerLens' fields, with ``d_vocab`` from a tokenizer, if there is one, where they do not say it."""
    if tokenizer is None or fields.get("d_vocab", UNSAID) != UNSAID:
        return fields
    return fields | {"d_vocab": max(tokenizer.get_vocab().values()) + 1}


def request_from_dict(values: dict[str, Any]) -> ModelRequest:
    """A TransformerLens-style dictionary as a BERT with masked-LM and next-sentence heads.

    Required: ``d_model``, ``n_layers``, ``n_ctx``, ``d_vocab``, and ``d_head`` or ``n_heads``. ``d_mlp`` is ``4 * d_model``
    when left out, ``act_fn`` gelu, ``eps`` 1e-12, ``n_token_types`` 2, ``tie_word_embeddings`` True. ``heads`` can say that it
    has only one of the heads, or none, and ``pooler`` that it has no pooler.

    Raises:
        ConfigError: for a missing or unknown field, ``attention_dir="causal"``, or a field that asks for something that this
            encoder does not have.
    """
    values = _said(values)
    d_model, n_heads, d_head = _checked(values, ("d_model", "n_layers", "n_ctx", "d_vocab"))
    if values.get("d_vocab_out", -1) not in (-1, values["d_vocab"]):
        raise ConfigError("d_vocab_out differs from d_vocab: the masked-LM head scores the word pieces of the embedding")
    act_fn = values.get("act_fn", "gelu")
    available = {
        "masked_lm": MaskedLMPart(act_fn, values.get("tie_word_embeddings", True)),
        "next_sentence": NextSentencePart(),
    }
    heads = values.get("heads", tuple(available))
    encoder = EncoderConfig(
        family="bert",
        original_architecture=_class_with(heads),
        d_model=d_model,
        n_layers=values["n_layers"],
        embed=EmbeddingPart(values["d_vocab"], values.get("n_token_types", 2)),
        positions=AbsolutePositionsPart(values["n_ctx"]),
        attention=AttentionPart(n_heads, d_head),
        norm=LayerNormPart(values.get("eps", 1e-12)),
        mlp=MLPPart(values.get("d_mlp", 4 * d_model), act_fn),
        block=PostLNPart(),
        pooler=PoolerPart() if values.get("pooler", True) else None,
        heads=tuple(available[task] for task in heads),
        initializer_range=_initializer_range(values),
        model_name=values.get("model_name", "custom"),
    )
    return _request(encoder, values)


_CLASSES: dict[tuple[str, ...], str] = {
    (): "BertModel",
    ("masked_lm",): "BertForMaskedLM",
    ("next_sentence",): "BertForNextSentencePrediction",
    ("masked_lm", "next_sentence"): "BertForPreTraining",
}


def _class_with(heads: tuple[str, ...]) -> str:
    """The Hugging Face class with these heads."""
    if heads not in _CLASSES:
        raise ConfigError(f"heads={heads!r} is not implemented; {', '.join(map(repr, _CLASSES))} are")
    return _CLASSES[heads]


# Fields of an audio encoder's front end that TransformerLens' configuration has not, with HuBERT-base's values.
_FRONTEND: dict[str, Any] = {
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "mask_embed": True,
}


def audio_request_from_dict(values: dict[str, Any]) -> ModelRequest:
    """A TransformerLens-style dictionary as a HuBERT without heads, in HuBERT-base's layout: group norm, post-LN.

    Required: ``d_model``, ``n_layers``, and ``d_head`` or ``n_heads``. ``d_mlp`` is ``4 * d_model`` when left out, ``act_fn``
    gelu, ``eps`` 1e-5. The front end is HuBERT-base's where ``conv_dim``, ``conv_kernel``, ``conv_stride``,
    ``num_conv_pos_embeddings`` and ``num_conv_pos_embedding_groups`` do not say otherwise; ``mask_embed`` (True) is whether
    there is a vector for masked frames. ``n_ctx`` and ``d_vocab`` mean nothing here.

    Raises:
        ConfigError: as ``request_from_dict``.
    """
    values = _said(values)
    of_text = [name for name in _OF_TEXT if name in values]
    if of_text:
        raise ConfigError(f"{', '.join(of_text)}: of models that read text; leave out what an audio encoder does not have")
    shape = {name: values.get(name, default) for name, default in _FRONTEND.items()}
    common = {name: value for name, value in values.items() if name not in (*_FRONTEND, "n_ctx", "d_vocab", "d_vocab_out")}
    _check_kinds(shape)
    d_model, n_heads, d_head = _checked(common, ("d_model", "n_layers"))
    eps, frontend = values.get("eps", 1e-5), FrontendPart(shape["conv_dim"], shape["conv_kernel"], shape["conv_stride"])
    frontend.check()
    encoder = EncoderConfig(
        family="hubert",
        original_architecture="HubertModel",
        d_model=d_model,
        n_layers=values["n_layers"],
        frontend=frontend,
        projection=ProjectionPart(frontend.channels[-1], eps),
        embed=AudioEmbedPart(masks=shape["mask_embed"]),
        positions=ConvPositionsPart(shape["num_conv_pos_embeddings"], shape["num_conv_pos_embedding_groups"]),
        attention=AttentionPart(n_heads, d_head),
        norm=LayerNormPart(eps),
        mlp=MLPPart(values.get("d_mlp", 4 * d_model), values.get("act_fn", "gelu")),
        block=PostLNPart(),
        initializer_range=_initializer_range(values),
        model_name=values.get("model_name", "custom"),
    )
    return _request(encoder, values)


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something, with Python's own numbers."""
    said = {name: frozen(value) for name, value in values.items() if value is not None or name not in _OPTIONAL}
    return {name: value for name, value in said.items() if name not in _COMPUTED or value != UNSAID}


def _request(encoder: EncoderConfig, values: dict[str, Any]) -> ModelRequest:
    flags = {flag: values[flag] for flag in ModelConfig.FLAGS if flag in values}
    dtype = values.get("dtype", torch.float32)
    return ModelRequest(encoder, values.get("device"), dtype, values.get("seed"), flags)


def _checked(values: dict[str, Any], required: tuple[str, ...]) -> tuple[int, int, int]:
    """``d_model``, ``n_heads`` and ``d_head``, of fields that are known, there, and of the right kind."""
    _refuse_unknown(values)
    missing = [name for name in required if name not in values]
    if missing:
        remedy = "; d_vocab can come from a tokenizer: give tokenizer= or tokenizer_name" if "d_vocab" in missing else ""
        raise ConfigError(f"the configuration lacks {', '.join(missing)}{remedy}")
    _check_kinds(values)
    d_model = values["d_model"]
    n_heads, d_head = head_sizes(d_model, values.get("n_heads", UNSAID), values.get("d_head", UNSAID))
    attn_scale = values.get("attn_scale", -1.0)
    if attn_scale != -1.0 and not math.isclose(attn_scale, d_head**0.5, rel_tol=1e-6):  # a float32 will do
        raise ConfigError(f"attn_scale={attn_scale!r}: scores are scaled by the square root of d_head ({d_head**0.5:.4g})")
    return d_model, n_heads, d_head


def _check_kinds(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in _HELD:
            check_value(name, value, _HELD[name])


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = (*_READ, *_RUNTIME, *_OWN, *_NEUTRAL, *_IDLE)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{name!r} is not a field of an encoder's configuration{did_you_mean(name, known)}")
        if name in _NEUTRAL and value != _NEUTRAL[name]:
            raise ConfigError(f"{name}={value!r} is not implemented for an encoder; leave it out, or set {_NEUTRAL[name]!r}")
    if values.get("attention_dir", "bidirectional") != "bidirectional":
        raise ConfigError(
            f"attention_dir={values['attention_dir']!r}: encoders attend both ways; leave it out or set 'bidirectional'"
        )


def _initializer_range(values: dict[str, Any]) -> float:
    asked = values.get("initializer_range", -1.0)
    return 0.02 if asked == -1.0 else asked
