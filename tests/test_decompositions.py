"""The residual stream taken apart: rows against writes carried by hand, and every sum that they promise."""

import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.errors import AnalysisError, HookNameError, InputError
from encoderlens.slices import Slice
from tests.additive import BLOCKS, MLPS, SIZES, additive_batch, additive_model
from tests.by_hand import assert_rows, by_hand, front_norm, in_order_of_the_full_decomposition, places, stream, what_reads
from tests.parity import assert_close, assert_parity, largest_of

SORTS = list(itertools.product(BLOCKS, MLPS))
APART = [("post", "plain"), ("pre", "gated")]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
N_HEADS, N_NEURONS, D_MODEL = SIZES["n_heads"], SIZES["d_mlp"], SIZES["d_model"]

every_sort = pytest.mark.parametrize(("block", "mlp"), SORTS)
two_sorts = pytest.mark.parametrize(("block", "mlp"), APART)


def run(model: HookedEncoder, **options: Any) -> ActivationCache:
    """The cache of a padded batch, on-demand points included."""
    batch = additive_batch()
    options = {"names_filter": lambda name: True} | options
    return model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"], **options)[1]


@functools.cache
def cached(block: str = "post", mlp: str = "plain", dtype: torch.dtype = torch.float32) -> ActivationCache:
    """One for all tests that only read it."""
    return run(additive_model(block, mlp, dtype=dtype))


def run_one(model: HookedEncoder, **options: Any) -> ActivationCache:
    """The cache of the first sequence of the batch, which is not padded."""
    batch = additive_batch()
    return model.run_with_cache(batch["tokens"][:1], "logits", batch["types"][:1], **options)[1]


# Rows, each against a write that is carried by hand


@pytest.mark.parametrize("apply_ln", [False, True])
@every_sort
def test_every_row_is_what_was_written_carried_through_every_norm_after_it(block: str, mlp: str, apply_ln: bool) -> None:
    cache = cached(block, mlp, torch.float64)
    model = cache.model
    for layer, mid in places(model):
        whole = cache.decompose_resid(layer, mid, apply_ln=apply_ln, return_labels=True)
        assert_rows(whole, by_hand(cache, layer, mid, apply_ln, ""))
        for expand, split in ((True, "HN"), (False, "H")):
            full = cache.get_full_resid_decomposition(layer, mid, expand, apply_ln, return_labels=True)
            assert_rows(full, in_order_of_the_full_decomposition(by_hand(cache, layer, mid, apply_ln, split)))


@pytest.mark.parametrize("apply_ln", [False, True])
@every_sort
def test_rows_of_heads_and_of_neurons_and_the_remainder(block: str, mlp: str, apply_ln: bool) -> None:
    cache = cached(block, mlp, torch.float64)
    model = cache.model
    for layer in range(model.cfg.n_layers + 1):
        rows = by_hand(cache, layer, False, apply_ln, "HN")
        total = what_reads(cache, additive_batch(), layer, False) if apply_ln else stream(cache, layer, False)
        for letter, stack in (("H", cache.stack_head_results), ("N", cache.stack_neuron_results)):
            chosen = {label: row for label, row in rows.items() if label[0] == "L" and letter in label}
            assert_rows(stack(layer, return_labels=True, apply_ln=apply_ln), chosen)
            chosen["remainder"] = total - sum(chosen.values())
            assert_rows(stack(layer, return_labels=True, incl_remainder=True, apply_ln=apply_ln), chosen)


def test_labels_on_post_ln_are_these() -> None:
    cache = run(additive_model(n_heads=2, d_mlp=3))
    _, labels = cache.decompose_resid(1, True, return_labels=True)
    before = ["embed", "pos_embed", "token_type_embed", "embed_ln_b"]
    assert labels == [*before, "0_attn_out", "0_ln1_b", "0_mlp_out", "0_ln2_b", "1_attn_out"]
    _, labels = cache.decompose_resid(1, True, apply_ln=True, return_labels=True)
    assert labels[-2:] == ["1_attn_out", "1_ln1_b"]
    assert cache.decompose_resid(1, apply_ln=True, return_labels=True)[1][-1] == "0_ln2_b"
    assert cache.decompose_resid(apply_ln=True, return_labels=True)[1][-1] == "1_ln2_b"
    _, labels = cache.get_full_resid_decomposition(1, True, return_labels=True)
    heads, neurons = ["L0H0", "L0H1", "L1H0", "L1H1"], ["L0N0", "L0N1", "L0N2"]
    biases = ["embed_ln_b", "0_b_O", "0_ln1_b", "0_b_out", "0_ln2_b", "1_b_O"]
    assert labels == heads + neurons + ["embed", "pos_embed", "token_type_embed"] + biases
    _, labels = cache.get_full_resid_decomposition(1, True, False, return_labels=True)
    assert labels == heads + ["0_mlp_out", "embed", "pos_embed", "token_type_embed"] + [b for b in biases if b != "0_b_out"]


def test_labels_on_pre_ln_are_these() -> None:
    cache = run(additive_model("pre", n_heads=2, d_mlp=3))
    before = ["embed", "pos_embed", "token_type_embed", "embed_ln_b"]
    assert cache.decompose_resid(1, True, return_labels=True)[1] == [*before, "0_attn_out", "0_mlp_out", "1_attn_out"]
    assert cache.decompose_resid(0, apply_ln=True, return_labels=True)[1] == [*before, "0_ln1_b"]
    assert cache.decompose_resid(0, True, apply_ln=True, return_labels=True)[1] == [*before, "0_attn_out", "0_ln2_b"]
    assert cache.decompose_resid(apply_ln=True, return_labels=True)[1][-1] == "ln_final_b"
    _, labels = cache.get_full_resid_decomposition(1, return_labels=True)
    assert labels == ["L0H0", "L0H1", "L0N0", "L0N1", "L0N2", *before, "0_b_O", "0_b_out"]


@two_sorts
def test_modes_and_embeddings_choose_among_the_rows(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    for layer, mid, apply_ln in [(0, False, True), (0, True, False), (1, True, True), (2, False, False), (2, False, True)]:
        rows, labels = cache.decompose_resid(layer, mid, "all", apply_ln, return_labels=True)
        embeddings = {"embed", "pos_embed", "token_type_embed", "embed_ln_b"}
        outputs = {"all": set(labels) - embeddings, "attn": {f"{n}_attn_out" for n in range(3)}}
        outputs["mlp"] = {f"{n}_mlp_out" for n in range(3)}
        for mode, incl_embeds in itertools.product(("all", "mlp", "attn"), (True, False)):
            wanted = outputs[mode] | (embeddings if incl_embeds else set())
            index = [place for place, label in enumerate(labels) if label in wanted]
            chosen = cache.decompose_resid(layer, mid, mode, apply_ln, None, incl_embeds, True)
            assert chosen[1] == [labels[place] for place in index]
            assert torch.equal(chosen[0], rows[index])


def test_an_unknown_mode_is_refused(unchecked: None) -> None:
    wrong: Any = "heads"
    with pytest.raises(InputError, match="mode='heads' is unknown; it is 'all', 'attn' or 'mlp'"):
        run(additive_model()).decompose_resid(mode=wrong)


# Sums


@pytest.mark.parametrize(
    ("block", "mlp", "dtype"),
    [
        (*sort, dtype)
        for dtype in TOLERANCE
        for sort in ([("post", "gated"), ("pre", "plain")] if dtype == torch.float32 else APART)
    ],
)
def test_rows_sum_to_the_stream_and_to_what_is_read_of_it(block: str, mlp: str, dtype: torch.dtype) -> None:
    model, tolerance = additive_model(block, mlp, dtype=dtype), TOLERANCE[dtype]
    cache = run(model)
    for layer, mid in places(model) if dtype.itemsize > 2 else [(1, True), (1, False), (2, False)]:
        whole, read = stream(cache, layer, mid).double(), what_reads(cache, additive_batch(), layer, mid).double()
        for decompose in (cache.decompose_resid, cache.get_full_resid_decomposition):
            rows, carried = decompose(layer, mid), decompose(layer, mid, apply_ln=True)
            assert rows.dtype == carried.dtype == dtype
            assert_parity(rows.double().sum(0), whole, tolerance=tolerance)
            assert_parity(carried.double().sum(0), read, tolerance=tolerance)
            two_steps = cache.apply_ln_to_stack(rows, layer, mid)
            assert two_steps.dtype == dtype
            norm = front_norm(model, layer, mid)
            if norm is None:
                assert two_steps is rows
            else:
                bias = model.get_submodule(norm).b.double()
                assert_parity(two_steps.double().sum(0) + bias, read, tolerance=tolerance)
        if not mid:
            for stack in (cache.stack_head_results, cache.stack_neuron_results):
                assert_parity(stack(layer, incl_remainder=True).double().sum(0), whole, tolerance=tolerance)
                carried = stack(layer, incl_remainder=True, apply_ln=True)
                assert_parity(carried.double().sum(0), read, tolerance=tolerance)


@given(
    block=st.sampled_from(sorted(BLOCKS)),
    mlp=st.sampled_from(sorted(MLPS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    d_model=st.integers(2, 20),
    n_heads=st.integers(1, 3),
    d_head=st.integers(1, 5),
    d_mlp=st.integers(1, 7),
    n_layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    pos=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(deadline=None, max_examples=12)
def test_sums_for_any_sizes(
    block: str, mlp: str, dtype: torch.dtype, batch: int, pos: int, seed: int, data: Any, **sizes: int
) -> None:
    model = additive_model(block, mlp, seed=seed, dtype=dtype, **sizes)
    tokens = torch.randint(SIZES["d_vocab"], (batch, pos), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([data.draw(st.integers(1, pos)) for _ in range(batch)])
    mask = (torch.arange(pos) < lengths[:, None]).long()
    logits, cache = model.run_with_cache(tokens, one_zero_attention_mask=mask)
    layer, mid = data.draw(st.sampled_from(places(model)))
    where = data.draw(st.integers(-pos, pos - 1))
    whole = stream(cache, layer, mid)[:, where]
    # A stream of two or three numbers may be centred to almost nothing: its scale is what rows are large against.
    for decompose in (cache.decompose_resid, cache.get_full_resid_decomposition):
        rows = decompose(layer, mid, pos_slice=where)
        assert rows.shape == (len(rows), batch, model.cfg.d_model)
        assert_parity(rows.sum(0), whole, None, 100 * torch.finfo(dtype).eps, largest_of(rows))
    rows = cache.decompose_resid()
    token = data.draw(st.integers(0, SIZES["d_vocab"] - 1))
    attributions = cache.logit_attrs(rows, token)
    error = (attributions.sum(0) + cache.logit_constant(token) - logits[..., token].detach()).abs().max()
    assert error <= 300 * torch.finfo(dtype).eps * max(1.0, float(attributions.abs().max()))


def test_over_many_norms_of_small_weights_rows_stay_finite() -> None:
    model = additive_model(d_model=8, n_layers=16, n_heads=1, d_head=3, d_mlp=4)
    norms = [model.embed.ln] + [norm for block in model.blocks for norm in (block.ln1, block.ln2)]
    with torch.no_grad():
        for norm in norms:
            norm.w *= 0.02
    assert torch.stack([norm.w.detach().abs().mean().double() for norm in norms]).prod() < 1e-46  # nothing in float32
    cache = run(model, names_filter=None)
    assert_parity(cache.decompose_resid().sum(0), stream(cache, 16, False), tolerance=1e-5)


def test_an_edit_of_the_run_is_in_the_rows() -> None:
    model = additive_model()
    with model.hooks([("blocks.0.hook_attn_out", lambda tensor, hook: tensor * 0)]):
        cache = run(model)
    rows, labels = cache.decompose_resid(return_labels=True)
    assert rows[labels.index("0_attn_out")].abs().max() == 0
    assert_parity(rows.sum(0), stream(cache, 2, False))


# The stream as it grows


@two_sorts
def test_accumulated_resid(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    for layer, incl_mid in itertools.product(range(3), (False, True)):
        for mlp_input in (False, True) if layer < 2 else (False,):
            streams, labels = cache.accumulated_resid(layer, incl_mid, False, None, mlp_input, True)
            expected = [("0_pre", (0, False)), ("0_mid", (0, True)), ("1_pre", (1, False)), ("1_mid", (1, True))]
            expected = [*expected, ("final_post", (2, False))][: 2 * layer + 1 + mlp_input]
            if not incl_mid:
                expected = [
                    (label, place) for label, place in expected if "mid" not in label or (mlp_input and place[0] == layer)
                ]
            assert labels == [label for label, _ in expected]
            assert torch.equal(streams, torch.stack([stream(cache, *place) for _, place in expected]))
    assert torch.equal(cache.accumulated_resid()[-1], stream(cache, 2, False))


@two_sorts
def test_accumulated_resid_as_a_head_would_read_it(block: str, mlp: str) -> None:
    model = additive_model(block, mlp)
    cache = run(model)
    streams, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    raw = cache.accumulated_resid(incl_mid=True)
    for read, before, label in zip(streams, raw, labels, strict=True):
        module = (model.blocks[int(label[0])].ln1 if "mid" in label else None) if block == "post" else model.ln_final
        expected = before
        if module is not None:  # with statistics of its own, by hand
            centred = before - before.mean(-1, keepdim=True)
            expected = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.w + module.b
        assert_parity(read, expected.detach(), tolerance=1e-6)
    batch = additive_batch()
    assert_parity(streams[-1], model(batch["tokens"], "hidden", batch["types"], batch["mask"]).detach(), tolerance=1e-6)


@two_sorts
def test_accumulated_resid_up_to_a_layer_takes_its_frozen_norm(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    for layer, mid in itertools.product(range(2), (False, True)):
        raw = cache.accumulated_resid(layer, True, mlp_input=mid)
        found = cache.accumulated_resid(layer, True, True, mlp_input=mid)
        assert torch.equal(found, cache.apply_ln_to_stack(raw, layer, mid))
        norm = front_norm(cache.model, layer, mid)
        if norm is None:
            assert torch.equal(found, raw)
        else:
            bias = cache.model.get_submodule(norm).b.detach()
            assert_parity(found[-1] + bias, what_reads(cache, additive_batch(), layer, mid), tolerance=1e-6)


@two_sorts
def test_apply_ln_to_stack_with_statistics_of_each_row(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    model = cache.model
    for layer, mid in places(model):
        rows, norm = cache.decompose_resid(layer, mid), front_norm(model, layer, mid)
        found = cache.apply_ln_to_stack(rows, layer, mid, recompute_ln=True)
        assert torch.equal(found, rows if norm is None else model.get_submodule(norm)(rows).detach())


@two_sorts
def test_apply_ln_to_stack_of_some_sequences(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    for layer, mid in ((0, True), (1, False), (2, False)):
        rows = cache.decompose_resid(layer, mid, pos_slice=[1, 4])
        whole = cache.apply_ln_to_stack(rows, layer, mid, [1, 4])
        assert_close(cache.apply_ln_to_stack(rows, layer, mid, [1, 4], [2, 0]), whole[:, [2, 0]])
        assert_close(cache.apply_ln_to_stack(rows, layer, mid, [1, 4], 1), whole[:, 1])
        assert_close(cache.apply_ln_to_stack(rows[:, 1], layer, mid, [1, 4], 1, False), whole[:, 1])


def test_a_stack_that_was_not_made_with_these_slices_is_refused() -> None:
    cache = run(additive_model("pre"))
    one = cache.decompose_resid(pos_slice=[3])
    with pytest.raises(InputError, match=r"the stack has rows of shape \[3, 1, 14\], and the cache .* has \[3, 11, 14\]"):
        cache.apply_ln_to_stack(one)
    with pytest.raises(InputError, match="which sequence"):
        cache.apply_ln_to_stack(one[:, 0], pos_slice=[3], has_batch_dim=False)
    with pytest.raises(InputError, match="this cache has no batch axis to choose along"):
        run_one(cache.model, remove_batch_dim=True).apply_ln_to_stack(one[:, 0], pos_slice=[3], batch_slice=0)


# Positions, layers, batches

METHODS = {
    "accumulated_resid": lambda cache, window: cache.accumulated_resid(1, True, True, window, True),
    "accumulated_resid to the end": lambda cache, window: cache.accumulated_resid(None, True, True, window),
    "decompose_resid": lambda cache, window: cache.decompose_resid(1, True, apply_ln=True, pos_slice=window),
    "stack_head_results": lambda cache, window: cache.stack_head_results(2, False, True, window, True),
    "stack_neuron_results": lambda cache, window: cache.stack_neuron_results(2, window, [3, 1], incl_remainder=True),
    "get_full_resid_decomposition": lambda cache, window: cache.get_full_resid_decomposition(pos_slice=window, apply_ln=True),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
both_kinds_of_every_method = pytest.mark.parametrize(
    ("block", "mlp", "method"),
    [(*APART[place % 2], method) for place, method in enumerate(METHODS.values())]
    + [("pre", "gated", METHODS[name]) for name in ("accumulated_resid", "decompose_resid")],
)
WINDOWS = [-2, [4, 0, 4], (1, 9, 3), slice(2, 5), torch.tensor([5]), Slice(3)]


@both_kinds_of_every_method
def test_positions_are_those_of_the_full_result(block: str, mlp: str, method: Any) -> None:
    cache = cached(block, mlp, torch.float64)
    whole = method(cache, None)
    assert whole.shape[1:] == (3, 11, D_MODEL)
    for value in WINDOWS:
        window = value if isinstance(value, Slice) else Slice(value)
        assert_close(method(cache, value), window.apply(whole, 2))
    with pytest.raises(InputError, match="a slice takes entry 11 of an axis that has 11"):
        method(cache, 11)


@both_kinds_of_every_method
def test_without_the_batch_axis_or_with_positions_of_the_run(block: str, mlp: str, method: Any) -> None:
    model = cached(block, mlp, torch.float64).model
    whole, one = method(cached(block, mlp, torch.float64), None), method(run_one(model), None)
    for bare in (run_one(model, remove_batch_dim=True), run_one(model).remove_batch_dim()):
        assert_close(method(bare, None), one[:, 0])
        assert_close(method(bare, [2, 7]), one[:, 0, [2, 7]])
        assert_close(method(bare, 4), one[:, 0, 4])
    some = run(model, pos_slice=[1, 6, 3])
    assert_close(method(some, None), whole[:, :, [1, 6, 3]])
    assert_close(method(some, 1), whole[:, :, 6])
    assert_close(method(run(model, pos_slice=-3), None), whole[:, :, [-3]])
    dropped = run(model, pos_slice=Slice(5))
    assert_close(method(dropped, None), whole[:, :, 5])
    with pytest.raises(InputError, match="the cache holds one position, without an axis to slice"):
        method(dropped, 0)
    bare = run_one(model, pos_slice=Slice(5), remove_batch_dim=True)
    assert_close(method(bare, None), one[:, 0, 5])


@every_method
def test_a_sequence_of_the_batch(method: Any) -> None:
    cache = cached(dtype=torch.float64)
    whole = method(cache, None)
    for value in (1, [2, 0], (1, 3), Slice(-1)):
        window = value if isinstance(value, Slice) else Slice(value)
        found = method(cache.apply_slice_to_batch_dim(value), [3])
        assert_close(found, window.apply(whole[:, :, [3]], 1))


def test_three_names_for_the_final_stream_and_none_for_others() -> None:
    cache = cached("pre")
    methods = (
        cache.accumulated_resid,
        cache.decompose_resid,
        cache.stack_head_results,
        cache.stack_neuron_results,
        cache.get_full_resid_decomposition,
        lambda layer: cache.apply_ln_to_stack(cache.decompose_resid(), layer),
        lambda layer: cache.stack_activation("q", layer),
    )
    for method in methods:
        assert torch.equal(method(None), method(2))
        assert torch.equal(method(-1), method(2))
        for layer in (3, -2, True):
            with pytest.raises(InputError, match="layers run from 0 to 2, where 2, -1 and None are the final stream"):
                method(layer)
    for method in (methods[0], methods[1], methods[4]):
        for layer in (None, -1, 2):
            with pytest.raises(
                InputError, match="mlp_input=True is for a layer from 0 to 1: the final stream is read by no MLP"
            ):
                method(layer, mlp_input=True)


def test_in_front_of_layer_0_there_are_no_heads_and_no_neurons() -> None:
    cache = run(additive_model())
    for stack in (cache.stack_head_results, cache.stack_neuron_results):
        rows, labels = stack(0, return_labels=True)
        assert (rows.shape, labels) == ((0, 3, 11, D_MODEL), [])
        rows, labels = stack(0, return_labels=True, incl_remainder=True)
        assert labels == ["remainder"]
        assert torch.equal(rows[0], cache["resid_pre", 0])
    assert cache.decompose_resid(0, incl_embeds=False).shape == (0, 3, 11, D_MODEL)
    with pytest.raises(InputError, match="there is no layer before layer 0"):
        cache.stack_activation("q", 0)


# Heads


@two_sorts
def test_head_results_are_those_of_a_run_that_keeps_them(block: str, mlp: str) -> None:
    model = additive_model(block, mlp)
    model.cfg.use_attn_result = True
    kept = run(model, names_filter=None)
    cache = run(model, names_filter=lambda name: not name.endswith("hook_result"))
    assert ("result", 0) not in cache
    assert cache.compute_head_results() is None
    results = [cache["result", layer] for layer in range(2)]
    for layer, result in enumerate(results):
        assert result.shape == (3, 11, N_HEADS, D_MODEL)
        assert_parity(result, kept["result", layer], tolerance=1e-6)
        assert_parity(result.sum(-2) + model.b_O[layer].detach(), cache["attn_out", layer], tolerance=1e-6)
    cache.compute_head_results()
    assert all(cache["result", layer] is result for layer, result in enumerate(results))
    partial = run(model, names_filter=["blocks.1.attn.hook_z"])
    partial.compute_head_results()
    assert list(partial) == ["blocks.1.attn.hook_z", "blocks.1.attn.hook_result"]


def test_the_value_bias_is_inside_the_rows_of_heads() -> None:
    model = additive_model("pre", dtype=torch.float64)
    before, labels = run(model).stack_head_results(1, return_labels=True)
    delta = torch.randn(N_HEADS, SIZES["d_head"], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model.blocks[0].attn.b_V += delta
    after = run(model).stack_head_results(1)
    assert labels == [f"L0H{head}" for head in range(N_HEADS)]
    moved = torch.einsum("hd,hdm->hm", delta, model.blocks[0].attn.W_O.detach())
    assert_close(after - before, moved[:, None, None].expand_as(after))


def test_stack_activation() -> None:
    cache = run(additive_model())
    assert torch.equal(cache.stack_activation("q"), torch.stack([cache["q", 0], cache["q", 1]]))
    assert torch.equal(cache.stack_activation("pattern", 1), cache["pattern", 0][None])
    scales = torch.stack([cache["scale", 0, "ln2"], cache["scale", 1, "ln2"]])
    assert torch.equal(cache.stack_activation("scale", sublayer_type="ln2"), scales)
    assert torch.equal(cache.stack_activation("z", 2, "attn"), torch.stack([cache["z", 0], cache["z", 1]]))
    with pytest.raises(HookNameError, match="no activation is called 'querry'"):
        cache.stack_activation("querry")


# Neurons, projections, memory


@two_sorts
def test_neuron_results(block: str, mlp: str) -> None:
    model = additive_model(block, mlp)
    cache = run(model)
    directions = torch.randn(D_MODEL, 3, generator=torch.Generator().manual_seed(1))
    for layer in (0, 1, -1):
        expected = cache["post", layer][..., None] * model.W_out[layer].detach()
        assert_parity(expected.sum(-2) + model.b_out[layer].detach(), cache["mlp_out", layer], tolerance=1e-5)
        assert torch.equal(cache.get_neuron_results(layer), expected)
        for neurons, positions in itertools.product(
            (None, 4, [7, 0], (2, 8, 2), Slice(4), Slice([4])), (None, -1, [3, 2], (2, 4))
        ):
            chosen, where = (value if isinstance(value, Slice) else Slice(value) for value in (neurons, positions))
            found = cache.get_neuron_results(layer, neurons, positions)
            sliced = where.apply(chosen.apply(expected, 2), 1)
            assert torch.equal(found, sliced)
            for onto in (directions, directions[:, 0]):
                assert_parity(cache.get_neuron_results(layer, neurons, positions, onto), sliced @ onto, tolerance=1e-5)


@pytest.mark.parametrize("layer", [2, -3, None, True, 0.0])
def test_neuron_results_of_a_layer_that_is_not_there(layer: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match="the layers are 0 to 1, negative ones count from the last"):
        run(additive_model()).get_neuron_results(layer)


@two_sorts
def test_neurons_that_are_chosen(block: str, mlp: str) -> None:
    cache = cached(block, mlp)
    rows, labels = cache.stack_neuron_results(2, return_labels=True)
    for neurons in (5, [8, 2], (1, 7, 2), Slice(-1), Slice([3])):
        window = neurons if isinstance(neurons, Slice) else Slice(neurons)
        chosen = window.indices(N_NEURONS)
        index = torch.cat([chosen, chosen + N_NEURONS])
        found = cache.stack_neuron_results(2, None, neurons, True)
        assert found[1] == [labels[place] for place in index.tolist()]
        assert_close(found[0], rows[index])
        with_rest = cache.stack_neuron_results(2, None, neurons, incl_remainder=True)
        assert_parity(with_rest.sum(0), stream(cache, 2, False))
    with pytest.raises(InputError, match=f"a slice takes entry {N_NEURONS} of an axis that has {N_NEURONS}"):
        cache.stack_neuron_results(2, neuron_slice=N_NEURONS)


@pytest.mark.parametrize("apply_ln", [False, True])
@two_sorts
def test_projected_rows_are_whole_rows_projected(block: str, mlp: str, apply_ln: bool) -> None:
    cache = cached(block, mlp, torch.float64)
    directions = torch.randn(D_MODEL, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for onto in (directions, directions[:, 0]):
        for layer, mid, window in [(1, True, None), (2, False, 3)]:
            options = {"apply_ln": apply_ln, "pos_slice": window}
            whole = cache.get_full_resid_decomposition(layer, mid, **options)
            found = cache.get_full_resid_decomposition(layer, mid, project_output_onto=onto, **options)
            assert_close(found, whole @ onto)
            if not mid:
                whole, labels = cache.stack_neuron_results(layer, None, [2, 5], True, True, apply_ln)
                found = cache.stack_neuron_results(layer, None, [2, 5], True, True, apply_ln, onto)
                assert found[1] == labels
                assert_close(found[0], whole @ onto)


@pytest.mark.parametrize("shape", [(13,), (2, D_MODEL), (D_MODEL, 2, 2), ()])
def test_directions_of_another_width_are_refused(shape: tuple[int, ...], unchecked: None) -> None:
    cache = run(additive_model())
    onto = torch.ones(shape)
    for call in (cache.get_full_resid_decomposition, lambda **kw: cache.stack_neuron_results(1, **kw)):
        with pytest.raises(InputError, match=r"project_output_onto has shape .*; one direction is a tensor \[14\]"):
            call(project_output_onto=onto)
    with pytest.raises(InputError, match="project_output_onto has shape"):
        cache.get_neuron_results(0, project_output_onto=onto)


def test_a_stack_that_is_too_large_is_refused_before_any_of_it_is_made() -> None:
    model = additive_model()
    # What rows are made of is not here: a refusal that came later would say so.
    final = str(model.stream_point(2).name)
    cache = run(model, names_filter=lambda name: name == final or name.endswith("hook_scale"))
    cache.max_stack_bytes = 3 * 11 * D_MODEL * 4 * 9
    remedy = r"a stack of shape \[.*\] takes .* GiB, and the cache's max_stack_bytes is .*: choose positions"
    for call in (
        cache.get_full_resid_decomposition,
        lambda: cache.stack_neuron_results(2),
        lambda: cache.stack_neuron_results(2, project_output_onto=torch.ones(D_MODEL, 8)),
        cache.decompose_resid,
    ):
        with pytest.raises(InputError, match=remedy):
            call()
    with pytest.raises(HookNameError):
        cache.stack_head_results(2)  # eight rows: small enough
    whole = run(model)
    whole.max_stack_bytes = 3 * 11 * N_NEURONS * 4
    with pytest.raises(InputError, match=remedy):
        whole.get_neuron_results(0)
    with pytest.raises(InputError, match=remedy):
        whole.get_neuron_results(0, project_output_onto=torch.ones(D_MODEL, 2))
    assert whole.get_neuron_results(0, project_output_onto=torch.ones(D_MODEL)).shape == (3, 11, N_NEURONS)
    whole.max_stack_bytes -= 1
    with pytest.raises(InputError, match=remedy):
        whole.get_neuron_results(0, project_output_onto=torch.ones(D_MODEL))


# What is not there, and what is left out


@two_sorts
def test_what_is_missing_is_named(block: str, mlp: str) -> None:
    whole = cached(block, mlp)
    model = whole.model
    final = str(model.stream_point(2).name)

    def without(name: str) -> ActivationCache:
        return ActivationCache({other: tensor for other, tensor in whole.items() if other != name}, model)

    for name in ("embed.hook_pos_embed", "embed.ln.hook_scale", "blocks.0.hook_attn_out", final):
        with pytest.raises(HookNameError, match=f"the cache holds no '{name}'"):
            without(name).decompose_resid()
    for name in ("blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"):
        assert len(without(name).decompose_resid()) > 4
        with pytest.raises(HookNameError, match=f"the cache holds no '{name}'"):
            without(name).get_full_resid_decomposition()
    with pytest.raises(HookNameError, match=r"the cache holds no 'blocks.1.hook_resid_mid'"):
        without("blocks.1.hook_resid_mid").accumulated_resid(incl_mid=True)
    norm = front_norm(model, 0, True)
    with pytest.raises(HookNameError, match=f"the cache holds no '{norm}.hook_scale'"):
        without(f"{norm}.hook_scale").apply_ln_to_stack(torch.zeros(1, 3, 11, D_MODEL), 0, True)


def test_a_run_that_stops_early_is_taken_apart_up_to_there() -> None:
    cache = run(additive_model())
    batch = additive_batch()
    _, short = cache.model.run_with_cache(
        batch["tokens"], "hidden", batch["types"], batch["mask"], stop_at_layer=1, names_filter=lambda name: True
    )
    rows = short.decompose_resid(0, True)
    assert_close(rows, cache.decompose_resid(0, True))
    with pytest.raises(HookNameError, match=r"the cache holds no 'blocks.1.hook_block_out'"):
        short.decompose_resid()


def test_a_model_in_training_is_refused() -> None:
    cache = run(additive_model())
    cache.model.train()
    for method in (cache.decompose_resid, cache.stack_head_results, cache.get_full_resid_decomposition):
        with pytest.raises(AnalysisError, match=r"call model.eval\(\) first"):
            method()


@pytest.mark.parametrize("inference", [False, True])
@two_sorts
def test_results_carry_no_graph(block: str, mlp: str, inference: bool) -> None:
    model = additive_model(block, mlp)
    directions = torch.ones(D_MODEL, 2, requires_grad=True)
    with torch.inference_mode(inference):
        cache = run(model)
        tensors = [METHODS[name](cache, window) for name, window in itertools.product(METHODS, (2, [4]))]
        tensors += [cache.get_full_resid_decomposition(project_output_onto=onto) for onto in (directions, directions[:, 0])]
        tensors += [cache.get_neuron_results(0, project_output_onto=onto) for onto in (directions, directions[:, 0])]
        tensors += [cache.stack_neuron_results(2, incl_remainder=True, project_output_onto=directions)]
        tensors += [cache.apply_ln_to_stack(tensors[0], recompute_ln=True) if block == "pre" else tensors[0]]
        tensors += [cache.get_neuron_results(1), cache.stack_activation("z")]
        cache.compute_head_results()
        tensors += list(cache.values())
    assert not any(tensor.requires_grad or tensor.grad_fn is not None for tensor in tensors)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_parity(METHODS["get_full_resid_decomposition"](cache, None).sum(0), what_reads(cache, additive_batch(), 2, False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@two_sorts
def test_a_cache_kept_in_another_dtype_than_the_models(block: str, mlp: str, dtype: torch.dtype) -> None:
    model = additive_model(block, mlp)
    cache, exact = run(model, dtype=dtype), cached(block, mlp)
    tolerance = max(TOLERANCE[dtype], TOLERANCE[torch.float32])
    for method in METHODS.values():
        found, expected = method(cache, [1, 2]), method(exact, [1, 2])
        assert found.dtype == dtype
        assert_parity(found.double(), expected.double(), tolerance=tolerance)
    found = cache.apply_ln_to_stack(cache.decompose_resid(0, True), 0, True, recompute_ln=True)
    assert found.dtype == dtype


@two_sorts
def test_results_stay_on_the_caches_device(block: str, mlp: str) -> None:
    # The meta device stands for one that the model is not on.
    cache = run(additive_model(block, mlp)).to("meta")
    cache.compute_head_results()
    tensors = [
        cache.decompose_resid(1, True, apply_ln=True),
        cache.get_full_resid_decomposition(project_output_onto=torch.ones(D_MODEL)),
        cache.stack_neuron_results(2, 1, [2, 4], incl_remainder=True, apply_ln=True),
        cache.stack_head_results(),
        cache.accumulated_resid(1, True, True, mlp_input=True),
        cache.apply_ln_to_stack(cache.decompose_resid(0, True), 0, True),
        cache.get_neuron_results(0, [2, 4]),
        cache["result", 1],
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# Real weights


def test_the_embedded_checkpoint_on_sentences() -> None:
    model = HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")
    texts = ["She opened the [MASK] and walked into the room.", "He did not [MASK] what to do.", "No."]
    logits, cache = model.run_with_cache(texts)
    real = cache.mask
    for layer, mid in places(model):
        whole = stream(cache, layer, mid)
        for rows in (cache.decompose_resid(layer, mid), cache.get_full_resid_decomposition(layer, mid, False)):
            assert_parity(rows.sum(0), whole, real, 1e-5)
    at = 3
    assert_parity(cache.get_full_resid_decomposition(pos_slice=at).sum(0), stream(cache, model.cfg.n_layers, False)[:, at])
    rows = cache.get_full_resid_decomposition(expand_neurons=False)
    for target in ("door", int(logits[0, 4].argmax())):
        index = target if isinstance(target, int) else model.tokenizer.convert_tokens_to_ids(target)
        found = cache.logit_attrs(rows, target).sum(0) + cache.logit_constant(target)
        assert_parity(found, logits[..., index].detach(), real, 1e-5)


def test_rows_are_made_a_bounded_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cached()
    whole, labels = cache.get_full_resid_decomposition(return_labels=True)
    monkeypatch.setattr("encoderlens.carried_rows.BLOCK_BYTES", 3 * whole[0].numel() * 4)
    path = cache._rows(None, False, False, None, split=("H", "N"))
    assert max(len(block.labels) for block in path.blocks()) == 3
    again, same = cache.get_full_resid_decomposition(return_labels=True)
    assert same == labels
    assert_close(again, whole)
