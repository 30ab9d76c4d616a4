import pytest
import torch

from encoderlens import ActivationCache, HookedEncoder, utils
from encoderlens.errors import DeviceError, GradientError, HookNameError, HookResultError, HookUnreachableError, InputError
from tests.hooks import modules_that_run
from tests.parity import assert_close, assert_parity, largest_of
from tests.tiny import tiny_batch

BATCH = tiny_batch()
LABELS = tiny_batch(seed=1)["tokens"]
TOKENS = BATCH["tokens"]
Q0, PATTERN1, POOLER = "blocks.0.attn.hook_q", "blocks.1.attn.hook_pattern", "pooler.hook_pooler_out"
ON_DEMAND = {
    "use_attn_result": ["attn.hook_result"],
    "use_split_qkv_input": ["hook_q_input", "hook_k_input", "hook_v_input"],
    "use_hook_mlp_in": ["hook_mlp_in"],
}


def nothing(tensor, hook):
    pass


def everything(name):
    return True


def padded(model, *args, **kwargs):
    return model.run_with_cache(TOKENS, *args, token_type_ids=BATCH["types"], one_zero_attention_mask=BATCH["mask"], **kwargs)


# What a filter selects


@pytest.mark.parametrize(
    ("names_filter", "chosen"),
    [
        (Q0, [Q0]),
        ([PATTERN1, Q0], [Q0, PATTERN1]),
        ((PATTERN1,), [PATTERN1]),
        ({Q0, PATTERN1}, [Q0, PATTERN1]),
        (lambda name: name.endswith("hook_q"), [f"blocks.{layer}.attn.hook_q" for layer in range(3)]),
        ("blocks.1.attn.hook_result", ["blocks.1.attn.hook_result"]),
        (["blocks.1.hook_q_input", "blocks.1.hook_mlp_in"], ["blocks.1.hook_q_input", "blocks.1.hook_mlp_in"]),
        (lambda name: name.endswith("hook_mlp_in"), [f"blocks.{layer}.hook_mlp_in" for layer in range(3)]),
    ],
)
def test_a_filter_gets_exactly_what_it_selects(bert, names_filter, chosen):
    output, cache = bert.run_with_cache(TOKENS, names_filter=names_filter)
    assert isinstance(cache, ActivationCache)
    assert list(cache) == chosen
    assert_close(output, bert(TOKENS))


@pytest.mark.parametrize("flags", [[], *([flag] for flag in ON_DEMAND), list(ON_DEMAND)], ids="+".join)
def test_none_takes_on_demand_points_only_where_their_flag_is_on(bert, flags):
    for flag in flags:
        setattr(bert.cfg, flag, True)
    _, cache = bert.run_with_cache(TOKENS)
    expected = {name for flag in flags for name in ON_DEMAND[flag]}
    everywhere = {name for names in ON_DEMAND.values() for name in names}
    for layer in range(3):
        present = {name for name in everywhere if f"blocks.{layer}.{name}" in cache.cache_dict}
        assert present == expected
    assert len(cache) == 75 + 3 * len(expected)


def test_none_leaves_out_what_the_run_does_not_reach(bert):
    assert POOLER not in bert.run_with_cache(TOKENS)[1]
    hidden = bert.run_with_cache(TOKENS, "hidden")[1]
    assert "unembed.hook_out" not in hidden
    assert len(hidden) == 69
    bert.task = "next_sentence"
    assert POOLER in bert.run_with_cache(TOKENS)[1]


def test_every_name_is_cached_under_its_own_name(bert):
    _, together = bert.run_with_cache(TOKENS, names_filter=everything)
    for name in ("hook_full_embed", Q0, PATTERN1, "blocks.2.attn.hook_result", "unembed.hook_out"):
        _, alone = bert.run_with_cache(TOKENS, names_filter=name)
        assert_parity(alone[name], together[name])


@pytest.mark.parametrize(
    ("names_filter", "message"),
    [
        (
            "blocks.0.attn.hook_patern",
            "there is no hook point 'blocks.0.attn.hook_patern'; did you mean 'blocks.0.attn.hook_pattern'",
        ),
        ([Q0, "blocks.9.attn.hook_q"], "there is no hook point 'blocks.9.attn.hook_q'; did you mean"),
        ("blocks.0.attn", "'blocks.0.attn' is a module, not a hook point; did you mean 'blocks.0.attn.hook_"),
        ("q", "there is no hook point 'q'"),
        ([], "the names filter is empty"),
        (lambda name: name == "hook_q", "selects none of the 92 hook points"),
    ],
)
def test_a_filter_that_selects_nothing_raises_before_anything_runs(bert, names_filter, message):
    calls = []
    bert.add_hook(everything, lambda tensor, hook: calls.append(hook.name))
    with modules_that_run(bert) as ran, pytest.raises(HookNameError, match=message):
        bert.run_with_cache(TOKENS, names_filter=names_filter)
    assert calls == ran == []
    bert.reset_hooks()


UNREACHABLE = {
    "pooler under hidden": (POOLER, {"return_type": "hidden"}, "return_type='hidden', blocks 0 to 2, the embeddings, no head"),
    "pooler under masked LM": (POOLER, {}, "return_type='logits', blocks 0 to 2, the embeddings, the masked_lm head"),
    "head under None": ("mlm_head.hook_pre", {"return_type": None}, "return_type=None"),
    "block after stop": ("blocks.2.hook_resid_pre", {"stop_at_layer": 1}, "blocks 0 to 0"),
    "block of stop": ("blocks.1.hook_resid_pre", {"stop_at_layer": 1}, "blocks 0 to 0"),
    "block after stop from the end": ("blocks.2.hook_resid_pre", {"stop_at_layer": -1}, "blocks 0 to 1"),
    "one of several": ([Q0, "blocks.2.hook_resid_pre"], {"stop_at_layer": 1}, "blocks.2.hook_resid_pre is hooked, but"),
}
FROM_THE_MIDDLE = {"embeddings": "embed.hook_embed", "their sum": "hook_full_embed", "an earlier block": Q0}


@pytest.mark.parametrize(("names", "arguments", "message"), UNREACHABLE.values(), ids=UNREACHABLE)
@pytest.mark.parametrize("how", ["cache", "forward hook", "backward hook"])
def test_a_named_point_that_the_run_cannot_reach_raises_before_anything_runs(bert, how, names, arguments, message):
    if how == "cache":
        runs, hooked = bert.run_with_cache, {"names_filter": names}
    else:
        runs, hooked = bert.run_with_hooks, {"fwd_hooks" if how == "forward hook" else "bwd_hooks": [(names, nothing)]}
    with modules_that_run(bert) as ran, pytest.raises(HookUnreachableError, match=message):
        runs(TOKENS, **arguments, **hooked)
    assert ran == []
    assert not bert.list_hooks()


@pytest.mark.parametrize("name", FROM_THE_MIDDLE.values(), ids=FROM_THE_MIDDLE)
def test_a_run_from_the_middle_does_not_reach(bert, name):
    with modules_that_run(bert) as ran, pytest.raises(HookUnreachableError, match=f"{name} is hooked, but this run does not"):
        bert.run_with_cache(torch.zeros(3, 11, 40), names_filter=name, start_at_layer=1)
    assert ran == []


def test_a_predicate_may_select_more_than_the_run_reaches(bert):
    _, cache = bert.run_with_cache(TOKENS, "hidden", names_filter=lambda name: "pooler" in name or name == Q0)
    assert list(cache) == [Q0]
    with pytest.raises(HookUnreachableError, match="selects only hook points that this run does not compute"):
        bert.run_with_cache(TOKENS, "hidden", names_filter=lambda name: "pooler" in name)
    assert not bert.list_hooks()


def test_hooks_that_are_not_of_a_context_may_be_out_of_reach(bert):
    bert.add_hook(POOLER, nothing)
    assert bert(TOKENS, "hidden").shape == (3, 11, 40)
    assert list(bert.run_with_cache(TOKENS, "hidden", names_filter=Q0)[1]) == [Q0]
    bert.reset_hooks()


# How activations are kept


def test_dtype_and_device(bert):
    _, cache = bert.run_with_cache(TOKENS, names_filter=[Q0, PATTERN1], dtype=torch.float16, device="cpu")
    _, full = bert.run_with_cache(TOKENS, names_filter=[Q0, PATTERN1])
    for name in (Q0, PATTERN1):
        assert cache[name].dtype == torch.float16
        assert torch.equal(cache[name], full[name].half())
    _, meta = bert.run_with_cache(TOKENS, names_filter=Q0, device="meta", pos_slice=(0, 2))
    assert meta[Q0].device.type == "meta"
    assert meta[Q0].shape == (3, 2, 5, 8)


def test_a_device_that_is_not_there_is_refused_before_the_model_runs(bert):
    bert.add_hook(Q0, lambda tensor, hook: pytest.fail("it ran"))
    with pytest.raises(DeviceError, match=r"device='cuda:99' is not there"):
        bert.run_with_cache(TOKENS, device="cuda:99")
    bert.reset_hooks()


def test_gradients_are_kept_in_the_dtype_too(bert):
    _, cache = bert.run_with_cache(
        TOKENS, "loss", labels=LABELS, names_filter=Q0, incl_bwd=True, dtype=torch.bfloat16, pos_slice=(0, 2)
    )
    assert cache[f"{Q0}_grad"].dtype == torch.bfloat16
    assert cache[f"{Q0}_grad"].shape == (3, 2, 5, 8)
    bert.zero_grad()


def test_remove_batch_dim_of_one_row(bert):
    bert.task = "next_sentence"
    _, whole = bert.run_with_cache(TOKENS[:1], names_filter=everything)
    output, cache = bert.run_with_cache(TOKENS[:1], names_filter=everything, remove_batch_dim=True)
    assert not cache.has_batch_dim
    assert whole.has_batch_dim
    assert output.shape == (1, 2)
    assert cache[POOLER].shape == (40,)
    assert cache[PATTERN1].shape == (5, 11, 11)
    assert all(torch.equal(cache[name], whole[name][0]) for name in whole)


def test_remove_batch_dim_with_a_slice_and_gradients(bert):
    _, cache = bert.run_with_cache(
        TOKENS[:1], "loss", labels=LABELS[:1], names_filter=PATTERN1, incl_bwd=True, remove_batch_dim=True, pos_slice=[0, 3]
    )
    bert.zero_grad()
    assert cache[PATTERN1].shape == cache[f"{PATTERN1}_grad"].shape == (5, 2, 11)


def test_remove_batch_dim_of_several_rows_is_refused(bert):
    with pytest.raises(HookResultError, match=r"remove_batch_dim=True needs a batch of one, but embed.hook_embed has 3 rows"):
        bert.run_with_cache(TOKENS, remove_batch_dim=True)
    assert not bert.list_hooks()
    assert bert.context_level == 0


# A slice, what it makes of [11], and the axes that it leaves.
SLICES = {
    "int": (4, [4]),
    "negative int": (-1, [10]),
    "tuple": ((2, 9, 3), [2, 5, 8]),
    "stop": ((3,), [0, 1, 2]),
    "list": ([5, 0, 5], [5, 0, 5]),
    "tensor": (torch.tensor([1, -2]), [1, 9]),
    "Slice": (utils.Slice([1, 2]), [1, 2]),
}


@pytest.mark.parametrize(("pos_slice", "positions"), SLICES.values(), ids=SLICES)
def test_pos_slice_along_position_axes_only(bert, pos_slice, positions):
    bert.task = "next_sentence"
    _, whole = padded(bert, names_filter=everything)
    _, cache = padded(bert, names_filter=everything, pos_slice=pos_slice)
    assert set(cache) == set(whole)
    for name, tensor in whole.items():
        if name in (POOLER, "nsp_head.hook_nsp_out"):
            expected = tensor
        elif name.endswith(("hook_attn_scores", "hook_pattern")):
            expected = tensor[:, :, positions]
        else:
            expected = tensor[:, positions]
        assert torch.equal(cache[name], expected), name


def test_a_slice_of_one_int_drops_the_axis(bert):
    _, cache = bert.run_with_cache(TOKENS, names_filter=[Q0, PATTERN1], pos_slice=utils.Slice(-1))
    assert cache[Q0].shape == (3, 5, 8)
    assert cache[PATTERN1].shape == (3, 5, 11)


def test_a_position_outside_the_input(bert):
    with pytest.raises(InputError, match="entry 11 of an axis that has 11"):
        bert.run_with_cache(TOKENS, pos_slice=11)
    assert not bert.list_hooks()


@pytest.mark.parametrize("remove_batch_dim", [False, True])
@pytest.mark.parametrize("pos_slice", [3, (0, 2), [1, 4], utils.Slice(3)])
def test_slices_own_their_memory(bert, pos_slice, remove_batch_dim):
    _, cache = bert.run_with_cache(
        TOKENS[:1],
        "loss",
        labels=LABELS[:1],
        names_filter=everything,
        pos_slice=pos_slice,
        remove_batch_dim=remove_batch_dim,
        incl_bwd=True,
    )
    bert.zero_grad()
    for name, tensor in cache.items():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


@pytest.mark.parametrize("grad", [True, False])
def test_the_cache_shares_no_memory_with_the_parameters(bert, grad):
    full = torch.arange(37).expand(1, 37)  # as long as the table of positions
    for tokens in (TOKENS, full):
        with torch.set_grad_enabled(grad):
            _, cache = bert.run_with_cache(tokens, names_filter=everything)
        storages = {parameter.untyped_storage().data_ptr() for parameter in bert.parameters()}
        assert [name for name, tensor in cache.items() if tensor.untyped_storage().data_ptr() in storages] == []


def test_cached_tensors_carry_no_graph(bert):
    _, cache = bert.run_with_cache(TOKENS, names_filter=everything)
    assert not any(tensor.requires_grad for tensor in cache.values())


def test_return_cache_object_false_gives_a_dictionary(bert):
    _, cache = bert.run_with_cache(TOKENS, return_cache_object=False, names_filter=[Q0])
    assert type(cache) is dict
    assert list(cache) == [Q0]


def test_reset_hooks_end_false_goes_on_caching(bert):
    _, cache = bert.run_with_cache(TOKENS, names_filter=Q0, reset_hooks_end=False)
    first = cache[Q0]
    bert(TOKENS[:1])
    assert cache[Q0].shape == (1, 11, 5, 8)
    assert_parity(cache[Q0], first[:1])
    bert.reset_hooks()


def test_caching_hooks_can_be_attached_by_hand(bert):
    mine = {}
    cache, fwd, bwd = bert.get_caching_hooks([Q0, PATTERN1], incl_bwd=True, cache=mine, pos_slice=(0, 2))
    assert cache is mine
    assert not bert.list_hooks()
    loss = bert.run_with_hooks(TOKENS, "loss", labels=LABELS, fwd_hooks=fwd, bwd_hooks=bwd)
    assert list(mine) == [Q0, PATTERN1]
    torch.autograd.grad(loss, bert.W_E)
    assert set(mine) == {Q0, PATTERN1, f"{Q0}_grad", f"{PATTERN1}_grad"}
    assert mine[f"{PATTERN1}_grad"].shape == (3, 5, 2, 11)
    assert bert.get_caching_hooks(Q0)[2] == []


def test_add_caching_hooks_fill_the_dictionary_until_they_are_reset(bert):
    cache = bert.add_caching_hooks([Q0], incl_bwd=True)
    assert cache == {}
    loss = bert(TOKENS, "loss", labels=LABELS)
    torch.autograd.grad(loss, bert.W_E)
    assert set(cache) == {Q0, f"{Q0}_grad"}
    bert.reset_hooks()
    cache.clear()
    bert(TOKENS)
    assert cache == {}


def test_add_caching_hooks_without_a_filter_takes_the_default_points(bert):
    mine = {}
    assert bert.add_caching_hooks(cache=mine) is mine
    bert(TOKENS[:1])
    assert len(mine) == 75
    bert.reset_hooks()


# Gradients


def test_incl_bwd_keeps_gradients_and_fills_those_of_the_parameters(bert):
    loss = bert(TOKENS, "loss", labels=LABELS)
    expected = dict(zip(("W_E", "b_U"), torch.autograd.grad(loss, [bert.W_E, bert.b_U]), strict=True))
    output, cache = bert.run_with_cache(TOKENS, "loss", labels=LABELS, incl_bwd=True)
    assert len(cache) == 2 * 75
    assert_close(output, loss)
    assert_close(bert.W_E.grad, expected["W_E"])
    assert_close(bert.b_U.grad, expected["b_U"])
    assert_close(cache["unembed.hook_out_grad"].sum((0, 1)), expected["b_U"])
    bert.zero_grad()


def test_incl_bwd_with_a_loss_function_of_the_output(bert):
    output, cache = bert.run_with_cache(
        TOKENS, names_filter="unembed.hook_out", incl_bwd=True, loss_fn=lambda logits: logits[0, 1, 2] * 3
    )
    bert.zero_grad()
    assert output.shape == (3, 11, 188)
    expected = torch.zeros(3, 11, 188)
    expected[0, 1, 2] = 3
    assert torch.equal(cache["unembed.hook_out_grad"], expected)


def test_a_cached_gradient_stays_when_a_leaf_goes_on_collecting(bert):
    hidden = torch.randn(3, 11, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    arguments = {"start_at_layer": 2, "names_filter": "blocks.2.hook_resid_pre", "incl_bwd": True, "loss_fn": torch.sum}
    _, cache = bert.run_with_cache(hidden, **arguments)
    kept = cache["blocks.2.hook_resid_pre_grad"].clone()
    assert torch.equal(hidden.grad, kept)
    bert.run_with_cache(hidden, **arguments)
    bert.zero_grad()
    assert_close(hidden.grad, 2 * kept)
    assert torch.equal(cache["blocks.2.hook_resid_pre_grad"], kept)


def test_incl_bwd_with_an_ablation_at_a_cached_point(bert):
    with bert.hooks([("blocks.0.attn.hook_z", lambda z, hook: torch.zeros_like(z))]):
        _, cache = bert.run_with_cache(TOKENS, "loss", labels=LABELS, incl_bwd=True)
    bert.zero_grad()
    assert cache["blocks.0.attn.hook_z"].abs().max() == 0
    assert cache["blocks.0.attn.hook_z_grad"].abs().max() > 0
    assert f"{Q0}_grad" not in cache  # nothing flows back through what was replaced
    assert "blocks.0.hook_resid_pre_grad" in cache


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, r"a tensor of shape \[3, 11, 188\]"),
        ({"return_type": "hidden"}, r"a tensor of shape \[3, 11, 40\]"),
        ({"return_type": None}, "NoneType"),
        ({"loss_fn": lambda logits: logits.sum(-1)}, r"a tensor of shape \[3, 11\]"),
        ({"loss_fn": lambda logits: 0.0}, "float"),
    ],
)
def test_incl_bwd_of_what_is_not_a_scalar_is_refused(bert, arguments, found):
    bert.zero_grad()
    with pytest.raises(GradientError, match=f"incl_bwd needs a scalar, not {found}: use return_type='loss' with labels"):
        bert.run_with_cache(TOKENS, incl_bwd=True, **arguments)
    assert not bert.list_hooks()
    assert bert.W_E.grad is None


def test_incl_bwd_under_no_grad_is_refused(bert):
    with torch.no_grad(), pytest.raises(GradientError, match="incl_bwd=True needs gradients"):
        bert.run_with_cache(TOKENS, "loss", labels=LABELS, names_filter=Q0, incl_bwd=True)
    assert not bert.list_hooks()


def test_incl_bwd_of_a_detached_loss_is_refused(bert):
    with pytest.raises(GradientError, match="incl_bwd needs a loss that carries gradients"):
        bert.run_with_cache(TOKENS, names_filter=Q0, incl_bwd=True, loss_fn=lambda logits: logits.detach().sum())
    assert not bert.list_hooks()


def test_loss_fn_without_incl_bwd_is_refused(bert):
    with modules_that_run(bert) as ran, pytest.raises(GradientError, match="give both, or neither"):
        bert.run_with_cache(TOKENS, loss_fn=torch.sum)
    assert ran == []


# Only what is needed runs


@pytest.mark.parametrize(
    ("names_filter", "last"),
    [
        ("embed.hook_embed", -1),
        ("hook_full_embed", -1),
        (Q0, 0),
        ([Q0, PATTERN1], 1),
        (lambda name: name.startswith("blocks.0"), 0),
        ("blocks.2.hook_resid_pre", 2),
        (None, 2),
    ],
)
def test_with_nothing_to_return_a_run_stops_after_the_last_block_it_needs(bert, names_filter, last):
    with modules_that_run(bert) as ran:
        output, cache = bert.run_with_cache(TOKENS, None, names_filter=names_filter)
    assert output is None
    assert ran == ["embed", *(f"blocks.{layer}" for layer in range(last + 1))]
    _, full = bert.run_with_cache(TOKENS, "hidden", names_filter=names_filter)
    assert list(cache) == list(full)
    assert all(torch.equal(cache[name], full[name]) for name in full)


def test_another_hook_further_on_keeps_it_going(bert):
    seen = []
    bert.add_hook("blocks.1.hook_resid_pre", lambda x, hook: seen.append(hook.name))
    with modules_that_run(bert) as ran:
        bert.run_with_cache(TOKENS, None, names_filter=Q0)
    assert ran == ["embed", "blocks.0", "blocks.1"]
    assert seen == ["blocks.1.hook_resid_pre"]
    bert.reset_hooks()


def test_without_hooks_and_with_nothing_to_return_no_block_runs(bert):
    with modules_that_run(bert) as ran:
        assert bert(TOKENS, None) is None
    assert ran == ["embed"]


def test_a_backward_hook_keeps_every_block_running(bert):
    with modules_that_run(bert) as ran:
        bert.run_with_hooks(TOKENS, None, bwd_hooks=[(Q0, nothing)])
    assert ran == ["embed", "blocks.0", "blocks.1", "blocks.2"]


def test_start_and_stop_bound_an_early_stop(bert):
    hidden = torch.zeros(3, 11, 40)
    with modules_that_run(bert) as ran:
        bert.run_with_cache(hidden, None, start_at_layer=1, names_filter=lambda name: name.endswith("hook_q"), stop_at_layer=2)
    assert ran == ["blocks.1"]


@pytest.mark.parametrize(
    ("return_type", "heads"), [("logits", ["mlm_head", "unembed"]), ("hidden", []), ("loss", ["mlm_head", "unembed"])]
)
def test_everything_that_an_output_needs_runs(bert, return_type, heads):
    labels = {"labels": LABELS} if return_type == "loss" else {}
    with modules_that_run(bert) as ran:
        bert.run_with_cache(TOKENS, return_type, names_filter=Q0, **labels)
    assert ran == ["embed", "blocks.0", "blocks.1", "blocks.2", *heads]


# The same numbers with and without hooks

PATHS = {
    "pattern": lambda name: name.endswith("hook_pattern"),
    "scores": lambda name: name.endswith("hook_attn_scores"),
    "pattern of one layer": PATTERN1,
    "scale": lambda name: name.endswith("hook_scale"),
    "normalized": lambda name: name.endswith("hook_normalized"),
    "split inputs": lambda name: name.endswith(("hook_q_input", "hook_k_input", "hook_v_input")),
    "one split input": lambda name: name.endswith("hook_k_input"),
    "result": lambda name: name.endswith("hook_result"),
    "mlp_in": lambda name: name.endswith("hook_mlp_in"),
    "everything": everything,
}


@pytest.mark.parametrize("hook", ["looking", "caching", "backward"])
@pytest.mark.parametrize("names", PATHS.values(), ids=PATHS)
def test_hooks_that_change_nothing_change_nothing(bert, names, hook):
    arguments = {"token_type_ids": BATCH["types"], "one_zero_attention_mask": BATCH["mask"]}
    plain = bert(TOKENS, **arguments)
    if hook == "caching":
        hooked, _ = bert.run_with_cache(TOKENS, names_filter=names, **arguments)
    else:
        pairs = {"fwd_hooks" if hook == "looking" else "bwd_hooks": [(names, nothing)]}
        hooked = bert.run_with_hooks(TOKENS, **arguments, **pairs)
    assert_parity(hooked, plain)


@pytest.mark.parametrize("names", PATHS.values(), ids=PATHS)
def test_gradients_are_the_same_on_every_path(bert, names):
    arguments = {"labels": LABELS, "token_type_ids": BATCH["types"], "one_zero_attention_mask": BATCH["mask"]}
    parameters = [bert.W_E, bert.blocks[0].attn.q.weight, bert.blocks[1].ln1.w, bert.blocks[2].mlp.input.bias]
    plain = torch.autograd.grad(bert(TOKENS, "loss", **arguments), parameters)
    hooked = torch.autograd.grad(bert.run_with_hooks(TOKENS, "loss", **arguments, fwd_hooks=[(names, nothing)]), parameters)
    largest = max(map(largest_of, plain))
    for ours, theirs in zip(hooked, plain, strict=True):
        assert_parity(ours, theirs, scale=largest)


def test_scores_are_minus_infinity_at_padded_keys_and_everything_else_is_finite(bert):
    output, cache = padded(bert, names_filter=everything)
    assert output.isfinite().all()
    padding = ~BATCH["mask"].bool()[:, None, None, :]
    for name, tensor in cache.items():
        if name.endswith("hook_attn_scores"):
            assert torch.equal(tensor == -torch.inf, padding.expand_as(tensor))
            tensor = tensor.masked_fill(padding, 0)
        assert tensor.isfinite().all(), name
        if name.endswith("hook_pattern"):
            assert_close(tensor.sum(-1), torch.ones(3, 5, 11))
            assert tensor.masked_select(padding).abs().max() == 0


def test_padding_does_not_change_what_is_cached_at_real_positions(bert):
    _, cache = padded(bert, names_filter=everything)
    _, alone = bert.run_with_cache(TOKENS[2:, :4], token_type_ids=BATCH["types"][2:, :4], names_filter=everything)
    for name, tensor in alone.items():
        row = cache[name][2:, :, :4, :4] if name.endswith(("hook_attn_scores", "hook_pattern")) else cache[name][2:, :4]
        assert_parity(row, tensor)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def half(request, bert_twin):
    return HookedEncoder.from_pretrained(hf_model=bert_twin[0], device="cpu", dtype=request.param)


@pytest.mark.parametrize("task", ["masked_lm", "next_sentence"])
def test_half_precision_runs_end_to_end(bert, half, task):
    bert.task = half.task = task
    arguments = {"token_type_ids": BATCH["types"], "one_zero_attention_mask": BATCH["mask"]}
    plain = half(TOKENS, **arguments)
    hooked = half.run_with_hooks(TOKENS, **arguments, fwd_hooks=[(everything, nothing)])
    _, cache = half.run_with_cache(TOKENS, **arguments, names_filter=everything)
    exact = bert(TOKENS, **arguments)
    tolerance = 0.1 if half.cfg.dtype == torch.bfloat16 else 0.01
    for output in (plain, hooked):
        assert output.dtype == half.cfg.dtype
        assert_parity(output.float(), exact, tolerance=tolerance)
    for name, tensor in cache.items():
        norms = name.endswith(("hook_scale", "hook_normalized"))  # computed in float32
        assert tensor.dtype == (torch.float32 if norms else half.cfg.dtype), name
        assert name.endswith("hook_attn_scores") or tensor.isfinite().all(), name


def test_half_precision_gradients(half):
    half.task = "masked_lm"
    arguments = {"token_type_ids": BATCH["types"], "one_zero_attention_mask": BATCH["mask"], "labels": LABELS}
    loss, cache = half.run_with_cache(TOKENS, "loss", **arguments, names_filter=everything, incl_bwd=True)
    half.zero_grad()
    assert loss.isfinite()
    for name in [name for name in cache if name.endswith("_grad")]:
        assert cache[name].isfinite().all(), name
        assert cache[name].dtype == cache[name.removesuffix("_grad")].dtype


# Runs inside runs


def test_a_run_inside_a_hook_leaves_the_outer_cache_its_own_batch(bert):
    other = torch.tensor([[2, 7, 3]])

    def run_again(tensor, hook):
        if tensor.shape[1] == TOKENS.shape[1]:
            bert(other, "hidden")

    with bert.hooks([("blocks.1.hook_resid_mid", run_again)]):
        _, cache = bert.run_with_cache(TOKENS, names_filter="hook_full_embed")
    assert torch.equal(cache.tokens, TOKENS)


def test_a_loss_that_runs_the_model_again_leaves_the_cache_as_it_was(bert):
    expected = bert.run_with_cache(TOKENS)[1]
    other = torch.tensor([[2, 7, 3]])
    _, cache = bert.run_with_cache(TOKENS, incl_bwd=True, loss_fn=lambda logits: logits.mean() + bert(other).mean())
    assert torch.equal(cache.tokens, TOKENS)
    for name in expected:
        assert_close(cache[name], expected[name])
    assert cache[f"{Q0}_grad"].shape == expected[Q0].shape


def test_pos_slice_and_logits_at_do_not_go_together(bert):
    with pytest.raises(InputError, match="pos_slice and logits_at do not go together"):
        bert.run_with_cache(TOKENS, logits_at=[1], pos_slice=0)
    assert bert.run_with_cache(TOKENS, logits_at=[1])[1]["unembed.hook_out"].shape[1] == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fwd_hooks": ("hook_full_embed", print)}, "list of pairs"),
        ({"fwd_hooks": [("hook_full_embed", None)]}, "list of pairs"),
        ({"fwd_hooks": [(("q", 0), print)]}, "holds names, not 0"),
    ],
)
def test_hooks_that_are_no_pairs(bert, unchecked, kwargs, message):
    with pytest.raises(HookNameError, match=message):
        bert.run_with_hooks(TOKENS, **kwargs)


def test_other_mistakes_are_named(bert, unchecked):
    with pytest.raises(InputError, match=r"dtype='float16'; give a floating-point torch\.dtype"):
        bert.run_with_cache(TOKENS, dtype="float16")
    with pytest.raises(HookNameError, match="dir='sideways' is unknown; it is 'fwd', 'bwd' or 'both'"):
        bert.list_hooks(dir="sideways")
    with pytest.raises(InputError, match="labels are a tensor, not a list"):
        bert(TOKENS, "loss", labels=[[1, 2]])
    cache = bert.run_with_cache(TOKENS)[1]
    with pytest.raises(HookNameError, match="a cache's key is a hook name, or a tuple"):
        cache[0]
