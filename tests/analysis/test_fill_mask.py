import json

import pytest
import torch

from encoderlens import HookedEncoder
from encoderlens.analysis import fill_mask, logit_lens
from encoderlens.errors import AnalysisError, InputError, TaskError, TokenizerMissingError
from tests.analysis.test_pseudo_log_likelihood import byte_level
from tests.parity import assert_close, assert_parity
from tests.tiny import tiny_hf

DOOR = "She opened the [MASK] and walked into the room."
TEXTS = ["the [MASK] was new", "[MASK] [MASK], said the doctor. where is [MASK]?", "no [MASK]"]


@pytest.fixture(scope="module")
def trained():
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")


def test_it_finds_the_door(trained):
    found = fill_mask(trained, DOOR, top_k=3)
    assert found.values.shape == (1, 3)
    assert found.tokens[0][0] == "door" == trained(DOOR, "predictions")
    assert found.positions == (4,)
    assert found.top(1)[0].labels == (f"{DOOR}: 4", "1", "door")
    lens = logit_lens(trained, DOOR, 4, top_k=3)
    assert_close(found.values[0], lens.values[-1, 0])
    assert torch.equal(found.ids[0], lens.ids[-1, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_every_mask_of_every_text(bert_twin, bert, batch_size):
    hf_model, _ = bert_twin
    found = fill_mask(bert, TEXTS, 4, batch_size=batch_size)
    assert found.examples == (0, 1, 1, 1, 2)
    row = 0
    for example, text in enumerate(TEXTS):
        encoding = bert.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            probabilities = hf_model(**encoding).prediction_logits[0].softmax(-1)
        for position in (encoding["input_ids"][0] == bert.tokenizer.mask_token_id).nonzero().flatten().tolist():
            best = probabilities[position].topk(4)
            assert_parity(found.values[row], best.values)
            assert found.ids[row].tolist() == best.indices.tolist()
            assert (found.examples[row], found.positions[row]) == (example, position)
            row += 1
    assert row == len(found.values)
    assert [list(words[:1]) for words in found.words] == [[word] for words in bert(TEXTS, "predictions") for word in words]


def test_padding_on_the_left(bert):
    bert.tokenizer.padding_side = "left"
    try:
        found = fill_mask(bert, TEXTS, 1, batch_size=2)
        tokens = bert.to_tokens(TEXTS)[0]
        assert [tokens[place].item() for place in zip(found.examples, found.positions, strict=True)] == [4] * 5
        predicted = [word for words in bert(TEXTS, "predictions") for word in words]
    finally:
        bert.tokenizer.padding_side = "right"
    assert [words[0] for words in found.words] == predicted


def test_mask_tokens_at_padding_are_not_filled(bert):
    tokens, types, mask = bert.to_tokens(TEXTS)
    tokens[0, -2:] = tokens[2, -1] = bert.tokenizer.mask_token_id
    batch = bert.prepare(tokens, types, mask)
    found, expected = fill_mask(bert, batch, batch_size=1), fill_mask(bert, TEXTS)
    assert (found.examples, found.positions) == (expected.examples, expected.positions)
    assert torch.equal(found.ids, expected.ids)
    assert bert(batch, "predictions") == bert(TEXTS, "predictions")
    mask[2, 2] = 0  # the only one
    for use in (lambda: fill_mask(bert, bert.prepare(tokens, types, mask)), lambda: bert(tokens, "predictions", types, mask)):
        with pytest.raises(InputError, match="no mask token to predict in sequence 2"):
            use()


def test_tokens_pairs_and_a_whole_vocabulary(bert):
    text = fill_mask(bert, TEXTS[0])
    assert torch.equal(fill_mask(bert, bert.to_tokens(TEXTS[0])[0][0]).ids, text.ids)
    assert fill_mask(bert, ("no", "[MASK]")).labels["mask"] == ("no | [MASK]: 3",)
    every = fill_mask(bert, TEXTS[0], 1000)
    assert every.values.shape == (1, bert.cfg.d_vocab)
    assert_parity(every.values.sum(), torch.tensor(1.0))


def test_the_head_need_not_be_that_of_the_task(bert):
    expected = fill_mask(bert, TEXTS)
    bert.task = "next_sentence"
    assert torch.equal(fill_mask(bert, TEXTS).ids, expected.ids)
    assert bert.task == "next_sentence"


def test_byte_level_tokens_are_shown_with_their_text():
    tokenizer = byte_level()
    hf_model = tiny_hf("RobertaForMaskedLM", vocab_size=len(tokenizer) + 3)  # a vocabulary that is padded
    model = HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    found = fill_mask(model, "the<mask>", model.cfg.d_vocab)
    named = dict(zip(found.tokens[0], found.words[0], strict=True))
    assert named["Ġthe"] == named["the"] == "the"
    assert str(len(tokenizer)) in named
    place = found.tokens[0].index("Ġthe")
    assert "Ġthe  (the)" in "".join(list(found.table(place + 1).columns[1].cells)[place].plain)


def test_the_table_and_json(bert):
    found = fill_mask(bert, TEXTS, 3)
    assert found.table(2).row_count == 10
    assert "the [MASK] was new: 2" in str(found)
    assert f"{found.values[0, 0].item():.1%}" in str(found)
    stored = json.loads(found.to_json())
    assert stored["tokens"][0][0] == found.tokens[0][0]
    assert [len(row) for row in stored["ids"]] == [3] * 5
    with pytest.raises(InputError, match="k=0"):
        found.table(0)


def test_what_does_not_fit_is_refused(bert, bert_twin, tokenizer, unchecked):
    for inputs, options, message in (
        (["a [MASK]", "no mask"], {}, "no mask token to predict in sequence 1"),
        ("a [MASK]", {"top_k": 0}, "top_k=0"),
        ("a [MASK]", {"batch_size": True}, "batch_size=True"),
        ("[MASK] " * 50, {}, "has 52 tokens, the model takes 37"),
    ):
        with pytest.raises(InputError, match=message):
            fill_mask(bert, inputs, **options)
    bare = HookedEncoder.from_pretrained(hf_model=bert_twin[0], device="cpu")
    with pytest.raises(TokenizerMissingError):
        fill_mask(bare, torch.tensor([2, 4, 3]))
    with pytest.raises(AnalysisError, match="training mode"):
        fill_mask(bare.train(), "a [MASK]")
    headless = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel"), tokenizer=tokenizer, device="cpu")
    with pytest.raises(TaskError, match="its heads: none"):
        fill_mask(headless, "a [MASK]")
