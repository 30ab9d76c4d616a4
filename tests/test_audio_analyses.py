"""Decompositions, logit attributions and lenses of speech encoders on real speech: by hand, by replay, and every sum."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoderlens import ActivationCache, HookedAudioEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.errors import AnalysisError, InputError, TaskError, TokenizerMissingError
from encoderlens.slices import Slice
from tests.additive import (
    AUDIO_TASKS,
    POSITIONS,
    arguments,
    audio_batch,
    audio_clips,
    audio_model,
    direct_losses,
    run,
    score,
    targets_of,
    unsplit,
)
from tests.by_hand import assert_rows, by_hand, front_norm, in_order_of_the_full_decomposition, places, stream, what_reads
from tests.parity import CHANGE, assert_changed, assert_close, assert_complete, assert_parity, changed_along, largest_of
from tests.speech import ALL_LAYOUTS

CLIPS, BATCH = audio_clips(), audio_batch()
REAL = torch.arange(14) < torch.tensor([14, 10, 7])[:, None]
PRE_LN, SUMMED = "layer norm, pre-LN", tuple(layout for layout in ALL_LAYOUTS if "summed layers" in layout)
POST_LN = "group norm, post-LN"
UNSUMMED = [layout for layout in ALL_LAYOUTS if layout not in SUMMED]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
A, BAR = 7, 4  # of the tokenizer's symbols

every_layout = pytest.mark.parametrize("layout", ALL_LAYOUTS)
two_layouts = pytest.mark.parametrize("layout", [POST_LN, PRE_LN])
every_head = pytest.mark.parametrize(("layout", "task"), [(layout, task) for layout in ALL_LAYOUTS for task in AUDIO_TASKS])
# Both heads, both kinds of block, and both with a sum of layers.
some_heads = pytest.mark.parametrize(
    ("layout", "task"),
    [(POST_LN, "ctc"), (PRE_LN, "sequence_classification"), *((layout, "sequence_classification") for layout in SUMMED)],
)
# Heads that read the final stream.
FINAL_HEADS = [(layout, "ctc") for layout in ALL_LAYOUTS] + [(layout, "sequence_classification") for layout in UNSUMMED]
final_head = pytest.mark.parametrize(("layout", "task"), FINAL_HEADS)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@cache
def model_of(layout: str = POST_LN, task: str = "ctc", dtype: torch.dtype = torch.float64) -> HookedAudioEncoder:
    return audio_model(layout, task, dtype)


@cache
def known(layout: str = POST_LN, task: str = "ctc", dtype: torch.dtype = torch.float64) -> tuple[Tensor, ActivationCache]:
    """Logits and cache of the padded batch, for all tests that only read them."""
    logits, kept = model_of(layout, task, dtype).run_with_cache(**arguments(BATCH), return_type="logits", names_filter=unsplit)
    return logits.detach(), kept


def prepared(model: HookedAudioEncoder) -> Any:
    return model.prepare(**arguments(BATCH))


# Whole vectors


@pytest.mark.parametrize("apply_ln", [False, True])
@every_layout
def test_every_row_is_what_was_written_carried_through_every_norm_after_it(layout: str, apply_ln: bool) -> None:
    _, kept = known(layout)
    for layer, mid in places(kept.model):
        rows = by_hand(kept, layer, mid, apply_ln, "HN")
        whole = kept.decompose_resid(layer, mid, apply_ln=apply_ln, return_labels=True)
        total = what_reads(kept, BATCH, layer, mid) if apply_ln else stream(kept, layer, mid)
        assert_parity(whole[0].sum(0), total, tolerance=1e-13)
        assert_rows(whole, by_hand(kept, layer, mid, apply_ln, ""))
        full = kept.get_full_resid_decomposition(layer, mid, True, apply_ln, return_labels=True)
        assert_rows(full, in_order_of_the_full_decomposition(rows))
        if mid:
            continue
        for letter, stack in (("H", kept.stack_head_results), ("N", kept.stack_neuron_results)):
            chosen = {label: row for label, row in rows.items() if label[0] == "L" and letter in label}
            assert_rows(stack(layer, return_labels=True, apply_ln=apply_ln), chosen)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(layout, dtype) for dtype in TOLERANCE for layout in (POST_LN, PRE_LN)],
)
def test_rows_sum_to_the_stream_and_to_what_is_read_of_it(layout: str, dtype: torch.dtype) -> None:
    model, tolerance = model_of(layout, dtype=dtype), 0.3 * TOLERANCE[dtype]
    _, kept = known(layout, dtype=dtype)
    for layer, mid in places(model):
        whole, read = stream(kept, layer, mid), what_reads(kept, BATCH, layer, mid)
        for decompose in (kept.decompose_resid, kept.get_full_resid_decomposition):
            rows, carried = decompose(layer, mid), decompose(layer, mid, apply_ln=True)
            assert rows.shape == (len(rows), 3, 14, model.cfg.d_model)
            assert rows.dtype == carried.dtype == dtype
            assert_parity(rows.sum(0), whole, tolerance=tolerance)
            assert_parity(carried.sum(0), read, tolerance=tolerance)
            norm = front_norm(model, layer, mid)
            bias = 0 if norm is None else model.get_submodule(norm).b.detach()
            assert_parity(kept.apply_ln_to_stack(rows, layer, mid).sum(0) + bias, read, tolerance=tolerance)
        for stack in (kept.stack_head_results, kept.stack_neuron_results):
            if not mid:
                assert_parity(stack(layer, incl_remainder=True).sum(0), whole, tolerance=tolerance)
                assert_parity(stack(layer, incl_remainder=True, apply_ln=True).sum(0), read, tolerance=tolerance)


@pytest.mark.parametrize("inputs", ["silence", "frames", "one clip", "masked frames"])
@pytest.mark.parametrize("layout", [POST_LN, PRE_LN, SUMMED[1]])
def test_rows_sum_whatever_the_model_reads(layout: str, inputs: str) -> None:
    model = model_of(layout)
    masked = (torch.arange(14) % 3 == 0).expand(3, -1)
    options: dict[str, Any] = {
        "silence": {"inputs": CLIPS},  # padding as the processor has it
        "frames": {"inputs": model.to_frames(CLIPS)[0].detach()},
        "one clip": {"inputs": CLIPS[2]},
        "masked frames": {
            "inputs": CLIPS,
            "padding": "independent",
            "mask_time_indices": masked,
        },
    }[inputs]
    hidden, kept = model.run_with_cache(**options)
    rows = kept.get_full_resid_decomposition(apply_ln=True)
    assert_parity(rows.sum(0), hidden.detach(), tolerance=1e-13)
    rows, labels = kept.decompose_resid(1, True, return_labels=True)
    assert_parity(rows.sum(0), kept["resid_mid", 1], tolerance=1e-13)
    assert torch.equal(rows[labels.index("1_attn_out")], kept["attn_out", 1])


def test_labels() -> None:
    _, kept = known(POST_LN)
    _, labels = kept.decompose_resid(1, True, return_labels=True)
    assert labels == ["embed", "pos_embed", "embed_ln_b", "0_attn_out", "0_ln1_b", "0_mlp_out", "0_ln2_b", "1_attn_out"]
    _, kept = known(PRE_LN)
    assert kept.decompose_resid(1, True, return_labels=True)[1] == [
        "embed",
        "pos_embed",
        "0_attn_out",
        "0_mlp_out",
        "1_attn_out",
    ]
    assert kept.decompose_resid(0, apply_ln=True, return_labels=True)[1] == ["embed", "pos_embed", "0_ln1_b"]
    assert kept.decompose_resid(apply_ln=True, return_labels=True)[1][-1] == "ln_final_b"
    labels = kept.get_full_resid_decomposition(1, return_labels=True)[1]
    parts = [f"L0H{head}" for head in range(3)] + [f"L0N{neuron}" for neuron in range(11)]
    assert labels == [*parts, "embed", "pos_embed", "0_b_O", "0_b_out"]
    labels = kept.decompose_resid(2, mode="mlp", return_labels=True)[1]
    assert labels == ["embed", "pos_embed", "0_mlp_out", "1_mlp_out"]
    assert kept.decompose_resid(2, mode="attn", incl_embeds=False, return_labels=True)[1] == ["0_attn_out", "1_attn_out"]


@every_layout
def test_accumulated_resid(layout: str) -> None:
    model, (_, kept) = model_of(layout), known(layout)
    n_layers = model.cfg.n_layers
    streams, labels = kept.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == [f"{layer}_{place}" for layer in range(n_layers) for place in ("pre", "mid")] + ["final_post"]
    assert torch.equal(streams, torch.stack([stream(kept, *place) for place in places(model)]))
    assert torch.equal(kept.accumulated_resid(1, mlp_input=True), streams[[0, 2, 3]])
    read = kept.accumulated_resid(incl_mid=True, apply_ln=True)
    for found, before, label in zip(read, streams, labels, strict=True):
        norm = model.ln_final
        if norm is None and "mid" in label:
            norm = model.blocks[int(label[0])].ln1
        expected = before
        if norm is not None:  # with statistics of its own, by hand
            centred = before - before.mean(-1, keepdim=True)
            expected = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.w + norm.b
        assert_parity(found, expected.detach(), tolerance=1e-13)
    assert_parity(read[-1], run(model, BATCH, "hidden").detach(), tolerance=1e-13)


@two_layouts
def test_some_frames_some_clips_and_caches_of_them(layout: str) -> None:
    model, (_, kept) = model_of(layout), known(layout)
    whole = kept.get_full_resid_decomposition(apply_ln=True)
    window = model.frames_of(0.1, 0.2)
    assert window == slice(5, 10)
    for chosen in (window, [4, 0], -3, Slice(6)):
        expected = (chosen if isinstance(chosen, Slice) else Slice(chosen)).apply(whole, 2)
        assert_close(kept.get_full_resid_decomposition(apply_ln=True, pos_slice=chosen), expected)
        _, some = model.run_with_cache(**arguments(BATCH), pos_slice=chosen)
        found = some.get_full_resid_decomposition(apply_ln=True)
        assert_close(found, whole[:, :, [chosen]] if isinstance(chosen, int) else expected)  # an int keeps the axis in a cache
    for row, length in enumerate((14, 10, 7)):
        assert_close(kept.apply_slice_to_batch_dim(row).get_full_resid_decomposition(apply_ln=True), whole[:, row])
        _, alone = model.run_with_cache(CLIPS[row], remove_batch_dim=True)
        assert_close(alone.get_full_resid_decomposition(apply_ln=True), whole[:, row, :length])


def test_an_edit_of_the_front_end_is_in_the_rows() -> None:
    model, (_, kept) = model_of(), known()
    with model.hooks([("frontend.1.hook_post", lambda x, hook: x * 1.5), ("embed.hook_pos_embed", lambda x, hook: x * 0)]):
        _, edited = model.run_with_cache(**arguments(BATCH))
    rows, labels = edited.decompose_resid(return_labels=True)
    assert_parity(rows.sum(0), stream(edited, 2, False), tolerance=1e-13)
    assert not rows[labels.index("pos_embed")].any()
    assert_changed(rows[0], kept.decompose_resid()[0])


# Logits


@pytest.mark.parametrize(
    ("layout", "task", "dtype"),
    [(*head, torch.float64) for head in FINAL_HEADS]
    + [(layout, task, torch.float32) for layout in (POST_LN, PRE_LN) for task in AUDIO_TASKS],
)
def test_a_full_stack_and_the_constant_are_the_logit(layout: str, task: str, dtype: torch.dtype) -> None:
    logits, kept = known(layout, task, dtype)
    names: dict[str, dict[Any, int]] = {
        "ctc": {"A": A, "|": BAR, 31: 31, "<pad>": 0},
        "sequence_classification": {"LABEL_3": 3, 0: 0, 4: 4, "LABEL_1": 1},
    }
    for stack in (kept.decompose_resid(), kept.get_full_resid_decomposition()):
        for target, index in names[task].items():
            rows, constant = kept.logit_attrs(stack, target), kept.logit_constant(target)
            assert rows.shape == (len(stack), *logits.shape[:-1])
            scale = float(rows.abs().max() / logits[..., index].abs().max())
            assert_parity(rows.sum(0) + constant, logits[..., index], tolerance=max(1.0, scale) * TOLERANCE[dtype])
    stack, (first, second) = kept.decompose_resid(), list(names[task])[:2]
    found = kept.logit_attrs(stack, first, second).sum(0) + kept.logit_constant(first, second)
    expected = logits[..., names[task][first]] - logits[..., names[task][second]]
    assert_parity(found, expected, tolerance=10 * TOLERANCE[dtype])


@final_head
def test_a_rows_attribution_is_the_heads_arithmetic_on_it(layout: str, task: str) -> None:
    model, (_, kept) = model_of(layout, task), known(layout, task)
    rows = vectors = kept.decompose_resid()
    if model.ln_final is not None:
        vectors = (rows - rows.mean(-1, keepdim=True)) / kept["ln_final.hook_scale"] * model.ln_final.w
    if task == "ctc":
        expected = vectors @ model.ctc_head.W
    else:
        projected = vectors @ model.projector.W
        expected = torch.stack([projected[:, row, :length].mean(1) for row, length in enumerate((14, 10, 7))], 1)
        expected = expected @ model.classifier.W
    for target in range(expected.shape[-1]):
        assert_close(kept.logit_attrs(rows, target), expected[..., target].detach())


@pytest.mark.parametrize("task", AUDIO_TASKS)
@two_layouts
def test_a_logit_for_each_clip_and_of_runs_without_a_mask(layout: str, task: str) -> None:
    model, (logits, kept) = model_of(layout, task), known(layout, task)
    stack, ids = kept.decompose_resid(), torch.tensor([3, 0, 2])
    expected = torch.stack([row[..., target] for row, target in zip(logits, ids, strict=True)])
    assert_close(kept.logit_attrs(stack, ids).sum(0) + kept.logit_constant(ids), expected)
    assert_close(kept.logit_attrs(stack, ids.tolist()), kept.logit_attrs(stack, ids))
    frames, mask = model.to_frames(CLIPS)
    for options in ({"inputs": frames.detach()}, {"inputs": (frames.detach(), mask)}, {"inputs": CLIPS}, {"inputs": CLIPS[1]}):
        output, other = model.run_with_cache(return_type="logits", **options)
        found = other.logit_attrs(other.decompose_resid(), 3).sum(0) + other.logit_constant(3)
        assert_close(found, output[..., 3].detach())


@two_layouts
def test_logits_of_each_frame(layout: str) -> None:
    logits, kept = known(layout)
    stack = kept.decompose_resid()
    ids = torch.arange(42).reshape(3, 14) % 32
    expected = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert_close(kept.logit_attrs(stack, ids).sum(0) + kept.logit_constant(ids), expected)
    window = kept.model.frames_of(0.05, 0.13)
    rows = kept.decompose_resid(pos_slice=window)
    found = kept.logit_attrs(rows, ids, pos_slice=window).sum(0) + kept.logit_constant(ids, pos_slice=window)
    assert_close(found, expected[:, window])
    one = kept.logit_attrs(stack, "A", batch_slice=1).sum(0) + kept.logit_constant("A", batch_slice=1)
    assert_close(one, logits[1, :, A])


def test_a_cache_that_was_saved_gives_the_same(tmp_path: Path) -> None:
    for task in AUDIO_TASKS:
        logits, kept = known(PRE_LN, task)
        kept.save(tmp_path / "run.safetensors")
        read = ActivationCache.load(tmp_path / "run.safetensors", kept.model)
        stack = read.get_full_resid_decomposition(expand_neurons=False)
        assert_close(read.logit_attrs(stack, 1).sum(0) + read.logit_constant(1), logits[..., 1])


@pytest.mark.parametrize("layout", SUMMED)
def test_a_head_that_sums_layers_has_no_logit_of_the_final_stream(layout: str) -> None:
    _, kept = known(layout, "sequence_classification")
    rows = kept.decompose_resid()
    for call in (lambda: kept.logit_attrs(rows, 0), lambda: kept.logit_constant(0)):
        with pytest.raises(
            AnalysisError, match="reads the streams of all layers, not the final one: take direct_logit_attribution"
        ):
            call()


def test_a_classifier_reads_whole_clips() -> None:
    _, kept = known(POST_LN, "sequence_classification")
    with pytest.raises(
        InputError, match="the sequence_classification head reads a whole sequence: its rows need every position"
    ):
        kept.logit_attrs(kept.decompose_resid(pos_slice=[1]), 0, pos_slice=[1])
    _, some = kept.model.run_with_cache(**arguments(BATCH), pos_slice=(0, 5))
    with pytest.raises(InputError, match="reads a whole sequence, and the cache holds some positions of it"):
        some.logit_constant(0)


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("ctc", "AB", "the target 'AB' is no single token: the tokenizer makes A, B of it; give one of these"),
        ("ctc", "É", "the tokenizer has no token for the target 'É'; give another, or a token id"),
        ("ctc", "", "the tokenizer has no token for the target ''"),
        ("ctc", 32, "the target 32 is no token id of this head: a number from 0 to 31, or a name"),
        ("ctc", -1, "the target -1 is no token id"),
        ("ctc", 1.0, "the target 1.0 is no token id"),
        ("ctc", None, "the target None is no token id"),
        ("sequence_classification", "LABEL_7", "the sequence_classification head has no 'LABEL_7'; did you mean 'LABEL_4'"),
        ("sequence_classification", 5, "the target 5 is no class of this head: a number from 0 to 4, or a name"),
        ("sequence_classification", True, "the target True is no class of this head"),
    ],
)
def test_targets_that_are_not_there(task: str, target: Any, message: str) -> None:
    _, kept = known(POST_LN, task)
    position = 0 if task == "ctc" else None
    with pytest.raises(InputError, match=message):
        kept.logit_attrs(kept.decompose_resid(), target)
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(kept.model, CLIPS[0], target, position)
    if target is not None:
        with pytest.raises(InputError, match=message):
            direct_logit_attribution(kept.model, CLIPS[0], 0, position, baseline=target)


# Direct logit attribution


def by_label(result: Any) -> dict[str, Tensor]:
    return dict(zip(result.labels["component"], result.values, strict=True))


def attributed(model: HookedAudioEncoder, **options: Any) -> Any:
    """Of the same logits as ``score``."""
    position = POSITIONS.tolist() if model.task == "ctc" else None
    return direct_logit_attribution(model, prepared(model), targets_of(model).tolist(), position, **options)


def biases_of(model: HookedAudioEncoder) -> list[str]:
    """The biases of the heads, as rows are called, and in the order of the run."""
    of_the_norm = [] if model.ln_final is None or hasattr(model, "layer_sum") else ["ln_final_b"]
    return of_the_norm + (["head_b"] if model.task == "ctc" else ["projector_b", "head_b"])


@every_dtype
@every_head
def test_rows_add_up_to_the_logit_of_the_plain_forward(layout: str, task: str, dtype: torch.dtype) -> None:
    model = model_of(layout, task, dtype)
    plain = score(model, BATCH).detach()
    for neurons in (False, True):
        result = attributed(model, neurons=neurons)
        assert result.values.dtype == result.total.dtype == dtype
        assert result.error <= TOLERANCE[dtype]
        assert_parity(result.total, plain, tolerance=TOLERANCE[dtype])
        scale = max(1.0, float(result.values.abs().max() / plain.abs().max()))
        assert_parity(result.values.sum(0), plain, tolerance=scale * TOLERANCE[dtype])
    assert result.task == task
    assert result.positions == (tuple(POSITIONS.tolist()) if task == "ctc" else None)
    assert result.labels["example"] == ("0", "1", "2")


@every_head
def test_a_row_is_what_the_logit_loses_without_the_write_when_all_else_is_pinned(layout: str, task: str) -> None:
    model = model_of(layout, task)
    losses, seen = direct_losses(model, BATCH), set()
    for neurons in (False, True):
        result = attributed(model, neurons=neurons)
        labels = result.labels["component"]
        assert_parity(result.values, torch.stack([losses[label] for label in labels]), tolerance=1e-11)
        wrong = result.values.roll(1, 0) - result.values  # rows in another order would be seen to be wrong
        assert (wrong.abs().amax(1) > 1e-7 * result.values.abs().max()).double().mean() > 0.7
        seen |= set(labels)
    whole_sublayers = {label for label in losses if label.endswith("attn_out")}
    assert seen == set(losses) - whole_sublayers
    for label in whole_sublayers:  # which are the sum of the rows of heads and of their bias
        layer = label.partition("_")[0]
        parts = [losses[f"L{layer}H{head}"] for head in range(model.cfg.n_heads)] + [losses[f"{layer}_b_O"]]
        assert_parity(sum(parts), losses[label], tolerance=1e-10)


@every_head
def test_the_components_in_the_order_of_the_run(layout: str, task: str) -> None:
    model = model_of(layout, task)
    post_ln = model.ln_final is None
    expected = ["embed", "pos_embed"] + ["embed_ln_b"] * post_ln
    for layer in range(model.cfg.n_layers):
        expected += [f"L{layer}H{head}" for head in range(model.cfg.n_heads)] + [f"{layer}_b_O"] + [f"{layer}_ln1_b"] * post_ln
        expected += [f"{layer}_mlp_out"] + [f"{layer}_ln2_b"] * post_ln
    assert attributed(model).labels["component"] == (*expected, *biases_of(model))


@some_heads
def test_neurons_add_up_to_the_mlp_and_a_baseline_is_subtracted(layout: str, task: str) -> None:
    model = model_of(layout, task)
    whole, parts = by_label(attributed(model)), by_label(attributed(model, neurons=True))
    for layer in range(model.cfg.n_layers):
        neurons = [parts.pop(f"L{layer}N{neuron}") for neuron in range(model.cfg.d_mlp)]
        assert_close(sum(neurons) + parts.pop(f"{layer}_b_out"), whole.pop(f"{layer}_mlp_out"))
    assert parts.keys() == whole.keys()
    position = [13, 9, 6] if task == "ctc" else None
    first, second = ("A", "|") if task == "ctc" else ("LABEL_2", "LABEL_4")
    difference = direct_logit_attribution(model, prepared(model), first, position, second)
    alone = [direct_logit_attribution(model, prepared(model), name, position) for name in (first, second)]
    assert_close(difference.values, alone[0].values - alone[1].values)
    assert_close(difference.total, alone[0].total - alone[1].total)
    assert_complete(difference, 1e-12)
    assert (difference.target, difference.baseline) == ((first,) * 3, (second,) * 3)
    assert str(difference).splitlines()[0].strip() == f"Direct logit attribution: {first} minus {second}"


@final_head
def test_rows_are_the_logit_attributions_of_the_cache(layout: str, task: str) -> None:
    model, (_, kept) = model_of(layout, task), known(layout, task)
    result = attributed(model)
    stack, labels = kept.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    attributions, constant = kept.logit_attrs(stack, targets_of(model)), kept.logit_constant(targets_of(model))
    if task == "ctc":
        attributions, constant = attributions[:, range(3), POSITIONS], constant[range(3), POSITIONS]
    ours = by_label(result)
    for label, row in zip(labels, attributions, strict=True):
        assert_close(ours.pop(label), row)
    assert list(ours) == biases_of(model)
    assert_close(sum(ours.values()), constant)


@every_head
def test_a_data_set_is_its_clips_one_by_one(layout: str, task: str) -> None:
    model = model_of(layout, task)
    targets, position = ([A, "|", 0], [3, 9, 6]) if task == "ctc" else (["LABEL_4", 0, 2], [None] * 3)
    alone = [direct_logit_attribution(model, *each) for each in zip(CLIPS, targets, position, strict=True)]
    for one in alone:
        assert one.axes == ("component",)
        assert one.total.shape == ()
        assert_complete(one, 1e-12)
    batch, places = model.prepare(CLIPS, padding="independent"), position if task == "ctc" else None
    for batch_size in (2, 32):
        result = direct_logit_attribution(model, batch, targets, places, batch_size=batch_size)
        assert result.axes == ("component", "example")
        assert_parity(result.values, torch.stack([one.values for one in alone], 1), tolerance=1e-11)
        assert_close(result.total, torch.stack([one.total for one in alone]))
        assert result.target == tuple(one.target[0] for one in alone)
    assert result.target == (("A", "|", "<pad>") if task == "ctc" else ("LABEL_4", "LABEL_0", "LABEL_2"))
    interval = result.mean()
    assert_close(interval.mean, result.values.mean(1))
    frames, mask = model.to_frames(CLIPS, padding="independent")
    given = direct_logit_attribution(model, model.prepare((frames, mask), padding="independent"), targets, places)
    assert_parity(given.values, result.values, tolerance=1e-11)


@every_layout
def test_padding_that_is_read_as_silence_stays_with_each_part_of_a_data_set(layout: str) -> None:
    model = model_of(layout)
    logits = model(CLIPS, return_type="logits").detach()
    whole = direct_logit_attribution(model, CLIPS, "A", 5)
    assert_close(whole.total, logits[:, 5, A])
    for batch_size in (1, 2):
        parts = direct_logit_attribution(model, CLIPS, "A", 5, batch_size=batch_size)
        assert_parity(parts.values, whole.values, tolerance=1e-11)
        assert_complete(parts, 1e-12)


@pytest.mark.parametrize(
    ("target", "index", "name"),
    [("A", A, "A"), (A, A, "A"), (torch.tensor(A), A, "A"), (np.int64(A), A, "A"), ("|", BAR, "|"), (" ", BAR, "|")]
    + [("<pad>", 0, "<pad>"), ("<unk>", 3, "<unk>"), (31, 31, "Z")],
)
def test_a_symbol_by_id_or_as_the_tokenizer_writes_it(target: Any, index: int, name: str) -> None:
    model = model_of()
    result = direct_logit_attribution(model, CLIPS[0], target, 13)
    assert result.target == (name,)
    assert_close(result.total, model(CLIPS[0], return_type="logits")[0, 13, index].detach())
    assert str(result).splitlines()[0].strip() == f"Direct logit attribution: {name} at {result.tokens[0]}"


def test_without_a_tokenizer_there_are_ids() -> None:
    model = audio_model(POST_LN)
    model.processor = model.processor.feature_extractor
    assert direct_logit_attribution(model, CLIPS[0], A, 2).target == ("7",)
    with pytest.raises(TokenizerMissingError, match="'A' is a word, and this model has no tokenizer: give a token id"):
        direct_logit_attribution(model, CLIPS[0], "A", 2)
    assert set(logit_lens(model, CLIPS[0]).names.values()) <= set(map(str, range(32)))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (None, "the ctc head has logits for every position: say which with position="),
        (14, "there is no position 14 in sequence 0: positions run from 0 to 13"),
        (-1, "there is no position -1 in sequence 0"),
        (0.05, "there is no position 0.05 in sequence 0"),
        ([1, 2], "position has 2 entries for 3 examples; give one for all, or one each"),
        (8, "position 8 of sequence 2 is padding"),
        ([13, 10, 0], "position 10 of sequence 1 is padding"),
    ],
)
def test_positions_that_are_not_there(position: Any, message: str) -> None:
    ran: list[str] = []
    model = model_of()
    with model.hooks([("frontend.0.hook_conv", lambda x, hook: ran.append(hook.name))]):
        with pytest.raises(InputError, match=message):
            direct_logit_attribution(model, prepared(model), "A", position)
        if position is not None and "entries" not in message:
            with pytest.raises(InputError, match=message):
                logit_lens(model, prepared(model), [[one] for one in position] if isinstance(position, list) else position)
    assert ran == []


@pytest.mark.parametrize("layout", [POST_LN, SUMMED[0]])
def test_a_classifier_takes_no_position(layout: str) -> None:
    model = model_of(layout, "sequence_classification")
    with pytest.raises(InputError, match="the sequence_classification head has one row a sequence: leave position out"):
        direct_logit_attribution(model, CLIPS, 0, 3)
    with pytest.raises(InputError, match="the sequence_classification head has one row a sequence: leave positions out"):
        logit_lens(model, CLIPS, 3)


def test_models_that_have_no_answer() -> None:
    headless = HookedAudioEncoder(model_of().cfg.encoder, device="cpu", init_weights=False)
    headless.task = None
    for analysis in (lambda: direct_logit_attribution(headless, CLIPS, 0), lambda: logit_lens(headless, CLIPS)):
        with pytest.raises(TaskError, match=r"the model has no task; set model\.task to one of its heads: ctc"):
            analysis()
    training = audio_model(PRE_LN).train()
    for analysis in (lambda: direct_logit_attribution(training, CLIPS, 0, 0), lambda: logit_lens(training, CLIPS)):
        with pytest.raises(AnalysisError, match=r"call model\.eval\(\) first"):
            analysis()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", [POST_LN, SUMMED[0]])
def test_every_grad_mode_and_no_gradient_left_behind(layout: str, mode: Any) -> None:
    model = audio_model(layout, "sequence_classification", torch.float64)
    outside, lens = attributed(model), logit_lens(model, prepared(model))
    with mode():
        batch = prepared(model)
        inside = direct_logit_attribution(model, batch, targets_of(model).tolist())
        assert torch.equal(logit_lens(model, batch).ids, lens.ids)
    after = direct_logit_attribution(model, batch, targets_of(model).tolist(), batch_size=2)  # of a batch made in there
    model.requires_grad_(False)
    frozen = attributed(model)
    for result in (inside, after, frozen):
        assert_close(result.values, outside.values)
        assert not result.values.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.list_hooks()


# Hooks

ON_THE_STREAM = ("hook_full_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid")
IN_THE_HEAD = {
    "ctc": ("ctc_head.hook_in", "ctc_head.hook_out"),
    "sequence_classification": ("projector.hook_out", "classifier.hook_in"),
}


@some_heads
def test_what_hooks_add_to_the_stream_or_in_the_head_has_a_row_of_its_own(layout: str, task: str) -> None:
    model = model_of(layout, task)
    intact = attributed(model)
    assert "hooks" not in intact.labels["component"]
    names = [*ON_THE_STREAM, *IN_THE_HEAD[task], *(["layer_sum.hook_out"] if hasattr(model, "layer_sum") else [])]
    for name in names:
        with model.hooks([(name, lambda x, hook: x + torch.linspace(-1, 1, x.shape[-1]))]):
            result, plain = attributed(model), score(model, BATCH).detach()
        assert_close(result.total, plain)
        assert_complete(result, 1e-12)
        assert by_label(result)["hooks"].abs().min() > CHANGE * largest_of(result.total), name


@some_heads
def test_edits_in_front_of_the_stream_and_of_heads_are_in_their_rows(layout: str, task: str) -> None:
    model = model_of(layout, task)
    edits = [
        ("frontend.0.hook_post", lambda x, hook: x * 0.5),
        ("projection.hook_out", lambda x, hook: x.flip(-1)),
        ("embed.hook_pos_embed", lambda x, hook: x * 2),
        ("blocks.1.attn.hook_z", lambda z, hook: z.index_fill(2, torch.tensor(1), 0.0)),
        ("blocks.0.mlp.hook_post", lambda x, hook: x.index_fill(2, torch.tensor(4), 0.0)),
    ]
    intact = attributed(model)
    with model.hooks(edits):
        result, plain = attributed(model, neurons=True), score(model, BATCH).detach()
    assert_close(result.total, plain)
    assert_complete(result, 1e-12)
    rows = by_label(result)
    assert "hooks" not in rows
    assert not rows["L1H1"].any()
    assert not rows["L0N4"].any()
    assert all(changed_along(0, result.total, intact.total))


@pytest.mark.parametrize("task", AUDIO_TASKS)
def test_a_hook_that_changes_a_whole_write_is_refused(task: str) -> None:
    model = model_of(PRE_LN, task)
    with (
        model.hooks([("blocks.1.hook_attn_out", lambda out, hook: out * 0)]),
        pytest.raises(AnalysisError, match=r"a hook edits blocks\.1\.hook_attn_out.*Edit blocks\.1\.attn\.hook_z instead"),
    ):
        attributed(model)


@some_heads
def test_a_stream_that_a_hook_replaces_cuts_off_what_was_written_before(layout: str, task: str) -> None:
    model = model_of(layout, task)
    out = str(model.stream_point(model.cfg.n_layers).name)
    with model.hooks([(out, lambda x, hook: x.detach() * 1)]):
        rows = by_label(attributed(model))
    summed = hasattr(model, "layer_sum")
    assert rows["hooks"].all()
    assert bool(rows["L0H1"].any()) is summed  # by the streams of earlier layers
    assert not rows[f"L{model.cfg.n_layers - 1}H1"].any()


# Logit lens


def read_by_the_head(model: HookedAudioEncoder, read: Tensor) -> Tensor:
    """What the head says of what it reads [batch pos d_model], as probabilities, by its matrices."""
    if model.task == "ctc":
        return (read @ model.ctc_head.W + model.ctc_head.b).softmax(-1)
    projected = read @ model.projector.W + model.projector.b
    pooled = torch.stack([row[real].mean(0) for row, real in zip(projected, REAL, strict=True)])
    return (pooled @ model.classifier.W + model.classifier.b).softmax(-1)


def normed(norm: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.w + norm.b


def lens_by_hand(model: HookedAudioEncoder, kept: ActivationCache) -> dict[str, Tensor]:
    """Probabilities of every stream, if nothing more were written: for a sum of layers, each later stream is this one."""
    found = {}
    for layer, mid in places(model):
        seen = stream(kept, layer, mid)
        if mid and model.ln_final is None:
            seen = normed(model.blocks[layer].ln1, seen)
        if hasattr(model, "layer_sum"):
            shares = model.layer_sum.weights.exp() / model.layer_sum.weights.exp().sum()
            entered = layer + mid  # streams that are there already
            seen = seen * shares[entered:].sum()
            seen = seen + sum(shares[index] * stream(kept, index, False) for index in range(entered))
        elif model.ln_final is not None:
            seen = normed(model.ln_final, seen)
        label = "final_post" if layer == model.cfg.n_layers else f"{layer}_{'mid' if mid else 'pre'}"
        found[label] = read_by_the_head(model, seen).detach()
    return found


@every_head
def test_each_stream_goes_through_the_models_own_head(layout: str, task: str) -> None:
    model, (logits, kept) = model_of(layout, task), known(layout, task)
    lens, by_labels = logit_lens(model, prepared(model), top_k=4), lens_by_hand(model, kept)
    assert lens.labels["stream"] == tuple(by_labels)
    assert lens.axes == (("stream", "example", "pos", "rank") if task == "ctc" else ("stream", "example", "rank"))
    assert_close(by_labels["final_post"], logits.softmax(-1))
    real = REAL if task == "ctc" else slice(None)
    for values, ids, expected in zip(lens.values, lens.ids, by_labels.values(), strict=True):
        best = expected.topk(4)
        assert_close(values[real], best.values[real])
        assert torch.equal(ids[real], best.indices[real])
        if task == "ctc":
            assert values[~REAL].isnan().all()
            assert (ids[~REAL] == -1).all()
    assert (lens.task, lens.measure) == (task, "probability")


@every_dtype
@every_head
def test_the_final_stream_says_what_the_model_says(layout: str, task: str, dtype: torch.dtype) -> None:
    model = model_of(layout, task, dtype)
    lens = logit_lens(model, CLIPS[1], top_k=100)
    expected = model(CLIPS[1], return_type="logits")[0].detach().softmax(-1)
    assert_parity(lens.values[-1], expected.sort(descending=True).values, tolerance=TOLERANCE[dtype])
    assert_parity(expected.gather(-1, lens.ids[-1]), lens.values[-1], tolerance=TOLERANCE[dtype])
    assert_close(lens.values.sum(-1), torch.ones(lens.values.shape[:-1], dtype=dtype))
    unmasked = logit_lens(model, CLIPS, top_k=3)
    expected = model(CLIPS, return_type="logits").detach().softmax(-1).topk(3).values
    real = REAL if task == "ctc" and "layer norm" in layout else slice(None)
    assert_parity(unmasked.values[-1][real], expected[real], tolerance=TOLERANCE[dtype])


def test_positions_carry_their_time() -> None:
    model = model_of()
    lens = logit_lens(model, CLIPS[0])
    times = model.frame_times(14).tolist()
    assert times[4] == 0.0925  # four hops of 20 ms, and half of the 25 ms that a frame sees
    assert lens.axes == ("stream", "pos", "rank")
    assert lens.labels["pos"] == tuple(f"{frame} {time:.4f}s" for frame, time in enumerate(times))
    window = model.frames_of(0.06, 0.1)
    some = logit_lens(model, CLIPS[0], range(window.start, window.stop))
    assert some.labels["pos"] == lens.labels["pos"][3:5]
    assert_close(some.values, lens.values[:, 3:5])
    assert lens.labels["pos"][3] in str(some)
    assert logit_lens(model, CLIPS, 2).labels["pos"] == ("2",)


@two_layouts
def test_the_names_of_symbols_and_classes(layout: str) -> None:
    model = model_of(layout)
    lens = logit_lens(model, CLIPS[0], top_k=32)
    assert (lens.names[0], lens.names[BAR], lens.names[A]) == ("<pad>", "|", "A")
    assert len(lens.names) == 32
    best = lens.top(1)[0]
    assert best.value == pytest.approx(lens.values.max().item())
    assert best.labels[-1] in lens.names.values()
    classes = logit_lens(model_of(layout, "sequence_classification"), CLIPS[0])
    assert classes.names == {index: f"LABEL_{index}" for index in range(5)}
    assert classes.axes == ("stream", "rank")


@some_heads
def test_a_lens_on_a_data_set_is_its_clips_one_by_one(layout: str, task: str) -> None:
    model = model_of(layout, task)
    alone = [logit_lens(model, clip, top_k=3) for clip in CLIPS]
    for batch_size in (1, 2, 32):
        lens = logit_lens(model, model.prepare(CLIPS, padding="independent"), top_k=3, batch_size=batch_size)
        for row, one in enumerate(alone):
            frames = slice(0, one.values.shape[1])
            mine = (
                (lens.values[:, row, frames], lens.ids[:, row, frames])
                if task == "ctc"
                else (lens.values[:, row], lens.ids[:, row])
            )
            assert_close(mine[0], one.values)
            assert torch.equal(mine[1], one.ids)
    read = json.loads(lens.to_json(), parse_constant=pytest.fail)
    assert read["axes"] == list(lens.axes)


def test_positions_of_each_clips_own() -> None:
    model, own = model_of(PRE_LN), [[13, 0], [9, 4], [6, 6]]
    lens = logit_lens(model, prepared(model), own)
    assert lens.labels["pos"] == ("13, 9, 6", "0, 4, 6")
    whole = logit_lens(model, prepared(model))
    for row, at in enumerate(own):
        assert_close(lens.values[:, row], whole.values[:, row, at])


@pytest.mark.parametrize("layout", [POST_LN, PRE_LN, *SUMMED])
def test_hooks_have_their_say_once(layout: str) -> None:
    model = model_of(layout, "sequence_classification")
    intact, seen = logit_lens(model, prepared(model), top_k=5), []

    def shift(x: Tensor, hook: Any) -> Tensor:
        seen.append(hook.name)
        return x + torch.linspace(-1, 1, x.shape[-1])

    with model.hooks([(["frontend.1.hook_conv", "blocks.1.hook_mlp_out"], shift)]):
        lens, said = logit_lens(model, prepared(model), top_k=5), run(model, BATCH).detach().softmax(-1)
    assert seen == ["frontend.1.hook_conv", "blocks.1.hook_mlp_out"] * 2
    assert_close(lens.values[-1], said.sort(descending=True).values)
    assert_changed(lens.values[0], intact.values[0], 1e-6)  # the front end comes before every stream
    model.add_hook("classifier.hook_in", lambda x, hook: x * 0, is_permanent=True)
    try:
        assert_close(logit_lens(model, prepared(model), top_k=5).values, intact.values)
    finally:
        model.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("layout", SUMMED)
def test_a_sum_of_layers_reads_streams_as_hooks_leave_them(layout: str) -> None:
    model = model_of(layout, "sequence_classification")
    waves, turned = BATCH["waves"], BATCH["waves"].flip(1) * 0.7
    other, kept = model.run_with_cache(turned, return_type="logits")

    def patch(x: Tensor, hook: Any) -> Tensor:
        return kept[hook.name]

    def said(*names: str) -> Tensor:
        with torch.no_grad(), model.hooks([(names, patch)]):
            return model(waves, return_type="logits")

    assert_changed(said("projector.hook_in"), said("blocks.1.hook_resid_pre"))
    assert_close(said("blocks.0.hook_resid_pre"), other.detach())
    out = "blocks.0.hook_resid_post" if model.ln_final is not None else "blocks.0.hook_normalized_resid_post"
    assert_close(said("blocks.1.hook_resid_pre"), said(out))
    with model.hooks([("blocks.1.hook_resid_pre", patch)]):
        lens = logit_lens(model, waves, top_k=5)
    assert_close(lens.values[-1], said("blocks.1.hook_resid_pre").softmax(-1).sort(descending=True).values)
    points = ["hook_full_embed", "blocks.0.hook_resid_pre", out, "blocks.1.hook_resid_pre"]
    options: dict[str, Any] = {"incl_bwd": True, "loss_fn": lambda logits: logits[:, 2].sum()}
    _, streams = model.run_with_cache(waves, return_type="logits", names_filter=points, **options)
    model.zero_grad()
    assert_close(streams["blocks.0.hook_resid_pre_grad"], streams["hook_full_embed_grad"])
    assert_close(streams["blocks.1.hook_resid_pre_grad"], streams[f"{out}_grad"])
