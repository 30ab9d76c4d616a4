"""Minimal pairs: whether a masked LM finds the good sentence of each pair more probable than the bad one."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.analysis.examples import count_from_1
from encoderlens.analysis.pseudo_log_likelihood import (
    Method,
    check_can_score,
    log_probabilities,
    masked_texts,
    summed,
)
from encoderlens.analysis.result import EXAMPLE, Interval, Result
from encoderlens.errors import InputError, WordsUnknownError
from encoderlens.given import Whole, check_text
from encoderlens.hooked_encoder import HookedEncoder


@dataclass(frozen=True, eq=False)
class MinimalPairs(Result):
    """Pairs of sentences, scored: ``values`` are the score of the good sentence minus that of the bad one [example].

    Attributes:
        method: how tokens were masked.
        sentences: the pairs, each (good, bad).
        good, bad: the pseudo-log-likelihood of each sentence [example].
    """

    method: str
    sentences: tuple[tuple[str, str], ...]
    good: Tensor
    bad: Tensor

    @property
    def title(self) -> str:
        return f"Minimal pairs by pseudo-log-likelihood ({self.method})"

    @property
    def accuracy(self) -> Interval:
        """The share of pairs whose good sentence scores higher, with Wilson's 95 % interval. A tie is no success."""
        return wilson_interval(int((self.values > 0).sum()), len(self.values))

    def table(self, k: Whole = 10) -> Table:
        """A row a pair, in their order, the first k of them, and the accuracy on all of them below.

        Raises:
            InputError: for a k below 1.
        """
        n, shown, accuracy = len(self.values), min(count_from_1(k, "k"), len(self.values)), self.accuracy
        right, (mean, low, high) = int((self.values > 0).sum()), (accuracy.mean, accuracy.low, accuracy.high)
        caption = f"accuracy {mean:.1%} ({right} of {n}), {accuracy.level:.0%} interval {low:.1%} to {high:.1%}"
        caption += f"; the first {shown} of {n} pairs" if shown < n else ""
        table = Table(title=self.title, caption=caption, min_width=max(len(self.title), len(caption)))
        for name in ("good", "bad"):
            table.add_column(name, overflow="fold")
        for name in ("good", "bad", "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        numbers = (self.good.tolist(), self.bad.tolist(), self.values.tolist())
        for sentences, *scores in list(zip(self.sentences, *numbers, strict=True))[:shown]:
            table.add_row(*map(Text, sentences), *(f"{score:.3f}" for score in scores))
        return table

    def columns(self) -> dict[str, list[Any]]:
        """A row for each pair: both sentences, their scores, and the difference as ``value``."""
        good, bad = map(list, zip(*self.sentences, strict=True))
        scores = {"good_score": self.good.tolist(), "bad_score": self.bad.tolist(), "value": self.values.tolist()}
        return {"good": good, "bad": bad, **scores}

    def to_dict(self) -> dict[str, Any]:
        """As ``Result.to_dict``, with the accuracy and its interval as ``accuracy``."""
        accuracy = self.accuracy
        numbers = {name: getattr(accuracy, name).item() for name in ("mean", "low", "high")}
        return {**super().to_dict(), "accuracy": {**numbers, "n": accuracy.n, "level": accuracy.level}}


def minimal_pairs(model: HookedEncoder, pairs: Any, method: Method = "within_word", *, batch_size: Whole = 64) -> MinimalPairs:
    """Score both sentences of each pair by ``pseudo_log_likelihood`` and compare the sums (Warstadt et al. 2020).

    Args:
        model: a model in eval mode, with a masked-LM head and a tokenizer with a mask token.
        pairs: a list of pairs of sentences (good, bad), such as ``read_minimal_pairs`` gives.
        method: "within_word" or "original".
        batch_size: how many masked copies run at a time.

    Returns:
        Differences of scores [example].

    Raises:
        InputError: for anything but pairs of strings, and as ``pseudo_log_likelihood``.
        TokenizerMissingError, TaskError, AnalysisError: as ``pseudo_log_likelihood``.
    """
    check_can_score(model, method)
    batch_size, sentences = count_from_1(batch_size, "batch_size"), _checked(pairs)
    texts = []
    with model.use_task("masked_lm"):
        for side, of_side in zip(("good", "bad"), zip(*sentences, strict=True), strict=True):
            try:
                texts += masked_texts(model, model.prepare(list(of_side)), method)
            except WordsUnknownError:
                raise  # which says it of the tokenizer, not of a sentence
            except InputError as error:
                raise InputError(f"the {side} sentences: {error}") from error
        good, bad = summed(log_probabilities(model, texts, batch_size)).chunk(2)
    return MinimalPairs(
        values=good - bad,
        axes=(EXAMPLE,),
        labels={EXAMPLE: tuple(map(str, range(len(sentences))))},
        method=method,
        sentences=sentences,
        good=good,
        bad=bad,
    )


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """A share with its score interval (Wilson 1927), which unlike mean ± error keeps within 0 and 1, and is not empty at
    either end.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    ends = max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))  # which rounding may overstep
    mean, low, high = torch.tensor([share, *ends], dtype=torch.float64)
    return Interval(mean, low, high, n, level)


def _checked(pairs: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(pairs, list | tuple) or not pairs:
        raise InputError("minimal pairs are a list of (good, bad), one or more")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InputError(f"pair {index} is {pair!r}; a minimal pair is two strings, (good, bad)")
        for name, text in zip(("good", "bad"), pair, strict=True):
            check_text(text, f"the {name} sentence of pair {index}")
    return tuple((good, bad) for good, bad in pairs)
