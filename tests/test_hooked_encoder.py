"""HookedEncoder: inputs, return types, text, tasks, moving. Parity is in families/, hooks in their own files."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EsmTokenizer

from encoderlens import HookedEncoder
from encoderlens.errors import ConfigError, InputError, TaskError, TokenizerMissingError
from tests.parity import assert_changed, assert_parity
from tests.tiny import tiny_batch, tiny_hf

MASKED = "the doctor walked to the [MASK]."


@pytest.fixture(scope="module")
def classifiers(tokenizer: Any) -> dict[str, HookedEncoder]:
    names = ("BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering", "BertModel")
    load = HookedEncoder.from_pretrained
    return {name: load(hf_model=tiny_hf(name, max_position_embeddings=64), tokenizer=tokenizer, device="cpu") for name in names}


# Inputs


def test_a_single_row_of_tokens_is_a_batch_of_one(bert: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    assert torch.equal(bert(tokens[0]), bert(tokens[:1]))


def test_text_runs_as_its_tokens_types_and_mask(bert: HookedEncoder) -> None:
    texts = ["the doctor walked.", "no"]
    tokens, types, mask = bert.to_tokens(texts)
    assert tokens.shape == types.shape == mask.shape
    assert mask.sum(1).tolist() == [len(bert.tokenizer(text)["input_ids"]) for text in texts]
    assert_parity(bert(texts), bert(tokens, "logits", types, mask), mask)
    assert_parity(bert(texts[1])[0], bert(texts)[1, : int(mask[1].sum())])


def test_a_pair_has_two_token_types(bert: HookedEncoder) -> None:
    tokens, types, _ = bert.to_tokens(("the doctor", "walked"))
    expected = bert.tokenizer("the doctor", "walked")
    assert tokens[0].tolist() == expected["input_ids"]
    assert types[0].tolist() == expected["token_type_ids"]
    assert set(types[0].tolist()) == {0, 1}
    many = bert([("the doctor", "walked"), ("no", "paris")])
    assert_parity(many[:1, : tokens.shape[1]], bert(("the doctor", "walked")))


def test_bool_and_int_masks_are_the_same(bert: HookedEncoder) -> None:
    batch = tiny_batch()
    as_int = bert(batch["tokens"], one_zero_attention_mask=batch["mask"])
    assert torch.equal(as_int, bert(batch["tokens"], one_zero_attention_mask=batch["mask"].bool()))
    assert_changed(as_int[1, 0], bert(batch["tokens"])[1, 0])


def test_token_ids_of_any_integer_dtype(bert: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    assert torch.equal(bert(tokens.int()), bert(tokens))


@pytest.mark.parametrize(
    ("input", "kwargs", "message"),
    [
        (torch.zeros(2, 3), {}, "whole numbers, not float32.*start_at_layer"),
        (torch.zeros(2, 3, dtype=torch.bool), {}, "whole numbers, not bool"),
        (torch.zeros(2, 3, 4, dtype=torch.long), {}, r"shape \[2, 3, 4\]; expected \[batch pos\]"),
        (torch.zeros(0, 3, dtype=torch.long), {}, "not empty"),
        (torch.tensor([[5, 188]]), {}, r"run from 5 to 188; this model's lie in 0 \.\. 187"),
        (torch.tensor([[-1, 3]]), {}, "run from -1 to 3"),
        (torch.zeros(1, 38, dtype=torch.long), {}, "38 positions, the model takes 37"),
        ([[1, 2]], {}, "input 0 is a list.*Token ids go in a tensor"),
        ([1, 2], {}, "input 0 is an int"),
        ([], {}, "list of texts is empty"),
        (("a", "b", "c"), {}, "input 0 is a tuple of 3"),
        (["a", ("b", "c")], {}, "mixes single texts and pairs"),
        (7, {}, "input is an int; give token ids as a tensor"),
        ("a " * 40, {}, r"text 0 has 42 tokens, the model takes 37.*truncate=True"),
        (torch.zeros(1, 3, dtype=torch.long), {"token_type_ids": torch.tensor([[0, 1, 2]])}, "this model has 2 types"),
        (torch.zeros(1, 3, dtype=torch.long), {"token_type_ids": torch.zeros(1, 4)}, r"shape \[1, 4\], the input \[1, 3\]"),
        (torch.zeros(1, 3, dtype=torch.long), {"token_type_ids": torch.zeros(1, 3)}, "token_type_ids are whole numbers"),
        (torch.zeros(1, 3, dtype=torch.long), {"one_zero_attention_mask": torch.ones(2, 3)}, r"shape \[2, 3\], the input"),
        (
            torch.zeros(1, 3, dtype=torch.long),
            {"one_zero_attention_mask": torch.tensor([[0.0, 0.5, 1]])},
            "1 at real positions",
        ),
        (torch.zeros(1, 3, dtype=torch.long), {"one_zero_attention_mask": torch.zeros(1, 3)}, "sequence 0 without a real"),
        (torch.zeros(1, 3, dtype=torch.long), {"return_type": "logit"}, "'logit' is unknown; it is one of 'logits'"),
        (torch.zeros(1, 3, dtype=torch.long), {"return_type": "loss"}, "return_type='loss' with no labels"),
        (torch.zeros(1, 3, dtype=torch.long), {"labels": torch.zeros(1, 3)}, "return_type='logits' with labels"),
        (torch.zeros(1, 3, dtype=torch.long), {"logits_at": [3]}, "positions 3 to 3; the input has 3"),
        (torch.zeros(1, 3, dtype=torch.long), {"logits_at": [0.5]}, "logits_at is an int"),
        (torch.zeros(1, 3, dtype=torch.long), {"logits_at": ["first"]}, r"logits_at is an int.*not \['first'\]"),
        ("the doctor", {"return_type": "predictions"}, "no mask token to predict in sequence 0"),
        (torch.zeros(1, 3, dtype=torch.long), {"logits_at": 0, "return_type": "hidden"}, "logits_at chooses positions"),
        (torch.zeros(1, 3, dtype=torch.long), {"stop_at_layer": 4}, "layers run from 0 to 3"),
        (torch.zeros(1, 3, dtype=torch.long), {"stop_at_layer": 1, "return_type": "logits"}, "needs the last layer"),
        (torch.zeros(1, 3, dtype=torch.long), {"start_at_layer": 1}, "residual stream"),
        (torch.zeros(1, 3, 40), {"start_at_layer": 2, "stop_at_layer": 1}, "lies before"),
    ],
)
def test_bad_input_says_what_is_wrong(bert: HookedEncoder, input: Any, kwargs: dict[str, Any], message: str) -> None:
    runs = []
    point = bert.hook_dict["embed.hook_embed"]
    point.add_hook(lambda tensor, hook: runs.append(hook.name))
    try:
        with pytest.raises(InputError, match=message):
            bert(input, **kwargs)
    finally:
        point.remove_hooks()
    assert not runs


def test_too_long_text_can_be_cut(bert: HookedEncoder) -> None:
    tokens, types, mask = bert.to_tokens("a " * 60)
    assert tokens.shape == types.shape == mask.shape == (1, 37)
    assert bert(tokens, "hidden").shape == (1, 37, 40)


def test_text_without_a_tokenizer(bert_twin: Any) -> None:
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], device="cpu")
    for use in (lambda: model("hello"), lambda: model.to_tokens("hello"), lambda: model.align("hello")):
        with pytest.raises(TokenizerMissingError, match=r"tokenizer\.json.*vocab\.txt"):
            use()
    with pytest.raises(TokenizerMissingError, match="predictions needs a tokenizer"):
        model(torch.tensor([[2, 4, 3]]), "predictions")


def test_unknown_arguments_are_type_errors(bert: HookedEncoder) -> None:
    with pytest.raises(TypeError):
        bert(tiny_batch()["tokens"], returntype="logits")
    with pytest.raises(TypeError):
        HookedEncoder.from_pretrained(hf_model=bert.to_hf(), foldln=True)


# Return types


def test_default_is_logits_with_a_head_and_hidden_without(bert: HookedEncoder, classifiers: Any) -> None:
    tokens = tiny_batch()["tokens"]
    assert torch.equal(bert(tokens), bert(tokens, "logits"))
    bare = classifiers["BertModel"]
    assert torch.equal(bare(tokens), bare(tokens, "hidden"))
    with pytest.raises(TaskError, match="'logits' needs a head, and this model has none; take 'hidden'"):
        bare(tokens, "logits")


def test_none_returns_nothing(bert: HookedEncoder) -> None:
    assert bert(tiny_batch()["tokens"], None) is None


def test_masked_lm_predictions(bert: HookedEncoder) -> None:
    one = bert(MASKED, "predictions")
    tokens = bert.to_tokens(MASKED)[0]
    position = (tokens[0] == bert.tokenizer.mask_token_id).nonzero().item()
    assert one == bert.tokenizer.decode([int(bert(MASKED)[0, position].argmax())]).strip()
    two = bert("the [MASK] walked to the [MASK].", "predictions")
    assert isinstance(two, list)
    assert [type(word) for word in two] == [str, str]
    batch = bert([MASKED, "the [MASK] walked to the [MASK]."], "predictions")
    assert batch == [[one], two]
    assert bert([MASKED], "predictions") == [[one]]
    assert bert(tokens, "predictions") == [[one]]
    assert bert(tokens[0], "predictions") == one


def test_masked_lm_predictions_without_a_mask(bert: HookedEncoder) -> None:
    with pytest.raises(InputError, match="no mask token to predict in sequence 1"):
        bert([MASKED, "the doctor"], "predictions")


def test_sequence_labels(classifiers: Any) -> None:
    model = classifiers["BertForSequenceClassification"]
    texts = ["the doctor walked", "no"]
    best = model(texts).argmax(-1).tolist()
    assert model(texts, "predictions") == [f"LABEL_{index}" for index in best]
    assert model(texts[0], "predictions") == model([texts[0]], "predictions")[0]


def test_token_labels_leave_padding_out(classifiers: Any) -> None:
    model = classifiers["BertForTokenClassification"]
    texts = ["the doctor walked", "no"]
    rows = model(texts, "predictions")
    assert [len(row) for row in rows] == [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert rows[0] == [f"LABEL_{index}" for index in model(texts[0]).argmax(-1)[0].tolist()]


def test_answers_are_text_of_the_second_of_a_pair(classifiers: Any) -> None:
    model = classifiers["BertForQuestionAnswering"]
    pair = ("who walked?", "The doctor walked to  Paris")
    answer = model(pair, "predictions")
    assert answer
    assert answer in pair[1]
    tokens, types, _ = model.to_tokens(pair)
    start, end = model(pair)[0].unbind(-1)
    inside = ((types[0] == 1) & (tokens[0] != model.tokenizer.sep_token_id)).nonzero().flatten().tolist()
    best = max(
        ((float(start[i].detach() + end[j].detach()), i, j) for i in inside for j in inside if i <= j), key=lambda item: item[0]
    )
    spans = model.align(pair).spans
    assert answer == pair[1][spans[best[1]][0] : spans[best[2]][1]]
    assert model(tokens, "predictions", types)[0].replace(" ", "") == answer.lower().replace(" ", "")


@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
def test_sequence_losses_equal_hugging_face(problem: str) -> None:
    hf_model = tiny_hf("BertForSequenceClassification", num_labels=1 if problem == "regression" else 3, problem_type=problem)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    tokens = tiny_batch()["tokens"]
    labels = {
        "regression": torch.tensor([0.5, -1.0, 2.0]),
        "single_label_classification": torch.tensor([0, 2, 1]),
        "multi_label_classification": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]),
    }[problem]
    assert_parity(model(tokens, "loss", labels=labels), hf_model(tokens, labels=labels).loss)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, 10, dtype=torch.long), r"shape \[3, 10\]; class labels for this input have shape \[3, 11\]"),
        (torch.zeros(3, 11), "class ids"),
        (torch.full((3, 11), -100), "every label is -100"),
        (torch.full((3, 11), 188), r"run from 188 to 188; they lie in 0 \.\. 187"),
    ],
)
def test_bad_labels(bert: HookedEncoder, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert(tiny_batch()["tokens"], "loss", labels=labels)


def test_loss_leaves_minus_100_out(bert: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    labels = torch.full_like(tokens, -100)
    labels[0, 3], labels[2, 5] = 7, 9
    picked = bert(tokens).log_softmax(-1)[[0, 2], [3, 5], [7, 9]]
    assert_parity(bert(tokens, "loss", labels=labels), -picked.mean())


@pytest.mark.parametrize("at", [4, -1, [0, 4], torch.tensor([[0, 4], [1, -2], [2, 2]])], ids=str)
def test_logits_at_unembeds_only_those_positions(bert: HookedEncoder, at: Any) -> None:
    tokens = tiny_batch()["tokens"]
    index = torch.atleast_1d(torch.as_tensor(at)).expand(3, -1) % 11
    expected = bert(tokens).gather(1, index[..., None].expand(-1, -1, 188))
    with bert.hooks([("unembed.hook_in", lambda tensor, hook: sizes.append(tensor.shape[1]))]):
        sizes: list[int] = []
        assert_parity(bert(tokens, logits_at=at), expected)
    assert sizes == [index.shape[1]]


def test_regression_predicts_numbers(tokenizer: Any) -> None:
    model = HookedEncoder.from_pretrained(
        hf_model=tiny_hf("BertForSequenceClassification", num_labels=1), tokenizer=tokenizer, device="cpu"
    )
    value = model("the doctor", "predictions")
    assert isinstance(value, float)
    assert model(["the doctor", "no"], "predictions")[0] == pytest.approx(value, rel=1e-4)


def test_answers_of_a_batch_padded_on_the_left(classifiers: Any) -> None:
    model = classifiers["BertForQuestionAnswering"]
    pairs = [("who walked?", "The doctor walked to Paris"), ("who?", "no")]
    alone = [model(pair, "predictions") for pair in pairs]
    model.tokenizer.padding_side = "left"
    try:
        # Positions of a padded row start later, so its logits are its own; its answer must still be text of its own.
        for answer, pair in zip(model(pairs, "predictions"), pairs, strict=True):
            assert answer
            assert answer in pair[1]
        assert model([pairs[0]], "predictions") == alone[:1]
    finally:
        model.tokenizer.padding_side = "right"


@contextmanager
def answering(model: HookedEncoder, start: int, end: int) -> Iterator[None]:
    """Context in which the logits say, of every sequence, that its answer goes from one position to another."""

    def answer(logits: torch.Tensor, hook: Any) -> torch.Tensor:
        logits = torch.zeros_like(logits)
        logits[:, start, 0] = logits[:, end, 1] = 9.0
        return logits

    with model.hooks([("qa_head.hook_out", answer)]):
        yield


def test_no_answer_comes_from_the_question(classifiers: Any) -> None:
    model = classifiers["BertForQuestionAnswering"]
    ran: list[str] = []
    for blank in ("", "  "):
        with (
            model.hooks([("hook_full_embed", lambda tensor, hook: ran.append("it ran"))]),
            pytest.raises(InputError, match=r"sequence 1 has no text that an answer could span: its second text, .* is empty"),
        ):
            model([("who walked?", "the doctor"), ("who walked?", blank)], "predictions")
    assert not ran


def test_what_the_tokenizer_does_not_know_can_be_in_an_answer(classifiers: Any) -> None:
    """With the characters that were given, case and spaces included."""
    model = classifiers["BertForQuestionAnswering"]
    pair = ("who?", "The  \u06de WALKED home")
    tokens = model.to_str_tokens(pair)
    unknown = tokens.index("[UNK]")
    with answering(model, unknown, unknown):
        assert model(pair, "predictions") == "\u06de"
    with answering(model, unknown - 1, unknown + 1):
        assert model(pair, "predictions") == "The  \u06de WALKED"
        assert model(model.to_tokens(pair)[0], "predictions", model.to_tokens(pair)[1]) == ["the [UNK] walked"]
    question = ("\u06de?", "the doctor")
    with answering(model, 1, 1):
        assert model(question, "predictions") in question[1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_answer_stands_where_it_stands_whatever_the_mask(classifiers: Any, side: str) -> None:
    model = classifiers["BertForQuestionAnswering"]
    pairs = [("who walked there?", "the doctor walked home"), ("who?", "no")]
    model.tokenizer.padding_side = side
    try:
        tokens, _, mask = model.to_tokens(pairs)
        mask[0, :4] = 0  # the caller's own: of the first question
        at = model.to_str_tokens(tokens)[0].index("doctor")
        with answering(model, at, at + 1):
            assert model(pairs[:1], "predictions", None, mask[:1]) == ["doctor walked"]
            assert model(pairs, "predictions", None, mask)[0] == "doctor walked"
        hidden = mask.clone()
        hidden[0, at:] = 0
        with answering(model, at, at + 1):
            assert model(pairs, "predictions", None, hidden)[0] == "the"
    finally:
        model.tokenizer.padding_side = "right"


def test_answers_under_a_slow_tokenizer(classifiers: Any, tmp_path: Path) -> None:
    """It keeps no offsets: token types say where the second text is, and the answer is what the tokens stand for."""
    (tmp_path / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSE", "<mask>"]))
    slow = EsmTokenizer(str(tmp_path / "vocab.txt"))
    twin = classifiers["BertForQuestionAnswering"]
    model = HookedEncoder.from_pretrained(hf_model=twin.to_hf(), tokenizer=slow, device="cpu")
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    with answering(model, 5, 6):
        assert model(("LA", "GVS"), "predictions", types).replace(" ", "") == "VS"
    with pytest.raises(InputError, match="which tokens of sequence 0 are the second text is not known: EsmTokenizer"):
        model(("LA", "GVS"), "predictions")


def test_a_tokenizer_without_special_tokens(bert_twin: Any) -> None:
    from transformers import AutoTokenizer

    from tests.tiny import TOKENIZER

    bare = AutoTokenizer.from_pretrained(TOKENIZER)
    bare.mask_token = bare.pad_token = None
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], tokenizer=bare, device="cpu")
    with pytest.raises(InputError, match="no mask token, so there is no masked word"):
        model("the doctor", "predictions")
    with pytest.raises(InputError, match="no padding token, so it takes one text at a time"):
        model(["the doctor", "no"])


# Layers


def test_stop_and_start_join_to_the_whole_run(bert: HookedEncoder) -> None:
    batch = tiny_batch()
    mask = batch["mask"]
    _, cache = bert.run_with_cache(batch["tokens"], "hidden", batch["types"], mask)
    for layer in (0, 1, 2, 3, -1):
        stream = bert(batch["tokens"], ..., batch["types"], mask, stop_at_layer=layer)
        if layer in (0, 1, 2):
            assert_parity(stream, cache["resid_pre", layer], mask)
        rest = bert(stream, "logits", one_zero_attention_mask=mask, start_at_layer=layer)
        assert_parity(rest, bert(batch["tokens"], "logits", batch["types"], mask), mask)


def test_gradients_reach_a_stream_that_goes_in(bert: HookedEncoder) -> None:
    stream = torch.randn(2, 5, 40, requires_grad=True)
    bert(stream, "hidden", start_at_layer=2).sum().backward()
    assert stream.grad is not None
    assert stream.grad.abs().max() > 0


# Tasks


def test_tasks_can_be_switched(bert: HookedEncoder) -> None:
    tokens = tiny_batch()["tokens"]
    assert bert.task == "masked_lm"
    with bert.use_task("next_sentence"):
        assert bert(tokens).shape == (3, 2)
    assert bert.task == "masked_lm"
    with pytest.raises(
        TaskError, match="no 'next_sentance' head; its heads: masked_lm, next_sentence; did you mean 'next_sentence'"
    ):
        bert.task = "next_sentance"


# Text helpers


def test_to_str_tokens(bert: HookedEncoder) -> None:
    expected = ["[CLS]", "the", "doctor", "walked", "[SEP]"]
    tokens = bert.to_tokens("The doctor walked")[0]
    assert bert.to_str_tokens("The doctor walked") == expected
    assert bert.to_str_tokens(tokens[0]) == expected
    assert bert.to_str_tokens(tokens) == [expected]
    assert bert.to_str_tokens(["The doctor walked", "no"]) == [expected, ["[CLS]", "no", "[SEP]"]]
    with pytest.raises(InputError, match=r"shape \[\]"):
        bert.to_str_tokens(torch.tensor(3))


def test_align(bert: HookedEncoder) -> None:
    text = "The doctor  walking, no"
    aligned = bert.align(text)
    assert list(aligned.tokens) == bert.to_str_tokens(text)
    assert [word.text for word in aligned.words] == ["The", "doctor", "walking", ",", "no"]
    for index, word in enumerate(aligned.words):
        assert text[word.start : word.end] == word.text
        assert all(aligned.word_of[position] == index for position in word.tokens)
    walking = aligned.words[2]
    assert len(walking.tokens) > 1
    assert aligned.token_at(walking.start) == walking.tokens[0]
    assert aligned.token_at(text.index("  ")) is None
    assert aligned.spans[0] is aligned.word_of[0] is aligned.text_of[0] is None


@pytest.mark.parametrize("value", [["the doctor"], ["the", "doctor"], 3])
def test_align_takes_one_text(bert: HookedEncoder, value: Any) -> None:
    with pytest.raises(InputError):
        bert.align(value)


def test_align_of_a_pair(bert: HookedEncoder) -> None:
    aligned = bert.align(("the doctor", "walked"))
    assert [(word.text, word.text_index) for word in aligned.words] == [("the", 0), ("doctor", 0), ("walked", 1)]
    assert aligned.token_at(0, text_index=1) == aligned.words[2].tokens[0]


# Moving and copying


def test_to_takes_every_form(bert_twin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], device="cpu")
    other = torch.zeros(1, dtype=torch.float64)
    forms = [
        (lambda: model.to(torch.bfloat16), torch.bfloat16),
        (lambda: model.to("cpu"), torch.bfloat16),
        (lambda: model.to(device="cpu", dtype=torch.float32), torch.float32),
        (lambda: model.to(torch.device("cpu"), torch.float16, True), torch.float16),
        (lambda: model.to(other), torch.float64),
        (lambda: model.to(dtype=torch.float32, print_details=False), torch.float32),
        (lambda: model.to(device_or_dtype=torch.bfloat16), torch.bfloat16),
        (lambda: model.to("cpu", False), torch.bfloat16),
        (lambda: model.half(), torch.float16),
        (lambda: model.bfloat16(), torch.bfloat16),
        (lambda: model.cpu(), torch.bfloat16),
        (lambda: model.float(), torch.float32),
    ]
    for move, dtype in forms:
        assert move() is model
        assert model.cfg.dtype == dtype
        assert model(torch.tensor([[1, 2, 3]])).dtype == dtype
    assert capsys.readouterr().out.count("HookedEncoder is on cpu in") == 6


def test_a_copy_is_apart_and_tied_within(bert: HookedEncoder) -> None:
    twin = copy.deepcopy(bert)
    tokens = tiny_batch()["tokens"]
    assert torch.equal(twin(tokens), bert(tokens))
    with torch.no_grad():
        twin.W_E.zero_()
    assert twin.unembed.weight is twin.embed.embed.weight
    assert twin.W_U.abs().max() == 0
    assert twin.heads["masked_lm"].modules["unembed"] is twin.unembed
    assert twin.cfg.device == torch.device("cpu")
    assert bert.W_E.abs().max() > 0


DROPOUTS = {
    "embeddings and blocks": ("BertForMaskedLM", {"hidden_dropout_prob": 0.5}, []),
    "attention, fused": ("BertForMaskedLM", {"attention_probs_dropout_prob": 0.5}, []),
    "attention, explicit": ("BertForMaskedLM", {"attention_probs_dropout_prob": 0.5}, ["blocks.0.attn.hook_pattern"]),
    "sequence classifier": ("BertForSequenceClassification", {"classifier_dropout": 0.5}, []),
    "token classifier": ("BertForTokenClassification", {"classifier_dropout": 0.5}, []),
}


@pytest.mark.parametrize("site", DROPOUTS)
def test_training_mode_brings_each_dropout_of_the_checkpoint(site: str) -> None:
    hf_class, probability, hooked = DROPOUTS[site]
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class, **(none | probability)), device="cpu")
    tokens = tiny_batch()["tokens"]
    hooks = [(name, lambda tensor, hook: None) for name in hooked]
    assert not model.training
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=hooks), model.run_with_hooks(tokens, fwd_hooks=hooks))
    model.train()
    assert not torch.equal(model.run_with_hooks(tokens, fwd_hooks=hooks), model.run_with_hooks(tokens, fwd_hooks=hooks))


@pytest.mark.parametrize("name", ["hook_full_embed", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"])
def test_hidden_dropout_zeroes_what_the_embeddings_and_each_branch_write(name: str) -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel", hidden_dropout_prob=0.5), device="cpu").train()
    _, cache = model.run_with_cache(tiny_batch()["tokens"], names_filter=name)
    assert 0.3 < (cache[name] == 0).float().mean() < 0.7


def test_explicit_attention_scales_what_dropout_keeps() -> None:
    hf_model = tiny_hf("BertModel", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu").train()
    names = ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_v", "blocks.0.attn.hook_z"]
    _, cache = model.run_with_cache(tiny_batch()["tokens"], names_filter=names)
    undropped = cache["pattern", 0] @ cache["v", 0].transpose(1, 2)
    assert_changed(undropped.transpose(1, 2), cache["z", 0])


def test_a_copy_of_the_configuration_leaves_the_model_behind(bert: HookedEncoder) -> None:
    for twin in (copy.deepcopy(bert.cfg), pickle.loads(pickle.dumps(bert.cfg))):
        assert (twin.device, twin.dtype, twin.n_params) == (bert.cfg.device, bert.cfg.dtype, bert.cfg.n_params)
        assert twin.n_layers == 3
    assert len(pickle.dumps(bert.cfg)) < 5000
    half = copy.deepcopy(bert).half()
    assert (half.cfg.dtype, bert.cfg.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"device": "foo"}, "device='foo' is no device that torch knows"),
        ({"n_ctx": "4"}, "n_ctx='4'; the checkpoint has 37 positions"),
        ({"dtype": torch.int32}, "dtype=torch.int32; a model's dtype"),
    ],
)
def test_bad_options_of_loading(bert_twin: Any, unchecked: None, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HookedEncoder.from_pretrained(hf_model=bert_twin[0], **kwargs)


def test_properties_have_the_documented_shapes(bert: HookedEncoder) -> None:
    shapes = {
        "W_E": (188, 40), "W_pos": (37, 40), "W_token_type": (2, 40), "W_E_pos": (225, 40), "W_U": (40, 188), "b_U": (188,),
        "W_Q": (3, 5, 40, 8), "W_K": (3, 5, 40, 8), "W_V": (3, 5, 40, 8), "W_O": (3, 5, 8, 40), "W_in": (3, 40, 52),
        "W_out": (3, 52, 40), "b_Q": (3, 5, 8), "b_K": (3, 5, 8), "b_V": (3, 5, 8), "b_O": (3, 40), "b_in": (3, 52),
        "b_out": (3, 40), "QK": (3, 5, 40, 40), "OV": (3, 5, 40, 40),
    }  # fmt: skip
    assert {name: tuple(getattr(bert, name).shape) for name in shapes} == shapes
    assert bert.all_head_labels()[:6] == ["L0H0", "L0H1", "L0H2", "L0H3", "L0H4", "L1H0"]
    assert torch.equal(bert.QK[1, 2].AB, bert.blocks[1].attn.W_Q[2] @ bert.blocks[1].attn.W_K[2].T)


def test_a_model_without_a_masked_lm_head_has_no_unembedding(classifiers: Any) -> None:
    with pytest.raises(TaskError, match="no masked-LM head, so no unembedding"):
        _ = classifiers["BertModel"].W_U
