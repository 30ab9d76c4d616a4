"""ESM: proteins as text, stored frequencies, token dropout, contacts, hook points, and sums."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EsmForMaskedLM, EsmTokenizer

from encoderlens import HookedEncoder, HookPoint
from encoderlens.analysis import contacts, direct_logit_attribution
from encoderlens.components.rotary import RotaryFrequencies, frequencies
from encoderlens.errors import AnalysisError, ConfigError, HookUnreachableError, TaskError, WeightsError
from tests.checkpoints import assert_same_parameters, assert_same_tensors, edit_config, read_tensors, save_tiny, write_tensors
from tests.hooks import PRE_LN_BLOCK, ROTARY, declared, in_layers, norm, replaced
from tests.parity import (
    assert_changed,
    assert_close,
    assert_gradient_parity,
    assert_parity,
    gradients,
    gradients_under_hf_names,
)
from tests.test_documented_hooks import MASKED_LM
from tests.tiny import VARIANTS, tiny_batch, tiny_hf

CLASSES = ["EsmModel", "EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification"]
# The vocabulary of ESM-1b and ESM-2.
VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
INSULIN_A = "GIVEQCCTSICSLYQLENYCN"
PROTEIN = {"vocab_size": 33, "mask_token_id": 32, "max_position_embeddings": 90}


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, HookedEncoder]:
    """A tiny masked LM in a folder with the real vocabulary, its tokenizer, and the hooked model of the folder."""
    folder = tmp_path_factory.mktemp("proteins")
    hf_model = save_tiny("EsmForMaskedLM", folder, seed=1, **PROTEIN)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = EsmTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return hf_model, tokenizer, HookedEncoder.from_pretrained(folder, device="cpu")


# Proteins as text


def test_a_protein_as_text(proteins: Any) -> None:
    hf_model, tokenizer, model = proteins
    encoding = tokenizer(UBIQUITIN, return_tensors="pt")
    assert encoding["input_ids"].tolist()[0] == [0, *(VOCABULARY.index(residue) for residue in UBIQUITIN), 2]
    with torch.no_grad():
        assert_parity(model(UBIQUITIN), hf_model(**encoding).logits)
    assert model.to_str_tokens(UBIQUITIN)[:4] == ["<cls>", "M", "Q", "I"]


def test_proteins_of_different_lengths_and_with_masks(proteins: Any) -> None:
    hf_model, tokenizer, model = proteins
    texts = [UBIQUITIN, INSULIN_A, "G<mask>VEQCCTS<mask>CSLYQLENYCN", UBIQUITIN[:9] + "<mask>" + UBIQUITIN[10:]]
    encoding = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        assert_parity(model(texts), hf_model(**encoding).logits, encoding["attention_mask"])


def test_masked_residues_are_predicted(proteins: Any) -> None:
    hf_model, tokenizer, model = proteins
    texts = ["MQIFVKTL<mask>GKTITLEVE", "G<mask>VEQCCTS<mask>CSL"]
    encoding = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        best = hf_model(**encoding).logits.argmax(-1)
        expected = [
            [VOCABULARY[index] for index in row[ids == 32].tolist()]
            for row, ids in zip(best, encoding["input_ids"], strict=True)
        ]
        assert model(texts, "predictions") == expected
        assert model(texts[0], "predictions") == expected[0][0]
    assert [len(row) for row in expected] == [1, 2]


def test_mask_tokens_are_zero_and_the_others_are_scaled_up(proteins: Any) -> None:
    *_, model = proteins
    _, cache = model.run_with_cache(["MQ<mask>F", "MQIFVK"], "hidden")
    tokens = model.to_tokens(["MQ<mask>F", "MQIFVK"])[0]
    plain = model.W_E[tokens]
    assert not cache["embed"][0, 3].any()
    assert_close(cache["embed"][0, :3], plain[0, :3] * 0.88 / (1 - 1 / 6))
    assert_close(cache["embed"][1], plain[1] * 0.88)
    assert not cache["full_embed"][0, 6:].any()


def test_mask_tokens_at_padding_count_in_attributions_as_in_the_model() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("EsmForMaskedLM"), device="cpu", dtype=torch.float64)
    tokens, mask = tiny_batch()["tokens"], tiny_batch()["mask"]
    tokens[1:, 9] = 163  # padding of both sequences
    batch = model.prepare(tokens[1:], None, mask[1:])
    found = direct_logit_attribution(model, batch, 5, position=2, batch_size=1)
    assert_parity(found.total, model(batch)[:, 2, 5].detach())
    assert found.error < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scaled_in_float32(dtype: torch.dtype) -> None:
    hf_model = tiny_hf("EsmModel").to(dtype)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=dtype)
    batch = tiny_batch()
    theirs = hf_model.embeddings(batch["tokens"], batch["mask"])
    _, cache = model.run_with_cache(batch["tokens"], "hidden", one_zero_attention_mask=batch["mask"])
    assert_parity(cache["full_embed"].float(), theirs.float(), batch["mask"], 2 * torch.finfo(dtype).eps)


# Frequencies

OF_A_LAYER = "attention.self.rotary_embeddings.inv_freq"


def with_frequencies(folder: Path, **stored: Tensor) -> None:
    """A checkpoint with these frequencies in place of its own, under these keys; dots are written ``__``."""
    others = {name: tensor for name, tensor in read_tensors(folder).items() if "inv_freq" not in name}
    write_tensors(folder, others | {name.replace("__", "."): tensor for name, tensor in stored.items()})


OLD = {f"esm.encoder.layer.{layer}.{OF_A_LAYER}" for layer in range(3)}


@pytest.mark.parametrize("keys", [{"esm.rotary_embeddings.inv_freq"}, OLD, {f"esm.encoder.layer.*.{OF_A_LAYER}"}], ids=sorted)
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_the_frequencies_of_the_checkpoint_are_those_of_the_model(keys: set[str], stored: torch.dtype, tmp_path: Path) -> None:
    """Of the spelling of today, of one a layer, and of one with the asterisk that transformers 5 saves."""
    save_tiny("EsmForMaskedLM", tmp_path, seed=1, num_attention_heads=2)
    rounded = frequencies(10000.0, 20).half()
    with_frequencies(tmp_path, **dict.fromkeys(keys, rounded.to(stored)))
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(model.relative.frequencies, rounded.float())
    assert not torch.equal(model.relative.frequencies, frequencies(10000.0, 20))
    theirs = EsmForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(theirs.esm.rotary_embeddings.inv_freq, rounded.float())
    batch = tiny_batch()
    with torch.no_grad():
        expected = theirs(batch["tokens"], attention_mask=batch["mask"]).logits
        assert_parity(model(batch["tokens"], one_zero_attention_mask=batch["mask"]), expected, batch["mask"])
    assert torch.equal(model.to_hf().esm.rotary_embeddings.inv_freq, rounded.float())


def test_a_checkpoint_without_frequencies_has_those_of_the_formula(tmp_path: Path) -> None:
    hf_model = save_tiny("EsmForMaskedLM", tmp_path, seed=1, rope_theta=137.0)
    with_frequencies(tmp_path)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    expected, _ = hf_model.esm.rotary_embeddings.compute_default_rope_parameters(hf_model.config)
    assert torch.equal(model.relative.frequencies, expected)
    assert torch.equal(model.to_hf().esm.rotary_embeddings.inv_freq, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frequencies_stay_in_float32_and_are_no_parameter(dtype: torch.dtype) -> None:
    hf_model = tiny_hf("EsmForMaskedLM")
    exact = hf_model.esm.rotary_embeddings.inv_freq
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=dtype)
    moved = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu").to(dtype, print_details=False)
    for each in (model, moved, copy.deepcopy(moved)):
        assert each.cfg.dtype == dtype
        assert each.relative.frequencies.dtype == torch.float32
        assert torch.equal(each.relative.frequencies, exact)
    assert not any(name.startswith("relative") for name, _ in model.named_parameters())
    assert "relative.frequencies" in model.state_dict()
    fresh = HookedEncoder(model.cfg.encoder, device="cpu", dtype=dtype)
    assert torch.equal(fresh.relative.frequencies, frequencies(10000.0, 8))


def test_frequencies_may_be_edited_between_runs_of_one_batch() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("EsmForMaskedLM"), device="cpu")
    batch = model.prepare(tiny_batch()["tokens"])
    with torch.no_grad():
        before = model(batch)
        model.relative.frequencies.mul_(2)
        assert_changed(model(batch), before)


def test_scores_are_what_QK_at_a_distance_says() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("EsmModel", seed=1), device="cpu")
    attn = model.blocks[1].attn
    attn.b_Q, attn.b_K = torch.zeros(5, 8), torch.zeros(5, 8)
    _, cache = model.run_with_cache(tiny_batch()["tokens"], "hidden", names_filter=lambda name: True)
    read, scores = model.blocks[1].ln1(cache["resid_pre", 1])[0], cache["attn_scores", 1][0] * model.cfg.d_head**0.5
    for query, key in ((0, 0), (2, 7), (9, 3)):
        assert_close(scores[:, query, key], read[query] @ attn.QK_at(key - query).AB @ read[key])
    with pytest.raises(AnalysisError, match=r"take blocks\[l\]\.attn\.QK_at\(distance\)"):
        _ = model.QK


# Contacts


@pytest.mark.parametrize("variant", ["plain", *VARIANTS["esm"]])
def test_contacts_of_a_padded_batch_are_those_of_hugging_face(variant: str) -> None:
    hf_model = tiny_hf("EsmForMaskedLM", seed=3, **VARIANTS["esm"].get(variant, {}))
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    batch = tiny_batch()
    tokens = batch["tokens"].index_fill(1, torch.tensor(0), 0)
    tokens[[0, 1, 2], [10, 6, 3]] = 2
    tokens[0, 4] = 2  # an end in the middle is left out like any other
    with torch.no_grad():
        ours = model.contacts(tokens, one_zero_attention_mask=batch["mask"])
        theirs = hf_model.predict_contacts(tokens, batch["mask"])
    assert ours.shape == (3, 9, 9)
    assert_parity(ours, theirs)
    assert theirs[1, :5, :5].std() > 0.01


def test_contacts_of_proteins(proteins: Any) -> None:
    hf_model, tokenizer, model = proteins
    texts = [UBIQUITIN, INSULIN_A]
    encoding = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = hf_model.predict_contacts(encoding["input_ids"], encoding["attention_mask"])
    found = contacts(model, texts)
    assert found.axes == ("example", "residue", "partner")
    assert found.labels["example"] == tuple(texts)
    assert found.labels["residue"] == found.labels["partner"] == tuple(map(str, range(1, 77)))
    assert_parity(found.values[0], theirs[0])
    assert_parity(found.values[1, :21, :21], theirs[1, :21, :21])
    assert found.values[1, 21:].isnan().all()
    assert found.values[1, :, 21:].isnan().all()
    assert_close(contacts(model, texts, batch_size=1).values, found.values, equal_nan=True)
    alone = contacts(model, INSULIN_A)
    assert alone.axes == ("residue", "partner")
    assert alone.labels["residue"][:2] == ("1 G", "2 I")
    assert_close(alone.values, found.values[1, :21, :21])
    best = alone.top(1)[0]
    assert best.value == pytest.approx(float(alone.values.max()))
    assert json.loads(found.to_json())["values"][1][0][21:] == [None] * 55


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_head_without_attention_has_the_feature_zero(dtype: torch.dtype) -> None:
    """A hook takes the attention of one head; the ends of the last sequence that of all its heads."""
    hf_model = tiny_hf("EsmForMaskedLM", layer_norm_eps=1e-5)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=dtype)
    tokens, features = tiny_batch()["tokens"], []
    tokens[2, 1:] = model.require_contact_head().eos
    n_heads = model.cfg.n_heads

    def take(pattern: Tensor, hook: HookPoint) -> Tensor:
        return pattern.index_fill(1, torch.tensor(2), 0.0)

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        features.append(tensor.detach())

    with model.hooks([("blocks.1.attn.hook_pattern", take), ("contact_head.hook_features", keep)]):
        found = model.contacts(tokens)
        found.sum().backward()
    others = torch.arange(features[0].shape[1]) != n_heads + 2
    assert not features[0][:, ~others].any()
    assert not features[0][2].any()
    assert all(features[0][example, head].any() for example in (0, 1) for head in others.nonzero())
    assert found.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradients_of_contacts(proteins: Any) -> None:
    hf_model, _, model = proteins
    tokens = model.to_tokens(UBIQUITIN)[0]
    model.contacts(tokens)[0, 3, 40].backward()
    hf_model.predict_contacts(tokens, torch.ones_like(tokens))[0, 3, 40].backward()
    try:
        assert_gradient_parity(gradients_under_hf_names(model, hf_model), gradients(hf_model))
        assert model.blocks[0].attn.q.weight.grad.abs().max() > 0
    finally:
        model.zero_grad()
        hf_model.zero_grad()


def test_weights_of_the_contact_head(proteins: Any) -> None:
    hf_model, _, model = proteins
    assert torch.equal(model.contact_head.W, hf_model.esm.contact_head.regression.weight.reshape(3, 5))
    assert torch.equal(model.contact_head.b, hf_model.esm.contact_head.regression.bias)


def test_what_has_no_contact_head_says_so(bert: HookedEncoder, tmp_path: Path) -> None:
    for predict in (bert.contacts, lambda text: contacts(bert, text)):
        with pytest.raises(TaskError, match="BertForPreTraining has no contact head, which models of proteins can have"):
            predict("a text")
    save_tiny("EsmForMaskedLM", tmp_path)
    held = read_tensors(tmp_path)
    write_tensors(tmp_path, {name: tensor for name, tensor in held.items() if "contact_head" not in name})
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(TaskError, match="has no contact head"):
        model.contacts(tiny_batch()["tokens"])


def test_contacts_in_training_mode_are_refused(proteins: Any) -> None:
    model = copy.deepcopy(proteins[2]).train()
    with pytest.raises(AnalysisError, match=r"model\.eval\(\)"):
        contacts(model, UBIQUITIN)


# Checkpoints and configurations


@pytest.mark.parametrize("hf_class", CLASSES)
def test_a_folder_that_transformers_saved(hf_class: str, tmp_path: Path) -> None:
    hf_model = save_tiny(hf_class, tmp_path, seed=4)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert_same_parameters(model, HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu"))
    assert_same_tensors(dict(model.to_hf().state_dict()), dict(hf_model.state_dict()))


def test_a_rotary_checkpoint_may_hold_a_table_that_nothing_reads(tmp_path: Path) -> None:
    hf_model = save_tiny("EsmForMaskedLM", tmp_path)
    unread = {
        "esm.embeddings.position_embeddings.weight": torch.ones(37, 40),
        "esm.embeddings.position_ids": torch.arange(37)[None],
    }
    write_tensors(tmp_path, read_tensors(tmp_path) | unread)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert sorted(model.load_report.ignored) == sorted(unread)
    assert_same_parameters(model, HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu"))
    edit_config(tmp_path, position_embedding_type="absolute")
    assert torch.equal(HookedEncoder.from_pretrained(tmp_path, device="cpu").W_pos, torch.ones(35, 40))
    write_tensors(tmp_path, {name: tensor for name, tensor in read_tensors(tmp_path).items() if name not in unread})
    with pytest.raises(WeightsError, match=r"lacks 1 tensors .*: esm\.embeddings\.position_embeddings\.weight"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


# config.json of facebook/esm2_t6_8M_UR50D, with the sizes of the tiny model.
ESM_2: dict[str, Any] = {
    "_name_or_path": "/tmp/facebook/esm2_t6_8M_UR50D",
    "architectures": ["EsmForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": None,
    "emb_layer_norm_before": False,
    "esmfold_config": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 40,
    "initializer_range": 0.02,
    "intermediate_size": 52,
    "is_folding_model": False,
    "layer_norm_eps": 1e-05,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "model_type": "esm",
    "num_attention_heads": 5,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "use_cache": True,
    "vocab_list": None,
    "vocab_size": 188,
}


def test_the_configuration_of_the_hub(tmp_path: Path) -> None:
    save_tiny("EsmForMaskedLM", tmp_path, **{key: ESM_2[key] for key in ("mask_token_id", "layer_norm_eps")})
    (tmp_path / "config.json").write_text(json.dumps(ESM_2))
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert (model.cfg.n_ctx, model.cfg.eps, model.cfg.embed.mask, model.cfg.relative.theta) == (1026, 1e-5, 32, 10000.0)
    assert isinstance(model.relative, RotaryFrequencies)
    theirs, batch = EsmForMaskedLM.from_pretrained(tmp_path).eval(), tiny_batch()
    with torch.no_grad():
        expected = theirs(batch["tokens"], attention_mask=batch["mask"]).logits
        assert_parity(model(batch["tokens"], one_zero_attention_mask=batch["mask"]), expected, batch["mask"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not implemented; 'absolute', 'rotary' are"),
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type='relative_key_query' is not implemented"),
        ({"is_folding_model": True}, "is_folding_model=True is not implemented; only False is"),
        ({"is_decoder": True}, "is_decoder=True is not implemented"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not implemented"),
        ({"mask_token_id": None}, "mask_token_id is None, and token dropout needs it"),
        ({"position_embedding_type": "absolute", "pad_token_id": None}, "pad_token_id is None, and positions are counted from"),
        ({"num_attention_heads": 8}, r"d_head=5: rotary attention turns pairs of coordinates"),
        ({"num_attention_heads": 7}, "hidden_size=40 is not a multiple of num_attention_heads=7"),
        ({"alphabet": "old"}, "alphabet='old' is not understood"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny("EsmForMaskedLM", tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


# Hook points

CONTACTS = {
    "contact_head.hook_features": "batch layer_head residue residue",
    "contact_head.hook_out": "batch residue residue",
}
EMBED = {"embed.hook_embed": "batch pos d_model", "hook_full_embed": "batch pos d_model"}
BLOCKS = in_layers(PRE_LN_BLOCK | ROTARY, 3)
DOCUMENTED = EMBED | BLOCKS | norm("ln_final") | MASKED_LM | CONTACTS


@pytest.fixture(scope="module")
def masked_lm() -> HookedEncoder:
    return HookedEncoder.from_pretrained(hf_model=tiny_hf("EsmForMaskedLM"), device="cpu")


def test_its_hook_points(masked_lm: HookedEncoder) -> None:
    assert declared(masked_lm) == DOCUMENTED


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not name.startswith(("blocks.0", "blocks.2"))])
def test_a_hook_fires_and_what_it_returns_reaches_the_output(name: str, masked_lm: HookedEncoder) -> None:
    run = masked_lm.contacts if name in CONTACTS else masked_lm
    tokens = tiny_batch()["tokens"]
    after, seen = replaced(masked_lm, name, lambda: run(tokens))
    assert [found for found, _ in seen] == [name]
    with torch.no_grad():
        assert_changed(after, run(tokens))


def test_hooks_on_patterns_reach_the_contacts_and_heads_do_not_run_for_them(masked_lm: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    after, seen = replaced(masked_lm, "blocks.2.attn.hook_pattern", lambda: masked_lm.contacts(tokens))
    assert len(seen) == 1
    assert_changed(after, masked_lm.contacts(tokens))
    for name, run in (("unembed.hook_out", masked_lm.contacts), ("contact_head.hook_out", masked_lm)):
        with pytest.raises(HookUnreachableError, match=name), masked_lm.hooks([(name, lambda x, hook: x)]):
            run(tokens)
