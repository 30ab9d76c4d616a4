"""What several commands share: arguments, opening a model quietly, and numbers for axes."""

import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoderlens import loading
from encoderlens.encoder import Encoder
from encoderlens.errors import CheckpointNotFoundError
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.progress import step

DEMO_MODEL = "encoderlens/tiny-bert"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder, a hub id, or an embedded name such as encoderlens/tiny-bert."),
]
Task = Annotated[
    str | None,
    typer.Option(help="Which of the model's heads to run; by default the checkpoint's own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Show no progress bars. Without it they appear in terminals after two seconds.",
    ),
]


def open_text_model(name: str, task: str | None = None) -> HookedEncoder:
    """Load a text model."""
    _quiet()
    with step(f"loading {name}"):
        return HookedEncoder.from_pretrained(name, task=task)


def open_audio_model(name: str, task: str | None = None) -> HookedAudioEncoder:
    """Load a model that reads waveforms."""
    _quiet()
    with step(f"loading {name}"):
        return HookedAudioEncoder.from_pretrained(name, task=task)


def open_model(name: str, task: str | None = None) -> HookedEncoder | HookedAudioEncoder:
    """Load a model, whatever it reads."""
    modality = modality_of(name)
    return open_text_model(name, task) if modality == "text" else open_audio_model(name, task)


def modality_of(name: str) -> str:
    """What a checkpoint reads: "text" or "audio".

    Raises:
        CheckpointNotFoundError: for a name that is none, with the order of arguments if it looks like a text.
    """
    _quiet()
    try:
        with step(f"looking for {name}"):
            return loading.modality_of(name)
    except CheckpointNotFoundError as error:
        if " " not in name.strip():
            raise
        raise CheckpointNotFoundError(
            f"there is no model {name!r}: the model comes first, then the text, as in {DEMO_MODEL} {name!r}"
        ) from error


def _quiet() -> None:
    """Turn transformers' own chatter off."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def axis_sizes(model: Encoder) -> dict[str, Any]:
    """The sizes that a model's configuration gives to axes of its hook points."""
    cfg = model.cfg
    sizes = {
        "head": cfg.n_heads,
        "d_head": cfg.d_head,
        "d_model": cfg.d_model,
        "d_mlp": cfg.d_mlp,
        "d_vocab": cfg.d_vocab_out,
    }
    return {axis: size for axis, size in sizes.items() if size is not None}


def table_of(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """A table of plain text."""
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """A line of plain text, which no terminal folds."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
