"""Configurations: TransformerLens' dictionaries, refusals, reproducible random weights, and the model's own cfg."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from encoderlens import EncoderConfig, HookedEncoder
from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    EmbeddingPart,
    LayerNormPart,
    MLPPart,
    NextSentencePart,
    PostLNPart,
)
from encoderlens.errors import CheckpointNotFoundError, ConfigError
from tests.checkpoints import assert_same_parameters
from tests.tiny import TOKENIZER

SMALL: dict[str, Any] = {"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 9, "d_vocab": 31, "device": "cpu"}
# All that TransformerLens 3.9 says of such a model in ``model.cfg.to_dict()``.
LENS: dict[str, Any] = SMALL | {
    "n_heads": 3,
    "d_mlp": 96,
    "act_fn": "gelu",
    "eps": 1e-12,
    "dtype": torch.float32,
    "seed": None,
    "model_name": "custom",
    "attention_dir": "bidirectional",
    "attn_scale": np.float32(8) ** 0.5,
    "d_vocab_out": 31,
    "initializer_range": 0.16,
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
    "init_mode": "gpt2",
    "n_params": 13824,
    "n_devices": 1,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "rotary_base": 10000,
    "rotary_scaling_factor": 1.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_factor": 8.0,
    "NTK_original_ctx_len": 8192,
    "yarn_factor": 1.0,
    "yarn_attention_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_original_max_position_embeddings": 4096,
    **dict.fromkeys(["use_attn_scale", "init_weights", "default_prepend_bos", "yarn_truncate"], True),
    **dict.fromkeys(["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens"], False),
    **dict.fromkeys(["attn_only", "gated_mlp", "final_rms", "parallel_attn_mlp", "use_local_attn", "post_embedding_ln"], False),
    **dict.fromkeys(["uses_rms_norm", "layer_norm_folding", "use_qk_norm", "use_logn_attn", "use_dynamic_ntk_rope"], False),
    **dict.fromkeys(["use_NTK_by_parts_rope", "use_yarn_rope", "use_attention_sinks", "norm_topk_prob"], False),
    **dict.fromkeys(["ungroup_grouped_query_attention", "use_normalization_before_and_after", "rotary_adjacent_pairs"], False),
    **dict.fromkeys(["scale_attn_by_inverse_layer_idx", "from_checkpoint", "trust_remote_code", "load_in_4bit"], False),
    **dict.fromkeys(["yarn_global_attn_only", "tie_word_embeddings"], False),
    **dict.fromkeys(["n_key_value_heads", "num_experts", "experts_per_token", "clip_qkv", "train_seq_length"]),
    **dict.fromkeys(["original_architecture", "checkpoint_index", "checkpoint_label_type", "checkpoint_value"]),
    **dict.fromkeys(["tokenizer_name", "tokenizer_prepends_bos", "window_size", "attn_types", "rotary_dim"]),
    **dict.fromkeys(["rotary_base_local", "quantization_method", "decoder_start_token_id"]),
    **dict.fromkeys(["relative_attention_max_distance", "relative_attention_num_buckets"]),
}


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "family": "bert",
        "original_architecture": "BertModel",
        "d_model": 24,
        "n_layers": 2,
        "embed": EmbeddingPart(31),
        "positions": AbsolutePositionsPart(9),
        "attention": AttentionPart(3, 8),
        "norm": LayerNormPart(),
        "mlp": MLPPart(96),
        "block": PostLNPart(),
    } | changes


# Dictionaries


def test_dictionary_and_its_defaults():
    cfg = HookedEncoder(SMALL).cfg
    assert (cfg.d_model, cfg.n_layers, cfg.n_ctx, cfg.d_vocab) == (24, 2, 9, 31)
    assert (cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab_out) == (3, 8, 96, 31)
    assert (cfg.act_fn, cfg.eps, cfg.n_token_types, cfg.initializer_range) == ("gelu", 1e-12, 2, 0.02)
    assert (cfg.attention_dir, cfg.normalization_type, cfg.positional_embedding_type) == ("bidirectional", "LN", "standard")
    assert (cfg.model_name, cfg.tie_word_embeddings) == ("custom", True)
    assert [head.task for head in cfg.heads] == ["masked_lm", "next_sentence"]


@pytest.mark.parametrize("sizes", [{"n_heads": 4}, {"d_head": 6}, {"n_heads": 4, "d_head": 6}, {"n_heads": 4, "d_head": -1}])
def test_heads_by_number_or_by_width(sizes: dict[str, int]):
    given = {name: value for name, value in SMALL.items() if name != "d_head"} | sizes
    cfg = HookedEncoder(given).cfg
    assert (cfg.n_heads, cfg.d_head) == (4, 6)


def test_heads_may_be_wider_than_the_stream_together():
    model = HookedEncoder(SMALL | {"n_heads": 5})
    assert model.W_Q.shape == (2, 5, 24, 8)
    assert model(torch.arange(4)[None]).shape == (1, 4, 31)


def test_the_whole_dictionary_of_transformer_lens_is_understood():
    cfg = HookedEncoder(LENS).cfg
    assert (cfg.n_heads, cfg.d_mlp, cfg.initializer_range, cfg.tie_word_embeddings) == (3, 96, 0.16, False)


@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"])
def test_flags_of_the_dictionary(flag: str):
    model = HookedEncoder(SMALL | {flag: True})
    assert getattr(model.cfg, flag) is True
    assert sum(getattr(model.cfg, name) for name in model.cfg.FLAGS) == 1


@pytest.mark.parametrize("name", ["eps", "act_fn", "n_token_types", "tie_word_embeddings", "initializer_range", "d_mlp"])
def test_fields_are_honoured(name: str):
    value = {"eps": 1e-3, "act_fn": "relu", "n_token_types": 4, "tie_word_embeddings": False, "initializer_range": 0.5}
    wanted = (value | {"d_mlp": 7})[name]
    model = HookedEncoder(SMALL | {name: wanted, "seed": 0})
    assert getattr(model.cfg, name) == wanted
    seen = {
        "eps": model.embed.ln.eps,
        "act_fn": "relu",
        "n_token_types": len(model.W_token_type),
        "tie_word_embeddings": model.unembed.weight is model.embed.embed.weight,
        "initializer_range": round(model.W_in.std().item(), 1),
        "d_mlp": model.W_in.shape[-1],
    }
    assert seen[name] == wanted


def test_tokenizer_of_the_dictionary():
    model = HookedEncoder(SMALL | {"tokenizer_name": str(TOKENIZER), "d_vocab": 188})
    assert model("the").shape[-1] == 188


def test_tokenizer_name_that_leads_nowhere():
    with pytest.raises(CheckpointNotFoundError, match="some-lab/nothing"):
        HookedEncoder(SMALL | {"tokenizer_name": "some-lab/nothing"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_dir": "causal"}, "attention_dir='causal': .*leave it out or set 'bidirectional'"),
        ({"n_layer": 2}, "'n_layer' is not a field of an encoder's configuration; did you mean 'n_layers'"),
        ({"sparkle": 2}, "'sparkle' is not a field of an encoder's configuration$"),
        (
            {"normalization_type": "RMS"},
            "normalization_type='RMS' is not implemented for an encoder; leave it out, or set 'LN'",
        ),
        ({"positional_embedding_type": "rotary"}, "positional_embedding_type='rotary' is not implemented"),
        ({"attn_only": True}, "attn_only=True is not implemented for an encoder; leave it out, or set False"),
        ({"n_key_value_heads": 1}, "n_key_value_heads=1 is not implemented for an encoder; leave it out, or set None"),
        ({"d_mlp": 10**30}, r"d_mlp is 1000.*; it must be a positive whole number below 2\*\*31"),
        ({"attn_scale": 1.0}, r"attn_scale=1\.0: scores are scaled by the square root of d_head \(2\.828\)"),
        ({"d_vocab_out": 3}, "d_vocab_out differs from d_vocab"),
        ({"d_head": 7}, "d_model=24 is not a multiple of d_head=7"),
        ({"d_head": -1}, r"lacks d_head \(or n_heads\)"),
        ({"d_head": 0}, "d_model=24 is not a multiple of d_head=0"),
        ({"n_layers": True}, "n_layers is True; it must be a positive whole number"),
        ({"n_token_types": -1}, "n_token_types is -1; it must be a positive whole number"),
        ({"eps": -1.0}, r"eps is -1\.0; it must be a number, not below zero"),
        ({"eps": "x"}, "eps is 'x'; it must be a number"),
        ({"initializer_range": -2.0}, r"initializer_range is -2\.0; it must be a number"),
        ({"act_fn": None}, "unknown activation None"),
        ({"seed": "x"}, "seed is 'x'; it must be a whole number"),
        ({"device": "foo"}, "device='foo' is no device that torch knows"),
        ({"n_layers": 0}, "n_layers is 0; it must be a positive whole number"),
        ({"n_ctx": -3}, "n_ctx is -3; it must be a positive whole number"),
        ({"d_model": "24"}, "d_model is '24'; it must be a positive whole number"),
        ({"d_vocab": 31.0}, r"d_vocab is 31\.0; it must be a positive whole number"),
        ({"act_fn": "gelo"}, "unknown activation 'gelo'; did you mean 'gelu'"),
        ({"use_attn_result": 1}, r"cfg\.use_attn_result is True or False, not 1"),
        ({"dtype": torch.int64}, r"dtype=torch\.int64; a model's dtype is torch\.float32"),
        ({"dtype": "float32"}, "dtype='float32'; a model's dtype is"),
    ],
)
def test_dictionaries_that_are_refused(changes: dict[str, Any], message: str, unchecked: None):
    with pytest.raises(ConfigError, match=message):
        HookedEncoder(SMALL | changes)


@pytest.mark.parametrize("missing", ["d_model", "n_layers", "n_ctx", "d_vocab", "d_head"])
def test_fields_that_must_be_there(missing: str):
    with pytest.raises(ConfigError, match=f"the configuration lacks {missing}"):
        HookedEncoder({name: value for name, value in SMALL.items() if name != missing})


def test_several_missing_fields_are_named_at_once():
    with pytest.raises(ConfigError, match="lacks n_layers, n_ctx, d_vocab"):
        HookedEncoder({"d_model": 24})


@pytest.mark.parametrize("cfg", ["bert-base-uncased", None, 3])
def test_what_is_no_configuration(cfg: Any, unchecked: None):
    with pytest.raises(ConfigError, match=f"not {type(cfg).__name__}; from_pretrained loads a checkpoint"):
        HookedEncoder(cfg)


def test_the_dictionary_is_left_as_it_was():
    given = dict(SMALL)
    HookedEncoder(given)
    assert given == SMALL


# Random weights


def test_seed_makes_weights_reproducible():
    first, second, other = (HookedEncoder(SMALL | {"seed": seed}) for seed in (7, 7, 8))
    assert_same_parameters(first, second)
    assert not torch.equal(first.W_E, other.W_E)


def test_seed_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = HookedEncoder(SMALL | {"seed": 7})
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same_parameters(HookedEncoder(SMALL | {"seed": 7}), first)


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(5)
    first, second = HookedEncoder(SMALL), HookedEncoder(SMALL)
    assert not torch.equal(first.W_E, second.W_E)
    torch.manual_seed(5)
    assert_same_parameters(HookedEncoder(SMALL), first)


def test_random_weights_are_those_of_bert():
    model = HookedEncoder(SMALL | {"d_model": 64, "d_vocab": 500, "seed": 0})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.abs().max() < 6 * 0.02, name
        elif name.endswith(".w"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert not parameter.any(), name
    assert model.W_E.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(model.W_E.mean().item()) < 1e-3


# The model's cfg


def test_flags_can_be_set_and_nothing_else(bert: HookedEncoder):
    for flag in bert.cfg.FLAGS:
        assert getattr(bert.cfg, flag) is False
        setattr(bert.cfg, flag, True)
        assert getattr(bert.cfg, flag) is True
    for name in ("n_layers", "d_head", "device", "dtype", "encoder", "anything"):
        with pytest.raises(ConfigError, match=rf"cfg\.{name} is read-only; what can be set is use_attn_result, "):
            setattr(bert.cfg, name, 3)
    with pytest.raises(ConfigError, match=r"cfg\.use_attn_result is True or False, not 'yes'"):
        bert.cfg.use_attn_result = "yes"


def test_unknown_properties_are_attribute_errors(bert: HookedEncoder):
    with pytest.raises(AttributeError, match="n_layer"):
        _ = bert.cfg.n_layer


def test_device_and_dtype_follow_the_parameters():
    model = HookedEncoder(SMALL)
    assert (model.cfg.device, model.cfg.dtype) == (torch.device("cpu"), torch.float32)
    model.half()
    assert model.cfg.dtype == torch.float16
    model.to(torch.float64, print_details=False)
    assert model.cfg.dtype == torch.float64
    model.to("meta", print_details=False)
    assert model.cfg.device == torch.device("meta")
    assert "device=meta, dtype=torch.float64, use_attn_result=False" in repr(model.cfg)


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({"dtype": torch.float16}, {}, torch.float16),
        ({}, {"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float16}, {"dtype": torch.float64}, torch.float64),
    ],
)
def test_dtype_of_the_dictionary_and_of_the_call(fields: dict, options: dict, expected: torch.dtype):
    assert HookedEncoder(SMALL | fields, **options).cfg.dtype == expected
    assert torch.get_default_dtype() == torch.float32


def test_device_of_the_dictionary_and_of_the_call():
    on_meta = {"device": "meta"}
    assert HookedEncoder(SMALL | on_meta, init_weights=False).cfg.device.type == "meta"
    assert HookedEncoder(SMALL | on_meta, init_weights=False, device="cpu").cfg.device.type == "cpu"
    assert HookedEncoder(SMALL | on_meta, move_to_device=False).cfg.device.type == "cpu"


def test_number_of_parameters_counts_tied_ones_once():
    tied, untied = HookedEncoder(SMALL), HookedEncoder(SMALL | {"tie_word_embeddings": False})
    assert untied.cfg.n_params - tied.cfg.n_params == 31 * 24


# EncoderConfig


def test_encoder_config_is_frozen_and_equal_by_value():
    cfg = EncoderConfig(**parts())
    assert cfg == EncoderConfig(**parts())
    assert hash(cfg) == hash(EncoderConfig(**parts()))
    for frozen, name in [(cfg, "n_layers"), (cfg.attention, "n_heads"), (cfg.norm, "eps")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, 1)


def test_model_of_an_encoder_config_has_the_parts_that_it_names():
    model = HookedEncoder(EncoderConfig(**parts()), device="cpu")
    assert model.heads == {}
    assert not hasattr(model, "pooler")
    assert model(torch.arange(4)[None]).shape == (1, 4, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers is 0"),
        ({"attention": AttentionPart(0, 8)}, "n_heads is 0"),
        ({"attention": AttentionPart(3, -8)}, "d_head is -8"),
        ({"mlp": MLPPart(0)}, "d_mlp is 0"),
        ({"n_layers": 1.5}, r"n_layers is 1\.5; it must be a positive whole number"),
        ({"positions": AbsolutePositionsPart(0)}, "n_ctx is 0"),
        ({"heads": (NextSentencePart(),)}, "the next_sentence head reads the pooler, but the configuration has none"),
    ],
)
def test_encoder_configs_that_are_refused(changes: dict[str, Any], message: str, unchecked: None):
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**parts(**changes))
