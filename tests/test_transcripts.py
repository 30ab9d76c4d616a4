"""Transcripts as symbols, word by word, as each kind of tokenizer has them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2PhonemeCTCTokenizer, Wav2Vec2Processor

from encoderlens import HookedAudioEncoder
from encoderlens.audio.transcripts import normalised, target_of
from encoderlens.errors import InputError
from tests.speech import ctc_tokenizer, tokenizer_of
from tests.test_forced_alignment import planting
from tests.tiny import tiny_hf, tiny_waves

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SOUNDS = (*SPECIAL, "|", "a", "aɪ", "aɪə", "t", "tʃ", "ʃ", "i", "s", "sh", "h")


def read(tokenizer: Any, transcript: str, n_symbols: int = 99) -> list[str]:
    """The symbols of a transcript, whose ids are checked against the tokenizer's own."""
    target = target_of(tokenizer, transcript, n_symbols)
    for text, symbol in target:
        assert text == " " or symbol == tokenizer.get_vocab()[text]
    return [text for text, _ in target]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(SOUNDS, tmp_path_factory.mktemp("sounds"))


# Symbols of several letters


@pytest.mark.parametrize(
    ("transcript", "symbols"),
    [
        ("tʃ aɪ", ["tʃ", " ", "aɪ"]),
        ("a tʃi tʃ", ["a", " ", "tʃ", "i", " ", "tʃ"]),
        ("  tʃ\n\taɪ  ", ["tʃ", " ", "aɪ"]),
        ("tʃ|aɪ", ["tʃ", " ", "aɪ"]),
        ("| tʃ || aɪ |", ["tʃ", " ", "aɪ"]),
        ("aɪəaɪa", ["aɪə", "aɪ", "a"]),
        ("shsht", ["sh", "sh", "t"]),
    ],
)
def test_words_stay_apart_and_the_longest_symbol_is_read_first(sounds: Any, transcript: str, symbols: list[str]) -> None:
    assert read(sounds, transcript) == symbols
    assert ((" ", 4) in target_of(sounds, transcript, 99)) == (" " in symbols)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(SOUNDS[5:]), min_size=1, max_size=6).map("".join), min_size=1, max_size=3))
def test_each_word_is_read_as_the_tokenizer_reads_it_alone(sounds: Any, words: list[str]) -> None:
    expected = [symbol for word in words for symbol in (" ", *sounds.tokenize(word))]
    assert read(sounds, " ".join(words)) == expected[1:]


def test_words_of_symbols_of_several_letters_are_aligned_where_they_were_planted(sounds: Any) -> None:
    model = HookedAudioEncoder.from_pretrained(
        hf_model=tiny_hf("HubertForCTC"), processor=Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), sounds), device="cpu"
    )
    ids = sounds.get_vocab()
    path = [0, *[ids["tʃ"]] * 2, ids["aɪ"], ids["|"], 0, ids["t"], *[ids["aɪ"]] * 3, 0]
    with model.hooks(planting(path)):
        spoken = model.align(tiny_waves(28 + 20 * (len(path) - 1))[0], "tʃaɪ taɪ")
    assert [(span.text, span.frames) for span in spoken.words] == [("tʃaɪ", range(1, 4)), ("taɪ", range(6, 10))]
    assert [span.text for span in spoken.characters] == ["tʃ", "aɪ", " ", "t", "aɪ"]


# Case


@pytest.mark.parametrize("transcript", ["SHIP AHOY", "ship ahoy", "Ship ahOy", "sHiP AHOY"])
def test_where_case_does_not_matter_symbols_of_several_letters_are_found_in_every_case(tmp_path: Path, transcript: str) -> None:
    tokenizer = tokenizer_of([*SPECIAL, "|", *"AHIOPSY", "SH", "OY"], tmp_path, do_lower_case=True)
    assert read(tokenizer, transcript) == ["SH", "I", "P", " ", "A", "H", "OY"]


def test_a_symbol_in_capitals_comes_before_its_small_letter_where_case_does_not_matter(tmp_path: Path) -> None:
    tokenizer = tokenizer_of([*SPECIAL, "|", "a", "A", "tʃ", "b"], tmp_path, do_lower_case=True)
    assert read(tokenizer, "aAtʃ B") == ["A", "A", "tʃ", " ", "b"]


def test_capitals_are_other_symbols_where_case_matters(tmp_path: Path) -> None:
    tokenizer = tokenizer_of([*SPECIAL, "|", "a", "A", "sh"], tmp_path)
    assert read(tokenizer, "aA sh") == ["a", "A", " ", "sh"]
    with pytest.raises(InputError, match="the transcript has 'H', 'S', which the tokenizer lacks; it has A a sh"):
        target_of(tokenizer, "SH", 99)


# Delimiters


@pytest.mark.parametrize("delimiter", ["#", " ", "[space]"])
def test_words_are_parted_by_the_tokenizer_s_own_delimiter(tmp_path: Path, delimiter: str) -> None:
    tokenizer = tokenizer_of([*SPECIAL, "a", delimiter, "|", "sh"], tmp_path, word_delimiter_token=delimiter)
    assert target_of(tokenizer, f"a{delimiter}sh a|", 99) == [("a", 4), (" ", 5), ("sh", 7), (" ", 5), ("a", 4), ("|", 6)]


@pytest.mark.parametrize("options", [{}, {"word_delimiter_token": None}, {"word_delimiter_token": ""}])
def test_words_are_kept_apart_in_a_model_that_has_no_delimiter(tmp_path: Path, options: dict[str, Any]) -> None:
    symbols = [*SPECIAL, "a", "sh", "t"]  # a "|" that the tokenizer adds by itself is none of the model's
    tokenizer = tokenizer_of(symbols, tmp_path, **options)
    assert target_of(tokenizer, "tash a|t", 7) == [
        ("t", 6),
        ("a", 4),
        ("sh", 5),
        (" ", None),
        ("a", 4),
        (" ", None),
        ("t", 6),
    ]
    model = HookedAudioEncoder.from_pretrained(
        hf_model=tiny_hf("HubertForCTC", vocab_size=7),
        processor=Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer),
        device="cpu",
    )
    spoken = model.align(tiny_waves(900)[0], "tash a t")
    assert [word.text for word in spoken.words] == ["tash", "a", "t"]
    assert [span.text for span in spoken.characters] == ["t", "a", "sh", "a", "t"]
    ends = [spoken.characters[index].frames for index in (0, 2)]
    assert spoken.words[0].frames == range(ends[0].start, ends[1].stop)


def test_a_delimiter_that_was_added_to_model_and_tokenizer_is_a_symbol(tmp_path: Path) -> None:
    tokenizer = tokenizer_of([*SPECIAL, "a", "t"], tmp_path)
    assert target_of(tokenizer, "a t", n_symbols=7) == [("a", 4), (" ", 6), ("t", 5)]


# Phonemes


@pytest.mark.parametrize(("delimiter", "mark", "space"), [(None, "|", None), ("|", "|", None), ("#", "#", 9)])
@pytest.mark.parametrize("do_phonemize", [True, False])
def test_a_phoneme_tokenizer_has_phonemes_between_spaces(
    tmp_path: Path, delimiter: str | None, mark: str, space: int | None, do_phonemize: bool
) -> None:
    symbols = [*SPECIAL, "h", "ə", "l", "oʊ", "aɪ", "#"]
    tokenizer = tokenizer_of(
        symbols, tmp_path, Wav2Vec2PhonemeCTCTokenizer, word_delimiter_token=delimiter, do_phonemize=do_phonemize
    )
    transcript = f" h ə  l\noʊ {mark} {mark} h aɪ{mark}"
    expected = [("h", 4), ("ə", 5), ("l", 6), ("oʊ", 7), (" ", space), ("h", 4), ("aɪ", 8)]
    assert target_of(tokenizer, transcript, n_symbols=10) == expected
    with pytest.raises(InputError, match=r"has 'hello', which .* it has # aɪ h l oʊ ə; give phonemes with spaces between, and"):
        target_of(tokenizer, "hello", n_symbols=10)


# What the tokenizer lacks


@pytest.mark.parametrize("options", [{}, {"unk_token": None}, {"unk_token": "<pad>"}, {"unk_token": "|"}])
@pytest.mark.parametrize(
    ("transcript", "missing"), [("axa", "'x'"), ("a é\udc80", r"'é', '\udc80'"), ("shx<pad>", "'<pad>', 'x'")]
)
def test_a_character_that_a_tokenizer_lacks_is_named_also_without_an_unknown_symbol(
    tmp_path: Path, options: dict[str, Any], transcript: str, missing: str
) -> None:
    tokenizer = tokenizer_of(["<pad>", "|", "a", "sh"], tmp_path, **options)
    with pytest.raises(InputError, match=re.escape(f"the transcript has {missing}, which the tokenizer lacks")):
        target_of(tokenizer, transcript, 4)


@pytest.mark.parametrize("transcript", ["", " ", "|", " | \n|", None, 3, np.array("a"), ["a"]])
def test_a_transcript_without_a_word_is_refused(transcript: Any) -> None:
    with pytest.raises(InputError, match=r"the transcript is .*; give what is said in the clip"):
        target_of(ctc_tokenizer(), transcript, 32)


def test_a_normalised_transcript_has_the_tokenizers_case_and_punctuation() -> None:
    tokenizer = SimpleNamespace(get_vocab=lambda: dict.fromkeys("ABEINOST'", 0))
    assert normalised(tokenizer, "  It isn\u2019t \u201cBe-A\u201d\u2014no, 7! ") == "IT ISN'T BE A NO 7"
    lower = SimpleNamespace(get_vocab=lambda: dict.fromkeys("abo.", 0))
    assert normalised(lower, "A Bob. A?") == "a bob. a"
