"""What analyses run on: one input, or a data set in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from encoderlens.batch import Batch
from encoderlens.encoder import Encoder
from encoderlens.errors import InputError
from encoderlens.given import is_whole, plain
from encoderlens.progress import tracked


@dataclass(frozen=True)
class Examples:
    """Checked inputs, of which a bare text or one row of tokens is one example, and anything else a data set.

    Attributes:
        whole: all of them.
        batch_size: how many run at a time.
    """

    whole: Batch
    batch_size: int

    @classmethod
    def of(cls, model: Encoder, inputs: Any, batch_size: Any) -> "Examples":
        """Of whatever the model can read.

        Raises:
            InputError, TokenizerMissingError: as ``model.prepare``; for a batch size below 1.
        """
        return cls(model.prepare(inputs), count_from_1(batch_size, "batch_size"))

    @property
    def single(self) -> bool:
        """Whether the input is one example, so that results have no axis of examples."""
        return self.whole.single

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each example."""
        return self.whole.labels

    def __len__(self) -> int:
        return self.whole.sequence.batch

    def batches(self, what: str) -> Iterator[tuple[slice, Batch]]:
        """Which examples, and the batch that they are.

        Args:
            what: the name of the analysis, for a progress bar.
        """
        starts = range(0, len(self), self.batch_size)
        for start in tracked(starts, what, len(starts)):
            chosen = slice(start, start + self.batch_size)
            yield chosen, self.whole.part(chosen)

    def position_names(self, rows: Sequence[Sequence[int]] | None) -> tuple[tuple[str, ...], ...]:
        """The labels of some positions of each example, such as ``"4 [MASK]"`` or ``"3 0.0681s"``.

        Args:
            rows: the positions of each example; None for all of them.
        """
        names = [self.whole.part(slice(row, row + 1)).position_labels for row in range(len(self))]
        if rows is None:
            return tuple(names)
        return tuple(tuple(of[position] for position in row) for of, row in zip(names, rows, strict=True))

    def each(self, value: Any, what: str) -> list[Any]:
        """A value for each example: one that is for all, or a list, tuple, array or tensor [example] with one each.

        Raises:
            InputError: for a list of another length.
        """
        value = plain(value)
        if not isinstance(value, list):
            return [value] * len(self)
        if len(value) != len(self):
            raise InputError(f"{what} has {len(value)} entries for {len(self)} examples; give one for all, or one each")
        return value


def count_from_1(value: Any, name: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: for anything else.
    """
    if not is_whole(value) or value < 1:
        raise InputError(f"{name}={value!r}; it is a whole number from 1")
    return int(value)


def checked_positions(rows: list[list[Any]], batch: Batch) -> Int[Tensor, "batch k"]:
    """Positions of each sequence as a tensor.

    Raises:
        InputError: for anything but whole numbers at real positions.
    """
    for index, row in enumerate(rows):
        for position in row:
            if not is_whole(position) or not 0 <= position < batch.sequence.pos:
                last = batch.sequence.pos - 1
                raise InputError(f"there is no position {position!r} in sequence {index}: positions run from 0 to {last}")
    at = torch.tensor(rows, device=batch.device)
    if batch.sequence.mask is not None:
        padding = (~batch.sequence.mask.gather(1, at)).nonzero()
        if len(padding):
            index, place = padding[0].tolist()
            raise InputError(f"position {rows[index][place]} of sequence {index} is padding")
    return at
