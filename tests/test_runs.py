"""Runs that do not see each other: those that hooks start, and those of other threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoderlens import HookedEncoder, HookedRootModule, HookPoint
from encoderlens.analysis import contacts, direct_logit_attribution, fill_mask, logit_lens
from encoderlens.errors import HookUnreachableError
from encoderlens.linearised import linearised
from tests.analysis.models import TEXTS, made
from tests.parity import assert_changed, assert_parity, largest_of
from tests.speech import snippets, tiny_speech
from tests.tiny import tiny_hf

OUTER = "the doctor [MASK] to the hospital"
INNER = "he said that the nurse could not have [MASK] it before."


class OfText:
    """A masked LM, and two texts of different lengths."""

    outer, inner = OUTER, INNER
    target = "nurse"

    def __init__(self, kind: str) -> None:
        self.model = made(kind, "masked_lm")


class OfSpeech:
    """A CTC model, and two clips of different lengths."""

    target = "E"

    def __init__(self) -> None:
        self.model = tiny_speech("HubertForCTC", "layer norm, pre-LN")
        clips = snippets()
        self.outer, self.inner = clips[0], clips[1]


@pytest.fixture(scope="module")
def of_speech() -> OfSpeech:
    return OfSpeech()


@pytest.fixture(params=["post", "pre", "speech"])
def case(request: pytest.FixtureRequest) -> Iterator[Any]:
    case = request.getfixturevalue("of_speech") if request.param == "speech" else OfText(request.param)
    yield case
    left = case.model.list_hooks()
    case.model.reset_hooks(including_permanent=True)
    assert not left


def same(ours: Any, theirs: Any) -> None:
    """The same activations, bit by bit, of the same batch."""
    assert list(ours) == list(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    for beside in ("tokens", "mask", "positions", "frame_times"):
        one, other = getattr(ours, beside), getattr(theirs, beside)
        assert (one is None) == (other is None), beside
        assert one is None or torch.equal(one, other), beside


NAMES = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_pattern", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"]
AT = "blocks.1.hook_attn_out"


def starting_runs(run: Callable[[], Any]) -> Callable[..., None]:
    """A hook that runs the model again, and keeps what it gets."""

    def hook(tensor: Tensor, hook: HookPoint) -> None:
        hook.ctx.setdefault("found", []).append(run())

    return hook


def found_at(model: Any) -> list[Any]:
    return model.hook_dict[AT].ctx.pop("found")


# Runs that hooks start


@pytest.mark.parametrize("how", ["add_hook", "hooks"])
def test_a_cache_holds_what_its_own_run_computed_and_knows_its_batch(case, how):
    model = case.model
    clean_outer, clean_inner = (model.run_with_cache(x, names_filter=NAMES)[1] for x in (case.outer, case.inner))
    hook = starting_runs(lambda: model.run_with_cache(case.inner, names_filter=NAMES)[1])
    if how == "add_hook":
        model.add_hook(AT, hook)
        _, cache = model.run_with_cache(case.outer, names_filter=NAMES)
        model.hook_dict[AT].remove_hooks()
    else:
        with model.hooks([(AT, hook)]):
            _, cache = model.run_with_cache(case.outer, names_filter=NAMES)
    same(cache, clean_outer)
    (inner,) = found_at(model)
    same(inner, clean_inner)


def test_attributions_of_a_cache_that_was_made_inside_a_hook_add_up(case):
    model = case.model
    with model.hooks([(AT, starting_runs(lambda: model.run_with_cache(case.inner)[1]))]):
        model(case.outer)
    (inner,) = found_at(model)
    stack = inner.decompose_resid()
    stream = inner[str(model.stream_point(model.cfg.n_layers).name)]
    assert_parity(stack.sum(0), stream, scale=largest_of(stack))
    sums = inner.logit_attrs(stack, case.target).sum(0) + inner.logit_constant(case.target)
    index = model.task_head().output_index(case.target, model.tokenizer)
    logits = model(case.inner, return_type="logits")[..., index]
    assert_parity(sums, logits)


def test_caching_hooks_that_stay_on_see_no_run_inside_a_run(case):
    model = case.model
    _, clean = model.run_with_cache(case.outer, names_filter=NAMES)
    cache = model.add_caching_hooks(NAMES)
    model.add_hook(AT, starting_runs(lambda: model(case.inner)))
    model(case.outer)
    model.reset_hooks()
    assert cache.keys() == set(NAMES)
    assert all(torch.equal(cache[name], clean[name]) for name in NAMES)


def test_a_hook_does_not_act_in_runs_that_it_starts(case):
    model = case.model
    depth = []

    def patch_from_the_clean_run(tensor: Tensor, hook: HookPoint) -> Tensor:
        depth.append(hook.name)
        return model.run_with_cache(case.outer, names_filter=hook.name)[1][hook.name]

    def double(tensor: Tensor, hook: HookPoint) -> Tensor:
        return 2 * tensor

    points = ["blocks.0.hook_attn_out", AT]
    clean = model(case.outer)
    with model.hooks([(points, patch_from_the_clean_run)]):
        assert torch.equal(model(case.outer), clean)
    assert depth == points
    with model.hooks([(points[0], double)]):  # which acts in every run of this thread
        expected = model(case.outer)
        with model.hooks([(AT, patch_from_the_clean_run)]):
            assert torch.equal(model(case.outer), expected)
    assert not torch.equal(expected, clean)


def test_a_backward_hook_that_runs_the_model(case):
    model = case.model
    clean = model.run_with_cache(case.outer, return_type="logits", incl_bwd=True, loss_fn=torch.sum, names_filter=NAMES)[1]
    seen = []

    def run_again(gradient: Tensor, hook: HookPoint) -> None:
        seen.append(model(case.inner))

    with model.hooks(bwd_hooks=[(AT, run_again)]):
        cache = model.run_with_cache(case.outer, return_type="logits", incl_bwd=True, loss_fn=torch.sum, names_filter=NAMES)[1]
    same(cache, clean)
    assert len(seen) == 1
    model.zero_grad()


def test_analyses_see_their_own_run_only(case):
    model = case.model
    analyses = {
        "lens": lambda: logit_lens(model, case.outer).values,
        "attribution": lambda: direct_logit_attribution(model, case.outer, case.target, position=2).values,
    }
    expected = {name: analysis() for name, analysis in analyses.items()}
    with model.hooks([(AT, starting_runs(lambda: model(case.inner)))]):
        for name, analysis in analyses.items():
            assert torch.equal(analysis(), expected[name]), name
    found_at(model)


def test_contacts_read_the_patterns_of_their_own_run():
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("EsmModel", eos_token_id=2), device="cpu")
    tokens = torch.tensor([[0, 7, 9, 11, 5, 8, 2]])
    expected = contacts(model, tokens).values
    with model.hooks([("blocks.1.hook_attn_out", lambda x, hook: (model(tokens.flip(1)), None)[1])]):
        assert torch.equal(contacts(model, tokens).values, expected)


def test_a_torch_hook_that_runs_the_model(case):
    model = case.model
    _, clean = model.run_with_cache(case.outer, names_filter=NAMES)
    entered = []

    def run_again(module: nn.Module, inputs: Any) -> None:
        if not entered:
            entered.append(module)
            model(case.inner, stop_at_layer=1)

    handle = model.blocks[1].register_forward_pre_hook(run_again)
    _, cache = model.run_with_cache(case.outer, names_filter=NAMES)
    handle.remove()
    same(cache, clean)
    assert entered


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_torch_hook_of_the_model_itself_that_runs_it(case, where):
    model = case.model
    _, clean = model.run_with_cache(case.outer, names_filter=NAMES)
    _, clean_inner = model.run_with_cache(case.inner, names_filter=NAMES)
    entered, found = [], []

    def run_again(*of_module: Any) -> None:
        if not entered:
            entered.append(of_module)
            model(case.inner)
            found.append(model.run_with_cache(case.inner, names_filter=NAMES)[1])

    register = model.register_forward_pre_hook if where == "before" else model.register_forward_hook
    handle = register(run_again)
    _, cache = model.run_with_cache(case.outer, names_filter=NAMES)
    handle.remove()
    same(cache, clean)
    same(found[0], clean_inner)


def test_attributions_that_are_made_in_a_torch_hook_are_of_frozen_parts(case):
    model = case.model
    _, cache = model.run_with_cache(case.inner)
    expected = cache.logit_attrs(cache.decompose_resid(), case.target)
    found = []

    def attribute(module: nn.Module, inputs: Any) -> None:
        found.append(cache.logit_attrs(cache.decompose_resid(), case.target))

    handle = model.blocks[1].register_forward_pre_hook(attribute)
    model(case.outer)
    handle.remove()
    assert torch.equal(found[0], expected)


def inner_gradients(case: Any) -> dict[str, Tensor]:
    """Of a run that is neither frozen nor watched, in both ways."""
    model = case.model

    def loss(hidden: Tensor) -> Tensor:
        return (hidden.square() * torch.arange(hidden.shape[-1])).sum().sqrt()

    with torch.enable_grad():
        _, cache = model.run_with_cache(case.inner, return_type="hidden", incl_bwd=True, loss_fn=loss, names_filter=NAMES)
        weight = model.blocks[0].attn.q.weight
        (by_autograd,) = torch.autograd.grad(loss(model(case.inner, return_type="hidden")), weight)
    model.zero_grad()
    return {name: kept for name, kept in cache.items() if name.endswith("_grad")} | {"weight": by_autograd}


def test_gradients_of_a_run_that_a_hook_starts_inside_an_attribution(case):
    model = case.model
    expected = inner_gradients(case)
    found = []
    with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: found.append(inner_gradients(case)))]):
        direct_logit_attribution(model, case.outer, case.target, position=2)
        with linearised(model):
            model(case.outer)
    assert len(expected) == len(NAMES) + 1
    for ours in found:
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert len(found) == 2


def test_a_run_that_a_hook_starts_has_the_models_own_task(bert):
    bert.task = "next_sentence"
    tokens = bert.prepare(INNER)
    own, other = bert(tokens), bert(tokens, return_type="hidden")
    found = []

    def run_again(tensor: Tensor, hook: HookPoint) -> None:
        with bert.use_task("masked_lm"):
            chosen = bert(tokens)
        found.append((bert.task, bert(tokens), chosen.shape[-1]))

    with bert.hooks([(AT, run_again)]):
        fill_mask(bert, OUTER)
        with bert.use_task("masked_lm"):
            assert bert(tokens).shape == (*other.shape[:2], bert.cfg.d_vocab)
    assert len(found) == 2
    for task, logits, n_chosen in found:
        assert (task, n_chosen) == ("next_sentence", bert.cfg.d_vocab)
        assert torch.equal(logits, own)


@dataclass
class Counting:
    """A hook that is equal to another one, and whose comparison has no truth value once it holds a tensor."""

    value: Any
    run: Callable[[], Any] | None = field(default=None, compare=False)
    calls: int = field(default=0, compare=False)

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        self.calls += 1
        if self.run is not None:
            self.run()


@pytest.mark.parametrize("kind", [int, torch.zeros(3).clone])
def test_hooks_are_told_apart_by_what_they_are_not_by_what_they_equal(case, kind):
    model = case.model
    first, second = Counting(kind(), lambda: model(case.inner)), Counting(kind())
    with model.hooks([("blocks.0.hook_resid_pre", first), ("blocks.0.hook_attn_out", second)]):
        model(case.outer)
        assert (first.calls, second.calls) == (1, 2)
    method = Counting(0, lambda: model(case.inner))
    with model.hooks([(name, method.__call__) for name in NAMES[:2]]):  # one method, bound twice
        model(case.outer)
    assert method.calls == 2


def test_an_inner_run_need_not_reach_what_the_context_around_it_names(case):
    model = case.model
    seen = []
    hooks = [
        ("blocks.0.hook_resid_pre", starting_runs(lambda: model(case.inner, return_type="hidden", stop_at_layer=1))),
        ("blocks.1.hook_resid_post", lambda x, hook: seen.append(x.shape)),
    ]
    with model.hooks(hooks):
        model(case.outer)
        with pytest.raises(HookUnreachableError, match=r"blocks\.1\.hook_resid_post is hooked"):
            model(case.outer, return_type="hidden", stop_at_layer=1)
    assert len(seen) == 1
    model.reset_hooks()


class Doubles(HookedRootModule):
    """A model of one's own, without a plan of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_first, self.hook_last = HookPoint(), HookPoint()
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_last(2 * self.hook_first(x))


def test_a_model_of_ones_own_that_is_run_inside_a_hook():
    model = Doubles()
    one, three = torch.ones(1), torch.full((3,), 3.0)
    with model.hooks([("hook_last", lambda x, hook: (model(three), None)[1])]):
        _, cache = model.run_with_cache(one)
    assert {name: kept.tolist() for name, kept in cache.items()} == {"hook_first": [1.0], "hook_last": [2.0]}


# Threads

N_THREADS, N_RUNS = 4, 6


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """What each thread gets; all start at once."""
    start = threading.Barrier(N_THREADS)

    def wait_and_work(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(wait_and_work, range(N_THREADS)))


@pytest.fixture
def inputs(case):
    """Something of its own to read for each thread."""
    if isinstance(case, OfText):
        return [*TEXTS, OUTER]
    whole = torch.cat(snippets())
    return [case.model.prepare(whole[start : start + 300], sampling_rate=16_000) for start in (0, 50, 250, 500)]


def test_caches_of_several_threads_hold_their_own_runs(case, inputs):
    model = case.model
    prepared = [model.prepare(x) for x in inputs]
    expected = [model.run_with_cache(batch)[1] for batch in prepared]

    def work(number: int) -> None:
        for _ in range(N_RUNS):
            same(model.run_with_cache(prepared[number])[1], expected[number])

    in_threads(work)


def test_hooks_of_a_context_act_in_its_own_thread_only(case, inputs):
    model = case.model
    prepared = [model.prepare(x) for x in inputs]
    clean = [model(batch) for batch in prepared]

    def edit(number: int) -> Callable[..., Tensor]:
        return lambda x, hook: x * (number + 2)

    def run(number: int) -> Tensor:
        return model.run_with_hooks(prepared[number], fwd_hooks=[(AT, edit(number))])

    hooked = [run(number) for number in range(N_THREADS)]

    def work(number: int) -> None:
        for _ in range(N_RUNS):
            assert torch.equal(run(number), hooked[number])
            assert torch.equal(model(prepared[number]), clean[number])
            assert model.context_level == 0

    in_threads(work)
    with model.hooks([(AT, edit(0))]):
        here = model(prepared[0])
        elsewhere = in_threads(lambda number: model(prepared[number]))
        in_threads(lambda number: model.reset_hooks())
        assert torch.equal(model(prepared[0]), here)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(elsewhere, clean, strict=True))
    assert not torch.equal(here, clean[0])


def test_add_hook_acts_in_every_thread(case, inputs):
    model = case.model
    prepared = [model.prepare(x) for x in inputs]
    seen = []
    model.add_hook(AT, lambda x, hook: seen.append(threading.get_ident()))
    in_threads(lambda number: model(prepared[number]))
    model.reset_hooks()
    assert len(seen) == N_THREADS
    model.run_with_hooks(prepared[0], fwd_hooks=[(AT, lambda x, hook: seen.append(0))], reset_hooks_end=False)
    in_threads(lambda number: model(prepared[number]))
    model.reset_hooks()
    assert seen.count(0) == 1 + N_THREADS


def test_what_hooks_keep_is_kept_for_each_thread(case):
    model, point = case.model, case.model.hook_dict[AT]

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        hook.ctx["seen"] = hook.ctx.get("seen", 0) + 1

    point.ctx["note"] = 1
    batch = model.prepare(case.outer)

    def work(number: int) -> dict[Any, Any]:
        model.run_with_hooks(batch, fwd_hooks=[(AT, keep)])
        kept = dict(point.ctx)
        model.reset_hooks()
        return kept | {"after": len(point.ctx)}

    assert in_threads(work) == [{"seen": 1, "after": 0}] * N_THREADS
    assert point.ctx == {"note": 1}
    with model.hooks([(AT, keep)], bwd_hooks=[(AT, keep)]):
        logits = model(batch, return_type="logits")
    with ThreadPoolExecutor(1) as pool:  # as torch does for other devices
        pool.submit(logits.sum().backward).result()
    assert point.ctx == {"note": 1, "seen": 2}
    model.zero_grad()
    model.clear_contexts()
    assert point.ctx == {}


def test_frozen_quantities_are_frozen_in_one_thread_only(case):
    model = case.model
    batch = model.prepare(case.outer)

    def gradient() -> Tensor:
        kept = []
        with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: kept.append(x.requires_grad_()) or x)]):
            total = model(batch, return_type="logits").square().sum()
        return torch.autograd.grad(total, kept)[0]

    plain = gradient()
    with linearised(model):
        frozen = gradient()
        elsewhere = in_threads(lambda number: gradient())
    assert all(torch.equal(one, plain) for one in elsewhere)
    assert_changed(frozen, plain)


def test_attributions_and_other_heads_in_several_threads(case):
    model = case.model

    def attribute() -> Tensor:
        return direct_logit_attribution(model, case.outer, case.target, position=2).values

    batch = model.prepare(case.outer)
    expected, logits = attribute(), model(batch, return_type="logits")

    def work(number: int) -> None:
        for _ in range(N_RUNS):
            if number % 2:
                assert torch.equal(attribute(), expected)
            else:
                with model.without_hooks(), model.use_task(model.task):
                    assert torch.equal(model(batch, return_type="logits"), logits)

    in_threads(work)


def test_a_task_that_is_chosen_for_a_while_is_that_of_one_thread(bert):
    with bert.use_task("next_sentence"):
        assert in_threads(lambda number: bert.task) == ["masked_lm"] * N_THREADS
        bert.task = "masked_lm"
        assert bert.task == "masked_lm"
    assert bert.task == "masked_lm"
