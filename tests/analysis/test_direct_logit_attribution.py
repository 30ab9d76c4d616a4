import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from encoderlens import HookedEncoder
from encoderlens.analysis import AdditiveResult, direct_logit_attribution
from encoderlens.components.freezing import Freezable
from encoderlens.errors import AnalysisError, InputError, TaskError, TokenizerMissingError
from tests.analysis.models import BY_NAME, CASES, PAIRS, TEXTS, made, pre_ln
from tests.analysis.test_result import rows_of
from tests.parity import CHANGE, FORWARD, assert_close, assert_complete, assert_parity, changed_along, largest_of

DOOR = "She opened the [MASK] and walked into the room."
KINDS = ("post", "pre")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def trained():
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu", dtype=torch.float64)


@pytest.fixture(params=KINDS)
def model(request):
    """A post-LN and a pre-LN masked LM; hooks that a test leaves on are an error of that test."""
    yield from checked_for_hooks(made(request.param, "masked_lm"))


@pytest.fixture
def post():
    """Just the post-LN one, for what does not depend on the kind of block."""
    yield from checked_for_hooks(made("post", "masked_lm"))


def checked_for_hooks(model):
    yield model
    left = model.list_hooks()
    model.reset_hooks(including_permanent=True)
    assert not left


def plain_logits(model, inputs, case, index):
    """One logit of the plain forward pass, for each example of a data set."""
    with torch.no_grad():
        logits = model(inputs)
    if not case.per_position:
        return logits[:, index]
    tokens = model.prepare(inputs).tokens
    at = (tokens == model.tokenizer.mask_token_id).int().argmax(1) if case.position is None else case.position
    return logits[torch.arange(len(logits)), at, index]


def by_label(result):
    return dict(zip(result.labels["component"], result.values, strict=True))


# It adds up


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_add_up_to_the_logit_of_the_plain_forward(kind, case, dtype):
    model = made(kind, case.name, dtype)
    result = direct_logit_attribution(model, PAIRS, case.names[0], case.position)
    plain = plain_logits(model, PAIRS, case, case.indices[0])
    assert result.values.dtype == result.total.dtype == dtype
    assert_parity(result.total, plain, None, TOLERANCE[dtype])
    assert_parity(result.values.sum(0), plain, None, TOLERANCE[dtype], largest_of(result.values))
    assert_complete(result, TOLERANCE[dtype])
    assert result.task == case.task
    assert (result.positions is None) == (not case.per_position)


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "regression"], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_baseline_rows_add_up_to_the_difference(kind, case):
    model = made(kind, case.name, torch.float64)
    first, second = case.names
    result = direct_logit_attribution(model, PAIRS, first, case.position, second)
    expected = plain_logits(model, PAIRS, case, case.indices[0]) - plain_logits(model, PAIRS, case, case.indices[1])
    assert_parity(result.total, expected, None, 1e-12)
    assert_complete(result, 1e-12)
    alone = [direct_logit_attribution(model, PAIRS, name, case.position) for name in (first, second)]
    assert_parity(result.values, alone[0].values - alone[1].values, None, 1e-11)


def test_a_target_as_its_own_baseline_leaves_nothing(post):
    result = direct_logit_attribution(post, TEXTS, "nurse", baseline="nurse")
    assert result.error == 0.0
    assert not result.values.any()


# Against the cache


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_logit_attributions_of_the_cache(kind, case):
    model = made(kind, case.name, torch.float64)
    result = direct_logit_attribution(model, PAIRS, case.indices[0], case.position)
    _, cache = model.run_with_cache(PAIRS)
    rows = torch.arange(len(PAIRS))

    def at_the_logit(scores):
        return scores[..., rows, torch.tensor(result.positions)] if case.per_position else scores

    stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    attributed = dict(zip(labels, at_the_logit(cache.logit_attrs(stack, case.indices[0])), strict=True))
    ours = by_label(result)
    assert attributed.keys() <= ours.keys()
    for label, row in attributed.items():
        assert_close(ours[label], row, scale=largest_of(result.values))
    of_the_head = {label: row for label, row in ours.items() if label not in attributed}
    assert set(of_the_head) == set(model.heads[case.task].biases()) | ({"ln_final_b"} if kind == "pre" else set())
    constant = at_the_logit(cache.logit_constant(case.indices[0]))
    assert_close(sum(of_the_head.values()), constant)

    heads, names = cache.stack_head_results(return_labels=True)
    assert_parity(
        torch.stack([ours[name] for name in names]), at_the_logit(cache.logit_attrs(heads, case.indices[0])), None, 1e-10
    )
    assert names == model.all_head_labels()
    written, names = cache.decompose_resid(mode="attn", incl_embeds=False, return_labels=True)
    for layer, row in enumerate(at_the_logit(cache.logit_attrs(written, case.indices[0]))):
        parts = [ours[f"L{layer}H{head}"] for head in range(model.cfg.n_heads)]
        assert_parity(sum(parts) + ours[f"{layer}_b_O"], row, None, 1e-10)
        assert names[layer] == f"{layer}_attn_out"


def test_the_components_in_the_order_of_the_run(model):
    layers = range(model.cfg.n_layers)
    norms = model.ln_final is None
    expected = ["embed", "pos_embed", "token_type_embed", "embed_ln_b"]
    for layer in layers:
        expected += [f"L{layer}H{head}" for head in range(model.cfg.n_heads)] + [f"{layer}_b_O"]
        expected += [f"{layer}_ln1_b"] * norms + [f"{layer}_mlp_out"] + [f"{layer}_ln2_b"] * norms
    expected += ["ln_final_b"] * (not norms) + ["head_b", "head_ln_b", "b_U"]
    assert direct_logit_attribution(model, TEXTS[0], "nurse").labels == {"component": tuple(expected)}


def test_neurons_and_their_bias_add_up_to_the_mlp(model):
    whole = by_label(direct_logit_attribution(model, TEXTS, "nurse"))
    split = direct_logit_attribution(model, TEXTS, "nurse", neurons=True)
    assert_complete(split)
    parts = by_label(split)
    for layer in range(model.cfg.n_layers):
        neurons = [parts.pop(f"L{layer}N{neuron}") for neuron in range(model.cfg.d_mlp)]
        assert_parity(sum(neurons) + parts.pop(f"{layer}_b_out"), whole.pop(f"{layer}_mlp_out"))
    assert parts.keys() == whole.keys()
    for label, row in parts.items():
        assert_close(row, whole[label])


# Against a replay


@pytest.mark.parametrize(("layer", "head"), [(3, 0), (1, 0), (0, 1)])
def test_a_row_is_what_the_logit_loses_when_all_else_is_pinned(trained, layer, head):
    target, position = trained.tokenizer.convert_tokens_to_ids("door"), 4
    logits, cache = trained.run_with_cache(DOOR)

    def pinned(tensor, hook):
        return cache[hook.name]

    def without_head(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    seen = {}

    def gained(tensor, hook):
        return seen["pre"] * cache["mlm_head.hook_post"] / cache["mlm_head.hook_pre"]

    writes = [name for name in cache if name.endswith(("hook_attn_out", "hook_mlp_out"))]
    writes.remove(f"blocks.{layer}.hook_attn_out")
    scales = [name for name in cache if name.endswith("hook_scale")]
    hooks = [
        (f"blocks.{layer}.attn.hook_z", without_head),
        (writes, pinned),
        (scales, pinned),
        ("mlm_head.hook_pre", lambda tensor, hook: seen.update(pre=tensor)),
        ("mlm_head.hook_post", gained),
    ]
    replayed = trained.run_with_hooks(DOOR, fwd_hooks=hooks)[0, position, target]
    row = by_label(direct_logit_attribution(trained, DOOR, "door"))[f"L{layer}H{head}"]
    assert abs(row) > 0.01
    assert_close(logits[0, position, target] - row, replayed)


def test_the_trained_model_says_door_and_it_adds_up(trained):
    result = direct_logit_attribution(trained, DOOR, "door")
    logits = trained(DOOR)[0, 4]
    assert result.target == ("door",)
    assert result.positions == (4,)
    assert logits.argmax() == trained.tokenizer.convert_tokens_to_ids("door")
    assert_close(result.total, logits.max().detach())
    assert_complete(result, 1e-12)
    assert result.total > 5


# Inputs: one, or a data set


def test_one_input_has_no_axis_of_examples(model):
    tokens = model.to_tokens(TEXTS[0])[0]
    one, pair = (direct_logit_attribution(model, inputs, "nurse") for inputs in (TEXTS[0], PAIRS[0]))
    row = direct_logit_attribution(model, tokens[0], "nurse")
    many = direct_logit_attribution(model, [TEXTS[0]], "nurse")
    rows = direct_logit_attribution(model, tokens, "nurse")
    for result in (one, pair, row):
        assert isinstance(result, AdditiveResult)
        assert result.axes == ("component",)
        assert result.values.shape == (len(result.labels["component"]),)
        assert result.total.shape == ()
    for result, label in ((many, TEXTS[0]), (rows, "0")):
        assert result.axes == ("component", "example")
        assert result.labels["example"] == (label,)
        assert_close(result.values[:, 0], one.values)
    assert_close(row.values, one.values)


@pytest.mark.parametrize("inputs", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_a_data_set_is_its_examples_one_by_one(model, inputs):
    targets = ["nurse", 20, "##ing"]
    alone = [direct_logit_attribution(model, one, target, baseline="the") for one, target in zip(inputs, targets, strict=True)]
    joined = tuple(" | ".join(text) if isinstance(text, tuple) else text for text in inputs)
    for batch_size in (1, 2, 32):
        result = direct_logit_attribution(model, inputs, targets, baseline="the", batch_size=batch_size)
        assert_parity(result.values, torch.stack([one.values for one in alone], 1))
        assert_parity(result.total, torch.stack([one.total for one in alone]))
        assert result.positions == tuple(one.positions[0] for one in alone)
        assert result.target == tuple(one.target[0] for one in alone) == ("nurse", "e", "##ing")
        assert result.baseline == ("the", "the", "the")
        assert result.labels["example"] == joined


def test_prepared_tokens_with_types_and_a_mask(model):
    batch = model.prepare(*model.to_tokens(PAIRS))
    from_text = direct_logit_attribution(model, PAIRS, "nurse")
    for batch_size in (1, 2, 32):
        result = direct_logit_attribution(model, batch, "nurse", batch_size=batch_size)
        assert_parity(result.values, from_text.values)
        assert result.positions == from_text.positions
        assert result.labels["example"] == ("0", "1", "2")
    assert direct_logit_attribution(model, model.prepare(PAIRS), "nurse").labels == from_text.labels
    one = model.prepare(batch.tokens[0], one_zero_attention_mask=torch.ones(1, batch.sequence.pos))
    assert direct_logit_attribution(model, one, "nurse").axes == ("component",)


def test_a_batch_is_no_longer_than_its_longest_example(post):
    shapes = []
    with post.hooks([("hook_full_embed", lambda embedded, hook: shapes.append(tuple(embedded.shape[:2])))]):
        direct_logit_attribution(post, TEXTS, "nurse", batch_size=2)
    assert shapes == [(2, 8), (1, 14)]


def test_a_mask_token_in_padding_is_no_mask(post):
    tokens, types, mask = post.to_tokens(TEXTS)
    tokens = tokens.masked_fill(mask == 0, post.tokenizer.mask_token_id)
    result = direct_logit_attribution(post, post.prepare(tokens, types, mask), "nurse")
    assert_parity(result.values, direct_logit_attribution(post, TEXTS, "nurse").values)


def test_means_over_a_data_set(post):
    result = direct_logit_attribution(post, TEXTS, "nurse")
    interval = result.mean()
    assert interval.n == 3
    assert_close(interval.mean, result.values.double().mean(1))
    assert (interval.low < interval.high).sum() > len(interval.mean) / 2
    best = result.top(1)[0]
    assert abs(best.value) == pytest.approx(interval.mean.abs().max().item())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "the list of texts is empty"),
        (torch.zeros(0, 5, dtype=torch.long), r"token ids have shape \[0, 5\]"),
        (torch.zeros(1, 2, 5, dtype=torch.long), r"token ids have shape \[1, 2, 5\]"),
        (torch.zeros(2, 5), "token ids are whole numbers, not float32"),
        (np.zeros((2, 5)), "token ids are whole numbers, not float64"),
        (None, "there is no input: give text, token ids"),
        ((text for text in TEXTS), "input is a generator"),
        ([1, 2, 3], "input 0 is an int; text is a string"),
        (["the", ("the", "a")], "the list mixes single texts and pairs"),
        ("the " * 40, "text 0 has 42 tokens, the model takes 37"),
    ],
)
def test_inputs_that_cannot_be_read(post, inputs, message):
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(post, inputs, "nurse")


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_batch_sizes_that_are_none(post, batch_size, unchecked):
    with pytest.raises(InputError, match=f"batch_size={batch_size!r}; it is a whole number from 1"):
        direct_logit_attribution(post, TEXTS, "nurse", batch_size=batch_size)


# Positions


@pytest.mark.parametrize(
    "position",
    [3, torch.tensor(3), np.int64(3), [3, 3, 3], (3, 3, 3), torch.tensor([3, 3, 3]), np.array([3, 3, 3])],
    ids=["int", "tensor", "numpy", "list", "tuple", "tensors", "array"],
)
def test_one_position_for_all_or_one_each(post, position):
    result = direct_logit_attribution(post, TEXTS, "nurse", position)
    assert result.positions == (3, 3, 3)
    assert_parity(result.total, post(TEXTS)[:, 3, 182].detach())


def test_positions_of_their_own(post):
    result = direct_logit_attribution(post, TEXTS, "nurse", [1, 0, 4], batch_size=2)
    assert result.positions == (1, 0, 4)
    assert_parity(result.total, post(TEXTS)[torch.arange(3), torch.tensor([1, 0, 4]), 182].detach())


def test_among_two_masks_a_position_chooses(post):
    text = "the [MASK] and the [MASK]"
    results = [direct_logit_attribution(post, text, "nurse", position) for position in (2, 5)]
    assert_parity(torch.stack([result.total for result in results]), post(text)[0, [2, 5], 182].detach())


@pytest.mark.parametrize(
    ("inputs", "position", "message"),
    [
        ([*TEXTS, "the [MASK] and the [MASK]"], None, r"sequence 3 has 2 mask tokens \(at 2, 5\), not one"),
        ([*TEXTS, "no"], None, "sequence 3 has 0 mask tokens, not one: put"),
        (TEXTS, -1, "there is no position -1 in sequence 0: positions run from 0 to 13"),
        (TEXTS, [1, 1, 14], "there is no position 14 in sequence 2"),
        (TEXTS, [1, 5, 1], "position 5 of sequence 1 is padding"),
        (TEXTS, 5, "position 5 of sequence 1 is padding"),
        (TEXTS, [1, 2], "position has 2 entries for 3 examples; give one for all, or one each"),
        (TEXTS, [1, 2, None], "there is no position None in sequence 2"),
        (TEXTS, [[1], [2], [3]], r"there is no position \[1\] in sequence 0"),
        (TEXTS, "[MASK]", r"there is no position '\[MASK\]' in sequence 0"),
        (TEXTS, 1.0, "there is no position 1.0 in sequence 0"),
        (TEXTS, True, "there is no position True in sequence 0"),
    ],
)
def test_positions_that_are_not_there_are_refused_before_anything_runs(post, inputs, position, message):
    runs = []
    post.add_perma_hook("hook_full_embed", lambda tensor, hook: runs.append(hook.name))
    try:
        with pytest.raises(InputError, match=message):
            direct_logit_attribution(post, inputs, "nurse", position, batch_size=1)
        assert runs == []
        direct_logit_attribution(post, TEXTS, "nurse", batch_size=2)
        assert len(runs) == 2
    finally:
        post.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("name", ["next_sentence", "classification", "regression"])
def test_a_head_with_one_row_a_sequence_takes_no_position(name):
    case = BY_NAME[name]
    with pytest.raises(InputError, match=f"the {case.task} head has one row a sequence: leave position out"):
        direct_logit_attribution(made("post", name), PAIRS, 0, position=0)


@pytest.mark.parametrize("name", ["token_labels", "answers"])
def test_a_head_with_logits_everywhere_needs_a_position(name):
    with pytest.raises(InputError, match="has logits for every position: say which with position="):
        direct_logit_attribution(made("post", name), PAIRS, 0)


# Targets


@pytest.mark.parametrize(
    ("target", "index", "name"),
    [
        ("nurse", 182, "nurse"),
        (182, 182, "nurse"),
        (torch.tensor(182), 182, "nurse"),
        (np.int64(182), 182, "nurse"),
        ("##ing", 185, "##ing"),
        (" nurse ", 182, "nurse"),
        ("[MASK]", 4, "[MASK]"),
        ("[UNK]", 1, "[UNK]"),
        (0, 0, "[PAD]"),
    ],
)
def test_a_target_by_id_or_as_the_tokenizer_writes_it(post, target, index, name):
    result = direct_logit_attribution(post, TEXTS[0], target)
    assert result.target == (name,)
    assert_parity(result.total, post(TEXTS[0])[0, 3, index].detach())


@pytest.mark.parametrize(
    "targets",
    [[182, 20, 185], ("nurse", "e", "##ing"), torch.tensor([182, 20, 185]), np.array([182, 20, 185]), ["nurse", 20, 185]],
    ids=["ids", "strings", "tensor", "array", "both"],
)
def test_a_target_each(post, targets):
    as_target = direct_logit_attribution(post, TEXTS, targets)
    as_baseline = direct_logit_attribution(post, TEXTS, "the", baseline=targets)
    assert as_target.target == as_baseline.baseline == ("nurse", "e", "##ing")
    places = torch.arange(3), torch.tensor(as_target.positions)
    logits = post(TEXTS)[places].detach()
    chosen = logits[torch.arange(3), torch.tensor([182, 20, 185])]
    assert_parity(as_target.total, chosen)
    assert_parity(as_baseline.total, logits[:, post.tokenizer.convert_tokens_to_ids("the")] - chosen)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("walking", "the target 'walking' is no single token: the tokenizer makes w, .* of it; give one of these"),
        ("the nurse", "the tokenizer makes the, nurse of it; give one of these"),
        ("", "the tokenizer has no token for the target ''; give another, or a token id"),
        ("☃", "the tokenizer has no token for the target '☃'"),
        ("the ☃", "the tokenizer has no token for the target 'the ☃'"),
        (188, "the target 188 is no token id of this head: a number from 0 to 187, or a name"),
        (-1, "the target -1 is no token id"),
        (1.0, "the target 1.0 is no token id"),
        (True, "the target True is no token id"),
        (None, "the target None is no token id"),
        (["nurse", "doctor"], "target has 2 entries for 3 examples; give one for all, or one each"),
        ([["nurse"]] * 3, r"the target \['nurse'\] is no token id"),
    ],
)
def test_targets_that_are_not_there(post, target, message):
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(post, TEXTS, target)
    if target is not None:
        with pytest.raises(InputError, match=message.replace("target has", "baseline has")):
            direct_logit_attribution(post, TEXTS, "nurse", baseline=target)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        (
            "classification",
            "god",
            "the sequence_classification head has no 'god'; did you mean 'good'.*; it has 'bad', 'so-so'",
        ),
        ("classification", 3, "the target 3 is no class of this head: a number from 0 to 2"),
        ("answers", "middle", "the question_answering head has no 'middle'; it has 'start', 'end'"),
        ("regression", 1, "the target 1 is no class of this head"),
    ],
)
def test_classes_that_are_not_there(name, target, message):
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(made("post", name), PAIRS, target, BY_NAME[name].position)


def test_without_a_tokenizer_there_are_ids_and_positions():
    with_one, model = made("pre", "masked_lm"), pre_ln(BY_NAME["masked_lm"].part)
    tokens = with_one.to_tokens(TEXTS[0])[0]
    result = direct_logit_attribution(model, tokens[0], 182, position=3)
    assert_close(result.values, direct_logit_attribution(with_one, TEXTS[0], "nurse").values)
    assert result.target == ("182",)
    with pytest.raises(TokenizerMissingError, match="'nurse' is a word, and this model has no tokenizer: give a token id"):
        direct_logit_attribution(model, tokens, "nurse", 3)
    with pytest.raises(InputError, match="without a tokenizer's mask token, say where with position="):
        direct_logit_attribution(model, tokens, 182)
    with pytest.raises(TokenizerMissingError, match="text input needs a tokenizer"):
        direct_logit_attribution(model, TEXTS, 182)


# Models


def test_a_model_without_a_head():
    with pytest.raises(TaskError, match="reads the logits of a head, and the model has no task; it was loaded without heads"):
        direct_logit_attribution(pre_ln(), torch.tensor([1, 2, 3]), 0)


def test_a_model_without_a_task(bert):
    bert.task = None
    with pytest.raises(TaskError, match=r"set model\.task to one of its heads: masked_lm, next_sentence"):
        direct_logit_attribution(bert, TEXTS, "nurse")


def test_the_head_is_that_of_the_task(bert):
    with bert.use_task("next_sentence"):
        result = direct_logit_attribution(bert, PAIRS, 1)
    assert result.task == "next_sentence"
    assert_parity(result.total, bert.next_sentence(PAIRS)[:, 1].detach())


def test_training_mode_is_refused():
    model = pre_ln(BY_NAME["masked_lm"].part).train()
    with pytest.raises(AnalysisError, match=r"call model\.eval\(\) first"):
        direct_logit_attribution(model, torch.tensor([1, 2, 3]), 0, 1)


# What is around it


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode(model, mode):
    outside = direct_logit_attribution(model, TEXTS, ["nurse", "e", 3], baseline="the")
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        tokens, types, mask = model.to_tokens(TEXTS)
        batch = model.prepare(tokens, types, mask)
        positions, targets = torch.tensor(outside.positions), torch.tensor([182, 20, 3])
        results = [
            direct_logit_attribution(model, TEXTS, ["nurse", "e", 3], baseline="the"),
            direct_logit_attribution(model, batch, targets, positions, baseline="the", batch_size=2),
        ]
        with pytest.raises(InputError):
            direct_logit_attribution(model, TEXTS, "☃")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    for result in results:
        assert_parity(result.values, outside.values)
        assert not result.values.requires_grad
        assert not result.total.requires_grad
        assert not result.values.is_inference()


@pytest.mark.parametrize("trainable", [True, False])
def test_parameters_keep_their_gradients(trainable):
    model = pre_ln(BY_NAME["masked_lm"].part)
    model.blocks[0].attn.requires_grad_(False)
    model.requires_grad_(trainable)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 7.0) if index % 2 else None
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    result = direct_logit_attribution(model, torch.tensor([[1, 2, 3]]), 5, 1, neurons=True)
    assert_complete(result)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert parameter.grad is before[name][1]
        assert parameter.grad is None or bool((parameter.grad == 7.0).all())
        assert torch.equal(parameter, weights[name])


def left_on(model):
    """Hooks of either kind, and modules that are frozen."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    frozen = [module for module in model.modules() if isinstance(module, Freezable) and module.frozen]
    return [*model.list_hooks(), *hooks, *frozen]


def test_nothing_is_left_on_the_model(model):
    before = model(TEXTS)
    direct_logit_attribution(model, TEXTS, "nurse", neurons=True)
    assert left_on(model) == []
    assert torch.equal(model(TEXTS), before)


def test_nothing_is_left_after_an_exception(model):
    before = model(TEXTS)

    def broken(tensor, hook):
        raise ArithmeticError(hook.name)

    model.add_perma_hook("blocks.1.hook_mlp_out", broken)
    with pytest.raises(ArithmeticError, match=r"blocks\.1\.hook_mlp_out"):
        direct_logit_attribution(model, TEXTS, "nurse")
    assert [len(handles) for handles in model.list_hooks().values()] == [1]
    model.reset_hooks(including_permanent=True)
    assert left_on(model) == []
    assert torch.equal(model(TEXTS), before)


@pytest.mark.parametrize("permanent", [True, False])
def test_hooks_of_the_user_take_part(model, permanent):
    def ablated(z, hook):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    intact = direct_logit_attribution(model, TEXTS, "nurse")
    model.add_hook("blocks.1.attn.hook_z", ablated, is_permanent=permanent)
    try:
        result = direct_logit_attribution(model, TEXTS, "nurse", neurons=True)
        logits = model(TEXTS)[torch.arange(3), torch.tensor(result.positions), 182].detach()
        assert list(model.list_hooks()) == ["blocks.1.attn.hook_z"]
    finally:
        model.reset_hooks(including_permanent=True)
    assert_parity(result.total, logits)
    assert_complete(result)
    assert not by_label(result)["L1H2"].any()
    assert by_label(intact)["L1H2"].all()
    assert changed_along(0, result.total, intact.total) == [True] * 3


def test_inside_a_context_of_hooks(model):
    with model.hooks([("blocks.0.mlp.hook_post", lambda post, hook: post * 0)]):
        result = direct_logit_attribution(model, TEXTS, "nurse", neurons=True)
        logits = model(TEXTS)[torch.arange(3), torch.tensor(result.positions), 182].detach()
    assert_parity(result.total, logits)
    assert_complete(result)
    rows = by_label(result)
    assert not any(rows[f"L0N{neuron}"].any() for neuron in range(model.cfg.d_mlp))
    assert rows["0_b_out"].all()


def test_what_hooks_add_to_the_stream_or_in_the_head_has_a_row_of_its_own(model):
    intact = direct_logit_attribution(model, TEXTS, "nurse")
    assert "hooks" not in intact.labels["component"]
    for name in ("hook_full_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "mlm_head.hook_post"):
        with model.hooks([(name, lambda x, hook: x + torch.linspace(-1, 1, x.shape[-1]))]):
            result = direct_logit_attribution(model, TEXTS, "nurse")
            logits = model(TEXTS)[torch.arange(3), torch.tensor(result.positions), 182].detach()
        assert_parity(result.total, logits)
        assert_complete(result, 1e-6)
        assert by_label(result)["hooks"].abs().min() > CHANGE * largest_of(result.total)


def test_hooks_that_edit_some_batches_only(model):
    runs = []

    def edit_the_second_run(x, hook):
        runs.append(hook.name)
        return x + torch.linspace(-1, 1, x.shape[-1]) if len(runs) == 2 else None

    with model.hooks([("blocks.1.hook_resid_pre", edit_the_second_run)]):
        result = direct_logit_attribution(model, TEXTS, "nurse", batch_size=1)
    added = by_label(result)["hooks"]
    assert added[1].abs() > CHANGE * largest_of(result.total)
    assert largest_of(added[[0, 2]]) <= FORWARD * largest_of(result.total)
    assert_complete(result, 1e-6)


def test_a_stream_that_a_hook_replaces_cuts_off_what_was_written_before(model):
    with model.hooks([("blocks.1.hook_resid_pre", lambda x, hook: x.detach() * 1)]):
        rows = by_label(direct_logit_attribution(model, TEXTS, "nurse"))
    assert not rows["L0H1"].any()
    assert not rows["embed"].any()
    assert rows["L1H1"].all()
    assert rows["hooks"].all()


def test_hooks_that_only_look_change_nothing(model):
    seen, intact = [], direct_logit_attribution(model, TEXTS, "nurse")
    names = ["blocks.0.hook_attn_out", "blocks.1.hook_resid_pre", "unembed.hook_in"]
    with model.hooks([(names, lambda x, hook: seen.append(hook.name))]):
        result = direct_logit_attribution(model, TEXTS, "nurse")
    assert seen == names
    assert result.labels == intact.labels
    assert_parity(result.values, intact.values)


def test_a_hook_that_changes_a_whole_write_is_refused(model):
    with (
        model.hooks([("blocks.1.hook_attn_out", lambda out, hook: out * 0)]),
        pytest.raises(AnalysisError, match=r"a hook edits blocks\.1\.hook_attn_out"),
    ):
        direct_logit_attribution(model, TEXTS, "nurse")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_hooks_change_does_not_depend_on_rounding(dtype):
    model = made("post", "masked_lm", dtype)
    for factor in (0.99, 1.01):
        with (
            model.hooks([("blocks.1.hook_attn_out", lambda out, hook, factor=factor: (out.float() * factor).to(dtype))]),
            pytest.raises(AnalysisError, match=r"a hook edits blocks\.1\.hook_attn_out"),
        ):
            direct_logit_attribution(model, TEXTS, "nurse")
    with model.hooks([("blocks.1.hook_resid_pre", lambda x, hook: x + 0.01)]):
        assert "hooks" in direct_logit_attribution(model, TEXTS, "nurse").labels["component"]
    with model.hooks([("blocks.1.hook_attn_out", lambda out, hook: out.clone())]):
        assert "hooks" not in direct_logit_attribution(model, TEXTS, "nurse").labels["component"]


def test_backward_hooks_do_not_change_rows(model):
    intact = direct_logit_attribution(model, TEXTS, "nurse")
    names = ["blocks.1.hook_resid_pre", "mlm_head.hook_post", "blocks.0.hook_mlp_out"]
    with model.hooks(bwd_hooks=[(names, lambda gradient, hook: 3 * gradient)]):
        result = direct_logit_attribution(model, TEXTS, "nurse")
    assert torch.equal(result.values, intact.values)


@pytest.mark.parametrize("name", ["mlm_head.hook_post", "unembed.hook_out", "blocks.1.hook_resid_post"])
def test_a_constant_in_place_of_what_flows_is_all_of_the_logit(model, name):
    with model.hooks([(name, lambda x, hook: torch.full_like(x, 0.5))]):
        result = direct_logit_attribution(model, TEXTS, "nurse")
    rows = by_label(result)
    assert not rows["embed"].any()
    assert not rows["L0H0"].any()
    assert_complete(result)


def test_a_part_in_training_mode_is_named(model):
    model.blocks[1].attn.train()
    try:
        with pytest.raises(AnalysisError, match=r"blocks\.1\.attn.* of the model is in training mode"):
            direct_logit_attribution(model, TEXTS, "nurse")
    finally:
        model.eval()


# The result


def test_it_is_frozen_and_goes_through_json(post):
    result = direct_logit_attribution(post, TEXTS, ["nurse", "e", "##ing"], baseline="the")
    with pytest.raises(FrozenInstanceError):
        result.task = "another"
    read = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert read == result.to_dict()
    assert read["axes"] == ["component", "example"]
    assert (read["target"], read["baseline"]) == (["nurse", "e", "##ing"], ["the"] * 3)
    assert read["positions"] == list(result.positions)
    assert read["error"] == result.error
    assert torch.equal(torch.tensor(read["values"]), result.values)
    assert torch.equal(torch.tensor(read["total"]), result.total)
    again = type(result)(
        values=torch.tensor(read["values"]),
        axes=tuple(read["axes"]),
        labels={axis: tuple(names) for axis, names in read["labels"].items()},
        total=torch.tensor(read["total"]),
        task=read["task"],
        target=tuple(read["target"]),
        baseline=tuple(read["baseline"]),
        positions=tuple(read["positions"]),
        tokens=tuple(read["tokens"]),
    )
    assert again.to_json() == result.to_json()


def test_the_table_has_the_strongest_components_the_total_and_the_error(trained):
    result = direct_logit_attribution(trained, DOOR, "door")
    lines = str(result).splitlines()
    assert lines[0].strip() == "Direct logit attribution: door at 4 [MASK]"
    assert rows_of(str(result))[1:] == [[entry.labels[0], f"{entry.value:.4g}"] for entry in result.top()]
    assert "L3H0" in str(result)
    assert lines[-1].strip() == f"adds up to {result.total:.4g}; completeness error {result.error:.1g}"


def test_the_title_names_what_all_examples_share(post):
    def title(target, baseline=None):
        return str(direct_logit_attribution(post, TEXTS, target, baseline=baseline)).splitlines()[0].strip()

    assert title("[MASK]", "[UNK]") == "Direct logit attribution: [MASK] minus [UNK]"
    assert title(["nurse", "e", "e"]) == "Direct logit attribution: of each example"
    assert title("nurse", ["a", "b", "c"]) == "Direct logit attribution: nurse minus of each example"
