"""Runs that do not see each other: those that hooks start, and those of other threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoderlens import HookedEncoder, HookedRootModule, HookPoint
from encoderlens.analysis import contacts, direct_logit_attribution, logit_lens
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
