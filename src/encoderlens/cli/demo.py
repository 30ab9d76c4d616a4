"""``encoderlens demo``: a text, or a clip, seen from the inside of a model, by what the model can do."""

from typing import Annotated

import torch
import typer
from rich.console import Console

from encoderlens.cli.common import (
    DEMO_MODEL,
    Quiet,
    Task,
    modality_of,
    open_audio_model,
    open_text_model,
    print_line,
)
from encoderlens.cli.demo_audio import demo_of_clip
from encoderlens.cli.demo_parts import Demo
from encoderlens.cli.demo_text import demo_of_text
from encoderlens.errors import InputError
from encoderlens.progress import progress_bars, step

Given = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [INPUT]",
        help=f"A model (by default {DEMO_MODEL}), then a text, or a WAV or FLAC file for a model that "
        "reads audio. Without a text the demo brings one of its own.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="The model; what is left of the arguments is then the input."),
]
Pair = Annotated[
    str | None,
    typer.Option("--pair", help="The second text, of models that read or compare two."),
]


def demo(
    given: Given = None,
    model: ModelOption = None,
    pair: Pair = None,
    task: Task = None,
    quiet: Quiet = False,
) -> None:
    """Open up a model: what it says, how that forms layer by layer, what decides it, and where heads look."""
    inputs = list(given or [])
    name = model or (inputs.pop(0) if inputs else DEMO_MODEL)
    if len(inputs) > 1:
        raise typer.BadParameter(f"give one input after the model, not {len(inputs)}")
    with progress_bars(not quiet):
        shown = _demo(name, inputs[0] if inputs else None, pair, task)
    _show(shown)


def _demo(name: str, given: str | None, pair: str | None, task: str | None) -> Demo:
    if modality_of(name) == "audio":
        if given is None:
            raise InputError(f"{name} reads audio: give a WAV or FLAC file, as in encoderlens demo {name} speech.wav")
        if pair is not None:
            raise InputError(f"--pair goes with texts, and {name} reads audio")
        speech_encoder = open_audio_model(name, task)
        with torch.inference_mode(), step("running"):
            return demo_of_clip(speech_encoder, name, given)
    if given is None and pair is not None:
        raise InputError("--pair is the second text: give the first one after the model")
    encoder = open_text_model(name, task)
    with torch.inference_mode(), step("running"):
        return demo_of_text(encoder, name, given, pair, task)


def _show(shown: Demo) -> None:
    console = Console()
    print_line(console, shown.title, "bold")
    for line in shown.inputs:
        print_line(console, line, "italic")
    for heading, section in shown.sections.items():
        console.print()
        print_line(console, heading, "bold")
        console.print(section)
    console.print()
    print_line(console, "Try next", "bold")
    for what, command in shown.hints.items():
        print_line(console, f"  {what}:", "dim")
        print_line(console, f"    {command}")
