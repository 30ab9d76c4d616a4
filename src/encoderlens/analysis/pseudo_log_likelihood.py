"""Pseudo-log-likelihood: how probable a masked LM finds each token of a text, given the others."""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.analysis.examples import count_from_1
from encoderlens.analysis.result import EXAMPLE, Result
from encoderlens.errors import InputError, TokenizerMissingError, WordsUnknownError
from encoderlens.given import Whole
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.linearised import require_eval
from encoderlens.names import check_word
from encoderlens.precision import at_least_float32
from encoderlens.progress import tracked
from encoderlens.text_input import TextBatch
from encoderlens.tokenizing import special_ids

Method = Literal["within_word", "original"]


@dataclass(frozen=True, eq=False)
class PseudoLogLikelihood(Result):
    """The pseudo-log-likelihood of each text: ``values`` are the sums of its tokens' log-probabilities, natural logarithms.

    Attributes:
        method: how tokens were masked.
        tokens: the tokens of each text that were scored.
        positions: where they stand in their text, special tokens counted, padding not.
        words: the word that each belongs to, as ``model.align`` counts them; None where words are not known.
        log_probs: their log-probabilities, a tensor [token] a text.
    """

    method: str
    tokens: tuple[tuple[str, ...], ...]
    positions: tuple[tuple[int, ...], ...]
    words: tuple[tuple[int, ...], ...] | None
    log_probs: tuple[Tensor, ...]

    @property
    def title(self) -> str:
        return f"Pseudo-log-likelihood ({self.method})"

    @property
    def per_token(self) -> Float[Tensor, "*example"]:
        """The mean log-probability of each text's tokens."""
        return self.values / self._per_text([len(tokens) for tokens in self.tokens])

    @property
    def per_word(self) -> Float[Tensor, "*example"]:
        """Each text's sum over its number of words.

        Raises:
            InputError: where words are not known.
        """
        if self.words is None:
            raise InputError("words are known only of texts, under a fast tokenizer; take per_token")
        return self.values / self._per_text([len(set(words)) for words in self.words])

    @property
    def perplexity(self) -> float:
        """The pseudo-perplexity of all texts: exp of minus the mean over all tokens (Salazar et al. 2020)."""
        return math.exp(-self.values.sum().item() / sum(map(len, self.tokens)))

    def _per_text(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers).reshape(self.values.shape)

    def columns(self) -> dict[str, list[Any]]:
        """A row for each token that was scored: its text's name, position, token and log-probability, and its word's number."""
        names = self.labels.get(EXAMPLE, ("",) * len(self.tokens))
        columns: dict[str, list[Any]] = {
            EXAMPLE: [name for name, tokens in zip(names, self.tokens, strict=True) for _ in tokens],
            "position": list(chain.from_iterable(self.positions)),
            "token": list(chain.from_iterable(self.tokens)),
        }
        if self.words is not None:
            columns["word"] = list(chain.from_iterable(self.words))
        return columns | {"value": [value for values in self.log_probs for value in values.tolist()]}

    def table(self, k: Whole = 10) -> Table:
        """A row a text, in their order, the first k of them; of a single text a row for each of its tokens.

        Raises:
            InputError: for a k below 1.
        """
        shown = min(count_from_1(k, "k"), len(self.tokens))
        if EXAMPLE not in self.axes:
            table = self._empty_table(f"sum {self.values.item():.4f}", "token", "log-probability")
            for token, value in zip(self.tokens[0], self.log_probs[0].tolist(), strict=True):
                table.add_row(Text(token), f"{value:.4f}")
            return table
        caption = f"the first {shown} of {len(self.tokens)} texts" if shown < len(self.tokens) else None
        table = self._empty_table(caption, "text", "sum", "tokens", "per token")
        rows = zip(self.labels[EXAMPLE], self.tokens, self.values.tolist(), self.per_token.tolist(), strict=True)
        for label, tokens, value, mean in list(rows)[:shown]:
            table.add_row(Text(label), f"{value:.4f}", str(len(tokens)), f"{mean:.4f}")
        return table

    def _empty_table(self, caption: str | None, name: str, *numbers: str) -> Table:
        table = Table(title=self.title, caption=caption, min_width=len(self.title))
        table.add_column(name, overflow="fold")
        for number in numbers:
            table.add_column(number, justify="right", no_wrap=True)
        return table


@dataclass(frozen=True, slots=True)
class Row:
    """One text's tokens, token types (None for a model without them), and which of its positions are real."""

    tokens: tuple[int, ...]
    types: tuple[int, ...] | None
    real: tuple[bool, ...]


@dataclass(frozen=True)
class MaskedText:
    """A text, cut up to be scored.

    Attributes:
        positions: of the tokens to score.
        targets: the ids of these tokens.
        copies: for each of them, the text with it masked.
        words: the word that each belongs to; None where words are not known.
    """

    positions: tuple[int, ...]
    targets: tuple[int, ...]
    copies: tuple[Row, ...]
    words: tuple[int, ...] | None


def pseudo_log_likelihood(
    model: HookedEncoder, inputs: Any, method: Method = "within_word", *, batch_size: Whole = 64
) -> PseudoLogLikelihood:
    """Mask each token of a text in turn and take the log-probability that the masked-LM head gives it there.

    ``"original"`` masks the token alone (Salazar et al. 2020). The pieces of a rare word then give each other away, and it
    scores too high; ``"within_word"`` masks the later tokens of the same word too (PLL-word-l2r of Kauf & Ivanova 2023).

    A word is what the tokenizer itself takes for one before it cuts it into pieces, as in ``model.align`` and in the code of
    Kauf & Ivanova: BERT's makes three words of "don't", and one of each punctuation mark; byte-level BPE keeps "'t" together;
    XLM-R's SentencePiece splits at spaces alone, so a word has its punctuation with it and a clause of Chinese is one word.

    Special tokens are not scored, but an unknown token is, since it stands for a word. A mask token in the text stays masked.
    The head need not be that of the model's task. Hooks act on each masked copy. Each text gets what it would get alone; copies
    that are equal run once, so that texts which differ only in what the tokenizer drops get exactly the same.

    Args:
        model: a model in eval mode, with a masked-LM head and a tokenizer with a mask token.
        inputs: a text, a pair, or a list of either; or for "original" also token ids [pos] or [batch pos]. Or what
            ``model.prepare`` made of any of these, with a mask or token types.
        method: "within_word" or "original".
        batch_size: how many masked copies run at a time, of whatever texts are about as long.

    Returns:
        Sums [example], without an axis for a single text; on the CPU. Softmax in float32 at least.

    Raises:
        InputError: for an unknown method, a text without a token to score or longer than the model takes, a tokenizer without
            a mask token, and for "within_word" where words are not known: of token ids, of a tokenizer that is not a fast one
            or does not split at spaces, with a mask of one's own; all before anything runs.
        TokenizerMissingError: without a tokenizer.
        TaskError: for a model without a masked-LM head.
        AnalysisError: for a model in training mode.
    """
    check_can_score(model, method)
    batch_size = count_from_1(batch_size, "batch_size")
    with model.use_task("masked_lm"):
        head, batch = model.task_head(), model.prepare(inputs)
        texts = masked_texts(model, batch, method)
        log_probs = log_probabilities(model, texts, batch_size)
    sums = summed(log_probs)
    known = [text.words for text in texts if text.words is not None]
    return PseudoLogLikelihood(
        values=sums[0] if batch.single else sums,
        axes=() if batch.single else (EXAMPLE,),
        labels={} if batch.single else {EXAMPLE: batch.labels},
        method=method,
        tokens=tuple(tuple(head.output_name(token, model.tokenizer) for token in text.targets) for text in texts),
        positions=tuple(text.positions for text in texts),
        words=tuple(known) or None,
        log_probs=tuple(log_probs),
    )


def check_can_score(model: HookedEncoder, method: Any) -> None:
    """Refuse a method that is unknown, and a model that cannot mask.

    Raises:
        AnalysisError: for a model in training mode.
        InputError: for an unknown method, or a tokenizer without a mask token.
        TokenizerMissingError: without a tokenizer.
    """
    require_eval(model)
    check_word("method", method, get_args(Method))
    if model.tokenizer is None:
        raise TokenizerMissingError(
            "a pseudo-log-likelihood needs the mask token of a tokenizer, and this model has none: set model.tokenizer"
        )
    if model.tokenizer.mask_token_id is None:
        raise InputError("the tokenizer has no mask token, so no token can be masked; set tokenizer.mask_token")


def masked_texts(model: HookedEncoder, batch: TextBatch, method: Method) -> list[MaskedText]:
    """Each text of a batch, with its masked copies.

    Raises:
        InputError: as ``pseudo_log_likelihood``.
    """
    mask_id, special = model.tokenizer.mask_token_id, special_ids(model.tokenizer)
    rows = _rows(batch)
    words = _words(batch, rows)
    if method == "within_word" and words is None:
        raise WordsUnknownError(
            "within_word needs to know which tokens make a word, as it does of texts under a fast tokenizer (a tokenizer.json) "
            "that splits them at spaces, without a mask of one's own; give such texts, or take method='original'"
        )
    texts = []
    for index, row in enumerate(rows):
        scored = [at for at, token in enumerate(row.tokens) if row.real[at] and token not in special]
        if not scored:
            raise InputError(f"text {index} has no token to score: it is empty, or all of it is special tokens")
        word_of = None if words is None else words[index]
        units = word_of if word_of is not None and method == "within_word" else range(len(row.tokens))
        texts.append(
            MaskedText(
                positions=tuple(scored),
                targets=tuple(row.tokens[at] for at in scored),
                copies=tuple(_masked(row, at, units, mask_id) for at in scored),
                words=None if word_of is None else tuple(word_of[at] for at in scored),
            )
        )
    return texts


def log_probabilities(model: HookedEncoder, texts: list[MaskedText], batch_size: int) -> list[Float[Tensor, " _"]]:
    """The log-probabilities of each text's tokens, each read off its masked copy by the head of the model's task."""
    questions = [list(zip(text.copies, text.positions, text.targets, strict=True)) for text in texts]
    asked: dict[tuple[Row, int], list[int]] = {}  # copies that several texts have run once
    for copy, position, target in chain.from_iterable(questions):
        asked.setdefault((copy, position), []).append(target)
    runs = sorted(asked, key=lambda run: len(run[0].tokens))  # so that there is little padding
    found: dict[tuple[Row, int, int], float] = {}
    with torch.no_grad():
        starts = range(0, len(runs), batch_size)
        for start in tracked(starts, "scoring", len(starts)):
            chosen = runs[start : start + batch_size]
            answers = [(index, target) for index, run in enumerate(chosen) for target in asked[run]]
            indices, targets = zip(*answers, strict=True)
            values = _read(model, chosen)[list(indices), list(targets)].tolist()
            found |= {(*chosen[index], target): value for (index, target), value in zip(answers, values, strict=True)}
    dtype = torch.promote_types(model.cfg.dtype, torch.float32)
    return [torch.tensor([found[question] for question in of_text], dtype=dtype) for of_text in questions]


def summed(log_probs: list[Float[Tensor, " _"]]) -> Float[Tensor, " example"]:
    """The sum of each text, rounded once."""
    return torch.tensor([math.fsum(values.tolist()) for values in log_probs], dtype=log_probs[0].dtype)


def _read(model: HookedEncoder, runs: list[tuple[Row, int]]) -> Float[Tensor, "copy d_vocab"]:
    """Log-probabilities of all tokens, at one position of each copy."""
    tokens, real = _padded([copy.tokens for copy, _ in runs]), _padded([copy.real for copy, _ in runs])
    types = [copy.types for copy, _ in runs if copy.types is not None]
    batch = model.prepare(tokens, _padded(types) if types else None, real)
    logits = model(batch, return_type="logits", logits_at=torch.tensor([[position] for _, position in runs]))
    return at_least_float32(logits.squeeze(1)).log_softmax(-1)


def _padded(rows: Items[tuple[int, ...]]) -> Int[Tensor, "copy pos"]:
    """Rows of numbers, with zeros up to the longest."""
    longest = max(map(len, rows))
    return torch.tensor([(*row, *(0,) * (longest - len(row))) for row in rows], dtype=torch.long)


def _rows(batch: TextBatch) -> list[Row]:
    """Each text without the padding around it."""
    types = [None] * batch.sequence.batch if batch.token_type_ids is None else batch.token_type_ids.tolist()
    rows = []
    for tokens, of_type, real in zip(batch.tokens.tolist(), types, batch.sequence.real.tolist(), strict=True):
        inside = slice(real.index(True), len(real) - real[::-1].index(True))
        rows.append(Row(tuple(tokens[inside]), None if of_type is None else tuple(of_type[inside]), tuple(real[inside])))
    return rows


def _masked(row: Row, at: int, units: Items[int], mask_id: int) -> Row:
    """A text with a token masked, and with it what comes after it in the same unit."""
    hidden = (place >= at and unit == units[at] for place, unit in enumerate(units))
    tokens = tuple(mask_id if hides else token for hides, token in zip(hidden, row.tokens, strict=True))
    return Row(tokens, row.types, row.real)


def _words(batch: TextBatch, rows: list[Row]) -> list[list[int]] | None:
    """The word of each position, special tokens with numbers of their own; None where words are not known."""
    alignments = [batch.alignment(index) for index in range(len(rows))]
    aligned = [alignment for alignment in alignments if alignment is not None]
    if len(aligned) < len(rows):
        return None
    if any(of.ids != row.tokens or not all(row.real) for of, row in zip(aligned, rows, strict=True)):
        return None  # prepared with a mask of one's own
    if any(len(word.tokens) > 1 and len(word.text.split()) > 1 for of in aligned for word in of.words):
        return None  # the tokenizer takes the whole text for a word
    return [[-1 - at if word is None else word for at, word in enumerate(of.word_of)] for of in aligned]
