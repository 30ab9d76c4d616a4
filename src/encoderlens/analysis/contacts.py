"""Contacts: which residues of a protein touch, as the attention between them says."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoderlens.analysis.examples import Examples
from encoderlens.analysis.result import EXAMPLE, Result
from encoderlens.given import Whole
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.linearised import require_eval
from encoderlens.text_input import TextBatch


@dataclass(frozen=True, eq=False)
class Contacts(Result):
    """The probability that two residues touch, at least to the model; each pair stands there twice.

    Attributes:
        residues: the residues of each example by their labels, such as ``"1 M"``.
    """

    residues: tuple[tuple[str, ...], ...]

    @property
    def title(self) -> str:
        return "Contacts"

    def columns(self) -> dict[str, list[Any]]:
        """As ``Result.columns``, each example with its own residues, and without those that it does not have."""
        if EXAMPLE not in self.axes:
            return super().columns()
        rows = [
            (self.labels[EXAMPLE][index], one, other, value)
            for index, residues in enumerate(self.residues)
            for one, values in zip(residues, self.values[index].tolist(), strict=False)
            for other, value in zip(residues, values, strict=False)
        ]
        columns = zip(*rows, strict=True)
        return dict(zip((*self.axes, "value"), map(list, columns), strict=True))


def contacts(model: HookedEncoder, inputs: Any, *, batch_size: Whole = 32) -> Contacts:
    """Which residues touch in the folded protein: a logistic regression on the attention patterns of all heads, which comes
    with the checkpoint (Rao et al. 2021).

    The token in front of a sequence and the one at its end are no residues, so residue i (from 1) is position i. The last
    position of a batch is taken for an end, whatever it holds. What a pair gets does not depend on padding after its sequence.

    Args:
        model: a model with a contact head, in eval mode.
        inputs: a sequence of residues as text, or token ids [pos]; or a data set: a list of texts, or token ids [batch pos]. Or
            what ``model.prepare`` made of any of these, with a mask.
        batch_size: how many examples run at a time.

    Returns:
        Probabilities [residue partner], for a data set [example residue partner], NaN where an example is shorter than the
        longest.

    Raises:
        TaskError: for a model without a contact head.
        AnalysisError: for a model in training mode.
    """
    model.require_contact_head()
    examples = Examples.of(model, inputs, batch_size)
    require_eval(model)
    with torch.no_grad():
        maps = [_of_batch(model, model.prepare(batch)) for _, batch in examples.batches("contacts")]
    longest = max(part.shape[-1] for part in maps)
    values = torch.cat([F.pad(part, (0, longest - part.shape[-1]) * 2, value=torch.nan) for part in maps])
    numbers = tuple(str(number + 1) for number in range(longest))
    residues = tuple(names[1:-1] for names in examples.position_names(None))
    if examples.single:
        return Contacts(values[0], ("residue", "partner"), {"residue": residues[0], "partner": residues[0]}, residues)
    labels = {EXAMPLE: examples.labels, "residue": numbers, "partner": numbers}
    return Contacts(values, tuple(labels), labels, residues)


def _of_batch(model: HookedEncoder, batch: TextBatch) -> Float[Tensor, "batch residue residue"]:
    real = model.require_contact_head().inside(batch.tokens, batch.sequence)[:, 1:-1]
    return model.contacts(batch).masked_fill(~(real.unsqueeze(1) & real.unsqueeze(2)), torch.nan)
