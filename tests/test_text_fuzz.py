"""Whatever is asked of a text model: an error of ours, or the right numbers. ``make fuzz`` tries many more cases."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from encoderlens import HookedEncoder, HookPoint
from encoderlens.analysis import direct_logit_attribution
from encoderlens.errors import AnalysisError, EncoderLensError
from tests.parity import ROUNDING, assert_close
from tests.tiny import N_VOCAB, TOKENIZER, tiny_hf

FUZZ = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
CLASSES = ("BertForMaskedLM", "RobertaForMaskedLM", "RobertaPreLayerNormForMaskedLM", "MPNetForMaskedLM", "EsmForMaskedLM")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@cache
def loaded(hf_class: str, dtype: torch.dtype = torch.float32) -> HookedEncoder:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class), tokenizer=tokenizer, device="cpu", dtype=dtype)


models = st.sampled_from(CLASSES)
pytestmark = pytest.mark.usefixtures("unchecked")


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Bit by bit; an edit may have made NaN."""
    return torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.nan_to_num(), theirs.nan_to_num())


# Inputs

WORDS = ("the doctor", "nurse", "[MASK]", "", " ", "it's new.", "[PAD]", "[SEP] she", "ß", "日本", "\ud800", "\0", "no " * 60)
NO_INPUT = (None, 5, 0.5, b"text", [], {}, [1, 2], [["a", "b"]], ("a",), ("a", 1), ["a", ("b", "c")], object(), torch.eye(2))
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16)
text = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
texts = st.one_of(text, st.tuples(text, text), st.lists(text, max_size=3), st.lists(st.tuples(text, text), max_size=3))
ids = st.lists(st.lists(st.integers(-1, N_VOCAB), min_size=5, max_size=5), min_size=1, max_size=3)
tokens = st.tuples(ids, st.sampled_from(INTEGERS)).map(lambda drawn: torch.tensor(drawn[0]).to(drawn[1]))
masks = st.one_of(
    st.none(),
    st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=3).map(torch.tensor),
    st.sampled_from([torch.full((1, 5), 0.5), torch.ones(1, 5, dtype=torch.bool), torch.ones(5), "1", torch.ones(1, 4)]),
)
kinds = st.sampled_from(["hidden", "logits", "predictions", None, "embeddings", "loss"])


@settings(FUZZ)
@given(models, st.one_of(texts, tokens, st.sampled_from(NO_INPUT)), masks, kinds)
def test_an_input_is_read_like_its_rows_or_refused(hf_class: str, given: Any, mask: Any, returns: Any) -> None:
    model = loaded(hf_class)
    try:
        with torch.no_grad():
            batch = model.prepare(given, one_zero_attention_mask=mask)
            output = model(batch, returns)
            hidden = model(batch, "hidden")
    except EncoderLensError as error:
        event(type(error).__name__)
        return
    assert hidden.isfinite().all()
    assert (output is None) == (returns is None)
    for row in range(len(hidden)):
        real = batch.sequence.real[row]
        with torch.no_grad():
            alone = model(batch.part(slice(row, row + 1)), "hidden")[0]
        n = len(alone)
        assert_close(alone[real[:n]], hidden[row, :n][real[:n]], scale=float(hidden.abs().max()))


@settings(FUZZ)
@given(models, texts, st.booleans())
def test_what_the_caller_changes_later_changes_nothing(hf_class: str, given: Any, cached: bool) -> None:
    model = loaded(hf_class)
    try:
        tokens, types, mask = model.to_tokens(given)
        types = types if model.cfg.n_token_types else None
        batch = model.prepare(tokens, types, mask)
    except EncoderLensError as error:
        event(type(error).__name__)
        return
    before = model.run_with_cache(batch, "hidden", names_filter="hook_full_embed")[1] if cached else None
    expected = model(batch, "hidden")
    for tensor in (tokens, mask, *(() if types is None else (types,))):
        tensor.zero_()
    assert torch.equal(model(batch, "hidden"), expected)
    if before is not None:
        assert torch.equal(before.tokens, batch.tokens)
        assert before.mask is None or torch.equal(before.mask, batch.sequence.mask)


# Hooks

POINTS = (
    "embed.hook_embed",
    "hook_full_embed",
    "blocks.0.attn.hook_q",
    "blocks.0.attn.hook_pattern",
    "blocks.0.attn.hook_z",
    "blocks.0.hook_attn_out",
    "blocks.1.hook_resid_pre",
    "blocks.1.ln2.hook_scale",
    "blocks.1.mlp.hook_post",
    "blocks.1.hook_mlp_out",
    "mlm_head.hook_post",
)
# At a scale, a hook that does more than cache has the norm computed step by step, which rounds otherwise.
NESTED = tuple(point for point in POINTS if not point.endswith("hook_scale"))
SENTENCES = ("the doctor [MASK] home.", "she was [MASK]", "no [MASK]", "he said that the nurse could not have [MASK] it.")


def scaled(x: Tensor, hook: HookPoint) -> Tensor:
    return x * 1.5


def zeroed_in_place(x: Tensor, hook: HookPoint) -> None:
    x[..., 0] = 0


def constant(x: Tensor, hook: HookPoint) -> Tensor:
    return torch.full_like(x, 0.1)


def same_values(x: Tensor, hook: HookPoint) -> Tensor:
    return x.detach().clone()


def looked_at(x: Tensor, hook: HookPoint) -> None:
    x.sum()


EDITS = {edit.__name__: edit for edit in (scaled, zeroed_in_place, constant, same_values, looked_at)}
edits = st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from(list(EDITS)), st.booleans()), max_size=3)
sentence = st.sampled_from(SENTENCES)


def attached(model: HookedEncoder, stack: ExitStack, drawn: Any) -> None:
    """Hooks in a context, or for all runs until the stack is left."""
    for point, edit, everywhere in drawn:
        if everywhere:
            handle = model.hook_dict[point].add_hook(EDITS[edit])
            stack.callback(model.hook_dict[point].detach, handle)
        else:
            stack.enter_context(model.hooks([(point, EDITS[edit])]))


def assert_same_cache(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    assert all(same(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(ours.tokens, theirs.tokens)


@settings(FUZZ)
@given(models, sentence, st.lists(st.tuples(st.sampled_from(NESTED), sentence, st.booleans()), min_size=1, max_size=2), edits)
def test_runs_inside_runs_change_nothing(hf_class: str, outer: str, nested: Any, drawn: Any) -> None:
    model = loaded(hf_class)
    found: list[tuple[str, Any]] = []

    def run_again(inner: str) -> Callable[..., None]:
        def hook(x: Tensor, hook: HookPoint) -> None:
            found.append((inner, model.run_with_cache(inner, "logits")[1]))

        return hook

    with ExitStack() as stack, torch.no_grad():
        attached(model, stack, drawn)
        _, expected = model.run_with_cache(outer, "logits")
        expected_inside = {inner: model.run_with_cache(inner, "logits")[1] for _, inner, _ in nested}
        for point, inner, everywhere in nested:
            hook = run_again(inner)
            if everywhere:
                stack.callback(model.hook_dict[point].detach, model.hook_dict[point].add_hook(hook))
            else:
                stack.enter_context(model.hooks([(point, hook)]))
        _, cache = model.run_with_cache(outer, "logits")
    assert_same_cache(cache, expected)
    assert len(found) >= len(nested)
    for inner, ours in found:
        assert_same_cache(ours, expected_inside[inner])
    assert not model.list_hooks()


@settings(FUZZ)
@given(models, st.lists(st.tuples(sentence, edits, st.sampled_from(["run", "cache", "rows"])), min_size=2, max_size=3))
def test_threads_do_not_see_each_other(hf_class: str, work: Any) -> None:
    model = loaded(hf_class)
    start = threading.Barrier(len(work))

    def do(number: int) -> Any:
        given, drawn, what = work[number]
        contexts = [(point, EDITS[edit]) for point, edit, _ in drawn]
        with model.hooks(contexts):
            if what == "run":
                return [model(given).detach()]
            if what == "cache":
                cache = model.run_with_cache(given)[1]
                return [*cache.values(), cache.tokens]
            try:
                return [direct_logit_attribution(model, given, "nurse").values]
            except AnalysisError as error:
                return str(error)

    def do_at_once(number: int) -> Any:
        start.wait()
        return do(number)

    expected = [do(number) for number in range(len(work))]
    with ThreadPoolExecutor(len(work)) as pool:
        found = list(pool.map(do_at_once, range(len(work))))
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, str):
            assert ours == theirs
        else:
            assert all(same(one, other) for one, other in zip(ours, theirs, strict=True))


@settings(FUZZ)
@given(models, st.sampled_from(DTYPES), sentence, edits, st.booleans())
def test_attributions_add_up_or_are_refused(hf_class: str, dtype: torch.dtype, given: str, drawn: Any, neurons: bool) -> None:
    model = loaded(hf_class, dtype)
    with ExitStack() as stack:
        attached(model, stack, drawn)
        try:
            rows = direct_logit_attribution(model, given, "nurse", neurons=neurons)
        except AnalysisError as error:
            event(f"{dtype}: {str(error)[:30]}")
            edited = {point for point, edit, _ in drawn if edit not in ("looked_at", "same_values")}
            parts = {"blocks.0.hook_attn_out", *(["blocks.1.hook_mlp_out"] if neurons else [])}
            assert edited & parts
            return
        with torch.no_grad():
            logits = model(given)
        position = rows.positions[0]
    if not logits.isfinite().all():
        event("an edit makes NaN")
        return
    index = model.task_head().output_index("nurse", model.tokenizer)
    scale = max(float(rows.values.abs().max()), float(logits.abs().max()))
    assert rows.values.isfinite().all()
    assert abs(float(rows.total - logits[0, position, index])) <= 4 * ROUNDING[dtype] * scale
    assert rows.error <= 4 * ROUNDING[dtype]
    changed = any(edit not in ("looked_at",) for _, edit, _ in drawn)
    assert changed or "hooks" not in rows.labels["component"]


# Caches

READERS: dict[str, Callable[[Any], Tensor]] = {
    "resid": lambda cache: cache.decompose_resid(),
    "heads": lambda cache: cache.stack_head_results(incl_remainder=True),
    "neurons": lambda cache: cache.get_full_resid_decomposition(1, mlp_input=True),
    "logits": lambda cache: cache.logit_attrs(cache.decompose_resid(), 7),
    "streams": lambda cache: cache.accumulated_resid(apply_ln=True, incl_mid=True),
}


@settings(FUZZ)
@given(models, sentence, st.sampled_from(list(READERS)), st.integers(0, 10**6), st.sampled_from(["edit", "assign", "none"]))
def test_a_cache_reads_the_weights_of_its_run_or_refuses(hf_class: str, given: str, reader: str, which: int, how: str) -> None:
    model = loaded(hf_class, torch.float64)
    read = READERS[reader]
    _, cache = model.run_with_cache(given, "logits")
    expected = read(cache)
    names = [name for name, _ in model.named_parameters()]
    module_name, _, own = names[which % len(names)].rpartition(".")
    module = model.get_submodule(module_name)
    parameter = module.get_parameter(own)
    kept = parameter.detach().clone()
    try:
        if how == "edit":
            with torch.no_grad():
                parameter.add_(1.0)
        elif how == "assign":
            setattr(module, own, torch.nn.Parameter(kept + 1.0))
        refused = None
        try:
            found = read(cache)
        except AnalysisError as error:
            refused = str(error)
        if refused is None:
            assert torch.equal(found, expected)
        else:
            assert how != "none"
            assert "have changed since the run" in refused
    finally:
        setattr(module, own, parameter)
        with torch.no_grad():
            parameter.copy_(kept)


# Options

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "names_filter": st.sampled_from([None, 5, [], "hook_embed", "blocks.0.attn.hook_q", lambda name: True, [7], POINTS[:2]]),
    "dtype": st.sampled_from([None, *DTYPES, torch.int32, torch.bool]),
    "pos_slice": st.sampled_from([None, 0, -1, 99, (1, 3), [0, 2], np.int64(1), (2, 1)]),
    "remove_batch_dim": st.booleans(),
    "stop_at_layer": st.sampled_from([None, 0, 1, -1, np.int64(1), 99, True]),
    "logits_at": st.sampled_from([None, 0, [1, 2], np.array([1]), torch.tensor([[1]]), 99, 0.5]),
    "return_type": st.sampled_from(["logits", "hidden", None, "hiden", 5]),
    "device": st.sampled_from([None, "cpu", "cuda:9", "nowhere"]),
}


@settings(FUZZ)
@given(models, sentence, st.fixed_dictionaries(OPTIONS))
def test_options_of_a_cached_run(hf_class: str, given: str, options: dict[str, Any]) -> None:
    model = loaded(hf_class)
    given_options = {name: value for name, value in options.items() if value is not None or name == "return_type"}
    try:
        _, cache = model.run_with_cache(given, **given_options)
    except EncoderLensError as error:
        event(type(error).__name__)
        assert not model.list_hooks()
        assert model.context_level == 0
        return
    _, whole = model.run_with_cache(given, "logits", names_filter=lambda name: True)
    for name in cache:
        assert cache[name].dtype == (options["dtype"] or whole[name].dtype)
        assert cache[name].isfinite().all() or "attn_scores" in name
    assert not model.list_hooks()
