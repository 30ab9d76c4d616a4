"""Transcripts, read word by word as the symbols that a CTC model has."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from encoderlens.errors import InputError

Target = list[tuple[str, int | None]]  # symbols with their ids; a space between words, whose id is None if the model has none

WORD_MARK = "|"  # between words, where the tokenizer names nothing else


def target_of(tokenizer: Any, transcript: Any, n_symbols: int) -> Target:
    """The symbols of a transcript with their ids, and a space between words.

    A tokenizer of characters has its words between spaces. Each is read from its start, the longest symbol first, so that "sh"
    is one symbol where the vocabulary has it. A tokenizer of phonemes has phonemes between spaces, and words between its
    delimiter, or "|" if it has none.

    Args:
        tokenizer: a Wav2Vec2CTCTokenizer or a Wav2Vec2PhonemeCTCTokenizer.
        transcript: what is said.
        n_symbols: how many symbols the model has.

    Raises:
        InputError: for an empty transcript, symbols that the tokenizer lacks, or another kind of tokenizer.
    """
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer):
        raise InputError(
            "align reads transcripts with a Wav2Vec2CTCTokenizer or a Wav2Vec2PhonemeCTCTokenizer, not a "
            f"{type(tokenizer).__name__}"
        )
    of_phonemes = isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer)
    delimiter = WORD_MARK
    if tokenizer.word_delimiter_token_id is not None and tokenizer.word_delimiter_token:
        delimiter = tokenizer.word_delimiter_token
    text = transcript if isinstance(transcript, str) else ""
    words = _phonemes(text, delimiter) if of_phonemes else _characters(text, delimiter, tokenizer)
    if not words:
        raise InputError(f"the transcript is {transcript!r}; give what is said in the clip")
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    symbols = {symbol: index for symbol, index in vocabulary.items() if symbol not in special}
    missing = sorted({piece for word in words for piece in word} - set(symbols))
    if missing:
        form = f"; give phonemes with spaces between, and {delimiter!r} between words" if of_phonemes else ""
        raise InputError(
            f"the transcript has {', '.join(map(repr, missing))}, which the tokenizer lacks; it has "
            f"{' '.join(sorted(symbols))}{form}"
        )
    space = vocabulary.get(delimiter, n_symbols)
    target: Target = []
    for word in words:
        if target:
            target.append((" ", space if space < n_symbols else None))
        target += [(piece, symbols[piece]) for piece in word]
    return target


def normalised(tokenizer: Any, transcript: str) -> str:
    """A transcript in the case of a tokenizer's characters, without the punctuation that it lacks.

    A dash that the tokenizer lacks parts words, other punctuation goes, and a curly apostrophe becomes a straight one. Letters
    and digits stay, also those that the tokenizer lacks.

    Raises:
        InputError: for a tokenizer of phonemes, in whose transcripts case and punctuation have a meaning.
    """
    from transformers import Wav2Vec2PhonemeCTCTokenizer

    if isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer):
        raise InputError("phonemes have no case or punctuation to normalise: leave it out")
    vocabulary = tokenizer.get_vocab()
    plain = unicodedata.normalize("NFC", transcript).replace("\u2019", "'").replace("\u2018", "'")
    return " ".join("".join(_normalised(letter, vocabulary) for letter in plain).split())


def _normalised(letter: str, vocabulary: Mapping[str, int]) -> str:
    spellings = [letter, letter.upper(), letter.lower()]
    known = [spelling for spelling in spellings if all(part in vocabulary for part in spelling)]
    if known:
        return known[0]
    category = unicodedata.category(letter)
    if category == "Pd":
        return " "
    return "" if category.startswith("P") else letter


def _phonemes(text: str, delimiter: str) -> list[list[str]]:
    return [word.split() for word in text.split(delimiter) if word.split()]


def _characters(text: str, delimiter: str, tokenizer: Any) -> list[list[str]]:
    """The symbols of each word; a character that begins no symbol stands by itself."""
    written = _written(tokenizer.get_vocab(), tokenizer.do_lower_case)
    longest_first = sorted(written, key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)
    words = text.replace(delimiter, " ").split()
    found: list[list[str]] = [pattern.findall(word.upper() if tokenizer.do_lower_case else word) for word in words]
    return [[written.get(piece, piece) for piece in word] for word in found]


def _written(vocabulary: Iterable[str], any_case: bool) -> dict[str, str]:
    """Each symbol by how it is written in a transcript: in capitals where case does not matter."""
    symbols = [symbol for symbol in vocabulary if symbol]
    if not any_case:
        return {symbol: symbol for symbol in symbols}
    in_capitals = {symbol.upper(): symbol for symbol in symbols}
    return in_capitals | {symbol: symbol for symbol in symbols if symbol == symbol.upper()}
