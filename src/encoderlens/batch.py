"""Batch: one checked input that is ready to run, as analyses see it, whatever the model reads."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Int
from torch import Tensor

from encoderlens.sequence import Sequence


class Batch(ABC):
    """One checked input, on the model's device.

    Attributes:
        sequence: mask and size.
        single: the input was one bare text, row of tokens or clip, so that predictions are not a list.
        token_ids: [batch pos], of text; None for anything else.
    """

    sequence: Sequence
    single: bool
    token_ids: Int[Tensor, "batch pos"] | None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The name of each example."""

    @property
    @abstractmethod
    def position_labels(self) -> tuple[str, ...]:
        """The name of each position of the first example."""

    @abstractmethod
    def part(self, rows: slice) -> "Batch":
        """Some of its examples, copied, so that they can take part in gradients also when it came from inference mode."""
