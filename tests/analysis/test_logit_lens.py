import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from encoderlens import HookedEncoder
from encoderlens.analysis import logit_lens
from encoderlens.errors import AnalysisError, InputError, TaskError
from tests.analysis.models import BY_NAME, CASES, LABELS, PAIRS, TEXTS, made, pre_ln
from tests.analysis.test_result import rows_of
from tests.parity import assert_close, assert_parity

DOOR = "She opened the [MASK] and walked into the room."
KINDS = ("post", "pre")


@pytest.fixture(scope="module")
def trained():
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")


@pytest.fixture(params=KINDS)
def model(request):
    return made(request.param, "masked_lm", torch.float64)


@pytest.fixture
def post():
    """Just the post-LN one, for what does not depend on the kind of block."""
    return made("post", "masked_lm", torch.float64)


def probabilities(case, logits, mask):
    """What the logits of a case's head [batch *pos output] say, by the formula of its task."""
    if case.name == "regression":
        return logits
    if case.name == "multi_label":
        return 1 / (1 + (-logits).exp())
    if case.name == "answers":
        logits = logits + mask.log().unsqueeze(-1)  # over real positions
        return logits.exp() / logits.exp().sum(1, keepdim=True)
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def streams_by_hand(model, inputs):
    """Every stream, and the logits of the model's head on it if nothing more were written, by their labels."""
    batch, n_layers = model.prepare(inputs), model.cfg.n_layers
    _, cache = model.run_with_cache(batch)
    passed_norms = model.ln_final is None
    names = {}
    for layer in range(n_layers):
        names[f"{layer}_pre"] = f"blocks.{layer}.hook_resid_pre" if layer else "hook_full_embed"
        names[f"{layer}_mid"] = f"blocks.{layer}.hook_{'normalized_' if passed_norms else ''}resid_mid"
    names["final_post"] = f"blocks.{n_layers - 1}.hook_{'normalized_' if passed_norms else ''}resid_post"
    mask = batch.sequence.mask
    read = {label: cache[name] for label, name in names.items()}
    return {
        label: model(stream, "logits", one_zero_attention_mask=mask, start_at_layer=n_layers) for label, stream in read.items()
    }


# What it reads


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_stream_goes_through_the_models_own_head(kind, case):
    model = made(kind, case.name, torch.float64)
    lens = logit_lens(model, PAIRS, top_k=4)
    mask = model.to_tokens(PAIRS)[2]
    by_hand = streams_by_hand(model, PAIRS)
    assert lens.labels["stream"] == tuple(by_hand)
    assert lens.axes == (("stream", "example", "pos", "rank") if case.per_position else ("stream", "example", "rank"))
    for values, ids, logits in zip(lens.values, lens.ids, by_hand.values(), strict=True):
        expected = probabilities(case, logits, mask.double())
        best = expected.topk(min(4, expected.shape[-1]))
        real = mask.bool() if case.per_position else slice(None)
        assert_close(values[real], best.values[real].detach())
        assert torch.equal(ids[real], best.indices[real])
        if case.per_position:
            assert values[~real].isnan().all()
            assert (ids[~real] == -1).all()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_stream_says_what_the_model_says(kind, case):
    model = made(kind, case.name)
    lens = logit_lens(model, TEXTS[0], top_k=1000)
    expected = probabilities(case, model(TEXTS[0]), torch.ones(1, len(model.to_str_tokens(TEXTS[0]))))[0].detach()
    assert_close(lens.values[-1], expected.sort(descending=True).values)
    assert_close(expected.gather(-1, lens.ids[-1]), lens.values[-1])
    if case.name not in ("regression", "multi_label", "answers"):
        assert_close(lens.values.sum(-1), torch.ones(lens.values.shape[:-1]))
    if case.name == "answers":
        starts = torch.where(lens.ids == 0, lens.values, 0.0).sum((1, 2))
        assert_close(starts, torch.ones(len(starts)))


def test_the_head_written_out():
    model = made("post", "masked_lm", torch.float64)
    lens = logit_lens(model, TEXTS[0], positions=3)
    _, cache = model.run_with_cache(TEXTS[0])
    with torch.no_grad():
        x = cache["blocks.1.hook_resid_mid"][0, 3]
        normed = (x - x.mean()) / (x.var(correction=0) + model.cfg.eps).sqrt() * model.blocks[1].ln1.w + model.blocks[1].ln1.b
        hidden = F.gelu(normed @ model.mlm_head.W + model.mlm_head.b)
        scale = (hidden.var(correction=0) + model.cfg.eps).sqrt()
        hidden = (hidden - hidden.mean()) / scale * model.mlm_head.ln.w + model.mlm_head.ln.b
        best = (hidden @ model.W_U + model.b_U).softmax(-1).topk(5)
    row = lens.labels["stream"].index("1_mid")
    assert_close(lens.values[row, 0], best.values)
    assert torch.equal(lens.ids[row, 0], best.indices)


def test_the_streams_in_the_order_of_the_run(model):
    expected = [f"{layer}_{place}" for layer in range(model.cfg.n_layers) for place in ("pre", "mid")]
    assert logit_lens(model, TEXTS[0], 0).labels["stream"] == (*expected, "final_post")


def test_the_trained_model_says_door(trained):
    lens = logit_lens(trained, DOOR)
    mask = lens.labels["pos"].index("4 [MASK]")
    names = [lens.names[index] for index in lens.ids[-1, mask].tolist()]
    assert names[:3] == ["door", "room", "house"]
    assert lens.values[-1, mask, 0] > 0.3
    assert lens.values[0, mask, 0] < 0.1
    opened = lens.labels["pos"].index("2 opened")
    assert [lens.names[index] for index in lens.ids[:, opened, 0].tolist()] == ["opened"] * len(lens.labels["stream"])


# Positions and data sets


@pytest.mark.parametrize(
    ("positions", "numbers"),
    [
        (3, [3]),
        ([3], [3]),
        ([4, 1, 4], [4, 1, 4]),
        ((0, 2), [0, 2]),
        (range(1, 4), [1, 2, 3]),
        (torch.tensor(3), [3]),
        (torch.tensor([2, 3]), [2, 3]),
        (np.array([2, 3]), [2, 3]),
        (np.int64(2), [2]),
    ],
    ids=repr,
)
def test_positions_choose_columns(post, positions, numbers):
    every, chosen = logit_lens(post, TEXTS[0]), logit_lens(post, TEXTS[0], positions)
    assert_close(chosen.values, every.values[:, numbers])
    assert torch.equal(chosen.ids, every.ids[:, numbers])
    tokens = post.to_str_tokens(TEXTS[0])
    assert chosen.labels["pos"] == tuple(f"{number} {tokens[number]}" for number in numbers)


def test_answers_at_chosen_positions_are_still_over_all():
    model = made("post", "answers")
    every, chosen = logit_lens(model, PAIRS), logit_lens(model, PAIRS, [1, 3])
    assert_close(chosen.values, every.values[:, :, [1, 3]])


@pytest.mark.parametrize("inputs", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_a_data_set_is_its_examples_one_by_one_and_padding(model, inputs):
    every_alone = [logit_lens(model, text, top_k=3) for text in inputs]
    lengths = model.to_tokens(inputs)[2].sum(1).tolist()
    for batch_size in (1, 2, 32):
        lens = logit_lens(model, inputs, top_k=3, batch_size=batch_size)
        assert lens.labels["pos"] == tuple(map(str, range(max(lengths))))
        assert lens.labels["example"] == tuple(" | ".join(text) if isinstance(text, tuple) else text for text in inputs)
        for index, (alone, length) in enumerate(zip(every_alone, lengths, strict=True)):
            assert alone.axes == ("stream", "pos", "rank")
            assert_close(lens.values[:, index, :length], alone.values)
            assert torch.equal(lens.ids[:, index, :length], alone.ids)
            assert lens.values[:, index, length:].isnan().all()
            assert (lens.ids[:, index, length:] == -1).all()
            assert alone.names.items() <= lens.names.items()
        assert set(lens.names) == set(lens.ids.flatten().tolist()) - {-1}


def test_tokens_and_prepared_batches(post):
    tokens, types, mask = post.to_tokens(PAIRS)
    text = logit_lens(post, PAIRS, batch_size=2)
    prepared = logit_lens(post, post.prepare(tokens, types, mask), batch_size=2)
    assert_close(prepared.values, text.values, equal_nan=True)
    assert torch.equal(prepared.ids, text.ids)
    assert prepared.labels["example"] == ("0", "1", "2")
    one = logit_lens(post, post.to_tokens(TEXTS[0])[0][0])
    assert one.to_dict() == logit_lens(post, TEXTS[0]).to_dict()
    many = logit_lens(post, tokens)
    assert many.axes == ("stream", "example", "pos", "rank")
    assert not many.values.isnan().any()  # nothing says that some of it is padding


def test_the_values_of_a_data_set_have_no_mean(post):
    with pytest.raises(InputError, match="different ones, so their values have no mean"):
        logit_lens(post, TEXTS, positions=[0, 1]).mean()


def test_top_names_the_output(post):
    lens = logit_lens(post, TEXTS, positions=[0, 1])
    best = lens.top(3)
    assert best[0].value == pytest.approx(lens.values.max().item())
    assert [entry.value for entry in best] == sorted((entry.value for entry in best), reverse=True)
    at = tuple(torch.unravel_index(lens.values.argmax(), lens.values.shape))
    stream, example, pos, rank, output = best[0].labels
    assert (stream, example) == (lens.labels["stream"][at[0]], lens.labels["example"][at[1]])
    assert (pos, rank, output) == (lens.labels["pos"][at[2]], "1", lens.names[int(lens.ids[at])])


def test_positions_of_each_examples_own(post):
    own = [[1, 3], [0, 2], [2, 1]]
    lens = logit_lens(post, TEXTS, positions=own)
    assert lens.labels["pos"] == ("1, 0, 2", "3, 2, 1")
    for row, at in enumerate(own):
        assert_close(lens.values[:, row], logit_lens(post, TEXTS[row], at).values)
    assert_close(logit_lens(post, TEXTS, torch.tensor(own)).values, lens.values)
    for wrong in ([[1], [2]], [[1], [2, 3], [4]], [[1], 2, [3]], [[], [], []]):
        with pytest.raises(InputError, match="positions"):
            logit_lens(post, TEXTS, positions=wrong)


def test_hooks_have_their_say_once(post):
    seen = []
    post.add_hook("blocks.0.ln1.hook_scale", lambda scale, hook: seen.append(hook.name), is_permanent=True)
    post.add_hook("mlm_head.hook_post", lambda x, hook: x * 0, is_permanent=True)
    try:
        lens = logit_lens(post, TEXTS[0], positions=1)
    finally:
        post.reset_hooks(including_permanent=True)
    assert seen == ["blocks.0.ln1.hook_scale"]
    assert_close(lens.values, logit_lens(post, TEXTS[0], positions=1).values)


@pytest.mark.parametrize(
    ("inputs", "positions", "message"),
    [
        (TEXTS[0], -1, "there is no position -1 in sequence 0: positions run from 0 to 7"),
        (TEXTS[0], [0, 8], "there is no position 8 in sequence 0"),
        (TEXTS[0], "3", "there is no position '3' in sequence 0"),
        (TEXTS[0], 3.0, "there is no position 3.0 in sequence 0"),
        (TEXTS[0], True, "there is no position True in sequence 0"),
        (TEXTS[0], [], "the list of positions is empty; leave positions out for all of them"),
        (TEXTS, [0, 5], "position 5 of sequence 1 is padding"),
        ([TEXTS[0], TEXTS[0], TEXTS[1]], 5, "position 5 of sequence 2 is padding"),
    ],
)
def test_positions_that_are_not_there(post, inputs, positions, message):
    runs = []
    with (
        post.hooks([("hook_full_embed", lambda tensor, hook: runs.append(hook.name))]),
        pytest.raises(InputError, match=message),
    ):
        logit_lens(post, inputs, positions, batch_size=1)
    assert runs == []


@pytest.mark.parametrize("name", ["next_sentence", "classification", "regression", "multi_label"])
def test_a_head_with_one_row_a_sequence_has_no_axis_of_positions(name):
    model = made("post", name)
    one, many = logit_lens(model, PAIRS[0]), logit_lens(model, PAIRS, batch_size=2)
    assert one.axes == ("stream", "rank")
    assert many.axes == ("stream", "example", "rank")
    assert_close(many.values[:, 0], one.values)
    assert str(one)
    with pytest.raises(InputError, match=f"the {one.task} head has one row a sequence: leave positions out"):
        logit_lens(model, PAIRS[0], positions=0)


# What it keeps


@pytest.mark.parametrize("top_k", [1, 2, 7, 188, 189])
def test_the_best_outputs_first_and_not_more_than_there_are(post, top_k):
    lens = logit_lens(post, TEXTS[0], 3, top_k)
    kept = min(top_k, 188)
    assert lens.values.shape == lens.ids.shape == (7, 1, kept)
    assert lens.labels["rank"] == tuple(str(rank) for rank in range(1, kept + 1))
    assert (lens.values.diff(dim=-1) <= 0).all()
    assert all(len(set(row)) == kept for row in lens.ids[:, 0].tolist())


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, None, "5"])
def test_counts_that_are_none(post, top_k, unchecked):
    with pytest.raises(InputError, match=f"top_k={top_k!r}; it is a whole number from 1"):
        logit_lens(post, TEXTS[0], top_k=top_k)


def test_names_of_outputs(post):
    lens = logit_lens(post, TEXTS[0], top_k=188)
    assert lens.names == {index: post.tokenizer.convert_ids_to_tokens(index) for index in range(188)}
    assert (lens.task, lens.measure) == ("masked_lm", "probability")
    labels = logit_lens(made("pre", "token_labels"), TEXTS[0])
    assert labels.names == dict(enumerate(LABELS))
    answers = logit_lens(made("post", "answers"), PAIRS[0])
    assert answers.names == {0: "start", 1: "end"}


def test_a_vocabulary_that_is_larger_than_its_tokenizers(post):
    model = pre_ln(BY_NAME["masked_lm"].part, tokenizer=post.tokenizer, n_vocab=192)
    lens = logit_lens(model, TEXTS[0], 3, top_k=192)
    assert {lens.names[index] for index in range(188, 192)} == {"188", "189", "190", "191"}
    assert str(lens)


def test_without_a_tokenizer_there_are_numbers(post):
    model = pre_ln(BY_NAME["masked_lm"].part)
    lens = logit_lens(model, torch.tensor([2, 17, 3]), top_k=2)
    assert lens.labels["pos"] == ("0", "1", "2")
    assert all(name == str(index) for index, name in lens.names.items())


# Models and modes


def test_training_mode_is_refused():
    model = pre_ln(BY_NAME["masked_lm"].part).train()
    with pytest.raises(AnalysisError, match=r"call model\.eval\(\) first"):
        logit_lens(model, torch.tensor([1, 2, 3]))


def test_a_model_without_a_head():
    with pytest.raises(TaskError, match="the model has no task; it was loaded without heads"):
        logit_lens(pre_ln(), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode(post, mode):
    outside = logit_lens(post, TEXTS)
    with mode():
        inside = logit_lens(post, TEXTS)
        prepared = logit_lens(post, post.prepare(*post.to_tokens(TEXTS)), batch_size=2)
    for lens in (inside, prepared):
        assert_close(lens.values, outside.values, equal_nan=True)
        assert not lens.values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    lens = logit_lens(made("post", "masked_lm", dtype), TEXTS, positions=3)
    assert lens.values.dtype == torch.float32
    exact = logit_lens(made("post", "masked_lm"), TEXTS, positions=3)
    assert_parity(lens.values, exact.values, tolerance=0.05)


def test_hooks_of_the_user_take_part_and_nothing_is_left(model):
    before = logit_lens(model, TEXTS, 0)

    def ablated(z, hook):
        return z * 0

    with model.hooks([("blocks.1.attn.hook_z", ablated)]):
        lens = logit_lens(model, TEXTS, 0)
        expected = model(TEXTS)[:, 0].softmax(-1).topk(5).values.detach()
    assert_close(lens.values[-1, :, 0], expected)
    first = lens.labels["stream"].index("1_mid")
    assert torch.equal(lens.values[:first], before.values[:first])
    assert (lens.values[first:] != before.values[first:]).flatten(1).any(1).all()
    assert not model.list_hooks()
    assert torch.equal(logit_lens(model, TEXTS, 0).values, before.values)


# The result


def test_it_is_frozen_and_strict_json(model):
    lens = logit_lens(model, TEXTS, top_k=2)
    with pytest.raises(FrozenInstanceError):
        lens.task = "another"
    read = json.loads(lens.to_json(), parse_constant=pytest.fail)
    assert read["axes"] == ["stream", "example", "pos", "rank"]
    assert read["values"][0][1][7] == [None, None]
    assert read["ids"] == lens.ids.tolist()
    assert read["names"] == {str(index): name for index, name in lens.names.items()}
    assert (read["task"], read["measure"]) == ("masked_lm", "probability")
    assert read["values"][0][0][:8] == lens.values[0, 0, :8].tolist()


def cell(lens, stream, *place):
    pairs = zip(lens.ids[(stream, *place)].tolist(), lens.values[(stream, *place)].tolist(), strict=True)
    return [f"{lens.names[index]} {value:.0%}" for index, value in pairs]


def test_the_table_of_one_position_has_every_output_in_a_row(post):
    lens = logit_lens(post, TEXTS[0], 3)
    header, *rows = rows_of(str(lens))
    assert header == ["stream", "3 [MASK]"]  # not read as markup
    assert rows == [[label, "  ".join(cell(lens, row, 0))] for row, label in enumerate(lens.labels["stream"])]
    assert str(lens).splitlines()[0].strip() == "Logit lens of the masked_lm head: outputs by their probability"
    assert "columns" not in str(lens)


def test_the_table_of_many_columns_has_the_first_ones_and_the_best_outputs(trained):
    lens = logit_lens(trained, DOOR)
    table = lens.table(4)
    columns = [str(column.header) for column in table.columns]
    assert columns == ["stream", "0 [CLS]", "1 she", "2 opened", "3 the"]
    assert str(table.caption) == "the best of 5 outputs; the first 4 of 12 columns"
    cells = [[str(text) for text in column.cells] for column in table.columns]
    for place in range(4):
        assert cells[1 + place] == [cell(lens, row, place)[0] for row in range(len(lens.labels["stream"]))]
    assert str(lens.table(2).caption) == "the best 3 of 5 outputs; the first 2 of 12 columns"
    assert str(lens.table(100).caption) == "the best of 5 outputs"
    assert str(lens.table(1).caption) == "the first 1 of 12 columns"
    text = str(lens)
    assert "[MASK]" in text
    assert "final_post" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "the best of 5 outputs; the first 10 of 12 columns" in text


def test_the_table_of_a_data_set_has_a_column_a_text_and_position(post):
    lens = logit_lens(post, [TEXTS[1], "no"], top_k=1)
    table = lens.table()
    headers = [f"{text}  {number}" for text in (TEXTS[1], "no") for number in range(5)]
    assert [str(column.header) for column in table.columns] == ["stream", *headers]
    assert [str(text) for text in table.columns[-1].cells] == [""] * 7  # padding
    assert [str(text) for text in table.columns[1].cells] == [cell(lens, row, 0, 0)[0] for row in range(7)]


def test_the_table_of_one_row_a_sequence():
    one = logit_lens(made("post", "classification"), TEXTS[0])
    header, *rows = rows_of(str(one))
    assert header == ["stream", "output and its probability"]
    assert rows == [[label, "  ".join(cell(one, row))] for row, label in enumerate(one.labels["stream"])]
    two = logit_lens(made("post", "classification"), ["no", "yes"])
    assert rows_of(str(two))[0] == ["stream", "no", "yes"]


def test_the_table_of_a_regression_has_values_and_no_percentages():
    lens = logit_lens(made("post", "regression"), TEXTS[0])
    assert lens.measure == "value"
    assert [row[1] for row in rows_of(str(lens))[1:]] == [f"LABEL_0 {value:.4g}" for value in lens.values[:, 0].tolist()]
    assert "%" not in str(lens)


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_column_is_refused(post, k):
    with pytest.raises(InputError, match=f"k={k}; it is a whole number from 1"):
        logit_lens(post, TEXTS[0], 3).table(k)
