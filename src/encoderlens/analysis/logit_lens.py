"""Logit lens: what the model would say if nothing more were written, after every layer and sublayer."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.analysis.examples import Examples, checked_positions, count_from_1
from encoderlens.analysis.result import EXAMPLE, Entry, Interval, Result, strongest
from encoderlens.batch import Batch
from encoderlens.components.heads import Head
from encoderlens.encoder import Encoder
from encoderlens.errors import InputError
from encoderlens.given import Whole, plain
from encoderlens.linearised import require_eval
from encoderlens.names import stream_label


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """The most probable outputs at each point of the stream: ``values`` are their probabilities.

    Attributes:
        task: the head that the streams were read with.
        ids: the index of each output, in the shape of ``values``; -1 where an example is shorter than the longest.
        names: what the outputs stand for, by their index.
        measure: what ``values`` are: "probability", or "value" of a regression.
        tokens: the number and token (or time) of each position of each example, as ``"4 [MASK]"``; None for a head with one
            row a sequence.
    """

    task: str
    ids: Tensor
    names: dict[int, str]
    measure: str
    tokens: tuple[tuple[str, ...], ...] | None

    @property
    def title(self) -> str:
        return f"Logit lens of the {self.task} head: outputs by their {self.measure}"

    def columns(self) -> dict[str, list[Any]]:
        """As ``Result.columns``, without places that an example does not have, with what each output stands for as ``output``
        and, for a data set, each example's own tokens as ``token``.
        """
        columns, ids = super().columns(), self.ids.flatten().tolist()
        value = columns.pop("value")
        if self.tokens is not None and EXAMPLE in self.axes:
            columns["token"] = self._token_column(self.tokens)
        columns |= {"output": [self.names.get(index, "") for index in ids], "value": value}
        kept = [place for place, index in enumerate(ids) if index >= 0]
        return {name: [column[place] for place in kept] for name, column in columns.items()}

    def _token_column(self, tokens: tuple[tuple[str, ...], ...]) -> list[str]:
        """The token of each entry [stream example pos rank]; empty where an example has no such position."""
        streams, _, longest, ranks = self.values.shape
        padded = [name for row in tokens for name in (*row, *[""] * (longest - len(row)))]
        return [name for name in padded for _ in range(ranks)] * streams

    def top(self, k: Whole = 10) -> list[Entry]:
        """The k largest values, largest first, each with its labels and what the output stands for.

        Raises:
            InputError: for a k below 1.
        """
        places = strongest(self.values.flatten(), k)
        indices = torch.stack(torch.unravel_index(places, self.values.shape), 1).tolist()
        ids, values = self.ids.flatten()[places].tolist(), self.values.flatten()[places].tolist()
        return [
            Entry(
                (*(self.labels[axis][i] for axis, i in zip(self.axes, index, strict=True)), self.names.get(output, "")), value
            )
            for index, output, value in zip(indices, ids, values, strict=True)
        ]

    def mean(self, level: float = 0.95) -> Interval:
        """Refused: at one rank, examples have different outputs.

        Raises:
            InputError: always.
        """
        raise InputError("the k-th best outputs of several examples are different ones, so their values have no mean")

    def table(self, k: Whole = 10) -> Table:
        """A row a point of the stream and a column a position (and example): the first k columns, with as many of the best
        outputs as fit.

        Raises:
            InputError: for a k below 1.
        """
        columns, (streams, kept) = self._columns_of_table(), (len(self.values), self.values.shape[-1])
        shown = min(count_from_1(k, "k"), len(columns))
        ranks = kept if shown == 1 else min(kept, max(1, 6 // shown))
        left_out = [f"the best of {kept} outputs" if ranks == 1 else f"the best {ranks} of {kept} outputs"] * (ranks < kept)
        left_out += [f"the first {shown} of {len(columns)} columns"] * (shown < len(columns))
        caption = "; ".join(left_out)
        table = Table(title=self.title, caption=caption or None, min_width=max(len(self.title), len(caption)))
        table.add_column("stream", no_wrap=True)
        for name in columns[:shown]:
            table.add_column(Text(name), overflow="fold")
        ids, values = (part.reshape(streams, -1, kept)[:, :shown, :ranks].tolist() for part in (self.ids, self.values))
        for label, *row in zip(self.labels["stream"], ids, values, strict=True):
            table.add_row(Text(label), *(Text(self._cell(*cell)) for cell in zip(*row, strict=True)))
        return table

    def _columns_of_table(self) -> list[str]:
        columns = [""]
        for axis in self.axes[1:-1]:
            columns = [f"{column}  {label}".strip() for column in columns for label in self.labels[axis]]
        return columns if any(columns) else [f"output and its {self.measure}"]

    def _cell(self, ids: list[int], values: list[float]) -> str:
        form = ".0%" if self.measure == "probability" else ".4g"
        pairs = zip(ids, values, strict=True)
        return "  ".join(f"{self.names[index]} {value:{form}}" for index, value in pairs if index >= 0)


def logit_lens(model: Encoder, inputs: Any, positions: Any = None, top_k: Whole = 5, *, batch_size: Whole = 32) -> LogitLens:
    """Read the stream after every layer and sublayer with the model's own head (nostalgebraist 2020).

    A stream gets the norms that the head's input has passed, with statistics of its own, and no more: on post-LN encoders the
    stream between blocks has passed its norm already, and ``0_mid``, after attention, passes ln1; on pre-LN encoders each
    passes ``ln_final``.

    Args:
        model: a model in eval mode.
        inputs: a text, a pair or token ids [pos]; or a data set: a list of texts or pairs, or token ids [batch pos]. For speech
            models: a clip, or a data set of clips, at 16 kHz. Or what ``model.prepare`` made of any of these, with a mask or
            token types, or with a sampling rate and ``padding="independent"``, so that no clip depends on the others.
        positions: a position, or a list of them, in every example; a list of lists (or a tensor [example k]) for positions of
            each example's own; all by default. A head with one row a sequence takes none.
        top_k: how many outputs to keep.
        batch_size: how many examples run at a time.

    Returns:
        Probabilities [stream pos rank], for a data set [stream example pos rank], without ``pos`` for a head with one row a
        sequence. Of a classifier with several labels at once the probability of each, of a regression its values; of question
        answering the probability that the answer starts, or ends, there.

    Raises:
        InputError: for a position that is not there, or ``top_k`` below 1.
        TaskError: for a model without heads (``model.use_task`` chooses among several).
        AnalysisError: for a model in training mode.
    """
    head, examples = model.task_head(), Examples.of(model, inputs, batch_size)
    require_eval(model)
    top_k, wanted = count_from_1(top_k, "top_k"), _wanted(head, positions, examples)
    at = None if wanted is None else checked_positions(wanted, examples.whole)
    with torch.no_grad():
        read = [
            _read(model, head, batch, None if at is None else at[chosen], top_k)
            for chosen, batch in examples.batches("logit lens")
        ]
    longest = max(values.shape[2] for values, _ in read)
    values = torch.cat([_padded(part, longest, torch.nan) for part, _ in read], 1)
    ids = torch.cat([_padded(part, longest, -1) for _, part in read], 1)
    labels = {
        "stream": tuple(stream_label(*place, model.cfg.n_layers) for place in _places(model)),
        EXAMPLE: examples.labels,
        "pos": _position_labels(examples, wanted, longest),
        "rank": tuple(str(rank + 1) for rank in range(values.shape[-1])),
    }
    if examples.single:
        values, ids = values[:, 0], ids[:, 0]
    if not head.per_position:
        values, ids = values.squeeze(-2), ids.squeeze(-2)
    left_out = {EXAMPLE: examples.single, "pos": not head.per_position}
    axes = tuple(axis for axis in labels if not left_out.get(axis, False))
    found = sorted(set(ids.flatten().tolist()) - {-1})
    return LogitLens(
        values=values,
        axes=axes,
        labels={axis: labels[axis] for axis in axes},
        task=head.task,
        ids=ids,
        names={index: head.output_name(index, model.tokenizer) for index in found},
        measure=head.measure,
        tokens=examples.position_names(wanted) if head.per_position else None,
    )


def _wanted(head: Head, positions: Any, examples: Examples) -> list[list[Any]] | None:
    """The positions of each example, as many for each; None for all."""
    if positions is None:
        return None
    if not head.per_position:
        raise InputError(f"the {head.task} head has one row a sequence: leave positions out")
    positions = plain(positions)
    wanted = positions if isinstance(positions, list) else [positions]
    rows = wanted if any(isinstance(row, list) for row in wanted) else [wanted] * len(examples)
    lengths = {len(row) if isinstance(row, list) else None for row in rows}
    if len(rows) != len(examples) or len(lengths) > 1 or None in lengths:
        raise InputError(f"positions of each example's own are {len(examples)} lists of the same length, not {positions!r}")
    if lengths == {0}:
        raise InputError("the list of positions is empty; leave positions out for all of them")
    return rows


def _places(model: Encoder) -> list[tuple[int, bool]]:
    n_layers = model.cfg.n_layers
    return [(layer, mid) for layer in range(n_layers) for mid in (False, True)] + [(n_layers, False)]


def _read(
    model: Encoder, head: Head, batch: Batch, at: Int[Tensor, "batch k"] | None, top_k: int
) -> tuple[Float[Tensor, "stream batch pos rank"], Int[Tensor, "stream batch pos rank"]]:
    """Probabilities and ids of the best outputs; of a head with one row a sequence at one position."""
    places = _places(model)
    names = [str(model.stream_point(*place).name) for place in places]
    _, cache = model.run_with_cache(batch, return_type=None, names_filter=names)
    streams = [cache[name] for name in names]
    entered = [stream for stream, (_, mid) in zip(streams, places, strict=True) if not mid]
    with model.without_hooks():  # which have had their say in the run
        read = [
            model.as_read(head, entered[: layer + mid], stream, layer, mid)
            for stream, (layer, mid) in zip(streams, places, strict=True)
        ]
        best = [_best(head.probabilities(stream, batch.sequence, at), top_k) for stream in read]
    values, ids = torch.stack([values for values, _ in best]), torch.stack([ids for _, ids in best])
    if at is not None or not head.per_position or batch.sequence.mask is None:
        return values, ids
    padding = ~batch.sequence.mask.unsqueeze(-1)
    return values.masked_fill(padding, torch.nan), ids.masked_fill(padding, -1)


def _best(probabilities: Float[Tensor, "batch *pos output"], top_k: int) -> tuple[Tensor, Tensor]:
    """Values and indices [batch pos rank] of the most probable outputs."""
    outputs = probabilities.shape[-1]
    rows = probabilities.reshape(len(probabilities), -1, outputs)
    best = rows.topk(min(top_k, outputs))
    return best.values, best.indices


def _padded(part: Tensor, longest: int, value: int | float) -> Tensor:
    return F.pad(part, (0, 0, 0, longest - part.shape[2]), value=value)


def _position_labels(examples: Examples, wanted: list[list[int]] | None, longest: int) -> tuple[str, ...]:
    """The number of each position, with its token for a single example; where examples differ, all numbers ("4, 8")."""
    if wanted is not None and any(row != wanted[0] for row in wanted):
        return tuple(", ".join(map(str, column)) for column in zip(*wanted, strict=True))
    numbers = list(range(longest)) if wanted is None else wanted[0]
    if not examples.single:
        return tuple(map(str, numbers))
    labels = examples.whole.position_labels
    return tuple(labels[number] for number in numbers)
