"""Every documented hook point of BERT, on the tiny model of each of its classes."""

from contextlib import nullcontext
from functools import cache

import pytest
import torch

from encoderlens import HookedEncoder
from encoderlens.config import (
    SentenceDensePart,
    SentenceEmbeddingPart,
    SentenceLayerNormPart,
    SentenceNormalizePart,
    SentencePoolingPart,
)
from tests.additive import additive_batch, sentence_model
from tests.hooks import POST_LN_BLOCK, declared, in_layers, norm, replaced, shape
from tests.parity import assert_changed, assert_close, assert_parity
from tests.tiny import tiny_batch, tiny_hf

EMBED = {
    "embed.hook_embed": "batch pos d_model",
    "embed.hook_pos_embed": "batch pos d_model",
    "embed.hook_token_type_embed": "batch pos d_model",
    **norm("embed.ln"),
    "hook_full_embed": "batch pos d_model",
}
MASKED_LM = {
    "mlm_head.hook_pre": "batch pos d_model",
    "mlm_head.hook_post": "batch pos d_model",
    **norm("mlm_head.ln"),
    "unembed.hook_in": "batch pos d_model",
    "unembed.hook_out": "batch pos d_vocab",
}
POOLER = {"pooler.hook_pooler_out": "batch d_model"}
NEXT_SENTENCE = {"nsp_head.hook_nsp_out": "batch 2"}
SEQUENCE_CLASSIFICATION = {"classifier.hook_in": "batch d_model", "classifier.hook_out": "batch label"}
TOKEN_CLASSIFICATION = {"classifier.hook_in": "batch pos d_model", "classifier.hook_out": "batch pos label"}
QUESTION_ANSWERING = {"qa_head.hook_in": "batch pos d_model", "qa_head.hook_out": "batch pos 2"}

HEADS = {
    "BertModel": POOLER,
    "BertForPreTraining": MASKED_LM | POOLER | NEXT_SENTENCE,
    "BertForMaskedLM": MASKED_LM,
    "BertForNextSentencePrediction": POOLER | NEXT_SENTENCE,
    "BertForSequenceClassification": POOLER | SEQUENCE_CLASSIFICATION,
    "BertForTokenClassification": TOKEN_CLASSIFICATION,
    "BertForQuestionAnswering": QUESTION_ANSWERING,
}
N_LAYERS = 3
DOCUMENTED = {hf_class: EMBED | in_layers(POST_LN_BLOCK, N_LAYERS) | head for hf_class, head in HEADS.items()}

SIZES = {"batch": 3, "pos": 11, "query": 11, "key": 11, "head": 5, "d_model": 40, "d_head": 8, "d_mlp": 52, "d_vocab": 188}
SIZES |= {"label": 3, "1": 1, "2": 2}

every_class = pytest.mark.parametrize("hf_class", HEADS)
every_hook = pytest.mark.parametrize(("hf_class", "name"), [(c, name) for c, names in DOCUMENTED.items() for name in names])


@cache
def tiny(hf_class):
    labels = {"num_labels": SIZES["2"]} if hf_class == "BertForQuestionAnswering" else {}  # start and end
    return HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class, **labels), device="cpu")


def run_that_reaches(model, name):
    """A run that computes a hook point, by whichever head it belongs to, and returns an output that depends on it."""
    tokens, top = tiny_batch()["tokens"], name.split(".")[0]
    task = next((task for task, head in model.heads.items() if top in head.modules), model.task)
    if task is None and top == "pooler":  # no head of a BertModel reads its pooler, which can be called by itself
        hidden = model(tokens, "hidden")
        return lambda: model.pooler(hidden)

    def run():
        with nullcontext() if task is None else model.use_task(task):
            return model(tokens)

    return run


@cache
def untouched_output(hf_class, name):
    with torch.no_grad():
        return run_that_reaches(tiny(hf_class), name)()


@every_class
def test_the_model_has_these_hook_points_with_these_axes_and_no_others(hf_class):
    model = tiny(hf_class)
    assert model.cfg.n_layers == N_LAYERS
    assert list(model.hook_dict) == list(declared(model))
    # The two logits of a verdict, or of start and end, are an axis "label".
    assert declared(model) == {name: axes.replace("2", "label") for name, axes in DOCUMENTED[hf_class].items()}


@every_hook
def test_it_fires_with_its_shape_and_what_it_returns_reaches_the_output(hf_class, name):
    model = tiny(hf_class)
    before = untouched_output(hf_class, name if name in HEADS[hf_class] else "hook_full_embed")
    with torch.no_grad():
        run = run_that_reaches(model, name)
    after, seen = replaced(model, name, run)
    assert seen == [(name, shape(DOCUMENTED[hf_class][name], SIZES))]
    assert_changed(after, before)


# The vector of a sentence encoder is 28 wide where it is pooled, and 9 behind the dense layer.
SENTENCE = {
    "sentence.pooling.hook_out": ("batch d_sentence", 28),
    "sentence.dense.hook_pre": ("batch d_sentence", 9),
    "sentence.dense.hook_out": ("batch d_sentence", 9),
    "sentence.layer_norm.ln.hook_scale": ("batch 1", 1),
    "sentence.layer_norm.ln.hook_normalized": ("batch d_sentence", 9),
    "sentence.layer_norm.hook_out": ("batch d_sentence", 9),
    "sentence.normalize.hook_scale": ("batch 1", 1),
    "sentence.normalize.hook_out": ("batch d_sentence", 9),
}


@cache
def sentence_encoder():
    layers = (SentenceDensePart("dense", 28, 9), SentenceLayerNormPart("norm", 9), SentenceNormalizePart("normalize"))
    return sentence_model(SentenceEmbeddingPart(SentencePoolingPart(("mean", "max")), layers))


def test_a_sentence_encoder_has_these_hook_points_behind_its_stream():
    behind = {name: axes for name, axes in declared(sentence_encoder()).items() if name.startswith("sentence")}
    assert behind == {name: axes for name, (axes, _) in SENTENCE.items()}


@pytest.mark.parametrize("name", SENTENCE)
def test_a_hook_point_of_a_sentence_encoder_fires_and_what_it_returns_reaches_the_embedding(name):
    model, tokens = sentence_encoder(), additive_batch()["tokens"]
    with torch.no_grad():
        before = model(tokens)
    after, seen = replaced(model, name, lambda: model(tokens))
    assert seen == [(name, (3, SENTENCE[name][1]))]
    assert_changed(after, before)


@every_class
def test_everything_that_a_run_reaches_is_cached_with_the_documented_shape(hf_class):
    model = tiny(hf_class)
    task = model.task
    _, activations = model.run_with_cache(tiny_batch()["tokens"], names_filter=lambda name: True)
    modules = model.heads[task].modules if task else ()
    expected = {
        name: shape(axes, SIZES)
        for name, axes in DOCUMENTED[hf_class].items()
        if name not in HEADS[hf_class] or name.split(".")[0] in modules
    }
    assert {name: tuple(tensor.shape) for name, tensor in activations.items()} == expected


MIDDLE = ["hook_resid_mid", "hook_normalized_resid_mid", "mlp.hook_in", "hook_mlp_out", "hook_resid_post"]
MIDDLE = [f"blocks.1.{name}" for name in MIDDLE]


def test_mlp_hook_in_is_the_mlp_branch_only(bert):
    tokens = tiny_batch()["tokens"]
    _, clean = bert.run_with_cache(tokens, None, names_filter=MIDDLE)
    with bert.hooks([("blocks.1.mlp.hook_in", lambda x, hook: x + 1)]):
        _, edited = bert.run_with_cache(tokens, None, names_filter=MIDDLE)
    mid = clean["blocks.1.hook_normalized_resid_mid"]
    assert torch.equal(edited["blocks.1.hook_normalized_resid_mid"], mid)
    assert_parity(edited["blocks.1.hook_mlp_out"], bert.blocks[1].mlp(mid + 1))
    assert_changed(edited["blocks.1.hook_mlp_out"], clean["blocks.1.hook_mlp_out"], 0.01)
    assert_parity(edited["blocks.1.hook_resid_post"] - edited["blocks.1.hook_mlp_out"], mid)


def test_hook_mlp_in_reaches_the_mlp_and_the_skip_path(bert):
    tokens, ramp = tiny_batch()["tokens"], torch.linspace(-1, 1, 40)
    _, clean = bert.run_with_cache(tokens, None, names_filter=MIDDLE)
    with bert.hooks([("blocks.1.hook_mlp_in", lambda x, hook: x + ramp)]):
        _, edited = bert.run_with_cache(tokens, None, names_filter=MIDDLE)
    assert torch.equal(edited["blocks.1.hook_resid_mid"], clean["blocks.1.hook_resid_mid"])
    normalized = bert.blocks[1].ln1(clean["blocks.1.hook_resid_mid"] + ramp)
    skip = edited["blocks.1.hook_resid_post"] - edited["blocks.1.hook_mlp_out"]
    assert_parity(edited["blocks.1.mlp.hook_in"], normalized)
    assert_parity(skip, normalized)
    assert_changed(skip, clean["blocks.1.hook_normalized_resid_mid"], 0.01)


def test_the_cached_parts_add_up_as_the_block_does(bert):
    b = tiny_batch()
    _, cache = bert.run_with_cache(b["tokens"], "hidden", b["types"], b["mask"], names_filter=lambda name: True)
    embed = cache["embed.hook_embed"] + cache["embed.hook_pos_embed"] + cache["embed.hook_token_type_embed"]
    normalized = (embed - embed.mean(-1, keepdim=True)) / cache["embed.ln.hook_scale"]
    assert_close(cache["embed.ln.hook_normalized"], normalized)
    ln = bert.embed.ln
    assert_close(cache["hook_full_embed"], normalized * ln.w + ln.b)
    for layer, block in enumerate(bert.blocks):
        act = {name: cache[f"blocks.{layer}.{name}"] for name in POST_LN_BLOCK}
        probabilities = act["attn.hook_attn_scores"].softmax(-1)
        assert_close(act["attn.hook_pattern"], probabilities)
        z = torch.einsum("bhqk,bkhd->bqhd", probabilities, act["attn.hook_v"])
        assert_close(act["attn.hook_z"], z)
        assert_close(act["hook_attn_out"], act["attn.hook_result"].sum(2) + block.attn.b_O)
        assert_close(act["hook_resid_mid"], act["hook_resid_pre"] + act["hook_attn_out"])
        mid = act["ln1.hook_normalized"] * block.ln1.w + block.ln1.b
        assert_close(act["hook_normalized_resid_mid"], mid)
        assert_close(act["hook_mlp_in"], act["hook_resid_mid"])
        assert_close(act["mlp.hook_in"], mid)
        assert_close(act["mlp.hook_post"], torch.nn.functional.gelu(act["mlp.hook_pre"]))
        assert_close(act["hook_resid_post"], mid + act["hook_mlp_out"])
        post = act["ln2.hook_normalized"] * block.ln2.w + block.ln2.b
        assert_close(act["hook_normalized_resid_post"], post)
        for name in ("q", "k", "v"):
            heads = act["hook_resid_pre"].unsqueeze(2).expand(-1, -1, 5, -1)
            assert_close(act[f"hook_{name}_input"], heads)
