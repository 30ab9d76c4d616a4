"""``encoderlens align``: where the words of a known transcript lie in a clip."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from encoderlens.audio import AlignedSpan
from encoderlens.cli.common import (
    AsJson,
    Model,
    Quiet,
    modality_of,
    open_audio_model,
    table_of,
)
from encoderlens.errors import InputError
from encoderlens.progress import progress_bars, step

Clip = Annotated[Path, typer.Argument(metavar="AUDIO", help="A WAV or FLAC file.")]
Transcript = Annotated[str, typer.Argument(metavar="TRANSCRIPT", help="What is said in it, in the model's characters.")]
Normalise = Annotated[
    bool,
    typer.Option(
        "--normalise",
        help="Put the transcript in the case that the model writes, and leave out punctuation that it does not.",
    ),
]


def align(
    model: Model,
    audio: Clip,
    transcript: Transcript,
    normalise: Normalise = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find where the words of a transcript lie in a clip, by the CTC head of a speech model."""
    with progress_bars(not quiet):
        if modality_of(model) == "text":
            raise InputError(f"{model} reads text, and align needs a speech model with a CTC head")
        encoder = open_audio_model(model)
        with torch.inference_mode(), step("aligning"):
            found = encoder.align(str(audio), transcript, normalise=normalise)
    if as_json:
        spans = {"words": found.words, "characters": found.characters}
        listed = {name: [_plain(span) for span in of_kind] for name, of_kind in spans.items()}
        report = {"model": encoder.cfg.model_name, "audio": str(audio)} | listed
        print(json.dumps(report | {"log_probability": found.log_probability}))
        return
    rows = [(f"{span.start:.3f}", f"{span.end:.3f}", span.text, f"{span.score:.3f}") for span in found.words]
    Console().print(table_of(("start (s)", "end (s)", "word", "mean probability"), rows))


def _plain(span: AlignedSpan) -> dict[str, Any]:
    frames = [span.frames.start, span.frames.stop]
    times = {"start": span.start, "end": span.end}
    return {"text": span.text} | times | {"score": span.score, "frames": frames}
