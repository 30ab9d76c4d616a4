"""NomicBERT: checkpoints and configurations as its first code wrote them, its pooler, its hook points, and its sums."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, NomicBertConfig, NomicBertModel

from encoderlens import HookedEncoder
from encoderlens.errors import AnalysisError, ConfigError, WeightsError
from tests.checkpoints import assert_same_parameters, assert_same_tensors, edit_config, save_tiny, write_tensors
from tests.hooks import POST_LN_BLOCK, ROTARY, declared, in_layers, norm, replaced
from tests.parity import assert_changed, assert_close, assert_parity
from tests.test_documented_hooks import MASKED_LM
from tests.tiny import TINY, tiny_batch, tiny_hf

CLASSES = ["NomicBertModel", "NomicBertForMaskedLM", "NomicBertForSequenceClassification", "NomicBertForTokenClassification"]
# config.json of nomic-ai/nomic-embed-text-v1.5, with the sizes of the tiny model.
ORIGINAL: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    },
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.1,
    "eos_token_id": None,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 40,
    "n_head": 5,
    "n_inner": 52,
    "n_layer": 3,
    "n_positions": 37,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.125,
    "rotary_emb_base": 137,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.34.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": 188,
}
# The same in the names of today.
TODAY = TINY["nomic_bert"] | {
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.125,
    "rope_parameters": {"rope_type": "default", "rope_theta": 137.0},
}


def stored(hf_model: Any) -> dict[str, Tensor]:
    """A model's tensors under their names of today, tied ones once."""
    return {name: tensor for name, tensor in hf_model.state_dict().items() if name not in hf_model.all_tied_weights_keys}


def old_spelling(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint as the first code stored it."""
    old = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\blayers\.", "encoder.layers.", name).replace("embeddings.LayerNorm", "emb_ln")
        name = name.replace("self_attn.o_proj", "attn.out_proj")
        name = name.replace("up_proj", "fc11").replace("gate_proj", "fc12").replace("down_proj", "fc2")
        name = name.replace("post_attention_layernorm", "norm1").replace("post_mlp_layernorm", "norm2")
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            q = name.replace("encoder.layers", "layers")
            tensor = torch.cat([tensors[q.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("self_attn.q_proj", "attn.Wqkv")
        old[name] = tensor
    return old


def test_a_folder_as_transformers_saves_it_and_one_in_the_spelling_of_today(tmp_path: Path) -> None:
    hf_model = save_tiny("NomicBertForMaskedLM", tmp_path, seed=4)
    twin = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    assert_same_parameters(HookedEncoder.from_pretrained(tmp_path, device="cpu"), twin)
    write_tensors(tmp_path, stored(hf_model))
    assert_same_parameters(HookedEncoder.from_pretrained(tmp_path, device="cpu"), twin)


@pytest.mark.parametrize("hf_class", CLASSES)
def test_a_folder_in_the_old_spelling_is_the_same_model(hf_class: str, tmp_path: Path) -> None:
    hf_model = save_tiny(hf_class, tmp_path, seed=4)
    old = old_spelling(stored(hf_model))
    fused = [name for name in old if name.endswith("encoder.layers.1.attn.Wqkv.weight")]
    assert [old[name].shape for name in fused] == [(120, 40)]
    assert not any(re.search(r"\b(q|k|v|o|up|gate|down)_proj|layernorm|\.LayerNorm", name) for name in old)
    write_tensors(tmp_path, old)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert_same_parameters(model, HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu"))
    assert_same_tensors(dict(model.to_hf().state_dict()), dict(hf_model.state_dict()))
    theirs, report = type(hf_model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert_same_tensors(dict(theirs.state_dict()), dict(hf_model.state_dict()))


def test_one_fused_tensor_of_another_size_is_refused(tmp_path: Path) -> None:
    old = old_spelling(stored(save_tiny("NomicBertModel", tmp_path)))
    old["encoder.layers.1.attn.Wqkv.weight"] = old["encoder.layers.1.attn.Wqkv.weight"][:80]
    write_tensors(tmp_path, old)
    with pytest.raises(WeightsError, match=r"layers\.1\.attn\.Wqkv\.weight has shape \[80, 40\], .* calls for \[120, 40\]"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A folder as on the hub: the old spelling, and the old configuration."""
    write_tensors(tmp_path, old_spelling(stored(NomicBertModel(NomicBertConfig(**TODAY)))))
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL))
    return tmp_path


def test_the_original_configuration_says_what_it_said_to_the_original_code(original: Path) -> None:
    model = HookedEncoder.from_pretrained(original, device="cpu")
    twin = NomicBertModel(NomicBertConfig(**TODAY, attn_implementation="eager")).eval()
    twin.load_state_dict(model.to_hf().state_dict())
    expected = HookedEncoder.from_pretrained(hf_model=twin, device="cpu").cfg.encoder
    assert model.cfg.encoder == replace(expected, model_name=str(original))
    assert (model.cfg.n_ctx, model.cfg.eps, model.cfg.embed.dropout, model.cfg.attention.theta) == (37, 1e-5, 0.125, (137.0,))
    batch = tiny_batch()
    with torch.no_grad():
        theirs = twin(batch["tokens"], batch["mask"], batch["types"]).last_hidden_state
        assert_parity(model(batch["tokens"], "hidden", batch["types"], batch["mask"]), theirs, batch["mask"])


def test_transformers_takes_the_original_configuration_for_its_defaults() -> None:
    """Why the old names are translated here: transformers keeps them as they are, and computes with its defaults."""
    config = NomicBertConfig.from_dict(ORIGINAL)
    assert (config.n_embd, config.hidden_size, config.rope_parameters["rope_theta"]) == (40, 768, 1000.0)


def test_it_is_saved_in_the_names_of_today(original: Path, tmp_path: Path) -> None:
    model = HookedEncoder.from_pretrained(original, device="cpu")
    again = tmp_path / "again"
    model.to_hf().save_pretrained(again)
    assert_same_parameters(HookedEncoder.from_pretrained(again, device="cpu"), model)
    config = AutoModel.from_pretrained(again).config
    assert (config.hidden_size, config.rope_parameters["rope_theta"], config.hidden_dropout_prob) == (40, 137.0, 0.125)


def test_where_a_configuration_has_both_names_those_of_today_stand(original: Path) -> None:
    edit_config(original, max_position_embeddings=21, rope_parameters={"rope_type": "default", "rope_theta": 9.0})
    cfg = HookedEncoder.from_pretrained(original, device="cpu").cfg
    assert (cfg.n_ctx, cfg.attention.theta, cfg.d_model) == (21, (9.0,), 40)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu"),
        ("activation_function", "geglu"),
        ("causal", True),
        ("mlp_fc1_bias", True),
        ("mlp_fc2_bias", True),
        ("parallel_block", True),
        ("prenorm", True),
        ("qkv_proj_bias", True),
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512),
        ("rotary_scaling_factor", 2),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("use_rms_norm", True),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("num_experts", 8),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(key: str, value: Any, original: Path) -> None:
    edit_config(original, **{key: value})
    with pytest.raises(ConfigError, match=rf"config\.json: {key}=.*(is not implemented; only|is not understood)"):
        HookedEncoder.from_pretrained(original, device="cpu")


def test_frequencies_that_are_scaled_are_refused(original: Path) -> None:
    edit_config(original, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0})
    with pytest.raises(ConfigError, match="rope_type='dynamic' is not implemented; only 'default' is"):
        HookedEncoder.from_pretrained(original, device="cpu")


@pytest.mark.parametrize("add_pooling_layer", [False, True])
def test_the_base_model_has_a_pooler_if_it_was_made_with_one(add_pooling_layer: bool) -> None:
    hf_model = NomicBertModel(NomicBertConfig(**TODAY, attn_implementation="eager"), add_pooling_layer).eval()
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    assert (model.cfg.pooler is not None) == add_pooling_layer
    assert_same_tensors(dict(model.to_hf().state_dict()), dict(hf_model.state_dict()))
    if add_pooling_layer:
        batch = tiny_batch()
        with torch.no_grad():
            theirs = hf_model(batch["tokens"], batch["mask"], batch["types"]).pooler_output
            hidden = model(batch["tokens"], "hidden", batch["types"], batch["mask"])
            assert_parity(model.pooler(hidden), theirs)


# Attention


def test_scores_are_what_QK_at_a_distance_says() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("NomicBertModel", seed=1), device="cpu")
    _, cache = model.run_with_cache(tiny_batch()["tokens"], "hidden")
    stream, scores = cache["resid_pre", 1][0], cache["attn_scores", 1][0] * model.cfg.d_head**0.5
    for query, key in ((0, 0), (2, 7), (9, 3)):
        expected = stream[query] @ model.blocks[1].attn.QK_at(key - query).AB @ stream[key]
        assert_close(scores[:, query, key], expected)
    with pytest.raises(AnalysisError, match=r"take blocks\[l\]\.attn\.QK_at\(distance\)"):
        _ = model.QK
    with pytest.raises(WeightsError, match="has no table of positions: they are rotary, in attention"):
        _ = model.W_pos
    assert not any(bias.any() for bias in (model.b_Q, model.b_K, model.b_V, model.b_O, model.b_in, model.b_out))


# Hook points

EMBED = {
    **{f"embed.hook_{name}": "batch pos d_model" for name in ("embed", "token_type_embed")},
    **norm("embed.ln"),
    "hook_full_embed": "batch pos d_model",
}
BLOCK = POST_LN_BLOCK | ROTARY | {"mlp.hook_pre_linear": "batch pos d_mlp"}
DOCUMENTED = EMBED | in_layers(BLOCK, 3) | MASKED_LM


@pytest.fixture(scope="module")
def masked_lm() -> HookedEncoder:
    return HookedEncoder.from_pretrained(hf_model=tiny_hf("NomicBertForMaskedLM"), device="cpu")


def test_its_hook_points(masked_lm: HookedEncoder) -> None:
    assert declared(masked_lm) == DOCUMENTED


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not name.startswith(("blocks.0", "blocks.2"))])
def test_a_hook_fires_and_what_it_returns_reaches_the_output(name: str, masked_lm: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    after, seen = replaced(masked_lm, name, lambda: masked_lm(tokens))
    assert [found for found, _ in seen] == [name]
    with torch.no_grad():
        assert_changed(after, masked_lm(tokens))
