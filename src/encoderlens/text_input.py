"""Text, pairs of texts and token ids, made into one checked batch."""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from encoderlens.components.heads import TextContext
from encoderlens.errors import InputError, TokenizerMissingError
from encoderlens.loading import TOKENIZER_FILES
from encoderlens.sequence import Sequence

log = logging.getLogger("encoderlens")

Text = str | tuple[str, str]
TextInput = Text | list[str] | list[tuple[str, str]]


@dataclass(frozen=True)
class TextBatch(TextContext):
    """One batch, ready to run, with what decoding needs.

    Attributes:
        token_ids: [batch pos]; None for a run that starts from a residual stream.
        token_type_ids: [batch pos]; None means type 0 everywhere.
        sequence: mask and size.
        single: the input was one bare text or one row of tokens, so that predictions are not a list.
        texts: the texts, where the input was text.
        tokenizer: None for a model without one.
    """

    token_ids: Int[Tensor, "batch pos"] | None
    token_type_ids: Int[Tensor, "batch pos"] | None
    sequence: Sequence
    single: bool
    texts: list[Text] | None
    tokenizer: Any | None

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Each text, or the number of each row of tokens."""
        if self.texts is None:
            return tuple(map(str, range(self.sequence.batch)))
        return tuple(text if isinstance(text, str) else " | ".join(text) for text in self.texts)

    @property
    def position_labels(self) -> tuple[str, ...]:
        """Number and token, or the number alone without a tokenizer."""
        if self.tokenizer is None:
            return tuple(map(str, range(self.sequence.pos)))
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokens[0].tolist())
        return tuple(f"{number} {token}" for number, token in enumerate(tokens))

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        if self.token_ids is None:
            raise InputError("predictions need the tokens, which a run from start_at_layer does not have; take the logits")
        return self.token_ids

    def part(self, rows: slice) -> "TextBatch":
        """Some of its sequences, copied, so that they can take part in gradients also when it came from inference mode."""
        sequence = self.sequence.part(rows)
        tokens, types = (
            None if beside is None else beside[rows, : sequence.pos].clone() for beside in (self.token_ids, self.token_type_ids)
        )
        texts = None if self.texts is None else self.texts[rows]
        return TextBatch(tokens, types, sequence, self.single, texts, self.tokenizer)

    @property
    def mask_token_id(self) -> int:
        tokenizer = require_tokenizer(self.tokenizer, "predictions")
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, so there is no masked word to predict; set tokenizer.mask_token")
        return tokenizer.mask_token_id

    def decode_ids(self, ids: list[int]) -> str:
        return require_tokenizer(self.tokenizer, "predictions").decode(ids).strip()

    def answerable(self, row: int) -> Bool[Tensor, " pos"]:
        """Positions that an answer may span: the second text of a pair, otherwise everything that is not special."""
        tokenizer = require_tokenizer(self.tokenizer, "predictions")
        special = torch.tensor(tokenizer.all_special_ids, device=self.tokens.device)
        allowed = ~torch.isin(self.tokens[row], special)
        if self.sequence.mask is not None:
            allowed &= self.sequence.mask[row]
        second = self._in_second_text(row)
        if bool(second.any()):
            allowed &= second
        if not allowed.any():
            raise InputError(f"sequence {row} has no text that an answer could span")
        return allowed

    def _in_second_text(self, row: int) -> Bool[Tensor, " pos"]:
        """True in the second text of a pair: as the tokenizer says of texts, as token types say of tokens."""
        if (
            self.texts is not None
            and isinstance(self.texts[row], tuple)
            and self.tokenizer is not None
            and self.tokenizer.is_fast
        ):
            of = align(self.tokenizer, self.texts[row]).text_of
            padding, second = self._padding_in_front(row), torch.zeros(self.sequence.pos, dtype=torch.bool)
            second[padding : padding + len(of)] = torch.tensor([which == 1 for which in of])
            return second.to(self.tokens.device)
        types = self.token_type_ids
        return torch.zeros_like(self.tokens[row], dtype=torch.bool) if types is None else types[row] == 1

    def _padding_in_front(self, row: int) -> int:
        return 0 if self.sequence.mask is None else int(self.sequence.mask[row].int().argmax())

    def span_text(self, row: int, start: int, end: int) -> str:
        """The text of positions start to end, both included; from the original string where there is one."""
        if self.texts is None:
            return self.decode_ids(self.tokens[row, start : end + 1].tolist())
        text, aligned = self.texts[row], align(self.tokenizer, self.texts[row])
        padding = self._padding_in_front(row)
        first, last = aligned.spans[start - padding], aligned.spans[end - padding]
        source = text if isinstance(text, str) else text[aligned.text_of[start - padding] or 0]
        return source[first[0] : last[1]] if first and last else ""


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


def align(tokenizer: Any, text: Any) -> Alignment:
    """See ``HookedEncoder.align``."""
    if not as_texts(text)[1]:
        raise InputError("align takes one text or pair at a time, not a list")
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} keeps no offsets; align needs a fast tokenizer (a tokenizer.json)")
    texts = (text,) if isinstance(text, str) else text
    encoding = tokenizer(*texts, return_offsets_mapping=True)
    text_of: tuple[int | None, ...] = tuple(encoding.sequence_ids(0))
    offsets = [(int(start), int(end)) for start, end in encoding["offset_mapping"]]
    members: dict[tuple[int, int], list[int]] = {}
    for position, (which, word) in enumerate(zip(text_of, encoding.word_ids(0), strict=True)):
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
    ids = tuple(encoding["input_ids"])
    return Alignment(tuple(tokenizer.convert_ids_to_tokens(ids)), ids, spans, tuple(word_of), text_of, tuple(words))


def require_tokenizer(tokenizer: Any | None, what: str) -> Any:
    """The tokenizer, or an error that says how to get one."""
    if tokenizer is None:
        raise TokenizerMissingError(
            f"{what} needs a tokenizer, and this model has none: its folder held no tokenizer files "
            f"({', '.join(TOKENIZER_FILES)}); add them, pass tokenizer=, or give token ids"
        )
    return tokenizer


def is_text(value: Any) -> bool:
    """Whether an input is text of any form, rather than a tensor."""
    return isinstance(value, str | tuple | list)


def as_texts(value: Any) -> tuple[list[Text], bool]:
    """The texts of an input, and whether it was a single bare one.

    Raises:
        InputError: for an empty list, or anything but strings and pairs of strings, all of one kind.
    """
    single = isinstance(value, str | tuple)
    if not single and not isinstance(value, list):
        raise InputError(f"input is {_describe(value)}; text is a string, a pair (a, b), or a list of either")
    texts: list[Any] = [value] if single else value
    if not texts:
        raise InputError("the list of texts is empty")
    pairs = [isinstance(text, tuple) for text in texts]
    for index, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) != (2 if isinstance(text, tuple) else 1) or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"input {index} is {_describe(text)}; text is a string, a pair (a, b), or a list of either. "
                "Token ids go in a tensor"
            )
    if any(pairs) and not all(pairs):
        raise InputError("the list mixes single texts and pairs; give one or the other")
    return texts, single


def encode(
    tokenizer: Any, texts: list[Text], n_ctx: int, truncate: bool
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens, token types and mask [batch pos] of texts, padded to the longest.

    Raises:
        InputError: for a text longer than ``n_ctx`` tokens, unless ``truncate``.
    """
    if len(texts) > 1 and tokenizer.pad_token_id is None:
        raise InputError("the tokenizer has no padding token, so it takes one text at a time; set tokenizer.pad_token")
    columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    limits = {"truncation": True, "max_length": n_ctx} if truncate else {"verbose": False}
    encoding = tokenizer(*columns, return_tensors="pt", padding=len(texts) > 1, return_attention_mask=True, **limits)
    tokens, mask = encoding["input_ids"], encoding["attention_mask"]
    longest = int(mask.sum(dim=1).argmax())
    if tokens.shape[1] > n_ctx:
        raise InputError(
            f"text {longest} has {int(mask[longest].sum())} tokens, the model takes {n_ctx}: shorten it, or cut it with "
            "to_tokens(text, truncate=True)"
        )
    types = encoding["token_type_ids"] if "token_type_ids" in encoding else torch.zeros_like(tokens)
    return tokens, types, mask


def warn_of_cuts(tokenizer: Any, texts: list[Text], mask: Int[Tensor, "batch pos"], limit: int) -> None:
    """Say in the log which texts were longer than the limit to which they were cut."""
    full = (mask.sum(1) == limit).nonzero().flatten().tolist()
    cut = [index for index in full if len(tokenizer(*_parts(texts[index]), verbose=False)["input_ids"]) > limit]
    if cut:
        listed = ", ".join(map(str, cut[:5])) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
        log.warning("cut to the %d tokens that the sentence encoder takes: text %s", limit, listed)


def make_lower_case(tokenizer: Any) -> None:
    """Have a fast tokenizer make all text lower case first.

    Raises:
        InputError: for a slow one.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} cannot be made to lower case; give a fast tokenizer (a tokenizer.json)")
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Lowercase() if backend.normalizer is None else Sequence([Lowercase(), backend.normalizer])


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def check_tokens(tokens: Any, d_vocab: int, n_ctx: int) -> Int[Tensor, "batch pos"]:
    """Token ids as [batch pos].

    Raises:
        InputError: for a wrong type, rank, length or range.
    """
    if not isinstance(tokens, Tensor):
        raise InputError(f"input is {_describe(tokens)}; give token ids as a tensor [batch pos], or text")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InputError(
            f"token ids are whole numbers, not {_dtype_name(tokens)}; a residual stream goes in with start_at_layer="
        )
    if tokens.ndim not in (1, 2) or tokens.numel() == 0:
        raise InputError(f"token ids have shape {list(tokens.shape)}; expected [batch pos] or [pos], not empty")
    tokens = torch.atleast_2d(tokens)
    if tokens.shape[1] > n_ctx:
        raise InputError(f"input has {tokens.shape[1]} positions, the model takes {n_ctx}; shorten it")
    low, high = (int(value) for value in torch.aminmax(tokens))
    if low < 0 or high >= d_vocab:
        raise InputError(f"token ids run from {low} to {high}; this model's lie in 0 .. {d_vocab - 1}")
    return tokens.long()


def check_token_types(types: Any, shape: torch.Size | tuple[int, ...], n_token_types: int) -> Int[Tensor, "batch pos"] | None:
    """Token types as [batch pos].

    Raises:
        InputError: for a wrong type, shape or range.
    """
    if types is None:
        return None
    types = _same_shape(types, shape, "token_type_ids")
    if types.is_floating_point():
        raise InputError(f"token_type_ids are whole numbers, not {_dtype_name(types)}")
    low, high = (int(value) for value in torch.aminmax(types))
    if low < 0 or high >= max(n_token_types, 1):
        has = f"{n_token_types} types, from 0" if n_token_types else "no token types: leave them out"
        raise InputError(f"token_type_ids run from {low} to {high}; this model has {has}")
    return types.long()


def check_mask(mask: Any, shape: torch.Size | tuple[int, ...]) -> Bool[Tensor, "batch pos"] | None:
    """A one-zero or boolean mask as booleans; None when every position is real.

    Raises:
        InputError: for a wrong shape, other values than 0 and 1, or a sequence without a real position.
    """
    if mask is None:
        return None
    mask = _same_shape(mask, shape, "one_zero_attention_mask")
    real = mask.bool()
    if mask.dtype != torch.bool and not torch.equal(real.to(mask.dtype), mask):
        raise InputError("one_zero_attention_mask holds 1 at real positions and 0 at padding, and nothing else")
    empty = (~real.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"one_zero_attention_mask leaves sequence {empty[0]} without a real position")
    return None if bool(real.all()) else real


def check_pairs(input: Any, token_type_ids: Tensor | None) -> None:
    """Refuse what is no pair of sentences, and tokens that do not say which sentence they belong to.

    Raises:
        InputError: for either.
    """
    if isinstance(input, Tensor):
        if token_type_ids is None:
            raise InputError(
                "next-sentence prediction on tokens needs token_type_ids (0 for the first sentence, 1 for the second); without "
                "them the model would take the pair as one sentence"
            )
    elif not all(isinstance(text, tuple) for text in as_texts(input)[0]):
        raise InputError("next-sentence prediction takes a pair of sentences (a, b), or a list of pairs")


def _same_shape(value: Any, shape: torch.Size | tuple[int, ...], name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"{name} is {_describe(value)}; give a tensor of shape {list(shape)}")
    rows = torch.atleast_2d(value)
    if tuple(rows.shape) != tuple(shape):
        raise InputError(f"{name} has shape {list(value.shape)}, the input {list(shape)}")
    return rows


def _describe(value: Any) -> str:
    if isinstance(value, Items) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__ if len(value) else 'items'}"
    return f"a {type(value).__name__}"


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
