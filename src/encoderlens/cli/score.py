"""``encoderlens score``: pseudo-log-likelihoods of a file of sentences, or of minimal pairs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from encoderlens.analysis import minimal_pairs, pseudo_log_likelihood, read_minimal_pairs, read_sentences
from encoderlens.analysis.pseudo_log_likelihood import Method
from encoderlens.cli.common import AsJson, Model, open_text_model
from encoderlens.errors import InputError

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Minimal pairs: .tsv or .csv with a good and a bad sentence a line, or .jsonl with sentence_good and "
        "sentence_bad. Or sentences: .txt, one a line.",
    ),
]
How = Annotated[
    Method,
    typer.Option(help="When a token is masked, mask the later tokens of its word too (within_word), or it alone (original)."),
]
BatchSize = Annotated[int, typer.Option(help="How many masked copies of sentences run at a time.")]


def score(model: Model, file: File, method: How = "within_word", batch_size: BatchSize = 64, as_json: AsJson = False) -> None:
    """Score minimal pairs, or sentences, by pseudo-log-likelihood: each token masked in turn."""
    of_pairs = file.suffix.lower() != ".txt"
    inputs = read_minimal_pairs(file) if of_pairs else read_sentences(file)
    encoder = open_text_model(model)
    try:
        result = (minimal_pairs if of_pairs else pseudo_log_likelihood)(encoder, inputs, method, batch_size=batch_size)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if as_json:
        print(json.dumps({"model": encoder.cfg.model_name} | json.loads(result.to_json())))
    else:
        Console().print(result.table(len(inputs)))
