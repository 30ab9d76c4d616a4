"""What rows of the stream add to a logit, against the heads' own arithmetic, for every head."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.config import (
    AttentionPositionsPart,
    BareFirstPreLNPart,
    EmbeddingPart,
    GatedMLPPart,
    Part,
    RMSNormPart,
    RotaryAttentionPart,
)
from encoderlens.errors import AnalysisError, HookNameError, InputError, TaskError, TokenizerMissingError
from encoderlens.slices import Slice
from tests.additive import LABELS, SIZES, TASKS, additive_batch, additive_model
from tests.by_hand import assert_rows, by_hand, in_order_of_the_full_decomposition, places
from tests.checkpoints import save_tiny
from tests.parity import assert_close, assert_parity

BATCH = additive_batch()
POOLED = ("next_sentence", "sequence_classification")
PER_POSITION = ("masked_lm", "token_classification", "question_answering")
N_OUTPUTS = {"masked_lm": SIZES["d_vocab"], "next_sentence": 2, "question_answering": 2}
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 5e-2, torch.float16: 8e-3}
APART = [("post", "plain"), ("pre", "gated")]
two_sorts = pytest.mark.parametrize(("block", "mlp"), APART)
every_task = pytest.mark.parametrize("task", TASKS)


def run(model: HookedEncoder, **options: Any) -> tuple[Tensor, ActivationCache]:
    """Logits and cache of a padded batch."""
    logits, cache = model.run_with_cache(BATCH["tokens"], "logits", BATCH["types"], BATCH["mask"], **options)
    return logits.detach(), cache


@functools.cache
def known(
    task: str = "masked_lm", block: str = "post", mlp: str = "plain", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ActivationCache, Tensor]:
    """Logits, cache and whole rows, for all tests that only read them."""
    logits, cache = run(additive_model(block, mlp, task, dtype=dtype))
    return logits, cache, cache.decompose_resid()


def complete(cache: ActivationCache, rows: Tensor, tokens: Any, incorrect: Any = None, **slices: Any) -> Tensor:
    """What a full stack and the constant sum to."""
    return cache.logit_attrs(rows, tokens, incorrect, **slices).sum(0) + cache.logit_constant(tokens, incorrect, **slices)


# The identity


@pytest.mark.parametrize(
    ("block", "mlp", "dtype"),
    [("post", "gated", torch.float32), ("pre", "plain", torch.float32)]
    + [(*sort, dtype) for sort, dtype in zip(APART, (torch.bfloat16, torch.float16), strict=True)],
)
@every_task
def test_a_full_stack_and_the_constant_are_the_logit(task: str, block: str, mlp: str, dtype: torch.dtype) -> None:
    logits, cache, rows = known(task, block, mlp, dtype)
    stacks = [rows, cache.get_full_resid_decomposition(expand_neurons=False)]
    for target, stack in zip((0, logits.shape[-1] - 1), stacks, strict=True):
        attributions, constant = cache.logit_attrs(stack, target), cache.logit_constant(target)
        assert attributions.shape == (len(stack), *logits.shape[:-1])
        assert attributions.dtype == dtype
        found = attributions.double().sum(0) + constant.double()
        assert_parity(found, logits[..., target].double(), tolerance=TOLERANCE[dtype])


# What families without biases, with shared keys and values and with turned queries are made of.
BARE: dict[str, Part] = {
    "norm": RMSNormPart(1e-6),
    "embed": EmbeddingPart(SIZES["d_vocab"], n_token_types=0, normed=False),
    "positions": AttentionPositionsPart(SIZES["n_ctx"], "rotary"),
    "attention": RotaryAttentionPart(4, 6, n_kv_heads=2, bias=False, window=(None, 3)),
    "mlp": GatedMLPPart(SIZES["d_mlp"], "silu", bias=False),
    "block": BareFirstPreLNPart(),
}


@every_task
def test_a_full_stack_and_the_constant_of_an_encoder_without_biases(task: str) -> None:
    model = additive_model(task=task, dtype=torch.float64, parts=BARE)
    logits, cache = model.run_with_cache(BATCH["tokens"], "logits", None, BATCH["mask"], names_filter=lambda name: True)
    for layer, mid in places(model):
        rows = cache.get_full_resid_decomposition(layer, mid, apply_ln=True, return_labels=True)
        assert_rows(rows, in_order_of_the_full_decomposition(by_hand(cache, layer, mid, True, "HN")))
    stack = cache.decompose_resid()
    assert cache.decompose_resid(return_labels=True)[1] == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    for target in (0, logits.shape[-1] - 1):
        assert_close(complete(cache, stack, target), logits[..., target].detach())


@two_sorts
@every_task
def test_a_rows_attribution_is_the_heads_arithmetic_on_it(task: str, block: str, mlp: str) -> None:
    """Each row by hand: linear layers, gains and the scale of the run, without any bias."""
    _, cache, rows = known(task, block, mlp)
    model = cache.model
    vectors = rows
    if block == "pre":
        final = model.ln_final
        vectors = (rows - rows.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"] * final.w
    if task == "masked_lm":
        head = model.mlm_head
        gain = cache["mlm_head.hook_post"] / cache["mlm_head.hook_pre"]
        hidden = (vectors @ head.W) * gain
        hidden = (hidden - hidden.mean(-1, keepdim=True)) / cache["mlm_head.ln.hook_scale"] * head.ln.w
        expected = hidden @ model.unembed.W_U
    elif task in POOLED:
        pooled = cache["pooler.hook_pooler_out"]
        gain = pooled / torch.atanh(pooled)
        last = model.nsp_head if task == "next_sentence" else model.classifier
        expected = ((vectors[:, :, 0] @ model.pooler.W) * gain) @ last.W
    else:
        last = model.classifier if task == "token_classification" else model.qa_head
        expected = vectors @ last.W
    for target in range(expected.shape[-1]):
        assert_close(cache.logit_attrs(rows, target), expected[..., target].detach())


@two_sorts
def test_the_three_steps_of_a_transformer_lens_script(block: str, mlp: str) -> None:
    logits, cache, rows = known("masked_lm", block, mlp)
    model = cache.model
    normed = cache.apply_ln_to_stack(rows)
    bias = 0 if model.ln_final is None else model.ln_final.b.detach()
    hidden = model(BATCH["tokens"], "hidden", BATCH["types"], BATCH["mask"]).detach()
    assert_close(normed.sum(0) + bias, hidden)
    streams = cache.accumulated_resid(apply_ln=True)
    assert_close(model.unembed(model.mlm_head(streams[-1])).detach(), logits)


# Which logit


def test_forms_of_tokens() -> None:
    logits, cache, rows = known()
    tokens, other = BATCH["tokens"], additive_batch(seed=4)["tokens"]
    per_row = tokens[:, 2]
    one = cache.logit_attrs(rows, 7)
    assert_close(cache.logit_attrs(rows, torch.tensor(7)), one)
    assert_close(cache.logit_attrs(rows, torch.full((3,), 7)), one)
    assert_close(cache.logit_attrs(rows, torch.full((3, 11), 7, dtype=torch.int32)), one)
    assert_close(complete(cache, rows, tokens), logits.gather(-1, tokens[..., None])[..., 0])
    expected = torch.stack([logits[row, :, per_row[row]] for row in range(3)])
    assert_close(complete(cache, rows, per_row), expected)
    assert_close(cache.logit_attrs(rows, tokens, other), cache.logit_attrs(rows, tokens) - cache.logit_attrs(rows, other))
    assert_close(complete(cache, rows, per_row, 3), expected - logits[..., 3])
    assert_close(complete(cache, rows, 3, 5), logits[..., 3] - logits[..., 5])


def test_words(bert: HookedEncoder) -> None:
    _, _, mask = bert.to_tokens(["the doctor walked", "the [MASK]"])
    logits, cache = bert.run_with_cache(["the doctor walked", "the [MASK]"])
    rows = cache.decompose_resid()
    ids = {word: bert.tokenizer.convert_tokens_to_ids(word) for word in ("the", "doctor")}
    for word, index in ids.items():
        assert torch.equal(cache.logit_attrs(rows, word), cache.logit_attrs(rows, index))
        assert_parity(complete(cache, rows, word), logits[..., index].detach(), mask)
    difference = cache.logit_attrs(rows, "the", "doctor")
    assert torch.equal(difference, cache.logit_attrs(rows, ids["the"], ids["doctor"]))
    with pytest.raises(InputError, match="the target 'the doctor' is no single token: the tokenizer makes the, doctor of it"):
        cache.logit_attrs(rows, "the doctor")


NAMES = {
    "next_sentence": ("The sentences are sequential", "The sentences are NOT sequential"),
    "sequence_classification": LABELS,
    "token_classification": LABELS,
    "question_answering": ("start", "end"),
}


@pytest.mark.parametrize("task", NAMES)
def test_names_of_classes(task: str) -> None:
    logits, cache, rows = known(task)
    for index, name in enumerate(NAMES[task]):
        assert_close(complete(cache, rows, name), logits[..., index])
    assert_close(complete(cache, rows, NAMES[task][0], NAMES[task][1]), logits[..., 0] - logits[..., 1])
    per_row = torch.tensor([1, 0, 1])
    expected = torch.stack([logits[row, ..., per_row[row]] for row in range(3)])
    assert_close(complete(cache, rows, per_row), expected)
    wrong = NAMES[task][1][:-1]
    with pytest.raises(InputError, match=f"the {task} head has no '{wrong}'; did you mean"):
        cache.logit_attrs(rows, wrong)


@pytest.mark.parametrize("target", [41, -1, 2.7, True, None, torch.tensor(2.7), torch.tensor(True), torch.tensor(41)])
def test_targets_that_are_not_there(target: Any) -> None:
    _, cache, rows = known()
    with pytest.raises(InputError, match="is no token id of this head: a number from 0 to 40, or a name"):
        cache.logit_attrs(rows, target)
    if target is not None:
        with pytest.raises(InputError, match="is no token id of this head"):
            cache.logit_attrs(rows, 3, target)
    with pytest.raises(InputError, match="is no token id of this head"):
        cache.logit_constant(target)


@pytest.mark.parametrize("shape", [(11,), (3, 10), (1, 3, 11), (3, "float32"), (3, "bool")])
def test_ids_of_another_shape_or_kind(shape: tuple[Any, ...]) -> None:
    _, cache, rows = known()
    sizes, kind = [size for size in shape if isinstance(size, int)], shape[-1] if isinstance(shape[-1], str) else "int64"
    tokens = torch.zeros(sizes, dtype=getattr(torch, kind))
    with pytest.raises(InputError, match=rf"tokens are {kind} \[.*\]; .* for every sequence \[3\] or every position \[3, 11\]"):
        cache.logit_attrs(rows, tokens)
    _, pooled, rows = known("next_sentence")
    with pytest.raises(InputError, match=r"for every sequence \[3\] of the cache"):
        pooled.logit_attrs(rows, torch.zeros(3, 11).long())


def test_ids_out_of_range() -> None:
    _, cache, rows = known()
    for wrong in (41, -1):
        tokens = BATCH["tokens"].clone()
        tokens[1, 3] = wrong
        with pytest.raises(InputError, match=f"the target {wrong} is no token id"):
            cache.logit_attrs(rows, tokens)


def test_a_word_for_a_model_without_a_tokenizer() -> None:
    _, cache, rows = known()
    with pytest.raises(TokenizerMissingError, match="the target 'the' is a word, and this model has no tokenizer"):
        cache.logit_attrs(rows, "the")


# Some positions, some sequences

POSITIONS = (-1, [4, 0], (2, 7, 2), slice(3, 5), Slice(3))
SEQUENCES = (None, 1, [2, 0], (1, 3), Slice(-1))


@pytest.mark.parametrize("task", PER_POSITION)
@two_sorts
def test_slices_are_those_of_the_full_result(block: str, mlp: str, task: str) -> None:
    logits, cache, rows = known(task, block, mlp)
    ids = BATCH["tokens"] % logits.shape[-1]
    for tokens in (ids[:, 0], ids):
        whole, constant = cache.logit_attrs(rows, tokens), cache.logit_constant(tokens)
        for positions, sequences in zip(POSITIONS, SEQUENCES, strict=True):
            window, chosen = (value if isinstance(value, Slice) else Slice(value) for value in (positions, sequences))
            slices = {"pos_slice": positions, "batch_slice": sequences}
            found = cache.logit_attrs(cache.decompose_resid(pos_slice=positions), tokens, **slices)
            assert_close(found, chosen.apply(window.apply(whole, 2), 1))
            assert_close(cache.logit_constant(tokens, **slices), chosen.apply(window.apply(constant, 1)))


@pytest.mark.parametrize("task", POOLED)
@two_sorts
def test_pooled_heads_take_sequences_and_no_positions(block: str, mlp: str, task: str) -> None:
    logits, cache, rows = known(task, block, mlp)
    for sequences in SEQUENCES:
        chosen = sequences if isinstance(sequences, Slice) else Slice(sequences)
        assert_close(complete(cache, rows, 1, batch_slice=sequences), chosen.apply(logits[:, 1]))
    refusal = f"the {task} head reads a whole sequence: its rows need every position, without pos_slice"
    with pytest.raises(InputError, match=refusal):
        cache.logit_attrs(cache.decompose_resid(pos_slice=0), 1, pos_slice=0)
    with pytest.raises(InputError, match=refusal):
        cache.logit_constant(1, pos_slice=[0])
    _, some = run(cache.model, pos_slice=[0, 1])
    few = some.decompose_resid()
    with pytest.raises(InputError, match="reads a whole sequence, and the cache holds some positions of it"):
        some.logit_attrs(few, 1)


@two_sorts
@every_task
def test_a_stack_of_one_sequence(block: str, mlp: str, task: str) -> None:
    _, cache, rows = known(task, block, mlp)
    assert_close(cache.logit_attrs(rows[:, 2], 1, batch_slice=2, has_batch_dim=False), cache.logit_attrs(rows, 1)[:, 2])
    for slices in ({}, {"batch_slice": [2]}):
        with pytest.raises(InputError, match="the cache has one: say with batch_slice=index which sequence"):
            cache.logit_attrs(rows[:, 2], 1, has_batch_dim=False, **slices)


def test_a_stack_of_other_positions_is_refused() -> None:
    _, cache, rows = known()
    message = r"the stack has rows of shape \[3, 1, 14\], and the cache at this pos_slice and batch_slice has \[3, 11, 14\]"
    with pytest.raises(InputError, match=message):
        cache.logit_attrs(rows[:, :, [3]], 1)
    with pytest.raises(InputError, match=r"rows of shape \[3, 11, 14\], .* has \[3, 2, 14\]"):
        cache.logit_attrs(rows, 1, pos_slice=[3, 4])


@every_task
def test_without_the_batch_axis(task: str) -> None:
    _, whole, whole_rows = known(task, *APART[TASKS.index(task) % 2])
    model, one = whole.model, {"remove_batch_dim": True}
    for row in (0, 1):  # one not padded, one padded
        inputs = (BATCH["tokens"][row : row + 1], "logits", BATCH["types"][row : row + 1], BATCH["mask"][row : row + 1])
        for bare in (model.run_with_cache(*inputs, **one)[1], whole.apply_slice_to_batch_dim(row)):
            rows = bare.decompose_resid()
            assert_close(bare.logit_attrs(rows, 1), whole.logit_attrs(whole_rows, 1)[:, row])
            assert_close(bare.logit_constant(1), whole.logit_constant(1)[row])
            if task in PER_POSITION:
                ids = BATCH["tokens"] % N_OUTPUTS.get(task, len(LABELS))
                assert_close(bare.logit_attrs(rows, ids[row]), whole.logit_attrs(whole_rows, ids)[:, row])
                assert_close(bare.logit_attrs(rows[:, 3], 1, pos_slice=3), whole.logit_attrs(whole_rows, 1)[:, row, 3])
            with pytest.raises(InputError, match="this cache has no batch axis to choose along"):
                bare.logit_attrs(rows, 1, batch_slice=0)


@pytest.mark.parametrize("task", PER_POSITION)
@two_sorts
def test_a_cache_of_some_positions(block: str, mlp: str, task: str) -> None:
    _, whole, whole_rows = known(task, block, mlp)
    attributions, constant = whole.logit_attrs(whole_rows, 1), whole.logit_constant(1)
    _, some = run(whole.model, pos_slice=[5, 2])
    assert_close(some.logit_attrs(some.decompose_resid(), 1), attributions[:, :, [5, 2]])
    assert_close(some.logit_constant(1), constant[:, [5, 2]])
    _, dropped = run(whole.model, pos_slice=Slice(5))
    for tokens in (1, torch.ones(3).long()):
        assert_close(dropped.logit_attrs(dropped.decompose_resid(), tokens), attributions[:, :, 5])
        assert_close(dropped.logit_constant(tokens, batch_slice=[1]), constant[[1], 5])


# Models, heads and caches that have no answer


def test_the_head_is_the_one_of_the_models_task() -> None:
    _, cache, rows = known()
    model = cache.model
    with model.use_task("question_answering"):
        logits = model(BATCH["tokens"], "logits", BATCH["types"], BATCH["mask"]).detach()
        assert_close(complete(cache, rows, "end"), logits[..., 1])


def test_without_a_head(tmp_path: Any) -> None:
    save_tiny("BertModel", tmp_path)
    model = HookedEncoder.from_pretrained(str(tmp_path), device="cpu")
    _, cache = model.run_with_cache(torch.arange(5)[None])
    rows = cache.decompose_resid()
    for call in (lambda: cache.logit_attrs(rows, 1), lambda: cache.logit_constant(1)):
        with pytest.raises(TaskError, match="the model has no task; it was loaded without heads"):
            call()


def test_in_training() -> None:
    model = additive_model()
    _, cache = run(model)
    rows = cache.decompose_resid()
    model.train()
    for call in (lambda: cache.logit_attrs(rows, 1), lambda: cache.logit_constant(1)):
        with pytest.raises(AnalysisError, match=r"call model.eval\(\) first"):
            call()


@two_sorts
def test_what_is_missing_is_named(block: str, mlp: str) -> None:
    _, cache, rows = known("masked_lm", block, mlp)
    final = str(cache.model.stream_point(2).name)
    _, without = run(cache.model, names_filter=lambda name: name != final)
    with pytest.raises(HookNameError, match=f"the cache holds no '{final}'"):
        without.logit_attrs(rows, 1)
    _, only = run(cache.model, names_filter=lambda name: name in (final, "ln_final.hook_scale"))
    assert_close(only.logit_attrs(rows, 1), cache.logit_attrs(rows, 1))
    if block == "pre":
        _, without = run(cache.model, names_filter=lambda name: name != "ln_final.hook_scale")
        with pytest.raises(HookNameError, match=r"the cache holds no 'ln_final.hook_scale'"):
            without.logit_attrs(rows, 1)


@pytest.mark.parametrize(("made", "read"), [(True, True), (True, False), (False, True)])
@every_task
def test_inference_mode_and_no_graph(task: str, made: bool, read: bool) -> None:
    logits, clean, _ = known(task, *APART[(TASKS.index(task) + 1) % 2])
    model = clean.model
    with torch.inference_mode(made):
        _, cache = run(model)
    with torch.inference_mode(read):
        assert not cache.accumulated_resid(apply_ln=True, incl_mid=True).requires_grad
        rows = cache.decompose_resid()
        ids = torch.ones(3).long()
        found = [cache.logit_attrs(rows, ids, 0), cache.logit_constant(ids, 0)]
    assert not any(tensor.requires_grad or tensor.grad_fn is not None for tensor in found)
    assert_close(found[0].sum(0) + found[1], logits[..., 1] - logits[..., 0])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(run(model)[0], logits)  # nothing stays frozen


def test_hooks_on_the_head_are_not_part_of_it() -> None:
    model, batch = additive_model(), additive_batch()
    cache = model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"])[1]
    stack = cache.decompose_resid()
    expected = cache.logit_attrs(stack, 5), cache.logit_constant(5)
    with model.hooks([("mlm_head.hook_post", lambda x, hook: x * 0)]):
        assert_close(cache.logit_attrs(stack, 5), expected[0])
        assert_close(cache.logit_constant(5), expected[1])


def test_ids_may_be_a_list() -> None:
    model, batch = additive_model(), additive_batch()
    cache = model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"])[1]
    stack = cache.decompose_resid()
    assert_close(cache.logit_attrs(stack, [1, 2, 3]), cache.logit_attrs(stack, torch.tensor([1, 2, 3])))
