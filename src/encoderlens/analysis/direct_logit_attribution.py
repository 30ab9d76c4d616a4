"""Direct logit attribution: what each component adds to a logit of its own accord."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens.analysis.examples import Examples, checked_positions
from encoderlens.analysis.result import COMPONENT, EXAMPLE, AdditiveResult
from encoderlens.batch import Batch
from encoderlens.components.heads import Head
from encoderlens.encoder import Encoder
from encoderlens.errors import InputError
from encoderlens.given import Whole
from encoderlens.linearised import direct_rows


@dataclass(frozen=True, eq=False)
class DirectLogitAttribution(AdditiveResult):
    """Rows of components that add up to a logit, or to the difference of two.

    Attributes:
        task: the head whose logit it is.
        target: what the logit stands for, for each example.
        baseline: what the subtracted logit stands for, for each example; None without one.
        positions: the position of the logit in each example; None for a head with one row a sequence.
        tokens: the number and token (or time) of each of these positions, as ``"4 [MASK]"``; None as above.
    """

    task: str
    target: tuple[str, ...]
    baseline: tuple[str, ...] | None
    positions: tuple[int, ...] | None
    tokens: tuple[str, ...] | None

    @property
    def title(self) -> str:
        kinds = {"": self.target, " minus ": self.baseline or ()}
        named = [f"{word}{names[0] if len(set(names)) == 1 else 'of each example'}" for word, names in kinds.items() if names]
        places = self.tokens or ()
        where = f" at {places[0]}" if len(places) == 1 else ""
        return f"Direct logit attribution: {''.join(named)}{where}"

    def columns(self) -> dict[str, list[Any]]:
        """As ``Result.columns``, with the token whose logit it is as ``position``, where the head has one for each."""
        columns = super().columns()
        value = columns.pop("value")
        if self.tokens is not None:
            columns["position"] = list(self.tokens) * len(self.labels[COMPONENT])
        return columns | {"value": value}


@torch.inference_mode(False)  # which gradients need
def direct_logit_attribution(
    model: Encoder,
    inputs: Any,
    target: Any,
    position: Any = None,
    baseline: Any = None,
    neurons: bool = False,
    *,
    batch_size: Whole = 32,
) -> DirectLogitAttribution:
    """What each head and MLP, each embedding and each bias adds to a logit directly, not by way of later components.

    With LayerNorm scales and the gain of the head's activation held at their values in the run, a logit is a sum over all that
    is written to the residual stream: a row is write x gradient along the stream. ``b_V`` is in the rows of heads. What acts
    through later components, or only by way of a scale, is not seen here.

    Args:
        model: a model in eval mode.
        inputs: a text, a pair or token ids [pos]; or a data set: a list of texts or pairs, or token ids [batch pos]. For speech
            models: a clip, or a data set of clips, at 16 kHz. Or what ``model.prepare`` made of any of these, with a mask or
            token types, or with a sampling rate and ``padding="independent"``, so that no clip depends on the others.
        target: which logit of the task's head: a token (or symbol) id or string, a class or its name; one for all, or a list,
            one each.
        position: where: a position (or frame) for all, or a list, one each. By default that of the one mask token.
        baseline: subtract this logit: as ``target``.
        neurons: a row a neuron (``"L0N17"``) and one for ``b_out``, rather than a row an MLP.
        batch_size: how many examples run at a time.

    Returns:
        Values [component], for a data set [component example].

    Raises:
        InputError: for a target or position that is not there.
        TaskError: for a model without heads (``model.use_task`` chooses among several).
        AnalysisError: for a model in training mode.
    """
    head, examples = model.task_head(), Examples.of(model, inputs, batch_size)
    outputs = {"target": target} if baseline is None else {"target": target, "baseline": baseline}
    indices = {
        what: [head.output_index(one, model.tokenizer) for one in examples.each(wanted, what)]
        for what, wanted in outputs.items()
    }
    names = {what: tuple(head.output_name(index, model.tokenizer) for index in these) for what, these in indices.items()}
    at = _positions(head, examples, position)
    split = ("H", "N") if neurons else ("H",)
    parts = []
    for chosen, batch in examples.batches("direct logit attribution"):
        here = None if at is None else at[chosen]
        scored = [torch.tensor(these[chosen], device=model.cfg.device) for these in indices.values()]
        parts.append(direct_rows(model, head, lambda b=batch, h=here, s=scored: _score(model, head, b, h, s), split))
    components = max((part.labels for part in parts), key=len)  # with hooks, a batch may have one row more than another
    values = torch.cat([part.completed(components).values for part in parts], 1)
    total = torch.cat([part.total for part in parts])
    axes = (COMPONENT,) if examples.single else (COMPONENT, EXAMPLE)
    labels = {COMPONENT: components, EXAMPLE: examples.labels}
    return DirectLogitAttribution(
        values=values[:, 0] if examples.single else values,
        axes=axes,
        labels={axis: labels[axis] for axis in axes},
        total=total[0] if examples.single else total,
        task=head.task,
        target=names["target"],
        baseline=names.get("baseline"),
        positions=None if at is None else tuple(at.flatten().tolist()),
        tokens=None if at is None else tuple(chain.from_iterable(examples.position_names(at.tolist()))),
    )


def _positions(head: Head, examples: Examples, position: Any) -> Int[Tensor, "example 1"] | None:
    if not head.per_position:
        if position is not None:
            raise InputError(f"the {head.task} head has one row a sequence: leave position out")
        return None
    if position is None:
        return head.default_positions(examples.whole).unsqueeze(1)
    return checked_positions([[place] for place in examples.each(position, "position")], examples.whole)


def _score(
    model: Encoder,
    head: Head,
    batch: Batch,
    at: Int[Tensor, "batch 1"] | None,
    outputs: list[Int[Tensor, " batch"]],
) -> Float[Tensor, " batch"]:
    """The logit of the first outputs, minus that of the second if there are any."""
    logits = head.by_output(model(batch, return_type="logits", logits_at=at)).flatten(0, -2)
    picked = [logits.gather(1, output.unsqueeze(1)).squeeze(1) for output in outputs]
    return picked[0] if len(picked) == 1 else picked[0] - picked[1]
