"""The ``encoderlens`` command: thin commands over the library. Errors are one line on stderr, and exit code 1."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from encoderlens import __version__
from encoderlens.cli.align import align
from encoderlens.cli.demo import demo
from encoderlens.cli.fill import fill
from encoderlens.cli.info import info
from encoderlens.cli.models import models
from encoderlens.cli.run import run
from encoderlens.cli.score import score
from encoderlens.errors import EncoderLensError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (demo, info, run, fill, score, align, models):
    app.command()(command)


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Open up encoders: hooks on every activation of BERT- and HuBERT-style models."""
    if version:
        print(f"encoderlens {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; 0 on success, 1 for an error of the project, 2 for wrong usage, 3 for a file
    of which some lines could not be scored."""
    try:
        app()
    except (EncoderLensError, OSError) as error:
        Console(stderr=True).print(f"encoderlens: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
