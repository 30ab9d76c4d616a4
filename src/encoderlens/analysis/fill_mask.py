"""Fill-mask: the tokens that a masked LM would put in place of each mask."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.analysis.examples import Examples, count_from_1
from encoderlens.analysis.result import Entry, Result, strongest
from encoderlens.given import Whole
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.linearised import require_eval
from encoderlens.precision import at_least_float32


@dataclass(frozen=True, eq=False)
class FillMask(Result):
    """The most probable tokens for each mask of each text: ``values`` are their probabilities [mask rank].

    Attributes:
        ids: the tokens [mask rank].
        tokens: their names, as the vocabulary has them.
        words: their text, as predictions give it.
        examples: the text that each mask is in.
        positions: its position there.
    """

    ids: Tensor
    tokens: tuple[tuple[str, ...], ...]
    words: tuple[tuple[str, ...], ...]
    examples: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def title(self) -> str:
        return "Fill-mask"

    def top(self, k: Whole = 10) -> list[Entry]:
        """The k most probable tokens of all masks, each with its mask, its rank and its name.

        Raises:
            InputError: for a k below 1.
        """
        flat = self.values.flatten()
        masks, names = self.labels["mask"], [name for of_mask in self.tokens for name in of_mask]
        ranks = len(self.labels["rank"])
        return [
            Entry((masks[place // ranks], self.labels["rank"][place % ranks], names[place]), flat[place].item())
            for place in strongest(flat, k).tolist()
        ]

    def columns(self) -> dict[str, list[Any]]:
        """As ``Result.columns``, with the names of tokens as ``token`` and their text as ``word``."""
        columns = super().columns()
        value = columns.pop("value")
        names = {"token": list(chain.from_iterable(self.tokens)), "word": list(chain.from_iterable(self.words))}
        return columns | names | {"value": value}

    def table(self, k: Whole = 10) -> Table:
        """The first k tokens for every mask, a row each: its name, and its text where that reads otherwise.

        Raises:
            InputError: for a k below 1.
        """
        shown = count_from_1(k, "k")
        table = Table(title=self.title, min_width=len(self.title))
        for name in ("mask", "token"):
            table.add_column(name, overflow="fold")
        table.add_column("probability", justify="right", no_wrap=True)
        for mask, tokens, words, values in zip(self.labels["mask"], self.tokens, self.words, self.values.tolist(), strict=True):
            for rank, (token, word, value) in enumerate(zip(tokens[:shown], words, values, strict=False)):
                name = token if token == word else f"{token}  ({word})"
                table.add_row(Text("" if rank else mask), Text(name), f"{value:.1%}")
            table.add_section()
        return table


def fill_mask(model: HookedEncoder, inputs: Any, top_k: Whole = 5, *, batch_size: Whole = 32) -> FillMask:
    """The k most probable tokens for each mask, by the masked-LM head, which need not be that of the model's task.

    Several masks in a text are each filled on their own, with the others masked.

    Args:
        model: a model in eval mode, with a masked-LM head and a tokenizer with a mask token.
        inputs: a text, a pair, token ids [pos]; a list of texts or pairs, token ids [batch pos]; or what ``model.prepare`` made
            of any of these. Each has one mask token or more that is no padding.
        top_k: how many tokens to keep for each mask.
        batch_size: how many texts run at a time.

    Returns:
        Probabilities [mask rank], softmax in float32 at least.

    Raises:
        InputError: for a text without a mask token, a tokenizer that has none, or ``top_k`` below 1.
        TokenizerMissingError: without a tokenizer.
        TaskError: for a model without a masked-LM head.
        AnalysisError: for a model in training mode.
    """
    require_eval(model)
    top_k, batch_size = count_from_1(top_k, "top_k"), count_from_1(batch_size, "batch_size")
    with model.use_task("masked_lm"), torch.no_grad():
        head, whole = model.task_head(), model.prepare(inputs)
        head.check_input(whole)
        is_mask = whole.masks
        read = []
        for chosen, batch in Examples(whole, batch_size).batches("fill-mask"):
            masks = is_mask[chosen]
            most = int(masks.sum(1).max())
            at = masks.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # the masks of each text, in front
            logits = at_least_float32(model(batch, return_type="logits", logits_at=at))
            best = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
            wanted = masks.gather(1, at)
            read.append((best.values[wanted], best.indices[wanted]))
    values, ids = (torch.cat(parts) for parts in zip(*read, strict=True))
    places = is_mask.nonzero().tolist()
    return FillMask(
        values=values,
        axes=("mask", "rank"),
        labels={
            "mask": tuple(f"{whole.labels[example]}: {position}" for example, position in places),
            "rank": tuple(str(rank + 1) for rank in range(values.shape[1])),
        },
        ids=ids,
        tokens=tuple(tuple(head.output_name(token, model.tokenizer) for token in row) for row in ids.tolist()),
        words=tuple(tuple(whole.decode_ids([token]) for token in row) for row in ids.tolist()),
        examples=tuple(example for example, _ in places),
        positions=tuple(position for _, position in places),
    )
