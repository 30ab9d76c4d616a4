"""What ``encoderlens run`` reads: texts, or audio files, each with what is shown of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoderlens.audio import AudioBatch, read_audio
from encoderlens.errors import InputError
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.hooked_encoder import HookedEncoder


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        given: how it was given, for error messages.
        value: what an analysis takes.
        shown: what is known of it, for the report.
        other: the number of the input that its embedding is compared with; None for none.
    """

    given: str
    value: Any
    shown: dict[str, Any]
    other: int | None = None


def text_items(model: HookedEncoder, texts: list[Any]) -> list[Item]:
    """Texts or pairs.

    Raises:
        InputError: for a text that the model cannot read at all.
    """
    # Texts that a sentence encoder cuts are named in the log.
    model.to_tokens(texts, truncate=model.sentence_embedding is not None)
    tokens = model.to_str_tokens(texts)
    return [Item(repr(text), text, {"text": text, "tokens": pieces}) for text, pieces in zip(texts, tokens, strict=True)]


def sentence_items(model: HookedEncoder, pairs: list[tuple[str, str]]) -> list[Item]:
    """Pairs of texts that are each embedded by themselves: one after the other, the second to be compared with the first.

    Raises:
        InputError: for a text that the model cannot read at all.
    """
    items = text_items(model, [text for pair in pairs for text in pair])
    for number in range(1, len(items), 2):
        items[number] = replace(items[number], given=f"--pair {items[number].given}", other=number - 1)
    return items


def audio_items(model: HookedAudioEncoder, files: list[Path]) -> tuple[list[Item], AudioBatch]:
    """Audio files, at the model's rate, and all of them as one batch in which each gets what it would get alone.

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
        raise InputError(f"{path}: {error}") from error
    seconds = round(len(samples) / rate, 3)
    return Item(str(path), batch, {"audio": str(path), "seconds": seconds, "frames": batch.sequence.pos})
