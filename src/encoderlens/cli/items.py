"""What ``encoderlens run`` reads: texts, or audio files, each with what is shown of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoderlens.audio import AudioBatch, read_audio
from encoderlens.errors import InputError
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.hooked_encoder import HookedEncoder


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        option: how it was given, for error messages: ``--text 'a'``.
        value: what an analysis takes.
        shown: what is known of it, for the report.
        focus: the positions that the lens looks at when none is asked for; None for the analysis' own default.
        attributed: the position whose logit is attributed when none is asked for; None for the analysis' own default.
        other: the number of the input that its embedding is compared with; None for none.
    """

    option: str
    value: Any
    shown: dict[str, Any]
    focus: list[int] | None
    attributed: int | None
    other: int | None = None


def text_items(model: HookedEncoder, texts: list[Any]) -> list[Item]:
    """Texts or pairs; the lens looks at mask tokens.

    Raises:
        InputError: for a text that the model cannot read at all.
    """
    model.to_tokens(texts, truncate=model.sentence_embedding is not None)  # which says in the log what it cuts
    tokens = model.to_str_tokens(texts)
    return [
        Item(f"--text {text!r}", text, {"text": text, "tokens": pieces}, mask_positions(model, text), None)
        for text, pieces in zip(texts, tokens, strict=True)
    ]


def sentence_items(model: HookedEncoder, pairs: list[tuple[str, str]]) -> list[Item]:
    """Pairs of texts that are each embedded by themselves: one after the other, the second to be compared with the first.

    Raises:
        InputError: for a text that the model cannot read at all.
    """
    items = text_items(model, [text for pair in pairs for text in pair])
    for number in range(1, len(items), 2):
        items[number] = replace(items[number], option=f"--pair {items[number].value!r}", other=number - 1)
    return items


def mask_positions(model: HookedEncoder, text: Any) -> list[int] | None:
    """Where a text has the mask token; None where it has none, or for a head that has no logits for positions."""
    if model.task is None or not model.heads[model.task].per_position or model.tokenizer.mask_token_id is None:
        return None
    tokens = model.to_tokens(text)[0][0]
    return (tokens == model.tokenizer.mask_token_id).nonzero().flatten().tolist() or None


def audio_items(model: HookedAudioEncoder, files: list[Path]) -> tuple[list[Item], AudioBatch]:
    """Audio files, at the model's rate, and all of them as one batch in which each gets what it would get alone. Lens and
    attribution look at the frame of the surest symbol.

    Raises:
        InputError: for a file that cannot be read, or a clip that is too short.
    """
    rate = model.processing.rate
    clips = [read_audio(path, rate)[0] for path in files]
    items = [_audio_item(model, path, samples, rate) for path, samples in zip(files, clips, strict=True)]
    return items, model.prepare(clips, None, rate, padding="independent")


def _audio_item(model: HookedAudioEncoder, path: Path, samples: np.ndarray, rate: int) -> Item:
    try:
        batch = model.prepare(samples, None, rate)
    except InputError as error:
        raise InputError(f"--audio {path}: {error}") from error
    shown = {"audio": str(path), "seconds": round(len(samples) / rate, 3), "frames": batch.sequence.pos}
    frame = surest_frame(model, batch)
    return Item(f"--audio {path}", batch, shown, None if frame is None else [frame], frame)


@torch.inference_mode()
def surest_frame(model: HookedAudioEncoder, batch: AudioBatch) -> int | None:
    """The frame of a clip at which the CTC head is surest of a symbol other than the blank; None for another head."""
    blank = None if model.task is None else model.heads[model.task].blank
    if blank is None:
        return None
    probabilities = model(batch, return_type="logits")[0].float().softmax(-1)
    probabilities[:, blank] = 0
    return int(probabilities.amax(-1).argmax())
