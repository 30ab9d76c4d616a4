import copy
import io

import pytest
import torch
from torch import nn

from encoderlens import HookedRootModule, HookPoint
from encoderlens.errors import GradientError, HookNameError, HookUnreachableError, InputError
from tests.parity import assert_close
from tests.tiny import tiny_batch

TOKENS = tiny_batch()["tokens"]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.hook_out = HookPoint("batch pos d_model")

    def forward(self, x):
        return self.hook_out(self.linear(x).tanh())


class Own(HookedRootModule):
    """A model as a user would write one: two layers, one of whose points names no axes, and a parameter with a point."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.bias = nn.Parameter(torch.ones(4))
        self.hook_bias, self.hook_end = HookPoint(), HookPoint()
        self.setup()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        if self.fails:
            raise ZeroDivisionError("the model failed")
        return self.hook_end(x + self.hook_bias(self.bias))


NAMES = ["layers.0.hook_out", "layers.1.hook_out", "hook_bias", "hook_end"]
FIRST, SECOND, BIAS, END = NAMES
X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)


@pytest.fixture
def own():
    torch.manual_seed(0)
    return Own()


def nothing(tensor, hook):
    pass


def zero(tensor, hook):
    return torch.zeros_like(tensor)


def recorder():
    seen = []
    return seen, lambda tensor, hook: seen.append(hook.name)


def attached(model):
    """How many hooks of each direction are on, by hook point."""
    listed = model.list_hooks()
    return {name: (len(model.hook_dict[name].fwd_hooks), len(model.hook_dict[name].bwd_hooks)) for name in listed}


# Naming


def test_setup_names_the_modules_and_collects_the_points(own):
    assert list(own.hook_dict) == NAMES
    assert [point.name for point in own.hook_points()] == NAMES
    assert own.hook_dict[FIRST] is own.layers[0].hook_out
    assert own.mod_dict["layers.1"] is own.layers[1]
    assert "" not in own.mod_dict
    assert all(point.run_state is own.run_state for point in own.hook_points())
    assert own.default_hook_names() == NAMES


def test_without_setup_nothing_can_be_selected():
    class Forgetful(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.point = HookPoint()

    with pytest.raises(HookNameError, match="has no hook points; call setup"):
        Forgetful().run_with_cache(X)


def test_a_hooked_model_inside_another_takes_the_outer_names():
    class Outer(HookedRootModule):
        def __init__(self):
            super().__init__()
            self.inner = Own()
            self.setup()

        def forward(self, x):
            return self.inner(x)

    model = Outer()
    _, cache = model.run_with_cache(X)
    assert list(cache) == [f"inner.{name}" for name in (FIRST, SECOND, BIAS, END)]


# Adding and removing

SELECTIONS = {
    "a name": (FIRST, [FIRST]),
    "a list": ([END, FIRST], [FIRST, END]),
    "a set": ({FIRST, SECOND}, [FIRST, SECOND]),
    "a tuple": ((BIAS,), [BIAS]),
    "a predicate": (lambda name: name.startswith("layers"), [FIRST, SECOND]),
    "None": (None, NAMES),
}


@pytest.mark.parametrize(("names", "chosen"), SELECTIONS.values(), ids=SELECTIONS)
def test_add_hook_by(own, names, chosen):
    seen, record = recorder()
    own.add_hook(names, record)
    assert attached(own) == {name: (1, 0) for name in NAMES if name in chosen}
    own(X)
    assert seen == [name for name in (FIRST, SECOND, BIAS, END) if name in chosen]
    own.reset_hooks()
    assert attached(own) == {}


@pytest.mark.parametrize(("names", "chosen"), SELECTIONS.values(), ids=SELECTIONS)
def test_contexts_and_runs_take_the_same_selections(own, names, chosen):
    seen, record = recorder()
    with own.hooks([(names, record)]):
        own(X)
    own.run_with_hooks(X, fwd_hooks=[(names, record)])
    _, cache = own.run_with_cache(X, names_filter=names)
    assert seen == 2 * list(cache)
    assert set(cache) == set(chosen)
    assert attached(own) == {}


WRONG = {
    "misspelt": ("layers.0.hook_ou", "there is no hook point 'layers.0.hook_ou'; did you mean 'layers.0.hook_out'"),
    "one of two": ([FIRST, "hook_bais"], "there is no hook point 'hook_bais'; did you mean 'hook_bias'"),
    "a module": ("layers.0", "'layers.0' is a module, not a hook point; did you mean 'layers.0.hook_out'"),
    "nothing": ([], "the names filter is empty"),
    "no match": (lambda name: False, "selects none of the 4 hook points"),
}


@pytest.mark.parametrize(("names", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_wrong_name_raises_before_anything_runs_or_is_attached(own, names, message, direction):
    seen, record = recorder()
    own.add_perma_hook(FIRST, record)
    own.fails = True
    pairs = {f"{direction}_hooks": [(SECOND, nothing), (names, nothing)]}
    with pytest.raises(HookNameError, match=message):
        own.add_hook(names, nothing, direction)
    with pytest.raises(HookNameError, match=message), own.hooks(**pairs):
        own(X)
    with pytest.raises(HookNameError, match=message):
        own.run_with_hooks(X, **pairs)
    with pytest.raises(HookNameError, match=message):
        own.run_with_cache(X, names_filter=names)
    with pytest.raises(HookNameError, match=message):
        own.add_caching_hooks(names)
    assert seen == []
    assert attached(own) == {FIRST: (1, 0)}
    assert own.context_level == 0


def test_add_hook_passes_everything_on(own):
    own.add_hook(FIRST, nothing)
    own.add_hook(FIRST, zero, level=4, prepend=True)
    own.add_hook(FIRST, zero, "bwd", is_permanent=True)
    first, second, third = own.list_hooks()[FIRST]
    assert (first.user_hook, first.context_level, first.is_permanent) == (zero, 4, False)
    assert (second.user_hook, second.context_level) == (nothing, None)
    assert (third.user_hook, third.is_permanent) == (zero, True)
    assert own.hook_dict[FIRST].bwd_hooks == [third]


def add_every_kind(model):
    model.add_hook(FIRST, nothing)
    model.add_hook(FIRST, nothing, "bwd")
    model.add_hook(SECOND, nothing, level=1)
    model.add_perma_hook(END, nothing)
    model.add_perma_hook(END, nothing, "bwd")
    model.hook_dict[FIRST].ctx["note"] = 1


RESETS = [
    ({}, {END: (1, 1)}),
    ({"direction": "fwd"}, {FIRST: (0, 1), END: (1, 1)}),
    ({"direction": "bwd"}, {FIRST: (1, 0), SECOND: (1, 0), END: (1, 1)}),
    ({"level": 1}, {FIRST: (1, 1), END: (1, 1)}),
    ({"including_permanent": True}, {}),
    ({"including_permanent": True, "direction": "bwd"}, {FIRST: (1, 0), SECOND: (1, 0), END: (1, 0)}),
]


@pytest.mark.parametrize(("arguments", "left"), RESETS)
def test_reset_hooks(own, arguments, left):
    add_every_kind(own)
    own.reset_hooks(**arguments)
    assert attached(own) == left
    assert own.hook_dict[FIRST].ctx == {}


@pytest.mark.parametrize(("arguments", "left"), RESETS)
def test_remove_all_hook_fns_leaves_contexts(own, arguments, left):
    add_every_kind(own)
    own.remove_all_hook_fns(**arguments)
    assert attached(own) == left
    assert own.hook_dict[FIRST].ctx == {"note": 1}


def test_contexts_are_cleared_on_their_own_or_kept_by_a_reset(own):
    add_every_kind(own)
    own.reset_hooks(clear_contexts=False)
    assert own.hook_dict[FIRST].ctx == {"note": 1}
    own.clear_contexts()
    assert own.hook_dict[FIRST].ctx == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {FIRST: 2, SECOND: 1, END: 2}),
        ({"dir": "fwd"}, {FIRST: 1, SECOND: 1, END: 1}),
        ({"dir": "bwd"}, {FIRST: 1, END: 1}),
        ({"including_permanent": False}, {FIRST: 2, SECOND: 1}),
        ({"name_filter": END, "dir": "bwd"}, {END: 1}),
        ({"name_filter": [FIRST, BIAS]}, {FIRST: 2}),
        ({"name_filter": lambda name: name == BIAS}, {}),
    ],
)
def test_list_hooks(own, arguments, expected):
    add_every_kind(own)
    assert {name: len(handles) for name, handles in own.list_hooks(**arguments).items()} == expected


# Contexts


def test_contexts_nest_and_each_takes_off_its_own(own):
    own.add_hook(FIRST, nothing)
    with own.hooks([(FIRST, zero)]) as outer:
        assert outer is own
        assert own.context_level == 1
        with own.hooks(fwd_hooks=[(FIRST, nothing), (END, nothing)], bwd_hooks=[(END, nothing)]):
            assert own.context_level == 2
            assert attached(own) == {FIRST: (3, 0), END: (1, 1)}
            assert [handle.context_level for handle in own.hook_dict[FIRST].fwd_hooks] == [None, 1, 2]
        assert attached(own) == {FIRST: (2, 0)}
        assert torch.equal(own(X), own.layers[1](torch.zeros_like(X)) + 1)
    assert attached(own) == {FIRST: (1, 0)}
    assert own.context_level == 0


def test_hooks_added_inside_a_context_stay(own):
    with own.hooks([(FIRST, nothing)]):
        own.add_hook(FIRST, zero)
    assert [handle.user_hook for handle in own.hook_dict[FIRST].fwd_hooks] == [zero]


def test_the_same_function_twice_comes_off_once(own):
    own.add_hook(FIRST, nothing)
    with own.hooks([(FIRST, nothing), (FIRST, nothing)]):
        assert attached(own) == {FIRST: (3, 0)}
    assert attached(own) == {FIRST: (1, 0)}


def test_reset_inside_a_context(own):
    with own.hooks([(FIRST, nothing)]):
        own.reset_hooks()
        assert attached(own) == {}
    assert attached(own) == {}


def run_in_a_context(model, fwd_hooks, bwd_hooks):
    with model.hooks(fwd_hooks, bwd_hooks):
        model(X)


def run_with_hooks(model, fwd_hooks, bwd_hooks):
    model.run_with_hooks(X, fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks)


def run_with_cache(model, fwd_hooks, bwd_hooks):
    model.run_with_cache(X, incl_bwd=True)


@pytest.mark.parametrize("runs", [run_in_a_context, run_with_hooks, run_with_cache])
def test_hooks_come_off_when_the_model_raises(own, runs):
    own.fails = True
    with pytest.raises(ZeroDivisionError):
        runs(own, [(FIRST, nothing)], [(END, nothing)])
    assert attached(own) == {}
    assert own.context_level == 0


def test_hooks_come_off_when_a_hook_raises(own):
    with pytest.raises(ZeroDivisionError):
        own.run_with_hooks(X, fwd_hooks=[(lambda name: True, lambda x, hook: 1 / 0)])
    assert attached(own) == {}


def test_reset_hooks_end_false_leaves_them_on(own):
    own.run_with_hooks(X, fwd_hooks=[(FIRST, zero)], bwd_hooks=[(END, nothing)], reset_hooks_end=False)
    assert attached(own) == {FIRST: (1, 0), END: (0, 1)}
    assert own.context_level == 0
    assert torch.equal(own(X), own.layers[1](torch.zeros_like(X)) + 1)
    own.reset_hooks()
    assert attached(own) == {}


def test_hooks_that_were_left_on_do_not_have_to_be_reached(bert):
    with bert.hooks([("mlm_head.hook_pre", nothing)], reset_hooks_end=False):
        bert(TOKENS)
    _, cache = bert.run_with_cache(TOKENS, "hidden", names_filter="blocks.0.attn.hook_q")
    assert list(cache) == ["blocks.0.attn.hook_q"]
    bert.reset_hooks()


@pytest.mark.parametrize("clear", [True, False])
def test_clear_contexts_when_hooks_come_off(own, clear):
    def note(tensor, hook):
        hook.ctx["note"] = 1

    own.run_with_hooks(X, fwd_hooks=[(FIRST, note)], clear_contexts=clear)
    assert own.hook_dict[FIRST].ctx == ({} if clear else {"note": 1})


def test_clear_contexts_also_when_the_model_raises(own):
    own.fails = True
    own.hook_dict[END].ctx["note"] = 1
    with pytest.raises(ZeroDivisionError):
        own.run_with_hooks(X, fwd_hooks=[(FIRST, nothing)], clear_contexts=True)
    assert own.hook_dict[END].ctx == {}


def test_run_with_hooks_returns_what_the_model_returns(own):
    with_zeros = own.run_with_hooks(X, fwd_hooks=[(FIRST, zero)])
    assert torch.equal(with_zeros, own.layers[1](torch.zeros_like(X)) + 1)
    assert torch.equal(own.run_with_hooks(x=X), own(X))
    assert not torch.equal(with_zeros, own(X))


# Caches of an own model


def test_the_cache_of_an_own_model_is_a_dictionary(own):
    output, cache = own.run_with_cache(X)
    assert type(cache) is dict
    assert list(cache) == [FIRST, SECOND, BIAS, END]
    assert torch.equal(cache[END], output)
    assert torch.equal(cache[FIRST], own.layers[0](X))
    assert not cache[END].requires_grad


def test_what_is_cached_of_a_parameter_is_a_copy(own):
    _, cache = own.run_with_cache(X)
    with torch.no_grad():
        own.bias.add_(1)
    assert torch.equal(cache[BIAS], torch.ones(4))
    cache[BIAS].zero_()
    assert torch.equal(own.bias, torch.full((4,), 2.0))


def test_a_cached_gradient_does_not_grow_with_the_next_backward(own):
    _, cache = own.run_with_cache(X, loss_fn=torch.sum, incl_bwd=True)
    first = cache[f"{BIAS}_grad"].clone()
    own.run_with_cache(X, loss_fn=torch.sum, incl_bwd=True)
    assert torch.equal(first, torch.full((4,), 6.0))
    assert torch.equal(cache[f"{BIAS}_grad"], first)
    assert torch.equal(own.bias.grad, 2 * first)


def test_pos_slice_on_points_with_and_without_axes(own):
    _, cache = own.run_with_cache(X, pos_slice=(1, None))
    assert cache[FIRST].shape == (2, 2, 4)
    assert cache[END].shape == (2, 3, 4)  # its axes are not known
    with pytest.raises(InputError, match="pos_slice needs hook points that name their axes"):
        own.run_with_cache(X, names_filter=END, pos_slice=(1, None))


def test_a_filter_whose_points_the_model_does_not_pass(own):
    own.extra = HookPoint()
    own.setup()
    with pytest.raises(HookUnreachableError, match="selects only hook points that this run does not compute"):
        own.run_with_cache(X, names_filter="extra")
    assert attached(own) == {}


def test_incl_bwd_of_an_own_model(own):
    _, cache = own.run_with_cache(X, loss_fn=lambda output: output.square().sum(), incl_bwd=True)
    assert set(cache) == {*NAMES, *(f"{name}_grad" for name in NAMES)}
    assert_close(cache[f"{END}_grad"], 2 * cache[END])
    with pytest.raises(GradientError, match="incl_bwd needs a scalar"):
        own.run_with_cache(X, incl_bwd=True)
    assert attached(own) == {}


# Copies


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def copy_inside_a_context(model):
    with model.hooks([(lambda name: True, nothing)], [(lambda name: True, nothing)]):
        return copy.deepcopy(model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_a_file, copy_inside_a_context])
@pytest.mark.parametrize("which", ["own", "bert"])
def test_copies_drop_hooks_and_contexts_and_share_a_new_run_state(request, which, duplicate):
    model = request.getfixturevalue(which)
    x = X if which == "own" else TOKENS
    expected, _ = model.run_with_cache(x)
    name = next(iter(model.hook_dict))
    model.add_hook(name, zero)
    model.add_perma_hook(name, lambda grad, hook: None, "bwd")  # a function that cannot be pickled
    model.hook_dict[name].ctx["note"] = lambda: None
    twin = duplicate(model)
    assert attached(twin) == {}
    assert attached(model) == {name: (1, 1)}
    assert twin.context_level == 0
    assert all(point.ctx == {} for point in twin.hook_points())
    assert twin.run_state is not model.run_state
    assert twin.run_state.last is None
    assert list(twin.hook_dict) == list(model.hook_dict)
    for key, point in twin.hook_dict.items():
        assert point is twin.get_submodule(key)
        assert point is not model.hook_dict[key]
        assert point.run_state is twin.run_state
        assert point.name == key
        assert point.axes == model.hook_dict[key].axes
    assert_close(twin(x), expected)
    twin.add_hook(name, nothing)
    assert attached(model) == {name: (1, 1)}
    model.reset_hooks(including_permanent=True)


def test_a_copied_encoder_reads_its_own_parameters_and_keeps_the_tie(bert):
    bert.cfg.use_attn_result = True
    twin = copy.deepcopy(bert).to(torch.float64, print_details=False)
    assert twin.cfg.dtype == torch.float64
    assert bert.cfg.dtype == torch.float32
    assert twin.cfg.use_attn_result
    assert twin.unembed.weight is twin.embed.embed.weight
    assert twin.heads["masked_lm"].modules["unembed"] is twin.unembed
    with torch.no_grad():
        twin.W_E.zero_()
    assert bert.W_E.abs().max() > 0


def test_two_models_share_no_state():
    first, second = Own(), Own()
    first.add_hook(FIRST, nothing)
    first.hook_dict[FIRST].ctx["note"] = 1
    with first.hooks([(END, nothing)]):
        assert second.context_level == 0
        assert attached(second) == {}
    assert second.hook_dict[FIRST].ctx == {}
    assert first.run_state is not second.run_state
    assert attached(first) == {FIRST: (1, 0)}
