"""Calls as people write them for Hugging Face models: named inputs, what tokenizers and feature extractors return, vectors."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from encoderlens import BertNextSentencePrediction, HookedAudioEncoder, HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.errors import InputError
from tests.parity import assert_changed, assert_parity
from tests.speech import RATE, snippets, tiny_speech

TEXTS = ["the doctor walked", "no"]


@pytest.fixture
def encoding(tokenizer: Any) -> Any:
    return tokenizer(TEXTS, padding=True, return_tensors="pt")


def test_a_tokenizer_s_output_is_an_input(bert: HookedEncoder, tokenizer: Any, encoding: Any) -> None:
    expected = bert(TEXTS)
    ids, mask = encoding["input_ids"], encoding["attention_mask"]
    assert not mask.bool().all()
    same = [
        bert(**encoding),
        bert(encoding),
        bert(dict(encoding)),
        bert(tokenizer(TEXTS, padding=True)),
        bert(input_ids=ids, attention_mask=mask),
        bert(ids, attention_mask=mask),
        bert(bert.prepare(**encoding)),
        bert(bert.prepare(encoding)),
        bert.run_with_hooks(**encoding),
        bert.run_with_hooks(encoding),
    ]
    for logits in same:
        assert torch.equal(logits, expected)
    for logits, cache in (bert.run_with_cache(**encoding), bert.run_with_cache(encoding)):
        assert_parity(logits, expected, mask)
        assert torch.equal(cache.tokens, ids)
    assert torch.equal(bert(encoding, return_type="hidden"), bert(TEXTS, return_type="hidden"))
    assert bert(tokenizer("the [MASK] walked"), "predictions") == bert("the [MASK] walked", "predictions")


def test_pairs_for_the_next_sentence_head(bert: HookedEncoder, tokenizer: Any) -> None:
    pair = ("he was there", "she was not")
    encoding = tokenizer(*pair, return_tensors="pt")
    expected = bert.next_sentence([pair])
    next_sentence = BertNextSentencePrediction(bert)
    results = [bert.next_sentence(**encoding), bert.next_sentence(encoding), next_sentence(**encoding)]
    results += [next_sentence(encoding), next_sentence.run_with_hooks(**encoding)]
    for logits in results:
        assert torch.equal(logits, expected)
    assert_parity(next_sentence.run_with_cache(encoding)[0], expected)
    with pytest.raises(InputError, match="next-sentence prediction on tokens needs token_type_ids"):
        next_sentence(input_ids=encoding["input_ids"])


def test_a_run_from_inside_takes_the_mask_under_both_names(bert: HookedEncoder, encoding: Any) -> None:
    mask = encoding["attention_mask"]
    stream = bert(encoding, return_type="hidden", stop_at_layer=1)
    expected = bert(stream, start_at_layer=1, one_zero_attention_mask=mask)
    assert torch.equal(bert(stream, start_at_layer=1, attention_mask=mask), expected)


WRONG: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "the mask under both names": (
        lambda given: {**given, "one_zero_attention_mask": given["attention_mask"]},
        "one_zero_attention_mask and attention_mask are both given",
    ),
    "the mask beside a dictionary with one": (
        lambda given: {"input": given, "attention_mask": given["attention_mask"]},
        "the dictionary's attention_mask and attention_mask are both given",
    ),
    "tokens under both names": (
        lambda given: {"input": TEXTS, "input_ids": given["input_ids"]},
        "input and input_ids are both given",
    ),
    "tokens and vectors": (
        lambda given: {"input_ids": given["input_ids"], "inputs_embeds": torch.zeros(2, 5, 40)},
        "input_ids and inputs_embeds are both given",
    ),
    "nothing": (lambda given: {}, "there is no input: give text, token ids"),
    "an empty dictionary": (lambda given: {"input": {}}, "there is no input: give text, token ids"),
    "an unknown name": (
        lambda given: {"input": {"input_id": given["input_ids"]}},
        "the dictionary has 'input_id', which the model does not read; it reads input_ids, .*; did you mean 'input_ids'",
    ),
    "rows of several lengths": (
        lambda given: {"input": {"input_ids": [[1, 2], [1]]}},
        "input_ids has rows of several lengths; pad them: tokenizer(texts, padding=True",
    ),
    "vectors of another width": (
        lambda given: {"inputs_embeds": torch.zeros(2, 5, 3)},
        "inputs_embeds is a Tensor of shape [2, 5, 3] and dtype float32; give floating-point numbers [batch pos 40]",
    ),
    "vectors for predictions": (
        lambda given: {"inputs_embeds": torch.zeros(2, 5, 40), "return_type": "predictions"},
        "this needs the tokens, which a run from inputs_embeds",
    ),
    "vectors inside": (
        lambda given: {"inputs_embeds": torch.zeros(2, 5, 40), "start_at_layer": 1},
        "inputs_embeds belong to the embeddings, which start_at_layer skips",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_given_twice_or_not_understood_is_refused(case: str, bert: HookedEncoder, encoding: Any) -> None:
    arguments, message = WRONG[case]
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    with pytest.raises(InputError, match=pattern):
        bert(**arguments(dict(encoding)))


def test_vectors_are_a_batch_like_any_other(bert: HookedEncoder, encoding: Any) -> None:
    """Attributions and lenses run on them, parts of a batch keep them, and arrays and other dtypes are taken."""
    mask = encoding["attention_mask"]
    vectors = bert.W_E[encoding["input_ids"]].detach()
    batch = bert.prepare(inputs_embeds=vectors.double().numpy(), attention_mask=mask)
    logits = bert(batch)
    assert torch.equal(logits, bert(encoding))
    assert batch.position_labels == tuple(map(str, range(mask.shape[1])))
    assert_parity(bert(batch.part(slice(1, 2)))[0], logits[1, : mask[1].sum()])
    found = direct_logit_attribution(bert, batch, target=7, position=1)
    assert_parity(found.values.sum(0), logits[:, 1, 7])
    assert logit_lens(bert, batch, positions=1, top_k=2).values.shape[1:] == (2, 1, 2)
    assert not np.shares_memory(vectors.numpy(), batch.vectors.numpy())


# Speech


@pytest.fixture(scope="module")
def speaker() -> HookedAudioEncoder:
    return tiny_speech(layout="layer norm, pre-LN")


@pytest.fixture
def features(speaker: HookedAudioEncoder) -> Any:
    clips = [clip.numpy() for clip in snippets()]
    return speaker.processor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")


@torch.no_grad()
def test_a_feature_extractor_s_output_is_an_input(speaker: HookedAudioEncoder, features: Any) -> None:
    expected = speaker(snippets())
    values, mask = features["input_values"], features["attention_mask"]
    real = speaker.prepare(snippets()).sequence.real
    same = [
        speaker(**features),
        speaker(features),
        speaker(dict(features)),
        speaker(input_values=values, attention_mask=mask),
        speaker(input_values=values.double().numpy(), one_zero_attention_mask=mask),
        speaker(speaker.prepare(**features)),
        speaker.run_with_hooks(**features),
        speaker.run_with_cache(features)[0],
        speaker(speaker.to_frames(features)),
    ]
    for stream in same:
        assert_parity(stream, expected, real)
    first = snippets()[0]
    lists = speaker.processor(first.numpy(), sampling_rate=RATE)  # a list of one array
    assert_parity(speaker(lists), speaker([first]))
    assert_parity(speaker(input_values=lists["input_values"][0]), speaker(first))
    assert speaker(features, return_type="predictions") == speaker(snippets(), return_type="predictions")
    alone = speaker(features, padding="independent")
    assert_parity(alone, speaker(snippets(), padding="independent"), real)


@torch.no_grad()
def test_input_values_are_not_normalised_again(speaker: HookedAudioEncoder, features: Any) -> None:
    louder = 3 * features["input_values"][:1, :700]
    assert_changed(speaker(input_values=louder), speaker(louder))


WRONG_VALUES: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "the mask under both names": (
        lambda given: {**given, "one_zero_attention_mask": given["attention_mask"]},
        "one_zero_attention_mask and attention_mask are both given",
    ),
    "the mask beside a dictionary with one": (
        lambda given: {"inputs": given, "attention_mask": given["attention_mask"]},
        "attention_mask and the dictionary's attention_mask are both given",
    ),
    "waveforms and values": (
        lambda given: {"inputs": snippets(), "input_values": given["input_values"]},
        "input_values and inputs are both given",
    ),
    "nothing": (lambda given: {}, "there is no input: give waveforms"),
    "an unknown name": (
        lambda given: {"inputs": {"input_vales": given["input_values"]}},
        "the dictionary has 'input_vales', which the model does not read; it reads input_values, attention_mask; did you",
    ),
    "rows of several lengths": (
        lambda given: {"input_values": [np.zeros(700), np.zeros(650)]},
        "input_values has rows of several lengths; pad them: feature_extractor(",
    ),
    "whole numbers": (
        lambda given: {"input_values": torch.ones(1, 700, dtype=torch.int16)},
        "input_values is a Tensor of shape [1, 700] and dtype int16; give floating-point numbers [batch sample]",
    ),
    "not a number": (
        lambda given: {"input_values": torch.full((1, 700), torch.nan)},
        "row 0 of input_values holds 700 samples that are NaN or infinite",
    ),
    "another rate": (
        lambda given: {**given, "sampling_rate": 8000},
        "sampling_rate=8000 is given, and input_values have the model's rate, 16000 Hz",
    ),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_values_given_twice_or_not_understood_are_refused(case: str, speaker: HookedAudioEncoder, features: Any) -> None:
    arguments, message = WRONG_VALUES[case]
    with pytest.raises(InputError, match=re.escape(message)):
        speaker(**arguments(dict(features)))
