"""``encoderlens fill``: what a masked LM would put in place of each mask."""

import json
from typing import Annotated

import typer
from rich.console import Console

from encoderlens.analysis import fill_mask
from encoderlens.cli.common import AsJson, Model, Quiet, modality_of, open_text_model
from encoderlens.errors import InputError
from encoderlens.progress import progress_bars

Texts = Annotated[
    list[str],
    typer.Argument(metavar="TEXT", help="A text with the model's mask token in it; or several texts."),
]
TopK = Annotated[int, typer.Option(help="How many tokens to show for each mask.")]


def fill(model: Model, texts: Texts, top_k: TopK = 5, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Fill masks: the most probable tokens for each, with their probabilities."""
    with progress_bars(not quiet):
        if modality_of(model) == "audio":
            raise InputError(f"{model} reads audio, and masks are filled in texts: give a text model")
        encoder = open_text_model(model)
        result = fill_mask(encoder, texts, top_k)
    if as_json:
        print(json.dumps({"model": encoder.cfg.model_name} | json.loads(result.to_json())))
    else:
        Console().print(result.table(top_k))
