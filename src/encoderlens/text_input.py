"""Text, pairs of texts and token ids, made into one checked batch."""

import copy
import logging
import re
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoderlens.alignment import Alignment, aligned, padding_in_front
from encoderlens.components.heads import TextContext
from encoderlens.config import EncoderConfig, PaddedPositionsPart, TokenDropoutEmbeddingPart
from encoderlens.errors import InputError, TokenizerMissingError
from encoderlens.given import (
    as_booleans,
    as_integers,
    as_rows,
    as_tensor,
    check_keys,
    check_once,
    check_text,
    described,
    dtype_name,
    holds_integers,
)
from encoderlens.sequence import Sequence, usable
from encoderlens.tokenizer_files import TOKENIZER_FILES
from encoderlens.tokenizing import same_tokenizer, special_ids, tokenized

log = logging.getLogger("encoderlens")

MASK_SPELLINGS = re.compile(r"(?i:[\[<({]mask[\])>}])|_{3,}|\bMASK\b")  # of some tokenizer, or a person
HF_NAMES = ("input_ids", "token_type_ids", "attention_mask", "inputs_embeds")  # of what a text model reads
PADDED = "tokenizer(texts, padding=True, return_tensors='pt')"

Text = str | tuple[str, str]
TextInput = Text | list[str] | list[tuple[str, str]]


@dataclass(frozen=True)
class TextFit:
    """What of a model a batch of text depends on: models in which it is the same can run the same batches.

    Attributes:
        d_vocab, n_ctx, n_token_types: the model's sizes.
        padding: the token that positions are counted without; None where they count every token.
        masked: the token that the embeddings count wherever it stands, at padding too; None for none.
        tokenizer, prompt: what made the tokens of texts, and what stood in front of each; None of tokens.
            They matter to batches of texts alone, and a model without a tokenizer takes what any made.
    """

    d_vocab: int | None
    n_ctx: int | None
    n_token_types: int | None
    padding: int | None
    masked: int | None
    tokenizer: Any = None
    prompt: str | None = None

    @classmethod
    def of(cls, cfg: EncoderConfig) -> "TextFit":
        """What tokens depend on."""
        positions, embed = cfg.positions, cfg.embed
        padding = positions.pad if isinstance(positions, PaddedPositionsPart) else None
        masked = embed.mask if isinstance(embed, TokenDropoutEmbeddingPart) else None
        return cls(cfg.d_vocab, cfg.n_ctx, cfg.n_token_types, padding, masked)


@dataclass(frozen=True, eq=False)
class TextBatch(TextContext):
    """One batch, ready to run, with what decoding needs. Its tensors are its own.

    Attributes:
        token_ids: [batch pos]; None for a run that starts from vectors or from a residual stream.
        token_type_ids: [batch pos]; None means type 0 everywhere.
        sequence: mask and size.
        single: the input was one bare text or one row of tokens, so that predictions are not a list.
        texts: the texts, where the input was text, with any prompt in front.
        encodings: what a fast tokenizer made of each text, which says where each token comes from, whatever the mask.
        tokenizer: None for a model without one.
        fit: what it was made for; a model in which that differs does not take it.
        vectors: what stands in place of the output of the word-embedding table; None where tokens are looked up.
    """

    token_ids: Int[Tensor, "batch pos"] | None
    token_type_ids: Int[Tensor, "batch pos"] | None
    sequence: Sequence
    single: bool
    texts: list[Text] | None
    encodings: list[Any] | None
    tokenizer: Any | None
    fit: TextFit
    vectors: Float[Tensor, "batch pos d_embed"] | None = None

    @property
    def device(self) -> torch.device:
        read = self.tokens if self.vectors is None else self.vectors
        return read.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Each text, or the number of each row of tokens."""
        if self.texts is None:
            return tuple(map(str, range(self.sequence.batch)))
        return tuple(text if isinstance(text, str) else " | ".join(text) for text in self.texts)

    @property
    def position_labels(self) -> tuple[str, ...]:
        """Number and token, or the number alone without a tokenizer, or without tokens."""
        if self.tokenizer is None or self.token_ids is None:
            return tuple(map(str, range(self.sequence.pos)))
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokens[0].tolist())
        return tuple(f"{number} {token}" for number, token in enumerate(tokens))

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        if self.token_ids is None:
            raise InputError(
                "this needs the tokens, which a run from inputs_embeds or start_at_layer does not have; take the logits"
            )
        return self.token_ids

    def part(self, rows: slice) -> "TextBatch":
        """Some of its sequences, copied, so that they can take part in gradients also when it came from inference mode. Padding
        at the end goes, unless the embeddings count what stands there.
        """
        sequence = self.sequence.part(rows, self._read_by(rows))
        tokens, types, vectors = (
            None if beside is None else beside[rows, : sequence.pos].clone()
            for beside in (self.token_ids, self.token_type_ids, self.vectors)
        )
        texts, encodings = (None if of_texts is None else of_texts[rows] for of_texts in (self.texts, self.encodings))
        return replace(
            self,
            token_ids=tokens,
            token_type_ids=types,
            vectors=vectors,
            sequence=sequence,
            texts=texts,
            encodings=encodings,
        )

    def _read_by(self, rows: slice) -> int:
        """The number of positions that some of its sequences need."""
        if self.sequence.mask is None:
            return self.sequence.pos
        read = self.sequence.mask[rows]
        if self.token_ids is not None and self.fit.masked is not None:
            read = read | (self.token_ids[rows] == self.fit.masked)
        return int(read.any(0).nonzero().max()) + 1

    def at(self, device: torch.device) -> "TextBatch":
        """The same batch where a model is now."""
        tokens, types = usable(self.token_ids, device), usable(self.token_type_ids, device)
        vectors, sequence = usable(self.vectors, device), self.sequence.at(device)
        pairs = ((tokens, self.token_ids), (types, self.token_type_ids), (vectors, self.vectors), (sequence, self.sequence))
        if all(now is before for now, before in pairs):
            return self  # with what its layers have made once
        return replace(self, token_ids=tokens, token_type_ids=types, vectors=vectors, sequence=sequence)

    def check_fit(self, fit: TextFit) -> None:
        """Refuse another model than it was prepared for.

        Raises:
            InputError: with what differs.
        """
        names = [field.name for field in fields(fit) if field.name != "tokenizer"]
        names = [name for name in names if name != "prompt" or self.fit.prompt is not None]
        pairs = [(name, getattr(self.fit, name), getattr(fit, name)) for name in names]
        different = [f"{name} is {before!r} there, {now!r} here" for name, before, now in pairs if before != now]
        tokenizers = self.fit.tokenizer, fit.tokenizer
        if None not in tokenizers and not same_tokenizer(*tokenizers):
            names = [f"{type(one).__name__} of {one.name_or_path!r}" for one in tokenizers]
            different.append(f"another tokenizer made its tokens: {names[0]} there, {names[1]} here")
        if different:
            raise InputError(f"this batch was prepared by another model ({'; '.join(different)}): prepare it again")

    @property
    def mask_token_id(self) -> int:
        tokenizer = require_tokenizer(self.tokenizer, "predictions")
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, so there is no masked word to predict; set tokenizer.mask_token")
        return tokenizer.mask_token_id

    @property
    def masks(self) -> Bool[Tensor, "batch pos"]:
        masks = self.tokens == self.mask_token_id
        return masks if self.sequence.mask is None else masks & self.sequence.mask

    def mask_advice(self, row: int) -> str:
        mask = require_tokenizer(self.tokenizer, "predictions").mask_token
        texts = () if self.texts is None else _parts(self.texts[row])
        found = [spelling for text in texts for spelling in MASK_SPELLINGS.findall(text) if spelling != mask]
        if found:
            return f"this tokenizer's mask token is {mask}, not {found[0]}: write {mask}"
        return f"put {mask} where a word is wanted"

    def decode_ids(self, ids: list[int]) -> str:
        return require_tokenizer(self.tokenizer, "predictions").decode(ids).strip()

    def alignment(self, row: int) -> Alignment | None:
        """Tokens, words and characters of one of its texts, without padding; None of token ids, and under a slow tokenizer."""
        if self.texts is None or self.encodings is None:
            return None
        return aligned(self.tokenizer, self.encodings[row], _parts(self.texts[row]))

    def answerable(self, row: int) -> Bool[Tensor, " pos"]:
        """Positions that an answer may span: the second text of a pair, otherwise everything that is not special."""
        tokenizer = require_tokenizer(self.tokenizer, "predictions")
        special = torch.tensor(sorted(special_ids(tokenizer)), device=self.tokens.device)
        allowed = ~torch.isin(self.tokens[row], special)
        if self.sequence.mask is not None:
            allowed &= self.sequence.mask[row]
        second = self._in_second_text(row)
        if second is not None:
            allowed &= second
        if not allowed.any():
            of_pair = ": its second text, where answers are looked for, is empty or masked" if second is not None else ""
            raise InputError(f"sequence {row} has no text that an answer could span{of_pair}")
        return allowed

    def _in_second_text(self, row: int) -> Bool[Tensor, " pos"] | None:
        """True in the second text of a pair: as the tokenizer says of texts, as token types say of tokens. None for what is no
        pair.
        """
        alignment = self.alignment(row)
        paired = self.texts is not None and isinstance(self.texts[row], tuple)
        if alignment is None or self.encodings is None:
            second = None if self.token_type_ids is None else self.token_type_ids[row] == 1
            known = second is not None and bool(second.any())
            if paired and not known:
                raise InputError(
                    f"which tokens of sequence {row} are the second text is not known: {type(self.tokenizer).__name__} says it "
                    "neither by offsets nor by token types; give a fast tokenizer (a tokenizer.json)"
                )
            return second if known else None
        if not paired:
            return None
        front = padding_in_front(self.encodings[row])
        of = [None] * front + list(alignment.text_of) + [None] * self.sequence.pos
        return torch.tensor([which == 1 for which in of[: self.sequence.pos]], device=self.tokens.device)

    def span_text(self, row: int, start: int, end: int) -> str:
        """The text of positions start to end, both included; from the original string where the tokenizer knows it."""
        alignment = self.alignment(row)
        if alignment is None or self.texts is None or self.encodings is None:
            return self.decode_ids(self.tokens[row, start : end + 1].tolist())
        front = padding_in_front(self.encodings[row])
        return alignment.between(_parts(self.texts[row]), start - front, end - front)


def align(tokenizer: Any, text: Any) -> Alignment:
    """See ``HookedEncoder.align``."""
    texts, single = as_texts(text)
    if not single:
        raise InputError("align takes one text or pair at a time, not a list")
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} keeps no offsets; align needs a fast tokenizer (a tokenizer.json)")
    (encoding,) = tokenized(tokenizer, texts).encodings
    return aligned(tokenizer, encoding, _parts(texts[0]))


def require_tokenizer(tokenizer: Any | None, what: str) -> Any:
    """The tokenizer, or an error that says how to get one."""
    if tokenizer is None:
        raise TokenizerMissingError(
            f"{what} needs a tokenizer, and this model has none: its folder held no tokenizer files "
            f"({', '.join(TOKENIZER_FILES)}) that could be read (the log says why, if there were any); add them, pass "
            "tokenizer=, or give token ids"
        )
    return tokenizer


@dataclass(frozen=True)
class TextArguments:
    """What a caller gives as one input, whatever it is called.

    Attributes:
        input: text, token ids, a prepared batch or a residual stream; None for vectors.
        types: token types.
        mask: of real positions.
        vectors: what stands in place of the output of the word-embedding table; None for anything else.
    """

    input: Any
    types: Any
    mask: Any
    vectors: Any

    def for_embeddings(self) -> dict[str, Any]:
        """These, as keyword arguments of ``prepare``."""
        return {
            "input": self.input,
            "token_type_ids": self.types,
            "one_zero_attention_mask": self.mask,
            "inputs_embeds": self.vectors,
        }


def text_arguments(
    input: Any,
    token_type_ids: Any = None,
    one_zero_attention_mask: Any = None,
    *,
    input_ids: Any = None,
    attention_mask: Any = None,
    inputs_embeds: Any = None,
) -> TextArguments:
    """Arguments under our names and those of Hugging Face, and what a tokenizer returns, as one set.

    Args:
        input: also a dictionary or BatchEncoding with the names of Hugging Face.
        token_type_ids, one_zero_attention_mask, input_ids, attention_mask, inputs_embeds: as for ``HookedEncoder.forward``.

    Raises:
        InputError: for something that is given twice, nothing to read, and for names in a dictionary that are unknown.
    """
    given: dict[str, list[tuple[str, Any]]] = {name: [] for name in HF_NAMES}

    def note(name: str, called: str, value: Any) -> None:
        if value is not None:
            given[name].append((called, value))

    if isinstance(input, Mapping):
        check_keys(input, HF_NAMES)
        for name, value in input.items():
            note(name, f"the dictionary's {name}", as_rows(value, name, PADDED))
    else:
        note("input_ids", "input", input)
    note("input_ids", "input_ids", as_rows(input_ids, "input_ids", PADDED))
    note("token_type_ids", "token_type_ids", token_type_ids)
    note("attention_mask", "one_zero_attention_mask", one_zero_attention_mask)
    note("attention_mask", "attention_mask", attention_mask)
    note("inputs_embeds", "inputs_embeds", inputs_embeds)
    for several in given.values():
        check_once(*(called for called, _ in several))
    check_once(*(called for name in ("input_ids", "inputs_embeds") for called, _ in given[name]))
    found = {name: entries[0][1] if entries else None for name, entries in given.items()}
    if found["input_ids"] is None and found["inputs_embeds"] is None:
        raise InputError("there is no input: give text, token ids (input, or input_ids=) or vectors (inputs_embeds=)")
    return TextArguments(found["input_ids"], found["token_type_ids"], found["attention_mask"], found["inputs_embeds"])


def is_text(value: Any) -> bool:
    """Whether an input is text of any form, rather than a tensor."""
    return isinstance(value, str | tuple | list)


def as_texts(value: Any) -> tuple[list[Text], bool]:
    """The texts of an input, and whether it was a single bare one.

    Raises:
        InputError: for an empty list, anything but strings and pairs of strings, all of one kind, and half characters.
    """
    single = isinstance(value, str | tuple)
    if not single and not isinstance(value, list):
        raise InputError(f"input is {_described(value)}; text is a string, a pair (a, b), or a list of either")
    texts: list[Any] = [value] if single else value
    if not texts:
        raise InputError("the list of texts is empty")
    pairs = [isinstance(text, tuple) for text in texts]
    for index, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) != (2 if isinstance(text, tuple) else 1) or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"input {index} is {_described(text)}; text is a string, a pair (a, b), or a list of either. "
                "Token ids go in a tensor"
            )
        for which, part in zip(("first", "second"), parts, strict=False):
            check_text(part, f"input {index}" if len(parts) == 1 else f"the {which} text of input {index}")
    if any(pairs) and not all(pairs):
        raise InputError("the list mixes single texts and pairs; give one or the other")
    return texts, single


@dataclass(frozen=True)
class Encoded:
    """What a tokenizer makes of texts, padded to the longest.

    Attributes:
        tokens, types, mask: [batch pos]; types are 0 from a tokenizer without any.
        encodings: of each text, where each token comes from; None from a tokenizer that is not a fast one.
    """

    tokens: Int[Tensor, "batch pos"]
    types: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    encodings: list[Any] | None


def encode(tokenizer: Any, texts: list[Text], n_ctx: int, truncate: bool) -> Encoded:
    """Texts as tokens.

    Raises:
        InputError: for a text longer than ``n_ctx`` tokens, unless ``truncate``.
    """
    if len(texts) > 1 and tokenizer.pad_token_id is None:
        raise InputError("the tokenizer has no padding token, so it takes one text at a time; set tokenizer.pad_token")
    limits = {"truncation": True, "max_length": n_ctx} if truncate else {}
    encoding = tokenized(tokenizer, texts, return_tensors="pt", padding=len(texts) > 1, return_attention_mask=True, **limits)
    tokens, mask = encoding["input_ids"], encoding["attention_mask"]
    longest = int(mask.sum(dim=1).argmax())
    if tokens.shape[1] > n_ctx:
        raise InputError(
            f"text {longest} has {int(mask[longest].sum())} tokens, the model takes {n_ctx}: shorten it, or cut it with "
            "to_tokens(text, truncate=True)"
        )
    types = encoding["token_type_ids"] if "token_type_ids" in encoding else torch.zeros_like(tokens)
    return Encoded(tokens, types, mask, encoding.encodings)


def warn_of_cuts(tokenizer: Any, texts: list[Text], mask: Int[Tensor, "batch pos"], limit: int) -> None:
    """Say in the log which texts were longer than the limit to which they were cut."""
    full = (mask.sum(1) == limit).nonzero().flatten().tolist()
    cut = [index for index in full if len(tokenized(tokenizer, [texts[index]])["input_ids"][0]) > limit]
    if cut:
        listed = ", ".join(map(str, cut[:5])) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
        log.warning("cut to the %d tokens that the sentence encoder takes: text %s", limit, listed)


def lower_casing(tokenizer: Any) -> Any:
    """A copy of a fast tokenizer that makes all text lower case first.

    Raises:
        InputError: for a slow one.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} cannot be made to lower case; give a fast tokenizer (a tokenizer.json)")
    from tokenizers.normalizers import Lowercase, Sequence

    tokenizer = copy.deepcopy(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Lowercase() if backend.normalizer is None else Sequence([Lowercase(), backend.normalizer])
    return tokenizer


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def check_tokens(tokens: Any, d_vocab: int, n_ctx: int) -> Int[Tensor, "batch pos"]:
    """Token ids as [batch pos], in a tensor of one's own.

    Raises:
        InputError: for a wrong type, rank, length or range.
    """
    if not isinstance(tokens, Tensor | np.ndarray):
        raise InputError(f"input is {_described(tokens)}; give token ids as a tensor [batch pos], or text")
    given = as_tensor(tokens, "the input")
    if not holds_integers(given):
        raise InputError(
            f"token ids are whole numbers, not {dtype_name(given)}; a residual stream goes in with start_at_layer="
        )
    if given.ndim not in (1, 2) or given.numel() == 0:
        raise InputError(f"token ids have shape {list(given.shape)}; expected [batch pos] or [pos], not empty")
    ids = torch.atleast_2d(as_integers(given, "the input"))
    if ids.shape[1] > n_ctx:
        raise InputError(f"input has {ids.shape[1]} positions, the model takes {n_ctx}; shorten it")
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= d_vocab:
        raise InputError(f"token ids run from {low} to {high}; this model's lie in 0 .. {d_vocab - 1}")
    return ids


def check_vectors(vectors: Any, d_embed: int, n_ctx: int, dtype: torch.dtype) -> Float[Tensor, "batch pos d_embed"]:
    """Vectors in place of word embeddings, in a tensor of one's own through which gradients flow back.

    Raises:
        InputError: for a wrong type, shape or length.
    """
    given = as_tensor(vectors, "inputs_embeds")
    if given.ndim != 3 or given.shape[-1] != d_embed or given.numel() == 0 or not given.is_floating_point():
        raise InputError(
            f"inputs_embeds is {described(vectors)}; give floating-point numbers [batch pos {d_embed}], not empty: what "
            "stands in place of the rows of the word-embedding table"
        )
    if given.shape[1] > n_ctx:
        raise InputError(f"input has {given.shape[1]} positions, the model takes {n_ctx}; shorten it")
    return given.to(dtype, copy=True)


def check_token_types(types: Any, shape: torch.Size | tuple[int, ...], n_token_types: int) -> Int[Tensor, "batch pos"] | None:
    """Token types as [batch pos], in a tensor of one's own.

    Raises:
        InputError: for a wrong type, shape or range.
    """
    if types is None:
        return None
    given = _same_shape(types, shape, "token_type_ids")
    if given.dtype == torch.bool:
        given = given.to(torch.uint8)
    if not holds_integers(given):
        raise InputError(f"token_type_ids are whole numbers, not {dtype_name(given)}")
    ids = as_integers(given, "token_type_ids")
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= max(n_token_types, 1):
        has = f"{n_token_types} types, from 0" if n_token_types else "no token types: leave them out"
        raise InputError(f"token_type_ids run from {low} to {high}; this model has {has}")
    return ids


def check_mask(mask: Any, shape: torch.Size | tuple[int, ...]) -> Bool[Tensor, "batch pos"] | None:
    """A one-zero or boolean mask as booleans of one's own; None when every position is real.

    Raises:
        InputError: for a wrong shape, other values than 0 and 1, or a sequence without a real position.
    """
    if mask is None:
        return None
    name = "one_zero_attention_mask"
    real = as_booleans(_same_shape(mask, shape, name), name, "1 at real positions and 0 at padding")
    empty = (~real.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"one_zero_attention_mask leaves sequence {empty[0]} without a real position")
    return None if bool(real.all()) else real


def check_pairs(input: Any, token_type_ids: Any) -> None:
    """Refuse what is no pair of sentences, and tokens that do not say which sentence they belong to.

    Raises:
        InputError: for either.
    """
    prepared = isinstance(input, TextBatch)
    texts = input.texts if prepared else None
    if isinstance(input, Tensor | np.ndarray) or (prepared and texts is None):
        types = input.token_type_ids if prepared else token_type_ids
        if types is None:
            raise InputError(
                "next-sentence prediction on tokens needs token_type_ids (0 for the first sentence, 1 for the second); without "
                "them the model would take the pair as one sentence"
            )
    elif not all(isinstance(text, tuple) for text in texts or as_texts(input)[0]):
        raise InputError("next-sentence prediction takes a pair of sentences (a, b), or a list of pairs")


def _same_shape(value: Any, shape: torch.Size | tuple[int, ...], name: str) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray):
        raise InputError(f"{name} is {_described(value)}; give a tensor of shape {list(shape)}")
    rows = torch.atleast_2d(as_tensor(value, name))
    if tuple(rows.shape) != tuple(shape):
        raise InputError(f"{name} has shape {list(value.shape)}, the input {list(shape)}")
    return rows


def _described(value: Any) -> str:
    if isinstance(value, Items) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)} {type(value[0]).__name__ if len(value) else 'items'}"
    return described(value)
