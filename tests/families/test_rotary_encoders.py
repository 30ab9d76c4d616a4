"""Encoders with rotary attention: their hook points and weights, and that what the stream is made of adds up on them too."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.errors import AnalysisError, HookNameError, WeightsError
from encoderlens.linearised import direct_rows, linearised
from tests.additive import (
    POSITIONS,
    all_gains,
    clean_run,
    direct_losses,
    pattern_points,
    replay,
    run,
    scale_points,
    score,
    targets_of,
    unsplit,
)
from tests.by_hand import what_reads
from tests.hooks import PRE_LN_BLOCK, Axes, declared, in_layers, norm
from tests.parity import assert_complete, assert_parity, largest_of
from tests.tiny import VARIANTS, tiny_batch, tiny_hf

MODERN_BIASES = VARIANTS["modernbert"]["every bias, untied, silu"]
EURO_BIASES = VARIANTS["eurobert"]["every bias, tied, gelu"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ModernBERT": ("ModernBertForMaskedLM", {"local_attention": 4}),
    "ModernBERT, every bias": ("ModernBertForMaskedLM", MODERN_BIASES),
    "ModernBERT, classifier": ("ModernBertForSequenceClassification", MODERN_BIASES),
    "ModernBERT, classifier of means": ("ModernBertForSequenceClassification", {"classifier_pooling": "mean"}),
    "ModernBERT, token labels": ("ModernBertForTokenClassification", {}),
    "ModernBERT, answers": ("ModernBertForQuestionAnswering", MODERN_BIASES),
    "EuroBERT": ("EuroBertForMaskedLM", {}),
    "EuroBERT, every bias": ("EuroBertForMaskedLM", EURO_BIASES),
    "EuroBERT, mean of logits": ("EuroBertForSequenceClassification", {"classifier_pooling": "late"}),
    "EuroBERT, classifier": ("EuroBertForSequenceClassification", EURO_BIASES | {"classifier_pooling": "bos"}),
    "EuroBERT, classifier of means": ("EuroBertForSequenceClassification", {"classifier_pooling": "mean"}),
    "EuroBERT, token labels": ("EuroBertForTokenClassification", {"num_key_value_heads": 1}),
}
ENCODERS = [name for name, (hf_class, _) in CASES.items() if hf_class.endswith("MaskedLM")]
every_case = pytest.mark.parametrize("case", CASES)
every_encoder = pytest.mark.parametrize("case", ENCODERS)
both_families = pytest.mark.parametrize("case", ["ModernBERT", "EuroBERT"])
BATCH = tiny_batch(n_types=0)


@cache
def made(case: str, dtype: torch.dtype = torch.float64) -> HookedEncoder:
    """A model that no test may change."""
    hf_class, options = CASES[case]
    return HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class, seed=2, **options), device="cpu", dtype=dtype)


@cache
def cached(case: str, dtype: torch.dtype = torch.float64) -> ActivationCache:
    """Every activation of a padded batch."""
    options: Any = {"names_filter": unsplit}
    return made(case, dtype).run_with_cache(BATCH["tokens"], None, None, BATCH["mask"], **options)[1]


def reads(case: str, layer: int) -> Tensor:
    """What attention reads [batch pos d_model]."""
    return what_reads(cached(case), BATCH, layer, False)


# Hook points

EMBED: Axes = {"embed.hook_embed": "batch pos d_model"}
FULL_EMBED: Axes = {"hook_full_embed": "batch pos d_model"}
GATED = {"mlp.hook_pre_linear": "batch pos d_mlp"}
ROTATED = {"attn.hook_rot_q": "batch pos head d_head", "attn.hook_rot_k": "batch pos head d_head"}
OF_KEYS = ("hook_k_input", "hook_v_input", "attn.hook_k", "attn.hook_v", "attn.hook_rot_k")
BLOCK = PRE_LN_BLOCK | GATED | ROTATED
GROUPED_BLOCK = BLOCK | {name: BLOCK[name].replace("head", "kv_head", 1) for name in OF_KEYS}
BARE_BLOCK = {name: axes for name, axes in BLOCK.items() if not name.startswith("ln1.")}
N_LAYERS = 3
UNEMBED = {"unembed.hook_in": "batch pos d_model", "unembed.hook_out": "batch pos d_vocab"}
TRANSFORM = {"pre_classifier.hook_pre": "batch d_model", "pre_classifier.hook_post": "batch d_model"}
CLASSIFIER = {"classifier.hook_in": "batch d_model", "classifier.hook_out": "batch label"}
ENCODER = {
    "ModernBERT": EMBED
    | norm("embed.ln")
    | FULL_EMBED
    | in_layers(BARE_BLOCK, 1)
    | {name: axes for name, axes in in_layers(BLOCK, N_LAYERS).items() if not name.startswith("blocks.0.")}
    | norm("ln_final"),
    "EuroBERT": EMBED | FULL_EMBED | in_layers(GROUPED_BLOCK, N_LAYERS) | norm("ln_final"),
}


def every_position(axes: Axes) -> Axes:
    return {name: shown.replace("batch", "batch pos") for name, shown in axes.items()}


HEADS: dict[str, Axes] = {
    "ModernBERT": {f"mlm_head.hook_{place}": "batch pos d_model" for place in ("pre", "post")} | norm("mlm_head.ln") | UNEMBED,
    "ModernBERT, classifier of means": TRANSFORM
    | {"pre_classifier.ln.hook_scale": "batch 1", "pre_classifier.ln.hook_normalized": "batch d_model"}
    | CLASSIFIER,
    "EuroBERT": UNEMBED,
    "EuroBERT, mean of logits": every_position(TRANSFORM | CLASSIFIER),
    "EuroBERT, classifier of means": TRANSFORM | CLASSIFIER,
}
DOCUMENTED = {case: ENCODER[case.partition(",")[0]] | head for case, head in HEADS.items()}


@pytest.mark.parametrize("case", HEADS)
def test_the_model_has_these_hook_points_with_these_axes_and_no_others(case: str) -> None:
    assert declared(made(case)) == DOCUMENTED[case]


def test_the_first_block_of_modernbert_reads_the_stream_as_it_is() -> None:
    model = made("ModernBERT")
    assert model.norm_in_front(0) is None
    assert model.norm_in_front(1) is model.blocks[1].ln1
    assert torch.equal(reads("ModernBERT", 0), cached("ModernBERT")["resid_pre", 0])
    with pytest.raises(HookNameError, match=r"there is no hook point 'blocks\.0\.ln1\.hook_scale'"):
        model.run_with_cache(BATCH["tokens"], names_filter="blocks.0.ln1.hook_scale")


@both_families
def test_scores_are_products_of_what_the_rotated_points_show(case: str) -> None:
    model, acts = made(case), cached(case)
    for layer in range(N_LAYERS):
        rot_q = acts["rot_q", layer]
        rot_k = acts["rot_k", layer].repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", rot_q, rot_k) / model.cfg.d_head**0.5
        found = acts["attn_scores", layer]
        assert_parity(found[found.isfinite()], scores[found.isfinite()], tolerance=1e-12)
        lengths = [acts[f"{place}{kind}", layer].norm(dim=-1) for place in ("", "rot_") for kind in "qk"]
        assert_parity(lengths[2], lengths[0], tolerance=1e-6)  # turned, not stretched
        assert_parity(lengths[3], lengths[1], tolerance=1e-6)


# Weights


@both_families
def test_QK_is_refused_with_what_to_take_instead(case: str) -> None:
    with pytest.raises(AnalysisError, match=r"rotary .* take blocks\[l\]\.attn\.QK_at\(distance\)"):
        _ = made(case).QK


@both_families
def test_QK_at_a_distance_is_what_scores_are_made_of(case: str) -> None:
    """The score of every query for every key that it may attend to, from the streams that both read."""
    model = made(case)
    for layer in range(N_LAYERS):
        x, attn = reads(case, layer), model.blocks[layer].attn
        scores = cached(case)["attn_scores", layer] * model.cfg.d_head**0.5
        assert scores.isfinite().any(-1).all()
        for distance in range(-10, 11):
            found = scores.diagonal(distance, -2, -1)
            queries, keys = x[:, max(0, -distance) : 11 - max(0, distance)], x[:, max(0, distance) : 11 + min(0, distance)]
            expected = torch.einsum("bqm,hmn,bqn->bhq", queries, attn.QK_at(distance).AB, keys).detach()
            seen = found.isfinite()
            assert_parity(found[seen], expected[seen], None, 1e-6, largest_of(scores, scores.isfinite()))
        assert_parity(attn.QK_at(0).AB, attn.W_Q @ model.per_head("W_K")[layer].mT, tolerance=1e-12)


@both_families
def test_weights_of_keys_and_values_for_each_head(case: str) -> None:
    model = made(case)
    group = model.cfg.n_heads // model.cfg.n_kv_heads
    assert group == {"ModernBERT": 1, "EuroBERT": 2}[case]
    for name in ("W_K", "W_V", "b_K", "b_V"):
        stored, repeated = getattr(model, name), model.per_head(name)
        assert stored.shape[1] == model.cfg.n_kv_heads
        assert repeated.shape[1] == model.cfg.n_heads
        for head in range(model.cfg.n_heads):
            assert torch.equal(repeated[:, head], stored[:, head // group])
    for layer in range(N_LAYERS):
        k = torch.einsum("bpm,hmd->bphd", reads(case, layer), model.per_head("W_K")[layer])
        assert_parity(k, cached(case)["k", layer].repeat_interleave(group, 2), tolerance=1e-12)


@every_encoder
def test_OV_is_what_a_head_writes_of_what_it_reads(case: str) -> None:
    model, acts = made(case), cached(case)
    OV = model.OV
    for layer in range(model.cfg.n_layers):
        mixed = torch.einsum("bhqk,bkm->bqhm", acts["pattern", layer], reads(case, layer))
        written = torch.einsum("bqhm,hmn->bqhn", mixed, OV.AB[layer])
        constant = torch.einsum("hd,hdm->hm", model.per_head("b_V")[layer], model.W_O[layer])
        assert_parity(acts["result", layer], (written + constant).detach(), tolerance=1e-12)


@every_encoder
def test_there_is_no_table_of_positions_or_token_types(case: str) -> None:
    model = made(case)
    assert (model.cfg.positional_embedding_type, model.cfg.n_ctx) == ("rotary", 37)
    for name in ("W_pos", "W_E_pos"):
        with pytest.raises(WeightsError, match="has no table of positions: they are rotary, in attention"):
            getattr(model, name)
    with pytest.raises(WeightsError, match="has no token types"):
        _ = model.W_token_type


def test_biases_that_layers_do_not_have_read_as_zeros_and_cannot_be_set() -> None:
    model = made("EuroBERT")
    for name in ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"):
        assert not getattr(model, name).any()
    with pytest.raises(WeightsError, match="b_Q cannot be assigned: this model's layers have no such bias"):
        model.blocks[0].attn.b_Q = torch.ones(4, 6)


# What the stream is made of


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 6e-7), (torch.float64, 4e-13)])
@every_case
def test_attributions_of_all_rows_and_the_constant_are_the_logit(case: str, dtype: torch.dtype, tolerance: float) -> None:
    """Up to rounding, which grows with the sum of the magnitudes that are added."""
    model, acts = made(case, dtype), cached(case, dtype)
    logits = run(model, BATCH).detach()
    mask = BATCH["mask"] if logits.ndim == 3 else None
    for index in (0, 1):
        rows = acts.logit_attrs(acts.get_full_resid_decomposition(), index)
        found = rows.sum(0) + acts.logit_constant(index)
        assert_parity(found, logits[..., index], mask, tolerance, scale=float(rows.abs().sum(0).max()))


@every_case
def test_a_row_is_what_the_score_loses_without_it(case: str) -> None:
    """Heads, neurons, embeddings and biases: one write is taken out of a replay with pinned scales."""
    model = made(case)
    parts = ("H", "N") if case in ENCODERS else ("H",)
    losses = direct_losses(model, BATCH, parts=parts)
    seen: set[str] = set()
    for split in ((), parts):
        rows = direct_rows(model, model.heads[model.task], lambda: score(model, BATCH), split)
        assert_parity(rows.values, torch.stack([losses[label] for label in rows.labels]).detach(), tolerance=1e-12)
        assert_parity(rows.values.sum(0), rows.total, tolerance=1e-11)
        assert (rows.values.abs().amax(1) > 1e-5 * rows.values.abs().max()).all()  # no row is trivially right
        seen |= set(rows.labels)
    unsplit = {f"{layer}_b_out" for layer in range(model.cfg.n_layers)} if "N" not in parts else set()
    assert seen == losses.keys() - unsplit


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@every_case
def test_direct_logit_attribution(case: str, dtype: torch.dtype, tolerance: float) -> None:
    model = made(case, dtype)
    batch = model.prepare(BATCH["tokens"], one_zero_attention_mask=BATCH["mask"])
    position = POSITIONS.tolist() if model.heads[model.task].per_position else None
    for neurons in (False, True):
        result = direct_logit_attribution(model, batch, targets_of(model).tolist(), position, neurons=neurons)
        assert_complete(result, tolerance)
        assert_parity(result.total, score(model, BATCH).detach(), tolerance=tolerance)
    heads = [label for label in result.labels["component"] if label.startswith("L0H")]
    assert heads == [f"L0H{head}" for head in range(model.cfg.n_heads)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "ModernBERT, answers"])
def test_the_last_stream_of_a_logit_lens_says_what_the_model_says(case: str) -> None:
    model = made(case)
    lens = logit_lens(model, BATCH["tokens"][:2, :7], top_k=188)
    with torch.no_grad():
        expected = model(BATCH["tokens"][:2, :7]).softmax(-1)
    assert_parity(lens.values[-1], expected.sort(descending=True).values, tolerance=1e-12)
    assert torch.equal(lens.ids[-1], expected.argsort(descending=True))


@every_encoder
def test_embedding_times_gradient_is_what_a_token_adds_to_a_replay(case: str) -> None:
    """With scales, patterns and gates pinned, logits are an affine function of the embeddings."""
    model = made(case)
    embedding = cached(case)["embed.hook_embed"].clone().requires_grad_()
    with linearised(model), model.hooks([("embed.hook_embed", lambda tensor, hook: embedding)]):
        total = score(model, BATCH)
        (gradient,) = torch.autograd.grad(total.sum(), embedding)
    clean = clean_run(model, BATCH)
    points = [*scale_points(clean), *pattern_points(clean)]
    for position in (0, 3):
        values = clean | {"embed.hook_embed": clean["embed.hook_embed"].clone()}
        values["embed.hook_embed"][:, position] = 0
        with torch.no_grad(), replay(model, values, [*points, "embed.hook_embed"], all_gains(model, clean)):
            lost = total - score(model, BATCH)
        assert_parity((embedding * gradient).sum(-1)[:, position].detach(), lost.detach(), tolerance=1e-9)
