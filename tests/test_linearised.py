"""The frozen-quantity forward pass, against replays that put back what a run had, and against plain derivatives."""

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.components.activations import ACTIVATIONS, Activation, GatedActivation
from encoderlens.components.freezing import Freezable, freeze
from encoderlens.components.residual import Norm, WriteOfParts
from encoderlens.errors import AnalysisError, InputError
from encoderlens.linearised import carries, direct_rows, linearised
from tests.additive import (
    BLOCKS,
    MLPS,
    POSITIONS,
    TASKS,
    additive_batch,
    additive_model,
    all_gains,
    clean_run,
    direct_losses,
    pattern_points,
    replay,
    run,
    scale_points,
    score,
    targets_of,
    written,
)
from tests.parity import assert_close, assert_parity, largest_of

QUANTITIES = ("ln", "pattern", "gain")
SUBSETS = [dict(zip(QUANTITIES, chosen, strict=True)) for chosen in product((False, True), repeat=3)]
SPLITS = [(), ("H",), ("H", "N")]

every_block = pytest.mark.parametrize("block", BLOCKS)
every_mlp = pytest.mark.parametrize("mlp", MLPS)
every_task = pytest.mark.parametrize("task", TASKS)
# Every block with every MLP, and every head on models that share neither.
APART = [("post", "plain"), ("pre", "gated")]
every_sort = pytest.mark.parametrize(
    ("block", "mlp", "task"),
    [(*pair, task) for pair in APART for task in TASKS] + [("post", "gated", TASKS[0]), ("pre", "plain", TASKS[0])],
)


def frozen(model: torch.nn.Module) -> set[str]:
    return {module.quantity for module in model.modules() if isinstance(module, Freezable) and module.frozen}


def rows_of(model: HookedEncoder, batch: dict[str, Tensor], split: Any = ("H",)) -> Any:
    return direct_rows(model, model.heads[model.task], lambda: score(model, batch), split)


def assert_complete(rows: Any, tolerance: float) -> None:
    """Rows sum to the total, up to a part of the largest row."""
    assert_parity(rows.values.double().sum(0), rows.total.double(), None, tolerance, largest_of(rows.values))


# The context


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_mlp
@every_block
def test_no_value_changes(block: str, mlp: str, dtype: torch.dtype) -> None:
    model, batch = additive_model(block, mlp, dtype=dtype), additive_batch()
    with torch.no_grad():
        before = [run(model, batch, returned) for returned in ("hidden", "logits")]
        for chosen in SUBSETS:
            with linearised(model, **chosen):
                after = [run(model, batch, returned) for returned in ("hidden", "logits")]
            for ours, plain in zip(after, before, strict=True):
                assert_parity(ours, plain, batch["mask"], 1e-6 if dtype == torch.float32 else 1e-14)


@every_task
def test_no_logit_of_any_head_changes(task: str) -> None:
    model, batch = additive_model(task=task), additive_batch()
    with torch.inference_mode():
        before = run(model, batch)
        with linearised(model):
            after = run(model, batch)
    mask = batch["mask"] if model.heads[task].per_position else None
    assert_parity(after, before, mask, 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
@every_mlp
def test_half_precision_keeps_its_values_and_its_dtype(mlp: str, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = additive_model(mlp=mlp, dtype=dtype), additive_batch()
    before = run(model, batch)
    with linearised(model):
        after = run(model, batch)
    assert after.dtype == dtype
    assert_parity(after.double(), before.double(), batch["mask"], tolerance)


def test_flags_are_on_inside_and_off_after() -> None:
    model = additive_model()
    for chosen in SUBSETS:
        with linearised(model, **chosen):
            assert frozen(model) == {quantity for quantity, wanted in chosen.items() if wanted}
        assert frozen(model) == set()


def test_flags_are_off_after_an_error() -> None:
    model = additive_model()
    tokens = torch.full((1, 3), 41)  # one more than the vocabulary has
    with pytest.raises(InputError), linearised(model):
        model(tokens)
    assert frozen(model) == set()


def test_contexts_nest() -> None:
    model = additive_model()
    with linearised(model, pattern=False, gain=False):
        with linearised(model, gain=False):
            assert frozen(model) == {"ln", "pattern"}
        assert frozen(model) == {"ln"}
        with linearised(model, ln=False, pattern=False, gain=False):
            assert frozen(model) == {"ln"}
    with linearised(model):
        with linearised(model):
            pass
        assert frozen(model) == set(QUANTITIES)
    assert frozen(model) == set()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_not_frozen(duplicate: Callable[[HookedEncoder], HookedEncoder]) -> None:
    model, batch = additive_model(), additive_batch()
    with linearised(model):
        twin = duplicate(model)
        assert frozen(twin) == set()
        assert frozen(model) == set(QUANTITIES)
        with linearised(twin):
            assert frozen(twin) == set(QUANTITIES)
    assert torch.equal(run(twin, batch), run(model, batch))


def test_training_mode_is_refused() -> None:
    model = additive_model().train()
    with pytest.raises(AnalysisError, match=r"training mode.*model.eval\(\)"), linearised(model):
        pass
    with pytest.raises(AnalysisError, match="training mode"):
        rows_of(model, additive_batch())


def test_an_activation_that_is_not_zero_at_zero_has_no_gain() -> None:
    model, batch = additive_model(act_fn="sigmoid"), additive_batch()
    with pytest.raises(AnalysisError, match=r"'sigmoid' is not 0 at 0.*gain=False"), linearised(model):
        pass
    assert frozen(model) == set()
    with linearised(model, gain=False):
        assert frozen(model) == {"ln", "pattern"}
    assert_complete(rows_of(model, batch), 1e-5)  # the MLPs' own gains are not on the direct path
    gated = additive_model(mlp="gated", act_fn="sigmoid")
    with linearised(gated):
        assert frozen(gated) == set(QUANTITIES)


def test_a_head_whose_activation_is_not_zero_at_zero_is_refused() -> None:
    model, batch = additive_model(head_act_fn="sigmoid"), additive_batch()
    with pytest.raises(AnalysisError, match="'sigmoid'"):
        rows_of(model, batch)
    hidden = run(model, batch, "hidden")
    with pytest.raises(AnalysisError, match="'sigmoid'"):
        model.heads["masked_lm"].linearise(hidden, model.run_state.last.sequence, torch.zeros(3, 11, dtype=torch.long))
    assert frozen(model) == set()
    assert not model.list_hooks()
    model.task = "next_sentence"
    assert_complete(rows_of(model, batch), 1e-5)


# Gradients


def embedding_gradient(model: HookedEncoder, batch: dict[str, Tensor], **chosen: bool) -> tuple[Tensor, Tensor]:
    """The word embeddings, and the gradient of each sequence's score with respect to them [batch pos d_model]."""
    leaves: list[Tensor] = []

    def cut(tensor: Tensor, hook: Any) -> Tensor:
        leaves.append(tensor.detach().requires_grad_())
        return leaves[0]

    with linearised(model, **chosen), model.hooks([("embed.hook_embed", cut)]):
        total = score(model, batch).sum()
    return leaves[0].detach(), torch.autograd.grad(total, leaves[0])[0]


def pinned(model: HookedEncoder, batch: dict[str, Tensor], ln: bool = True, pattern: bool = True, gain: bool = True) -> Any:
    """The replay in which just these quantities have the values of the batch's own run."""
    clean = clean_run(model, batch)
    points = (scale_points(clean) if ln else []) + (pattern_points(clean) if pattern else [])
    return replay(model, clean, points, all_gains(model, clean) if gain else [])


def score_with(model: HookedEncoder, batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    with torch.no_grad(), model.hooks([("embed.hook_embed", lambda tensor, hook: embeddings)]):
        return score(model, batch)


@every_sort
def test_embedding_times_gradient_is_what_a_token_adds_to_a_replay(block: str, mlp: str, task: str) -> None:
    model, batch = additive_model(block, mlp, task, dtype=torch.float64), additive_batch()
    embeddings, gradient = embedding_gradient(model, batch)
    contributions = (embeddings * gradient).sum(-1)
    assert contributions.abs().max() > 0.1
    with pinned(model, batch):
        whole = score(model, batch)
        assert_parity(whole, score_with(model, batch, embeddings), None, 1e-12)
        for position in (0, 2, 5, 10):
            without = embeddings.clone()
            without[:, position] = 0
            lost = whole - score_with(model, batch, without)
            assert_parity(lost, contributions[:, position], None, 1e-10, largest_of(contributions))
        others = embeddings + torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        change = ((others - embeddings) * gradient).sum((1, 2))
        assert_parity(score_with(model, batch, others) - whole, change, None, 1e-10)


@pytest.mark.parametrize("chosen", SUBSETS)
@pytest.mark.parametrize(("block", "mlp"), APART)
def test_gradients_take_every_way_but_through_what_is_frozen(block: str, mlp: str, chosen: dict[str, bool]) -> None:
    model, batch = additive_model(block, mlp, dtype=torch.float64), additive_batch()
    embeddings, gradient = embedding_gradient(model, batch, **chosen)
    direction = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-5 * direction
    with pinned(model, batch, **chosen):
        change = score_with(model, batch, embeddings + step) - score_with(model, batch, embeddings - step)
    assert_parity((gradient * direction).sum((1, 2)), change / 2e-5, None, 1e-6)


def gain_of(activation: Activation, x: Tensor) -> Tensor:
    """The gradient of a frozen activation."""
    x = x.detach().requires_grad_()
    with freeze([activation], ["gain"]):
        y = activation(x)
    assert torch.equal(y, activation.fn(x.detach()))
    return torch.autograd.grad(y.sum(), x)[0]


KINKS = {"relu": (0.0, 1.0), "relu6": (0.0, 1.0), "leaky_relu": (0.01, 1.0)}
SLOPES = {"tanh": (1.0, 1.0), "linear": (1.0, 1.0), "relu2": (0.0, 0.0), "mish": (0.6, 0.6)} | KINKS  # left and right of zero
WITH_GAIN = [name for name in ACTIVATIONS if name != "sigmoid"]  # which is not 0 at 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_GAIN)
def test_near_zero_the_gain_is_the_slope(name: str, dtype: torch.dtype) -> None:
    """Down to the least number, where act(x) has no digits left, or is flushed to zero."""
    left, right = SLOPES.get(name, (0.5, 0.5))  # of all that are x times a sigmoid
    least, normal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    x = torch.tensor([least, 3 * least, 11 * least, normal / 3, normal, 3 * normal], dtype=torch.float64).to(dtype)
    gains = gain_of(Activation(name), torch.cat([-x, -x[:1] * 0, x[:1] * 0, x]))
    expected = torch.tensor([left] * (len(x) + 2) + [right] * len(x), dtype=dtype)
    assert_close(gains, expected, scale=1.0)


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_the_gain_is_the_slope_that_torch_takes(name: str) -> None:
    zero = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[name](zero), zero)
    assert gain_of(Activation(name), torch.zeros(1)) == slope


@pytest.mark.parametrize("name", WITH_GAIN)
def test_elsewhere_the_gain_is_act_of_x_over_x(name: str) -> None:
    x = torch.cat([torch.linspace(-7, 7, 30), torch.tensor([1e-30, 1e-3, 20.0, 1e30])]).double()
    x = torch.cat([x, -x])
    assert torch.equal(gain_of(Activation(name), x), ACTIVATIONS[name](x) / x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.2e-2)])
@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "relu"])
def test_gains_in_half_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([-30, -3, -1, -1e-2, -1e-3, -tiny, 0, tiny, 1e-3, 1e-2, 1, 3, 30, 300]).to(dtype)
    gain = gain_of(Activation(name), x)
    expected = gain_of(Activation(name), x.double())
    assert gain.dtype == dtype
    assert_parity(gain.double(), expected, None, tolerance)


@pytest.mark.parametrize("name", ["gelu", "sigmoid"])
def test_a_frozen_gate_is_the_gain_of_the_linear_branch(name: str) -> None:
    gate, x = torch.randn(2, 7, requires_grad=True), torch.randn(2, 7, requires_grad=True)
    activation = GatedActivation(name)
    plain = activation(gate, x)
    with freeze([activation], ["gain"]):
        held = activation(gate, x)
    assert torch.equal(held, plain)
    of_gate, of_x = torch.autograd.grad(held.sum(), [gate, x], allow_unused=True)
    assert of_gate is None
    assert torch.equal(of_x, ACTIVATIONS[name](gate))


# Rows


@every_task
@every_mlp
@every_block
def test_rows_sum_to_the_score_that_a_plain_run_gives(block: str, mlp: str, task: str) -> None:
    for seed, split in enumerate(SPLITS):
        model, batch = additive_model(block, mlp, task, seed), additive_batch(seed)
        rows = rows_of(model, batch, split)
        assert rows.values.shape == (len(rows.labels), 3)
        assert_complete(rows, 1e-5)
        whole = score(model, batch).detach()
        assert_close(rows.total, whole, max(largest_of(whole), largest_of(rows.values)))


# The worst seen is 4e-3 in float16 and 0.05 in bfloat16, whose numbers have 3 and 2 decimal digits.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("task", ["masked_lm", "sequence_classification"])
@pytest.mark.parametrize(("block", "mlp"), APART)
def test_rows_in_half_precision(block: str, mlp: str, task: str, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = additive_model(block, mlp, task, dtype=dtype), additive_batch()
    for split in SPLITS:
        rows = rows_of(model, batch, split)
        assert rows.values.dtype == rows.total.dtype == dtype
        assert_complete(rows, tolerance)
        assert_parity(rows.total.double(), score(model, batch).detach().double(), None, tolerance / 10)


POST_LABELS = """
embed pos_embed token_type_embed embed_ln_b
L0H0 L0H1 L0H2 L0H3 0_b_O 0_ln1_b 0_mlp_out 0_ln2_b
L1H0 L1H1 L1H2 L1H3 1_b_O 1_ln1_b 1_mlp_out 1_ln2_b
head_b head_ln_b b_U
"""
PRE_LABELS = """
embed pos_embed token_type_embed embed_ln_b
0_attn_out L0N0 L0N1 L0N2 L0N3 L0N4 L0N5 L0N6 L0N7 L0N8 0_b_out
1_attn_out L1N0 L1N1 L1N2 L1N3 L1N4 L1N5 L1N6 L1N7 L1N8 1_b_out
ln_final_b pooler_b head_b
"""


@pytest.mark.parametrize(
    ("block", "task", "split", "labels"),
    [("post", "masked_lm", ("H",), POST_LABELS), ("pre", "next_sentence", ["N"], PRE_LABELS)],
)
def test_labels_stand_in_the_order_of_a_run(block: str, task: str, split: Any, labels: str) -> None:
    assert rows_of(additive_model(block, task=task), additive_batch(), split).labels == tuple(labels.split())


@every_sort
def test_a_row_is_what_the_score_loses_without_it(block: str, mlp: str, task: str) -> None:
    model, batch = additive_model(block, mlp, task, dtype=torch.float64, seed=3), additive_batch(3)
    losses = direct_losses(model, batch)
    seen: set[str] = set()
    for split in ((), ("H", "N")):
        rows = rows_of(model, batch, split)
        expected = torch.stack([losses[label] for label in rows.labels])
        assert_complete(rows, 1e-12)
        assert_parity(rows.values, expected, None, 1e-11)
        assert (rows.values.abs().amax(1) > 1e-4 * rows.values.abs().max()).all()  # no row is trivially right
        seen |= set(rows.labels)
    assert seen == set(losses)


def test_float32_rows_are_what_the_score_loses() -> None:
    model, batch = additive_model(), additive_batch()
    losses, rows = direct_losses(model, batch), rows_of(model, batch, ("H", "N"))
    assert_parity(rows.values, torch.stack([losses[label] for label in rows.labels]), None, 2e-6)


def test_a_difference_of_logits_is_a_score_too() -> None:
    model, batch = additive_model(dtype=torch.float64), additive_batch()

    def difference(model: HookedEncoder, batch: dict[str, Tensor]) -> Tensor:
        rows = torch.arange(len(batch["tokens"]))
        logits = run(model, batch)[rows, POSITIONS.repeat(len(rows) // 3)]
        return logits[:, 5] - 2 * logits[:, 11]

    def at_one_position() -> Tensor:
        logits = run(model, batch, logits_at=POSITIONS[:, None])[:, 0]
        return logits[:, 5] - 2 * logits[:, 11]

    rows = direct_rows(model, model.heads["masked_lm"], lambda: difference(model, batch), ())
    losses = direct_losses(model, batch, difference)
    assert_complete(rows, 1e-12)
    assert_parity(rows.values, torch.stack([losses[label] for label in rows.labels]), None, 1e-11)
    assert_parity(direct_rows(model, model.heads["masked_lm"], at_one_position, ()).values, rows.values, None, 1e-12)


def test_a_score_of_two_runs_is_refused() -> None:
    model, batch = additive_model(), additive_batch()
    with pytest.raises(AnalysisError, match="more than once"):
        direct_rows(model, model.heads["masked_lm"], lambda: score(model, batch) - score(model, additive_batch(1)))
    assert_untouched(model)


def test_a_score_that_does_not_run_the_head_is_refused() -> None:
    model, batch = additive_model(), additive_batch()
    with pytest.raises(AnalysisError, match="does not run the head"):
        direct_rows(model, model.heads["masked_lm"], lambda: model(batch["tokens"], "hidden").sum((1, 2)))


@pytest.mark.parametrize("name", ["blocks.0.hook_attn_out", "blocks.1.attn.hook_result"])
def test_an_edit_after_the_heads_is_refused(name: str) -> None:
    model, batch = additive_model(), additive_batch()
    with model.hooks([(name, lambda tensor, hook: tensor * 0.5)]):
        with pytest.raises(AnalysisError, match=f"a hook edits {name}.*Edit blocks.*hook_z instead"):
            rows_of(model, batch)
        if name.endswith("attn_out"):
            assert_complete(rows_of(model, batch, ()), 1e-5)
    cache, fwd, _ = model.get_caching_hooks(name)
    with model.hooks(fwd):
        assert_complete(rows_of(model, batch), 1e-5)
    assert name in cache


def test_a_model_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = additive_model()
    with pytest.raises(AnalysisError, match="load it outside"):
        rows_of(model, additive_batch())


def test_rows_do_not_depend_on_padding() -> None:
    model, batch = additive_model(task="next_sentence", dtype=torch.float64), additive_batch()
    padded = rows_of(model, batch).values
    alone = {name: tensor[2:, :4] for name, tensor in batch.items()}
    single = direct_rows(model, model.heads["next_sentence"], lambda: run(model, alone)[:, int(targets_of(model)[2])])
    written_rows = [index for index, label in enumerate(single.labels) if label != "head_b"]
    assert_parity(single.values[written_rows, 0], padded[written_rows, 2], None, 1e-12)


# Carried vectors


def path_of(model: HookedEncoder) -> list[Any]:
    return model.residual_path() + ([] if model.ln_final is None else [Norm(model.ln_final)])


def carried(model: HookedEncoder, path: list[Any], cache: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each step of a path adds at its end, by row label [batch pos d_model]; writers in parts, with their bias."""
    found: dict[str, Tensor] = {}
    parts = written(model, cache)
    for step, carry in zip(path, carries(path, lambda point: cache[str(point.name)]), strict=True):
        if isinstance(step, Norm):
            found[step.label] = carry(step.norm.b).expand(3, 11, -1)
        elif isinstance(step, WriteOfParts):
            labels = [*step.part_labels(range(cache[step.writer.parts_point.name].shape[step.writer.parts_axis]))]
            found |= {label: carry(parts[label][1]).expand(3, 11, -1) for label in [*labels, step.bias_label]}
        else:
            found[step.label] = carry(cache[step.name])
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@every_mlp
@every_block
def test_carried_writes_sum_to_the_stream_everywhere(block: str, mlp: str, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = additive_model(block, mlp, dtype=dtype), additive_batch()
    cache = clean_run(model, batch)
    places = {f"blocks.{layer}.hook_resid_pre": model.residual_path(layer) for layer in range(2)}
    places |= {f"blocks.{layer}.hook_resid_mid": model.residual_path(layer, mlp_input=True) for layer in range(2)}
    with torch.no_grad():
        for name, path in places.items():
            assert_parity(sum(carried(model, path, cache).values()), cache[name], None, tolerance)
        assert_parity(sum(carried(model, path_of(model), cache).values()), run(model, batch, "hidden"), None, tolerance)
        stream = sum(carried(model, model.residual_path(), cache).values())
        assert_parity(stream, run(model, batch, "hidden", stop_at_layer=2), None, tolerance)


@every_sort
def test_vectors_carried_forward_give_the_same_rows(block: str, mlp: str, task: str) -> None:
    model, batch = additive_model(block, mlp, task), additive_batch()
    head, targets = model.heads[task], targets_of(model)
    with torch.no_grad():
        hidden = run(model, batch, "hidden")
        if head.per_position:
            direction = head.linearise(hidden, model.run_state.last.sequence, targets[:, None].expand(3, 11)).direction
            direction = direction * torch.nn.functional.one_hot(POSITIONS, 11).unsqueeze(-1)
        else:
            direction = head.linearise(hidden, model.run_state.last.sequence, targets).direction
        forwards = {
            label: (vectors * direction).sum((1, 2))
            for label, vectors in carried(model, path_of(model), clean_run(model, batch)).items()
        }
    rows = rows_of(model, batch, ("H", "N"))
    backwards = {label: row for label, row in zip(rows.labels, rows.values, strict=True) if label in forwards}
    assert list(forwards) == list(backwards) == [label for label in rows.labels if label not in head.biases()]
    assert_parity(torch.stack(list(forwards.values())), torch.stack(list(backwards.values())), None, 2e-6)


def test_a_matrix_that_carries_weights_carries_what_they_write() -> None:
    model, batch = additive_model(dtype=torch.float64), additive_batch()
    cache = clean_run(model, batch)
    path = model.residual_path()
    expected = carried(model, path, cache)
    with torch.no_grad():
        for step, carry in zip(path, carries(path, lambda point: cache[str(point.name)]), strict=True):
            if isinstance(step, WriteOfParts):
                writer = step.writer
                vectors = writer.spread(cache[writer.parts_point.name], carry.weights(writer.out_weight))
                for part, label in enumerate(step.part_labels(range(vectors.shape[-2]))):
                    assert_parity(carry.scaled(vectors[..., part, :]), expected[label], None, 1e-12)


# The head as an affine map


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_task
def test_direction_and_constant_give_the_score(task: str, dtype: torch.dtype) -> None:
    model, batch = additive_model(task=task, dtype=dtype), additive_batch()
    head = model.heads[task]
    logits = run(model, batch).detach()
    targets = torch.randint(0, logits.shape[-1], logits.shape[:-1], generator=torch.Generator().manual_seed(4))
    expected = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    hidden, sequence = run(model, batch, "hidden"), model.run_state.last.sequence
    assert hidden.requires_grad
    assert_parity(head.score(hidden, sequence, targets).detach(), expected, None, tolerance)
    linear = head.linearise(hidden, sequence, targets)
    assert not linear.direction.requires_grad
    assert not linear.constant.requires_grad
    assert linear.constant.shape == targets.shape
    products = (linear.direction * hidden.detach()).sum(-1)
    assert_parity((products if head.per_position else products.sum(-1)) + linear.constant, expected, None, tolerance)
    if not head.per_position:
        assert (linear.direction[:, 1:] == 0).all()


@every_task
def test_the_constant_is_what_the_heads_biases_add(task: str) -> None:
    model, batch = additive_model(task=task, dtype=torch.float64), additive_batch()
    head, targets = model.heads[task], targets_of(model)
    losses = direct_losses(model, batch)
    hidden, sequence = run(model, batch, "hidden"), model.run_state.last.sequence
    if head.per_position:
        constant = head.linearise(hidden, sequence, targets[:, None].expand(3, 11)).constant[torch.arange(3), POSITIONS]
    else:
        constant = head.linearise(hidden, sequence, targets).constant
    assert_parity(constant, sum(losses[label] for label in head.biases()), None, 1e-12)


@every_task
def test_gradients_may_be_off_wherever_they_can_be(task: str) -> None:
    model, batch = additive_model(task=task), additive_batch()
    head = model.heads[task]
    targets = torch.ones(3, 11, dtype=torch.long) if head.per_position else torch.ones(3, dtype=torch.long)
    hidden, sequence = run(model, batch, "hidden"), model.run_state.last.sequence
    linear, rows = head.linearise(hidden, sequence, targets), rows_of(model, batch)
    model.requires_grad_(False)
    with torch.inference_mode():
        inside = {name: tensor.clone() for name, tensor in batch.items()}  # made in inference mode
        hidden = run(model, inside, "hidden")
        assert hidden.is_inference()
        again = head.linearise(hidden, model.run_state.last.sequence, targets.clone())
        rows_again = rows_of(model, inside)
        model.requires_grad_(True)
        third = rows_of(model, batch)
        outside = direct_rows(model, head, lambda: score(model, {name: tensor.clone() for name, tensor in inside.items()}))
    assert_parity(again.direction, linear.direction)
    assert_parity(again.constant, linear.constant)
    for found in (rows_again, third, outside):
        assert_parity(found.values, rows.values)
        assert_parity(found.total, rows.total)


# What is left behind


def assert_untouched(model: HookedEncoder) -> None:
    assert not model.list_hooks()
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in model.modules())
    assert frozen(model) == set()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("requires_grad", [True, False])
def test_nothing_is_left_behind(requires_grad: bool) -> None:
    model, batch = additive_model("pre"), additive_batch()
    model.requires_grad_(requires_grad)
    rows = rows_of(model, batch)
    hidden = run(model, batch, "hidden")
    model.heads["masked_lm"].linearise(hidden, model.run_state.last.sequence, torch.zeros(3, 11, dtype=torch.long))
    assert_untouched(model)
    assert {parameter.requires_grad for parameter in model.parameters()} == {requires_grad}
    assert not rows.values.requires_grad
    assert not rows.total.requires_grad


def test_nothing_is_left_behind_by_a_score_that_fails() -> None:
    model, batch = additive_model(), additive_batch()

    def failing() -> Tensor:
        score(model, batch)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        direct_rows(model, model.heads["masked_lm"], failing)
    assert_untouched(model)


def test_gradients_that_were_there_stay() -> None:
    model, batch = additive_model(), additive_batch()
    run(model, batch).square().mean().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    rows_of(model, batch)
    assert len(before) > 40
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in before.items())


# Trained weights

SENTENCES = [
    "She opened the [MASK] and walked into the room.",
    "He did not [MASK] what to do.",
    "The king of the country was a very [MASK] man who had two sons and one daughter.",
]


def trained(sentences: list[str], dtype: torch.dtype) -> tuple[HookedEncoder, dict[str, Tensor]]:
    model = HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu", dtype=dtype)
    return model, dict(zip(("tokens", "types", "mask"), model.to_tokens(sentences), strict=True))


def word_score(model: HookedEncoder, batch: dict[str, Tensor]) -> Tensor:
    """The logit of "old" at each mask."""
    logits = run(model, batch)[batch["tokens"] == model.tokenizer.mask_token_id]
    return logits[:, model.tokenizer.get_vocab()["old"]]


def test_rows_of_a_trained_model() -> None:
    model, batch = trained(SENTENCES, torch.float32)
    assert not batch["mask"].all()
    for split in SPLITS:
        rows = direct_rows(model, model.heads["masked_lm"], lambda: word_score(model, batch), split)
        assert_complete(rows, 1e-5)
        assert_parity(rows.total, word_score(model, batch).detach(), None, 2e-6)


def test_heads_of_a_trained_model_are_what_the_score_loses() -> None:
    model, batch = trained(SENTENCES[2:], torch.float64)
    rows = direct_rows(model, model.heads["masked_lm"], lambda: word_score(model, batch))
    losses = direct_losses(model, batch, word_score, parts=("H",))
    assert set(model.all_head_labels()) < set(rows.labels) < set(losses)
    assert_parity(rows.values, torch.stack([losses[label] for label in rows.labels]), None, 1e-10)
