"""What a model's head says of one input, with probabilities, and where an analysis of it should look."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from encoderlens.analysis import LogitLens, logit_lens
from encoderlens.audio import AudioBatch
from encoderlens.components.heads import Head, NamedOutputs, TextContext
from encoderlens.pretrained_encoder import PretrainedEncoder
from encoderlens.tokenizing import special_ids

TOP = 5


@dataclass(frozen=True)
class Choice:
    """The most probable outputs at one place.

    Attributes:
        where: number and token (or time) of the position; empty for a head with one row a sequence.
        outputs: what they stand for, and their probabilities (or the value of a regression), the best first.
    """

    where: str
    outputs: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reading:
    """What the head of a model's task says of one input.

    Attributes:
        choices: the best outputs, at each place where the head has something to say.
        positions: where a lens looks; None for everywhere, or for a head with one row a sequence.
        target: the output that an attribution explains first; None where there is none.
        position: where it is; None for a head with one row a sequence, or without such a place.
        places: of each output of a head with names, the position at which it is most probable.
        measure: what the numbers of choices are: "probability", or "value" of a regression.
    """

    choices: tuple[Choice, ...] = ()
    positions: tuple[int, ...] | None = None
    target: int | None = None
    position: int | None = None
    places: Mapping[int, int] = field(default_factory=dict)
    measure: str = "probability"

    def place_of(self, output: int) -> int | None:
        """Where the logit of an output is looked at."""
        return self.places.get(output, self.position)


def read(model: PretrainedEncoder, value: Any) -> Reading:
    """What the head of the model's task says of a text, a pair, or one prepared clip."""
    if model.task is None:
        return Reading()
    head = model.heads[model.task]
    if not head.per_position:
        return _of_sequence(logit_lens(model, value, top_k=TOP))
    if isinstance(head, NamedOutputs):
        return _of_named_outputs(model, head, value)
    positions = _telling_positions(model, head, value)
    if not positions:
        return Reading()
    return _at_positions(logit_lens(model, value, positions, TOP), positions)


def _of_sequence(lens: LogitLens) -> Reading:
    ids, values = lens.ids[-1].tolist(), lens.values[-1].tolist()
    return Reading((_choice("", lens, ids, values),), target=ids[0], measure=lens.measure)


def _at_positions(lens: LogitLens, positions: list[int]) -> Reading:
    """The outputs at some positions, of which the first is explained."""
    ids, values = lens.ids[-1].tolist(), lens.values[-1].tolist()
    rows = zip(lens.labels["pos"], ids, values, strict=True)
    choices = tuple(_choice(where, lens, *row) for where, *row in rows)
    return Reading(choices, tuple(positions), ids[0][0], positions[0])


def _of_named_outputs(model: PretrainedEncoder, head: NamedOutputs[Any], value: Any) -> Reading:
    """Of a head that names its outputs at every position: where each is most probable, special tokens aside."""
    lens = logit_lens(model, value, top_k=len(head.labels))
    logits = model(value, return_type="logits")[0]
    allowed = _allowed(model, head, value)
    places = dict(enumerate(head.best_positions(logits, allowed)))
    ids, values, names = lens.ids[-1].tolist(), lens.values[-1].tolist(), lens.labels["pos"]
    if head.over_positions:
        choices = tuple(
            Choice(names[at], ((head.labels[output], values[at][ids[at].index(output)]),)) for output, at in places.items()
        )
        return Reading(choices, tuple(sorted(set(places.values()))), 0, places[0], places)
    at_text = allowed.nonzero().flatten().tolist()
    chosen = _most_telling(ids, values, at_text)
    choices = tuple(_choice(names[at], lens, ids[at][:1], values[at][:1]) for at in at_text)
    return Reading(choices, (chosen,), ids[chosen][0], chosen, places)


def _most_telling(ids: list[list[int]], values: list[list[float]], allowed: list[int]) -> int:
    """The position at which the head is surest of anything but the output that most positions have."""
    usual = Counter(ids[at][0] for at in allowed).most_common(1)[0][0]
    unusual = [at for at in allowed if ids[at][0] != usual]
    return max(unusual or allowed, key=lambda at: values[at][0])


def _allowed(model: PretrainedEncoder, head: Head, value: Any) -> Bool[Tensor, " pos"]:
    """True at positions of the text itself; of a head that chooses positions, at those that it may choose."""
    batch = model.prepare(value)
    if head.over_positions and isinstance(batch, TextContext):
        return batch.answerable(0)
    everywhere = torch.ones(batch.sequence.pos, dtype=torch.bool, device=batch.device)
    if batch.token_ids is None or model.tokenizer is None:
        return everywhere
    special = torch.tensor(sorted(special_ids(model.tokenizer)), device=batch.device)
    inside = ~torch.isin(batch.token_ids[0], special)
    return inside if bool(inside.any()) else everywhere


def _telling_positions(model: PretrainedEncoder, head: Head, value: Any) -> list[int]:
    """The mask tokens of a text; or the frame at which a CTC head is surest of a symbol."""
    if isinstance(value, AudioBatch):
        frame = surest_frame(model, value)
        return [] if frame is None else [frame]
    if model.tokenizer is None or model.tokenizer.mask_token_id is None:
        return []
    tokens = model.prepare(value).token_ids
    if tokens is None:
        return []
    return (tokens[0] == model.tokenizer.mask_token_id).nonzero().flatten().tolist()


@torch.inference_mode()
def surest_frame(model: PretrainedEncoder, batch: AudioBatch) -> int | None:
    """The frame of a clip at which the CTC head is surest of a symbol other than the blank; None for another head."""
    blank = None if model.task is None else model.heads[model.task].blank
    if blank is None:
        return None
    probabilities = model(batch, return_type="logits")[0].float().softmax(-1)
    probabilities[:, blank] = 0
    return int(probabilities.amax(-1).argmax())


def _choice(where: str, lens: LogitLens, ids: list[int], values: list[float]) -> Choice:
    return Choice(
        where,
        tuple((lens.names[output], value) for output, value in zip(ids, values, strict=True)),
    )
