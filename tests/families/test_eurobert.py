"""EuroBERT: keys and values that heads share, its classifiers, old configurations, tied embeddings, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from encoderlens import HookedEncoder
from encoderlens.config import LayerNormPart, PoolerPart, RotaryAttentionPart
from encoderlens.errors import ConfigError, WeightsError
from tests.checkpoints import assert_same_tensors, edit_config, read_config, read_tensors, save_tiny, write_tensors
from tests.parity import assert_parity, changed_along
from tests.tiny import tiny_batch, tiny_hf

BATCH = tiny_batch(n_types=0)
IN_FRONT = BATCH["mask"].flip(1)


@pytest.mark.parametrize("mask", [BATCH["mask"], IN_FRONT, torch.ones_like(IN_FRONT)], ids=["behind", "in front", "no padding"])
@pytest.mark.parametrize("pooling", ["bos", "mean", "late"])
def test_classifiers_of_sequences(pooling: str, mask: torch.Tensor) -> None:
    hf_model = tiny_hf("EuroBertForSequenceClassification", classifier_pooling=pooling)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    assert model.pre_classifier.reads == {"bos": "first", "mean": "mean", "late": "every"}[pooling]
    with torch.no_grad():
        theirs = hf_model(BATCH["tokens"], attention_mask=mask).logits
        assert_parity(model(BATCH["tokens"], one_zero_attention_mask=mask), theirs)
        assert_parity(model.run_with_cache(BATCH["tokens"], one_zero_attention_mask=mask)[0], theirs)
    assert model.to_hf().config.classifier_pooling == pooling


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_hooks_on_split_inputs_of_heads_that_share_keys(n_kv_heads: int) -> None:
    """One input for each head of queries and for each of keys and values; an edit of one reaches the heads that share it."""
    hf_model = tiny_hf("EuroBertForMaskedLM", num_key_value_heads=n_kv_heads)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    names = [f"blocks.1.attn.hook_{place}" for place in ("attn_scores", "result")]
    with torch.no_grad():
        _, clean = model.run_with_cache(BATCH["tokens"], names_filter=names)
        for point, place in (("k", "attn_scores"), ("v", "result")):
            for chosen in range(n_kv_heads):

                def turn(tensor: torch.Tensor, hook: Any, chosen: int = chosen) -> None:
                    assert tensor.shape == (3, 11, n_kv_heads, 40)
                    tensor[:, :, chosen] = tensor[:, :, chosen].roll(1, -1)  # a norm follows, which takes lengths away

                with model.hooks([(f"blocks.1.hook_{point}_input", turn)]):
                    _, edited = model.run_with_cache(BATCH["tokens"], names_filter=names)
                heads = 1 if place == "attn_scores" else 2  # the axis that counts them
                changed = changed_along(heads, edited[place, 1], clean[place, 1])
                assert changed == [head // (4 // n_kv_heads) == chosen for head in range(4)]


# Checkpoints and configurations

# What checkpoints said before transformers had the class, and much of what they have beside it.
OLD: dict[str, Any] = {
    "rope_theta": 700,
    "rope_scaling": None,
    "clf_pooling": "late",
    "hidden_dropout": 0.0,
    "is_decoder": False,
    "is_causal": False,
    "auto_map": {"AutoModelForMaskedLM": "modeling_eurobert.EuroBertForMaskedLM"},
    "bos_token": "<|begin_of_text|>",
    "mask_token": "<|mask|>",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
}


def test_the_old_spelling_of_a_configuration(tmp_path: Path) -> None:
    save_tiny("EuroBertForSequenceClassification", tmp_path)
    path = tmp_path / "config.json"
    new = ("rope_parameters", "dtype", "classifier_pooling", "head_dim")
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in new}
    path.write_text(json.dumps(values | OLD | {"head_dim": 6}))
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert [block.attn.theta for block in model.blocks] == [700.0] * 3
    assert model.pre_classifier.reads == "every"
    hf_model = transformers.EuroBertForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        theirs = hf_model(BATCH["tokens"], attention_mask=BATCH["mask"]).logits
        assert_parity(model(BATCH["tokens"], one_zero_attention_mask=BATCH["mask"]), theirs)


def test_the_pooling_has_an_old_name(tmp_path: Path) -> None:
    """Which Hugging Face's class does not read: it would pool as it does by default."""
    save_tiny("EuroBertForSequenceClassification", tmp_path)
    values = read_config(tmp_path)
    del values["classifier_pooling"]
    (tmp_path / "config.json").write_text(json.dumps(values | {"clf_pooling": "mean"}))
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert model.pre_classifier.reads == "mean"


REFUSED = [
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}}, "rope_type='linear' is not implemented"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not implemented; only 'default' is"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"classifier_pooling": "max"}, "classifier_pooling='max' is not implemented; 'bos', 'mean', 'late' are"),
    ({"hidden_dropout": 0.1}, r"hidden_dropout=0\.1 is not implemented"),
    ({"is_causal": True}, "is_causal=True is not implemented"),
    ({"is_decoder": True}, "is_decoder=True is not implemented"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not implemented"),
    ({"num_key_value_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
    ({"head_dim": 5}, "is not a EuroBERT configuration: .* requires an even rotary dimension"),
    ({"sliding_window": 4}, "sliding_window=4 is not understood"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda param: "" if isinstance(param, str) else next(iter(param)))
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny("EuroBertModel", tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_a_tied_head_without_a_bias_has_no_tensor_in_the_file(tmp_path: Path) -> None:
    hf_model = save_tiny("EuroBertForMaskedLM", tmp_path, tie_word_embeddings=True)
    assert not [name for name in read_tensors(tmp_path) if name.startswith("lm_head")]
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert model.task == "masked_lm"
    assert model.unembed.weight is model.embed.embed.weight
    assert_same_tensors(model.to_hf().state_dict(), hf_model.state_dict())
    assert not HookedEncoder.from_pretrained(tmp_path, device="cpu", task="encoder").heads


def test_an_untied_head_has_one(tmp_path: Path) -> None:
    save_tiny("EuroBertForMaskedLM", tmp_path)
    tensors = read_tensors(tmp_path)
    del tensors["lm_head.weight"]
    write_tensors(tmp_path, tensors)
    with pytest.raises(WeightsError, match=r"but the weights of its masked_lm head \(lm_head\.weight, …\) are missing"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_the_hugging_face_class_has_no_place_for_these() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("EuroBertForSequenceClassification"), device="cpu")
    cfg = model.cfg.encoder
    attention, (head,) = cfg.attention, cfg.heads
    assert isinstance(attention, RotaryAttentionPart)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"attention": replace(attention, window=(None, 2))}, "has one theta for all layers, and no window"),
        ({"attention": replace(attention, theta=(10.0, 20.0))}, "has one theta for all layers, and no window"),
        ({"norm": LayerNormPart()}, "Hugging Face's EuroBertForSequenceClassification has RMSNorm, and this model LayerNorm"),
        ({"heads": (replace(head, pre_classifier=None),), "pooler": PoolerPart()}, "has PreClassifier, and this model none"),
    ]
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            HookedEncoder(replace(cfg, **change), device="cpu").to_hf()
