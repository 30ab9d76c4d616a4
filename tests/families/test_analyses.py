"""Every analysis on every text family: decompositions, attributions and lenses, with every kind of head."""

import functools

import pytest
import torch
from torch import Tensor

from encoderlens import ActivationCache
from encoderlens.analysis import direct_logit_attribution, logit_lens
from tests.additive import POSITIONS, direct_losses, run, score, targets_of, unsplit
from tests.by_hand import assert_rows, by_hand, in_order_of_the_full_decomposition, places, stream, what_reads
from tests.parity import assert_parity
from tests.text_families import HEADS, MASKED_LM, text_batch, text_model

EXACT = 1e-11  # of the largest magnitude, in float64

every_encoder = pytest.mark.parametrize(("hf_class", "variant"), MASKED_LM, ids=lambda value: value)
every_head = pytest.mark.parametrize(("hf_class", "task"), HEADS, ids=lambda value: value)


@functools.cache
def cached(hf_class: str, task: str, variant: str = "plain") -> tuple[Tensor, ActivationCache]:
    """Logits and every activation of a padded batch, which no test changes."""
    model = text_model(hf_class, task, variant)
    batch = text_batch(model)
    everything = {"names_filter": unsplit}
    logits, cache = model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"], **everything)
    return cache.model.heads[task].by_output(logits.detach()), cache


# The stream


@every_encoder
def test_rows_are_writes_carried_by_hand_and_sum_to_the_stream_and_to_what_is_read_of_it(hf_class: str, variant: str) -> None:
    _, cache = cached(hf_class, "masked_lm", variant)
    batch = text_batch(cache.model)
    for layer, mid in places(cache.model):
        whole = cache.decompose_resid(layer, mid, apply_ln=True, return_labels=True)
        assert_rows(whole, by_hand(cache, layer, mid, True, ""), EXACT)
        assert_parity(whole[0].sum(0), what_reads(cache, batch, layer, mid), batch["mask"], EXACT)
        neurons = (layer, mid) == (1, True)
        full = cache.get_full_resid_decomposition(layer, mid, neurons, return_labels=True)
        rows = by_hand(cache, layer, mid, False, "HN" if neurons else "H")
        assert_rows(full, in_order_of_the_full_decomposition(rows), EXACT)
        assert_parity(full[0].sum(0), stream(cache, layer, mid), batch["mask"], EXACT)


@every_encoder
def test_heads_and_the_remainder_sum_to_the_stream(hf_class: str, variant: str) -> None:
    _, cache = cached(hf_class, "masked_lm", variant)
    rows, labels = cache.stack_head_results(return_labels=True, incl_remainder=True)
    heads = {label: row for label, row in by_hand(cache, cache.model.cfg.n_layers, False, False, "H").items() if "H" in label}
    assert list(heads) == cache.model.all_head_labels()
    final = stream(cache, cache.model.cfg.n_layers, False)
    assert_rows((rows, labels), heads | {"remainder": final - sum(heads.values())}, EXACT)


@every_encoder
def test_the_stream_accumulates_to_the_final_one(hf_class: str, variant: str) -> None:
    _, cache = cached(hf_class, "masked_lm", variant)
    model, mask = cache.model, text_batch(cache.model)["mask"]
    streams, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == [f"{layer}_{kind}" for layer in range(model.cfg.n_layers) for kind in ("pre", "mid")] + ["final_post"]
    for found, place in zip(streams, places(model), strict=True):
        assert torch.equal(found, stream(cache, *place))
    read = cache.accumulated_resid(apply_ln=True)[-1]
    assert_parity(read, run(model, text_batch(model), "hidden").detach(), mask, EXACT)


# Logits


@every_head
def test_a_full_stack_and_the_constant_are_the_logits(hf_class: str, task: str) -> None:
    logits, cache = cached(hf_class, task)
    mask = text_batch(cache.model)["mask"] if cache.model.heads[task].per_position else None
    stack = cache.get_full_resid_decomposition(expand_neurons=False)
    for target in {0, logits.shape[-1] - 1}:
        found = cache.logit_attrs(stack, target).sum(0) + cache.logit_constant(target)
        assert_parity(found, logits[..., target], mask, EXACT)


@every_head
def test_rows_of_an_attribution_are_what_the_logit_loses_without_each(hf_class: str, task: str) -> None:
    model = text_model(hf_class, task)
    batch = text_batch(model)
    position = {"position": POSITIONS.tolist()} if model.heads[task].per_position else {}
    prepared = model.prepare(batch["tokens"], batch["types"], batch["mask"])
    found = direct_logit_attribution(model, prepared, targets_of(model).tolist(), **position)
    assert_parity(found.total, score(model, batch).detach(), tolerance=EXACT)
    assert_parity(found.values.sum(0), found.total, tolerance=EXACT)
    losses = direct_losses(model, batch, parts=("H",))
    labels = found.labels["component"]
    assert_parity(found.values, torch.stack([losses[label] for label in labels]), tolerance=EXACT)
    assert {label.partition("_")[2] for label in set(losses) - set(labels)} <= {"attn_out", "b_out"}  # of which there are parts


@every_head
def test_the_lens_ends_on_what_the_model_says(hf_class: str, task: str) -> None:
    logits, cache = cached(hf_class, task)
    model, batch = cache.model, text_batch(cache.model)
    found = logit_lens(model, model.prepare(batch["tokens"], batch["types"], batch["mask"]), top_k=logits.shape[-1])
    assert found.labels["stream"][-1] == "final_post"
    ids, mask = found.ids[-1], batch["mask"] if model.heads[task].per_position else None
    expected = probabilities(task, logits, batch["mask"]).gather(-1, ids.clamp_min(0))
    assert_parity(found.values[-1].nan_to_num(), expected, mask, EXACT)


def probabilities(task: str, logits: Tensor, mask: Tensor) -> Tensor:
    """What logits say: of exclusive outputs, of a start and an end among positions, of each token alone."""
    if task == "question_answering":
        return logits.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).softmax(1)
    return logits.sigmoid() if task == "replaced_token_detection" else logits.softmax(-1)
