import jaxtyping
import pytest
import torch

from encoderlens import HookPoint
from encoderlens.errors import GradientError, HookNameError, HookResultError
from encoderlens.hooked_root_module import HookedRootModule
from tests.parity import FORWARD, assert_close, assert_gradient_parity, assert_parity, largest_of
from tests.tiny import tiny_batch

BATCH = tiny_batch()
LABELS = tiny_batch(seed=1)["tokens"]


def nothing(tensor, hook):
    pass


def add_one(tensor, hook):
    return tensor + 1


def double(tensor, hook):
    return tensor * 2


def halve_some(tensor, hook):
    """Every second entry, so that a LayerNorm afterwards does not undo it."""
    edited = tensor.clone()
    edited[..., ::2] = edited[..., ::2] * 0.5
    return edited


def halve_some_in_place(tensor, hook):
    tensor[..., ::2] *= 0.5


def halve_in_place(tensor, hook):
    tensor.mul_(0.5)


def run(model, return_type="logits", **kwargs):
    return model(BATCH["tokens"], return_type, BATCH["types"], BATCH["mask"], **kwargs)


def loss_of(model):
    return run(model, "loss", labels=LABELS)


def gradients(model, fwd_hooks=(), bwd_hooks=()):
    """The gradient of each parameter that the loss reaches, by name, with hooks on."""
    named = dict(model.named_parameters())
    with model.hooks(fwd_hooks, bwd_hooks):
        found = torch.autograd.grad(loss_of(model), list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def assert_same_gradients(ours, theirs, factor=1.0):
    assert_gradient_parity(ours, {name: factor * grad for name, grad in theirs.items()}, FORWARD)


# One point


def test_a_new_point_is_the_identity():
    point, tensor = HookPoint("batch pos"), torch.ones(2, 3)
    assert point(tensor) is tensor
    assert not point.active
    assert point.name is None
    assert (point.fwd_hooks, point.bwd_hooks, point.ctx) == ([], [], {})
    assert point.axes == ("batch", "pos")


def test_a_hook_gets_the_tensor_and_its_point_by_keyword():
    point, seen = HookPoint(), []

    def look(tensor, *, hook):
        seen.append((tensor.clone(), hook))

    point.add_hook(look)
    point(torch.arange(3))
    assert torch.equal(seen[0][0], torch.arange(3))
    assert seen[0][1] is point


def test_none_leaves_and_a_tensor_replaces():
    point = HookPoint()
    point.add_hook(nothing)
    assert torch.equal(point(torch.ones(2)), torch.ones(2))
    point.add_hook(add_one)
    assert torch.equal(point(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize(("prepend", "expected"), [(False, 4.0), (True, 3.0)])
def test_hooks_run_in_order_and_prepend_goes_first(prepend, expected):
    point = HookPoint()
    point.add_hook(add_one)
    point.add_hook(double, prepend=prepend)
    assert point(torch.ones(1)).item() == expected


@pytest.mark.parametrize(("prepend", "expected"), [(False, 4.0), (True, 3.0)])
def test_backward_hooks_run_in_order_and_prepend_goes_first(prepend, expected):
    point, x = HookPoint(), torch.ones(1, requires_grad=True)
    point.add_hook(add_one, "bwd")
    point.add_hook(double, "bwd", prepend=prepend)
    point(x).sum().backward()
    assert x.grad.item() == expected


def point_with_every_kind():
    point = HookPoint()
    point.add_hook(nothing)
    point.add_hook(nothing, level=1)
    point.add_hook(nothing, "bwd", level=2)
    point.add_perma_hook(nothing)
    point.add_perma_hook(nothing, "bwd")
    return point


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({}, (1, 2)),
        ({"dir": "bwd"}, (3, 1)),
        ({"dir": "both"}, (1, 1)),
        ({"dir": "both", "including_permanent": True}, (0, 0)),
        ({"dir": "fwd", "including_permanent": True}, (0, 2)),
        ({"dir": "both", "level": 1}, (2, 2)),
        ({"dir": "both", "level": 2}, (3, 1)),
        ({"dir": "both", "level": 3}, (3, 2)),
    ],
)
def test_remove_hooks(arguments, left):
    point = point_with_every_kind()
    point.remove_hooks(**arguments)
    assert (len(point.fwd_hooks), len(point.bwd_hooks)) == left


@pytest.mark.parametrize(
    ("removed", "asked", "expected"),
    [
        ({}, {}, True),
        ({}, {"dir": "fwd", "level": 1}, True),
        ({}, {"dir": "bwd", "level": 1}, False),
        ({}, {"dir": "bwd", "level": 2}, True),
        ({}, {"level": 7}, False),
        ({"dir": "both"}, {}, True),
        ({"dir": "both"}, {"including_permanent": False}, False),
        ({"dir": "fwd"}, {"including_permanent": False, "dir": "bwd"}, True),
        ({"dir": "fwd"}, {"including_permanent": False, "dir": "fwd"}, False),
        ({"dir": "both", "including_permanent": True}, {}, False),
    ],
)
def test_has_hooks(removed, asked, expected):
    point = point_with_every_kind()
    if removed:
        point.remove_hooks(**removed)
    assert point.has_hooks(**asked) is expected


def test_handles_tell_what_was_attached():
    point = HookPoint()
    point.add_hook(nothing, level=3)
    handle = point.add_perma_hook(add_one)
    first = point.fwd_hooks[0]
    assert (first.user_hook, first.is_permanent, first.context_level) == (nothing, False, 3)
    assert (handle.user_hook, handle.is_permanent, handle.context_level) == (add_one, True, None)
    point.detach(handle)
    point.detach(handle)
    assert point.fwd_hooks == [first]


@pytest.mark.parametrize("method", ["add_hook", "remove_hooks", "has_hooks"])
def test_an_unknown_direction(method, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: annotations are not checked
    point = HookPoint()
    arguments = (nothing, "sideways") if method == "add_hook" else ("sideways",)
    with pytest.raises(HookNameError, match="dir='sideways' is unknown; it is 'fwd'"):
        getattr(point, method)(*arguments)
    assert not point.active


def test_context_is_kept_between_calls_and_cleared():
    point = HookPoint()

    def count(tensor, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1

    point.add_hook(count)
    point(torch.ones(1))
    point(torch.ones(1))
    assert point.ctx == {"calls": 2}
    point.clear_context()
    assert point.ctx == {}


def test_a_hook_may_take_itself_off():
    point, calls = HookPoint(), []

    def once(tensor, hook):
        calls.append(hook)
        hook.remove_hooks()

    point.add_hook(once)
    point.add_hook(nothing)
    point(torch.ones(1))
    point(torch.ones(1))
    assert len(calls) == 1


def test_layer_and_name_in_a_model(bert):
    assert bert.blocks[2].attn.hook_q.name == "blocks.2.attn.hook_q"
    assert bert.blocks[2].attn.hook_q.layer() == 2
    with pytest.raises(HookNameError, match=r"'embed.hook_embed' is not inside a block"):
        bert.embed.hook_embed.layer()
    with pytest.raises(HookNameError, match="None is not inside a block"):
        HookPoint().layer()


def test_repr_shows_the_axes():
    assert repr(HookPoint("batch pos d_model")) == "HookPoint(batch pos d_model)"


# Edits in place

# Points whose value autograd keeps for its own backward, and some whose value is a view.
IN_PLACE = [
    "embed.hook_pos_embed",
    "embed.hook_token_type_embed",
    "embed.ln.hook_scale",
    "embed.ln.hook_normalized",
    "blocks.1.hook_resid_pre",
    "blocks.1.hook_q_input",
    "blocks.1.attn.hook_q",
    "blocks.1.attn.hook_attn_scores",
    "blocks.1.attn.hook_pattern",
    "blocks.1.attn.hook_z",
    "blocks.1.attn.hook_result",
    "blocks.1.ln1.hook_scale",
    "blocks.1.ln1.hook_normalized",
    "blocks.1.mlp.hook_post",
    "blocks.2.hook_normalized_resid_post",
    "mlm_head.hook_post",
    "unembed.hook_out",
]


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_edit_in_place_equals_a_replacement(bert, name):
    with torch.no_grad():
        replaced = bert.run_with_hooks(BATCH["tokens"], fwd_hooks=[(name, halve_some)])
        in_place = bert.run_with_hooks(BATCH["tokens"], fwd_hooks=[(name, halve_some_in_place)])
        assert torch.equal(in_place, replaced)
        assert not torch.equal(in_place, bert(BATCH["tokens"]))
    assert_same_gradients(gradients(bert, [(name, halve_some_in_place)]), gradients(bert, [(name, halve_some)]))


def test_an_edit_in_place_of_the_pooler_reaches_its_gradient(bert):
    bert.task = "next_sentence"
    labels, found = torch.tensor([0, 1, 1]), []
    for hook in (halve_some, halve_some_in_place):
        with bert.hooks([("pooler.hook_pooler_out", hook)]):
            loss = run(bert, "loss", labels=labels)
        found.append(torch.autograd.grad(loss, [bert.pooler.dense.weight, bert.W_E]))
    for in_place, returned in zip(found[1], found[0], strict=True):
        assert_close(in_place, returned)
    assert found[0][0].abs().max() > 0


@pytest.mark.parametrize("grad", [True, False])
def test_an_edit_in_place_changes_nothing_that_was_cached_before(bert, grad):
    names = ["blocks.0.hook_normalized_resid_post", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    with torch.set_grad_enabled(grad):
        _, clean = bert.run_with_cache(BATCH["tokens"], names_filter=names)
        with bert.hooks([("blocks.1.hook_resid_pre", lambda x, hook: x.zero_())]):
            _, edited = bert.run_with_cache(BATCH["tokens"], names_filter=names)
    assert torch.equal(edited[names[0]], clean[names[0]])
    assert edited[names[1]].abs().max() == 0
    assert not torch.equal(edited[names[2]], clean[names[2]])


def test_caching_between_edits_sees_just_the_earlier_ones():
    model = Chain()
    cache, fwd, _ = model.get_caching_hooks("first")
    with model.hooks([("first", halve_in_place), *fwd, ("first", halve_in_place)]):
        model(torch.ones(1, 1, 2))
    assert torch.equal(cache["first"], torch.full((1, 1, 2), 0.5))


def test_edits_in_place_leave_the_parameters_alone(bert):
    before = {name: parameter.detach().clone() for name, parameter in bert.named_parameters()}
    with torch.no_grad():
        bert.run_with_hooks(BATCH["tokens"], fwd_hooks=[(lambda name: True, lambda x, hook: x.zero_())])
    assert all(torch.equal(parameter, before[name]) for name, parameter in bert.named_parameters())


# What a hook may return

WRONG = {
    "a list": (lambda x, hook: [x], r"returned list; return a tensor, or None"),
    "a number": (lambda x, hook: 0.0, r"returned float; return a tensor, or None"),
    "another shape": (lambda x, hook: x[:, :4], r"returned \[3, 4, 40\] float32 in place of \[3, 11, 40\] float32"),
    "another rank": (lambda x, hook: x.sum(), r"returned \[\] float32 in place of \[3, 11, 40\] float32"),
    "another dtype": (lambda x, hook: x.half(), r"returned \[3, 11, 40\] float16 in place of \[3, 11, 40\] float32"),
    "a sparse tensor": (lambda x, hook: x.to_sparse(), r"returned a sparse_coo tensor.*to_dense\(\)"),
    "a nested tensor": (
        lambda x, hook: torch.nested.nested_tensor(list(x.detach()), layout=torch.jagged),
        r"returned a nested tensor.*torch\.nested\.to_padded_tensor",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_result_that_cannot_stand_in(bert, kind, direction):
    hook, message = WRONG[kind]
    what = "a hook" if direction == "fwd" else "a backward hook"
    with pytest.raises(HookResultError, match=f"{what} at blocks.1.hook_attn_out {message}"):
        gradients(bert, **{f"{direction}_hooks": [("blocks.1.hook_attn_out", hook)]})
    assert not bert.list_hooks()


def test_a_replacement_of_inference_mode_is_refused_where_gradients_flow(bert):
    with torch.inference_mode():
        kept = bert.run_with_cache(BATCH["tokens"], names_filter="blocks.1.hook_attn_out")[1]["blocks.1.hook_attn_out"]
    hooks = [("blocks.1.hook_attn_out", lambda x, hook: kept)]
    with pytest.raises(HookResultError, match=r"made in torch\.inference_mode\(\).*return replacement\.clone\(\)"):
        bert.run_with_hooks(BATCH["tokens"], fwd_hooks=hooks)
    with torch.no_grad():
        assert torch.equal(bert.run_with_hooks(BATCH["tokens"], fwd_hooks=hooks), bert(BATCH["tokens"]))


def test_the_message_names_the_axes(bert):
    with pytest.raises(HookResultError, match=r"\(batch head query key\); a replacement has the same shape and dtype"):
        bert.run_with_hooks(BATCH["tokens"], fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: x[0])])


def test_a_backward_hook_that_returns_two_gradients(bert):
    with pytest.raises(HookResultError, match=r"a backward hook at blocks.1.hook_attn_out returned tuple"):
        gradients(bert, bwd_hooks=[("blocks.1.hook_attn_out", lambda grad, hook: (grad, grad))])


# Backward hooks


class Chain(HookedRootModule):
    """Three points in a row, the last two on one tensor, then a sum of squares."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (HookPoint("batch pos d_model") for _ in range(3))
        self.setup()

    def forward(self, x):
        return self.third(self.second(self.first(x) * 3)).square().sum()


def test_the_gradient_is_that_of_what_leaves_the_point():
    model, x, seen = Chain(), torch.ones(1, 1, 2, requires_grad=True), {}

    def keep(grad, hook):
        seen[hook.name] = grad

    model.run_with_hooks(x, bwd_hooks=[(lambda name: True, keep)]).backward()
    assert {name: grad[0, 0, 0].item() for name, grad in seen.items()} == {"first": 18.0, "second": 6.0, "third": 6.0}
    assert list(seen) == ["third", "second", "first"]


def test_a_forward_edit_and_a_backward_hook_at_one_point():
    model, x, seen = Chain(), torch.ones(1, 1, 2, requires_grad=True), []
    fwd, bwd = [("second", add_one)], [("second", lambda grad, hook: seen.append(grad.clone()))]
    model.run_with_hooks(x, fwd_hooks=fwd, bwd_hooks=bwd).backward()
    assert torch.equal(seen[0], torch.full((1, 1, 2), 8.0))  # 2 * (3 * 1 + 1)
    assert torch.equal(x.grad, torch.full((1, 1, 2), 24.0))


@pytest.mark.parametrize("direction", ["forward hook first", "backward hook first"])
def test_an_edit_in_place_and_a_backward_hook_at_one_point(direction):
    model, x, seen = Chain(), torch.ones(1, 1, 2, requires_grad=True), []
    hooks = [("second", halve_in_place, "fwd"), ("second", lambda grad, hook: seen.append(grad.clone()), "bwd")]
    for name, hook, direction_of_hook in hooks if direction == "forward hook first" else reversed(hooks):
        model.add_hook(name, hook, direction_of_hook)
    model(x).backward()
    assert torch.equal(seen[0], torch.full((1, 1, 2), 3.0))  # 2 * (3 / 2)
    assert torch.equal(x.grad, torch.full((1, 1, 2), 4.5))


def test_a_constant_that_a_hook_puts_in_has_a_gradient_and_stops_it():
    model, x, seen = Chain(), torch.ones(1, 1, 2, requires_grad=True), []
    mine = torch.full((1, 1, 2), 5.0)
    bwd = [("second", lambda grad, hook: seen.append(grad.clone()))]
    model.run_with_hooks(x, fwd_hooks=[("second", lambda value, hook: mine)], bwd_hooks=bwd).backward()
    assert torch.equal(seen[0], torch.full((1, 1, 2), 10.0))
    assert x.grad is None
    assert not mine.requires_grad


def triple(grad, hook):
    return grad * 3


def triple_in_a_tuple(grad, hook):
    return (grad * 3,)


def triple_in_place(grad, hook):
    grad.mul_(3)


@pytest.mark.parametrize("edit", [triple, triple_in_a_tuple, triple_in_place])
def test_an_edited_gradient_flows_on(bert, edit):
    # Everything up to block 1 gets its gradient through this point alone.
    clean, edited = gradients(bert), gradients(bert, bwd_hooks=[("blocks.1.hook_resid_pre", edit)])
    below = [name for name in clean if name.startswith(("blocks.0.", "embed.pos_embed", "embed.ln"))]
    above = [name for name in clean if name.startswith(("blocks.1.", "blocks.2.", "mlm_head"))]
    assert len(below) == 19
    assert len(above) == 36
    assert_same_gradients({name: edited[name] for name in below}, {name: clean[name] for name in below}, factor=3)
    assert_same_gradients({name: edited[name] for name in above}, {name: clean[name] for name in above})


def test_two_points_on_one_tensor_see_each_others_edits_in_order(bert):
    order, seen = [], {}

    def edit(factor):
        def run(grad, hook):
            order.append(hook.name)
            seen[hook.name] = grad.clone()
            return grad * factor

        return run

    earlier, later = "blocks.0.hook_normalized_resid_post", "blocks.1.hook_resid_pre"
    clean = gradients(bert)
    gradients(bert, bwd_hooks=[(earlier, edit(1)), (later, edit(1))])
    untouched = seen[later]
    edited = gradients(bert, bwd_hooks=[(earlier, edit(5)), (later, edit(2))])
    assert order[2:] == [later, earlier]  # backwards through the model
    assert torch.equal(seen[later], untouched)
    assert torch.equal(seen[earlier], 2 * untouched)
    below = [name for name in clean if name.startswith(("blocks.0.", "embed.pos_embed"))]
    assert_same_gradients({name: edited[name] for name in below}, {name: clean[name] for name in below}, factor=10)


def test_two_forward_edits_on_one_tensor_are_seen_in_order(bert):
    seen = []

    def edit(tensor, hook):
        seen.append(tensor.clone())
        tensor.mul_(2)

    earlier, later = "blocks.0.hook_normalized_resid_post", "blocks.1.hook_resid_pre"
    run_with = [(later, edit), (earlier, edit)]
    bert.run_with_hooks(BATCH["tokens"], fwd_hooks=run_with)
    assert torch.equal(seen[1], 2 * seen[0])


@pytest.mark.parametrize("task", ["masked_lm", "next_sentence"])
def test_gradients_equal_autograd_at_every_documented_point(bert, task):
    """Cached gradients against ``autograd.grad`` at the very tensors that flowed on."""
    bert.task = task
    labels = LABELS if task == "masked_lm" else torch.tensor([0, 1, 1])
    names = [name for name in bert.hook_dict if bert.plan("loss").reaches(name)]
    flowing = {}

    def keep(tensor, hook):
        flowing[hook.name] = tensor

    with bert.hooks([(names, keep)]):
        loss = run(bert, "loss", labels=labels)
    expected = dict(zip(flowing, torch.autograd.grad(loss, list(flowing.values())), strict=True))
    cached = bert.run_with_cache(
        BATCH["tokens"], "loss", BATCH["types"], BATCH["mask"], labels=labels, names_filter=names, incl_bwd=True
    )[1]
    bert.zero_grad()
    assert len(names) == (90 if task == "masked_lm" else 86)
    assert set(cached) == {*names, *(f"{name}_grad" for name in names)}
    largest = max(map(largest_of, expected.values()))
    for name, grad in expected.items():
        assert grad.shape == cached[name].shape
        assert_parity(cached[f"{name}_grad"], grad, scale=largest)
        assert grad.abs().max() > 0, name


def test_backward_hooks_fire_after_run_with_hooks_has_returned(bert):
    seen = []
    bwd = [("blocks.1.hook_attn_out", lambda grad, hook: seen.append(hook.name))]
    loss = bert.run_with_hooks(BATCH["tokens"], "loss", labels=LABELS, bwd_hooks=bwd)
    assert not seen
    assert not bert.list_hooks()
    torch.autograd.grad(loss, bert.W_E)
    assert seen == ["blocks.1.hook_attn_out"]


def test_a_backward_hook_without_gradients_is_refused_under_no_grad(bert):
    with torch.no_grad(), pytest.raises(GradientError, match=r"blocks.1.hook_attn_out has a backward hook, but"):
        bert.run_with_hooks(BATCH["tokens"], bwd_hooks=[("blocks.1.hook_attn_out", nothing)])
    assert not bert.list_hooks()


def test_a_backward_hook_without_gradients_is_refused_with_frozen_parameters(bert):
    bert.requires_grad_(False)
    try:
        with pytest.raises(GradientError, match=r"mlm_head.hook_pre has a backward hook, but"):
            bert.run_with_hooks(BATCH["tokens"], bwd_hooks=[("mlm_head.hook_pre", nothing)])
        assert not bert.list_hooks()
        hidden = torch.zeros(3, 11, 40, requires_grad=True)  # an input that requires gradients is enough
        seen = []
        bwd = [("mlm_head.hook_pre", lambda grad, hook: seen.append(grad.shape))]
        bert.run_with_hooks(hidden, start_at_layer=2, bwd_hooks=bwd).sum().backward()
        assert seen == [(3, 11, 40)]
        assert hidden.grad.abs().max() > 0
    finally:
        bert.requires_grad_(True)


def test_what_is_no_function_and_no_filter_is_refused(bert, unchecked):
    with pytest.raises(HookNameError, match=r"a hook is a function of \(tensor, hook\), not 5"):
        bert.add_hook("hook_full_embed", 5)
    with pytest.raises(HookNameError, match=r"a hook is a function of \(tensor, hook\), not 5"):
        bert.hook_dict["hook_full_embed"].add_hook(5)
    with pytest.raises(HookNameError, match="a names filter is a name, a collection of names or a function of a name, not 5"):
        bert.add_hook(5, print)


def test_none_is_no_hooks_and_a_number_is_refused(bert, unchecked):
    tokens = torch.tensor([[5, 6]])
    assert torch.equal(bert.run_with_hooks(tokens, fwd_hooks=None, bwd_hooks=None), bert(tokens))
    for hooks in ({"fwd_hooks": 5}, {"bwd_hooks": 5}):
        with pytest.raises(HookNameError, match=r"hooks are a list of pairs \(name, function\), not 5"):
            bert.run_with_hooks(tokens, **hooks)


def test_a_replacement_on_another_device_is_refused(bert):
    hooks = [("hook_full_embed", lambda x, hook: x.to("meta"))]
    with pytest.raises(HookResultError, match=r"returned a tensor on meta in place of one on cpu; move it there"):
        bert.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=hooks)
