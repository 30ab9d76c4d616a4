"""Alignment: tokens, words and characters of one text, or of a pair, set against each other."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word as the tokenizer splits text: its string, and where it stands.

    Attributes:
        text: the word.
        start, end: character offsets in its text.
        text_index: 0, or 1 for the second text of a pair.
        tokens: positions of its tokens.
    """

    text: str
    start: int
    end: int
    text_index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """Tokens, words and characters of one text (or pair), set against each other. Special tokens have no word and no span.

    Attributes:
        tokens: each token's string.
        ids: each token's id.
        spans: each token's character offsets (start, end) in its text, None for special tokens.
        word_of: the index into ``words`` of each token's word, None for special tokens.
        text_of: 0 or 1 for the text that a token comes from, None for special tokens.
        words: the words, in order.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]
    word_of: tuple[int | None, ...]
    text_of: tuple[int | None, ...]
    words: tuple[Word, ...]

    def token_at(self, char: int, text_index: int = 0) -> int | None:
        """The position of the token that covers a character, None for white space."""
        for position, (span, text) in enumerate(zip(self.spans, self.text_of, strict=True)):
            if span is not None and text == text_index and span[0] <= char < span[1]:
                return position
        return None

    def between(self, texts: tuple[str, ...], start: int, end: int) -> str:
        """The characters from one token to another, both of the same text: what was given, white space and case included."""
        first, last, which = self.spans[start], self.spans[end], self.text_of[start]
        return "" if first is None or last is None or which is None else texts[which][first[0] : last[1]]


def aligned(tokenizer: Any, encoding: Any, texts: tuple[str, ...]) -> Alignment:
    """What a fast tokenizer knows of a text or a pair, without the padding around it.

    Args:
        encoding: what the tokenizer made of it.
        texts: the text, or both.
    """
    inside = slice(padding_in_front(encoding), padding_in_front(encoding) + sum(encoding.attention_mask))
    text_of: tuple[int | None, ...] = tuple(encoding.sequence_ids[inside])
    offsets = [(int(start), int(end)) for start, end in encoding.offsets[inside]]
    members: dict[tuple[int, int], list[int]] = {}
    for position, (which, word) in enumerate(zip(text_of, encoding.word_ids[inside], strict=True)):
        if which is not None and word is not None:
            members.setdefault((which, word), []).append(position)
    words: list[Word] = []
    word_of: list[int | None] = [None] * len(offsets)
    for index, ((which, _), positions) in enumerate(members.items()):
        start, end = offsets[positions[0]][0], offsets[positions[-1]][1]
        words.append(Word(texts[which][start:end], start, end, which, tuple(positions)))
        for position in positions:
            word_of[position] = index
    spans = tuple(None if which is None else span for which, span in zip(text_of, offsets, strict=True))
    ids = tuple(encoding.ids[inside])
    return Alignment(tuple(tokenizer.convert_ids_to_tokens(ids)), ids, spans, tuple(word_of), text_of, tuple(words))


def padding_in_front(encoding: Any) -> int:
    """How many positions of padding the tokenizer put in front of a text."""
    return encoding.attention_mask.index(1) if any(encoding.attention_mask) else 0
