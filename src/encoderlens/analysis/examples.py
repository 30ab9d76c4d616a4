"""What analyses run on: one input, or a data set in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from encoderlens.components.heads import Head
from encoderlens.errors import InputError, TaskError
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.text_input import TextBatch, as_texts, is_text


@dataclass(frozen=True)
class Examples:
    """Inputs, of which a bare text or one row of tokens is one example, and anything else a data set.

    Attributes:
        model: the model that will run.
        inputs: a text or pair, token ids [pos], or several: a list of texts or pairs, or token ids [batch pos].
        batch_size: how many run at a time.
    """

    model: HookedEncoder
    inputs: Any
    batch_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size!r}; it is a whole number from 1")

    @property
    def single(self) -> bool:
        """Whether the input is one example, so that results have no axis of examples."""
        return as_texts(self.inputs)[1] if is_text(self.inputs) else isinstance(self.inputs, Tensor) and self.inputs.ndim == 1

    @property
    def labels(self) -> tuple[str, ...]:
        """Each text, or the number of each row of tokens."""
        if not is_text(self.inputs):
            return tuple(map(str, range(len(self))))
        return tuple(text if isinstance(text, str) else " | ".join(text) for text in as_texts(self.inputs)[0])

    def __len__(self) -> int:
        if is_text(self.inputs):
            return len(as_texts(self.inputs)[0])
        return 1 if self.single or not isinstance(self.inputs, Tensor) else len(self.inputs)

    def batches(self) -> Iterator[tuple[slice, TextBatch]]:
        """Which examples, and the batch that they are. The batches can take part in gradients, also in inference mode."""
        rows = as_texts(self.inputs)[0] if is_text(self.inputs) else self.inputs
        rows = rows.unsqueeze(0) if isinstance(rows, Tensor) and self.single else rows
        for start in range(0, len(self), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            with torch.inference_mode(False):
                part = rows[chosen].clone() if isinstance(rows, Tensor) else rows[chosen]
                yield chosen, self.model.prepare(part)

    def each(self, value: Any, what: str) -> list[Any]:
        """A value for each example: one that is for all, or a list, tuple or tensor [example] with one each.

        Raises:
            InputError: for a list of another length.
        """
        if isinstance(value, Tensor):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            return [value] * len(self)
        if len(value) != len(self):
            raise InputError(f"there are {len(value)} {what}s for {len(self)} examples; give one for all, or one each")
        return list(value)


def task_head(model: HookedEncoder) -> Head:
    """The head of the model's task.

    Raises:
        TaskError: for a model without heads.
    """
    if model.task is None:
        raise TaskError("this analysis reads logits, and the model has no head")
    return model.heads[model.task]


def checked_positions(positions: list[Any], batch: TextBatch) -> Int[Tensor, "batch k"]:
    """Positions, a list or one for each sequence, as a tensor.

    Raises:
        InputError: for anything but whole numbers at real positions.
    """
    rows = [row if isinstance(row, list) else [row] for row in positions]
    for index, row in enumerate(rows):
        for position in row:
            if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < batch.sequence.pos:
                raise InputError(f"position {position!r} of sequence {index}: positions run from 0 to {batch.sequence.pos - 1}")
            if batch.sequence.mask is not None and not batch.sequence.mask[index, position]:
                raise InputError(f"position {position} of sequence {index} is padding")
    return torch.tensor(rows, device=batch.tokens.device)
