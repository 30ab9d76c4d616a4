"""ModernBERT: its window, both spellings of its configuration, its classifiers, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.config import PreLNPart, RotaryAttentionPart
from encoderlens.errors import ConfigError
from tests.checkpoints import assert_same_tensors, edit_config, save_tiny
from tests.families.test_parity import hf_logits, run_hf
from tests.parity import assert_parity
from tests.tiny import tiny_hf

LENGTH = 70
LONG = {"max_position_embeddings": 100, "num_hidden_layers": 4}
MASKS = {
    "no padding": [(0, LENGTH)] * 3,
    "padding behind": [(0, LENGTH), (0, 41), (0, 3)],
    "padding in front": [(0, LENGTH), (29, LENGTH), (LENGTH - 3, LENGTH)],
    "padding on both sides": [(5, 60), (0, 33), (50, LENGTH)],
}


def long_batch(padding: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask [3 70]."""
    mask = torch.zeros(3, LENGTH, dtype=torch.long)
    for row, (start, stop) in enumerate(MASKS[padding]):
        mask[row, start:stop] = 1
    return torch.randint(4, 188, (3, LENGTH), generator=torch.Generator().manual_seed(1)), mask


# The window


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize(
    ("local_attention", "implementation"),
    [(2, "eager"), (9, "eager"), (9, "sdpa"), (64, "eager"), (137, "eager"), (138, "eager")],
)
def test_the_window_is_hugging_faces(local_attention: int, padding: str, implementation: str) -> None:
    """On sequences that are much longer, as long, and shorter: logits, streams, and which keys each query sees."""
    hf_model = tiny_hf("ModernBertForMaskedLM", local_attention=local_attention, **LONG)
    hf_model.config._attn_implementation = implementation
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    tokens, mask = long_batch(padding)
    with torch.no_grad():
        options = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
        theirs = hf_model(tokens, attention_mask=mask, **options)
        fused = model(tokens, one_zero_attention_mask=mask)
        explicit, acts = model.run_with_cache(tokens, one_zero_attention_mask=mask)
    assert_parity(fused, theirs.logits, mask)
    assert_parity(explicit, theirs.logits, mask)
    for layer in range(4):
        assert_parity(acts["resid_pre", layer], theirs.hidden_states[layer], mask)
        if implementation == "eager":
            ours, pattern = acts["pattern", layer].transpose(1, 2), theirs.attentions[layer].transpose(1, 2)
            assert_parity(ours, pattern, mask)
            at = torch.arange(LENGTH)
            far = (at - at[:, None]).abs() > local_attention // 2
            unseen = mask[:, None, None, :] == 0 if layer % 3 == 0 else (mask[:, None, None, :] == 0) | far[:, None]
            unseen = unseen.expand_as(ours)[mask.bool()]
            assert (ours[mask.bool()] > 0).logical_xor(unseen).all()
            assert (pattern[mask.bool()] > 0).logical_xor(unseen).all()


@pytest.mark.parametrize("padding", [name for name in MASKS if name != "no padding"])
def test_padding_on_either_side_changes_nothing_at_real_positions(padding: str) -> None:
    """Rotary attention knows distances only, so a sequence may begin anywhere."""
    hf_model = tiny_hf("ModernBertForMaskedLM", local_attention=8, **LONG)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=torch.float64)
    tokens, mask = long_batch(padding)
    with torch.no_grad():
        together = model(tokens, one_zero_attention_mask=mask)
        for row, (start, stop) in enumerate(MASKS[padding]):
            alone = model(tokens[row : row + 1, start:stop])
            assert_parity(together[row : row + 1, start:stop], alone, tolerance=1e-5)


@pytest.mark.parametrize("local_attention", [4, 2 * LENGTH])
def test_gradients_are_finite_where_padding_sees_no_key(local_attention: int) -> None:
    hf_model = tiny_hf("ModernBertForMaskedLM", local_attention=local_attention, **LONG)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    tokens, mask = long_batch("padding in front")
    logits = model(tokens, one_zero_attention_mask=mask)
    assert logits.isfinite().all()
    logits[mask.bool()].square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Classifiers


@pytest.mark.parametrize("padding", ["no padding", "padding behind"])
@pytest.mark.parametrize("options", [{}, {"classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifiers_of_sequences(pooling: str, options: dict[str, Any], padding: str) -> None:
    changes = {"classifier_pooling": pooling, "local_attention": 8}
    hf_model = tiny_hf("ModernBertForSequenceClassification", **changes, **options, **LONG)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    assert model.pre_classifier.reads == {"cls": "first", "mean": "mean"}[pooling]
    tokens, mask = long_batch(padding)
    with torch.no_grad():
        ours = model(tokens, one_zero_attention_mask=mask)
        theirs = hf_logits(run_hf(hf_model, {"tokens": tokens, "mask": mask}))
    assert_parity(ours, theirs)
    assert_same_tensors(model.to_hf().state_dict(), hf_model.state_dict())


def test_a_classifier_of_means_takes_padding_in_front() -> None:
    hf_model = tiny_hf("ModernBertForSequenceClassification", classifier_pooling="mean", local_attention=8, **LONG)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    tokens, mask = long_batch("padding in front")
    with torch.no_grad():
        ours = model(tokens, one_zero_attention_mask=mask)
        assert_parity(ours, hf_model(tokens, attention_mask=mask).logits)


# Configurations

# What configurations said before transformers 5, and much of what they have beside it.
OLD: dict[str, Any] = {
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 3000.0,
    "local_rope_theta": 70.0,
    "layer_norm_eps": 1e-05,
    "position_embedding_type": "absolute",
    "cls_token_id": 1,
    "sep_token_id": 2,
    "gradient_checkpointing": False,
    "deterministic_flash_attn": False,
    "reference_compile": None,
    "repad_logits_with_grad": False,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0",
}


NEW = ("layer_types", "rope_parameters", "dtype")


def in_old_spelling(folder: Path) -> None:
    """Rewrite a configuration as transformers 4 wrote it."""
    path = folder / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in NEW}
    path.write_text(json.dumps(values | OLD))


def test_the_old_spelling_of_a_configuration(tmp_path: Path) -> None:
    save_tiny("ModernBertForMaskedLM", tmp_path, local_attention=9, **LONG)
    in_old_spelling(tmp_path)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    attention = model.cfg.attention
    assert attention.theta == (3000.0, 70.0, 3000.0, 70.0)
    assert attention.window == (None, 4, None, 4)
    assert [(block.attn.theta, block.attn.window) for block in model.blocks] == [(3000.0, None), (70.0, 4)] * 2
    hf_model = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens, mask = long_batch("padding behind")
    with torch.no_grad():
        ours = model(tokens, one_zero_attention_mask=mask)
        assert_parity(ours, hf_model(tokens, attention_mask=mask).logits, mask)
        back = model.to_hf()
        assert_parity(back(tokens, attention_mask=mask).logits, hf_model(tokens, attention_mask=mask).logits, mask)
    assert back.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert {kind: values["rope_theta"] for kind, values in back.config.rope_parameters.items()} == {
        "full_attention": 3000.0,
        "sliding_attention": 70.0,
    }


def test_without_any_spelling_every_third_layer_is_global(tmp_path: Path) -> None:
    save_tiny("ModernBertModel", tmp_path, **LONG)
    in_old_spelling(tmp_path)
    path = tmp_path / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in OLD}
    path.write_text(json.dumps(values))
    attention = HookedEncoder.from_pretrained(tmp_path, device="cpu").cfg.attention
    assert attention.theta == (160000.0, 10000.0, 10000.0, 160000.0)
    assert attention.window == (None, 7, 7, None)


REFUSED = [
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear' is not implemented; only 'default' is"),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}}},
        "partial_rotary_factor in rope_parameters is not implemented; leave it out",
    ),
    ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types is 'chunked_attention', which is not impl"),
    ({"is_decoder": True}, "is_decoder=True is not implemented; only False is"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not implemented"),
    ({"is_causal": True}, "is_causal=True is not implemented"),
    ({"sparse_pred_ignore_index": -1}, "sparse_pred_ignore_index=-1 is not implemented; only -100 is"),
    ({"num_attention_heads": 7}, "hidden_size=40 is not a multiple of num_attention_heads=7"),
    ({"local_attention": 1}, "window is 0; it must be a positive whole number"),
    ({"qk_norm": True}, "qk_norm=True is not understood"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda param: "" if isinstance(param, str) else next(iter(param)))
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny("ModernBertModel", tmp_path, **LONG)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_checkpoints_with_a_transform_name_their_class(tmp_path: Path) -> None:
    """Every head has the same one in front, so that keys do not tell them apart."""
    save_tiny("ModernBertForTokenClassification", tmp_path)
    edit_config(tmp_path, architectures=None)
    with pytest.raises(ValueError, match="names no architectures, and its weights fit several classes"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert list(HookedEncoder.from_pretrained(tmp_path, device="cpu", task="token_classification").heads) == [
        "token_classification"
    ]


def test_the_hugging_face_class_has_no_place_for_these() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("ModernBertForMaskedLM", **LONG), device="cpu")
    cfg = model.cfg.encoder
    attention = cfg.attention
    assert isinstance(attention, RotaryAttentionPart)
    changes = [
        ({"attention": replace(attention, theta=(1.0, 2.0, 3.0, 4.0))}, "one theta and one window for all its local layers"),
        ({"attention": replace(attention, window=(None, 2, 3, None))}, "one theta and one window for all its local layers"),
        ({"block": PreLNPart()}, "Hugging Face's ModernBertForMaskedLM has PreLNBlock"),
        ({"attention": replace(attention, d_head=6)}, r"n_heads \* d_head = d_model"),
    ]
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            HookedEncoder(replace(cfg, **change), device="cpu").to_hf()


def test_a_model_from_a_configuration_goes_to_hugging_face() -> None:
    """With the padding token that it was loaded with."""
    loaded = HookedEncoder.from_pretrained(hf_model=tiny_hf("ModernBertForMaskedLM", **LONG), device="cpu")
    model = HookedEncoder(loaded.cfg.encoder, device="cpu").eval()
    back = model.to_hf()
    assert back.config.pad_token_id == loaded.hf_config["pad_token_id"]
    tokens, mask = long_batch("padding behind")
    with torch.no_grad():
        ours = model(tokens, one_zero_attention_mask=mask)
        assert_parity(ours, back(tokens, attention_mask=mask).logits, mask)
