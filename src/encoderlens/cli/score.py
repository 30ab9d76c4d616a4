"""``encoderlens score``: pseudo-log-likelihoods of a file of sentences, or of minimal pairs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from encoderlens.analysis import Result, minimal_pairs, pseudo_log_likelihood
from encoderlens.analysis.pseudo_log_likelihood import Method, check_can_score, masked_texts
from encoderlens.analysis.sentence_files import numbered_pairs, numbered_sentences
from encoderlens.cli.common import (
    AsJson,
    Model,
    Quiet,
    modality_of,
    open_text_model,
    print_line,
)
from encoderlens.errors import InputError, WordsUnknownError
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.progress import progress_bars, tracked

SKIPPED = 3  # the exit code when lines of the file could not be scored

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Minimal pairs: .tsv or .csv with a good and a bad sentence on each line, or .jsonl with "
        "sentence_good and sentence_bad. Or sentences: .txt, one on each line.",
    ),
]
How = Annotated[
    Method | None,
    typer.Option(
        help="When a token is masked, mask the later tokens of its word too (within_word), or it alone "
        "(original). By default within_word, and original where the tokenizer does not know words.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(help="How many masked copies of sentences run at a time.")]
Numbered = list[tuple[int, Any]]  # numbers of lines, and a sentence or a pair on each


@dataclass(frozen=True)
class Scored:
    """A file's scores.

    Attributes:
        result: of the lines that could be scored.
        lines: their numbers.
        skipped: why each other line could not, by its number.
        note: what was done otherwise than asked for; None for nothing.
    """

    result: Result
    lines: list[int]
    skipped: dict[int, str]
    note: str | None


def score(
    model: Model,
    file: File,
    method: How = None,
    batch_size: BatchSize = 64,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score minimal pairs, or sentences, by pseudo-log-likelihood: each token masked in turn.

    Lines that cannot be scored, such as those longer than the model takes, are named on stderr, the others are scored, and the
    exit code is 3.
    """
    of_pairs = file.suffix.lower() != ".txt"
    numbered: Numbered = [*(numbered_pairs(file) if of_pairs else numbered_sentences(file))]
    analysis = minimal_pairs if of_pairs else pseudo_log_likelihood
    with progress_bars(not quiet):
        if modality_of(model) == "audio":
            raise InputError(f"{model} reads audio, and sentences are scored: give a text model")
        encoder = open_text_model(model)
        scored = _scored(encoder, analysis, file, numbered, method, batch_size)
    _show(encoder.cfg.model_name, file, scored, as_json)
    if scored.skipped:
        raise typer.Exit(SKIPPED)


def _scored(
    encoder: HookedEncoder,
    analysis: Callable[..., Result],
    file: Path,
    numbered: Numbered,
    method: Method | None,
    batch_size: int,
) -> Scored:
    """The scores of all lines that can be scored.

    Raises:
        InputError: for a file of which no line can, and for within_word, if it was asked for, where words are not known.
    """
    used: Method = method or "within_word"
    note = None
    check_can_score(encoder, used)
    with encoder.use_task("masked_lm"):
        skipped, knows_words = _unreadable(encoder, numbered, used)
        if not knows_words and method is None:
            used = "original"
            note = "words are not known under this tokenizer, so tokens were masked one by one (original)"
            skipped, _ = _unreadable(encoder, numbered, used)
    kept = [(number, value) for number, value in numbered if number not in skipped]
    if not kept:
        number, why = next(iter(skipped.items()))
        raise InputError(f"{file}: no line can be scored; line {number}: {why}")
    values = [value for _, value in kept]
    result = analysis(encoder, values, used, batch_size=batch_size)
    return Scored(result, [number for number, _ in kept], skipped, note)


def _unreadable(encoder: HookedEncoder, numbered: Numbered, method: Method) -> tuple[dict[int, str], bool]:
    """Why lines cannot be scored, by their numbers; and whether words are known wherever they are needed."""
    found: dict[int, str] = {}
    for number, value in tracked(numbered, "checking", len(numbered)):
        for sentence in value if isinstance(value, tuple) else (value,):
            try:
                masked_texts(encoder, encoder.prepare(sentence), method)
            except WordsUnknownError:
                return {}, False
            except InputError as error:
                found.setdefault(number, str(error).replace("text 0 ", "it ", 1))
    return found, True


def _show(name: str | None, file: Path, scored: Scored, as_json: bool) -> None:
    errors = Console(stderr=True)
    for number, why in scored.skipped.items():
        print_line(errors, f"{file}, line {number} is not scored: {why}", "red")
    if as_json:
        skipped = [{"line": number, "why": why} for number, why in scored.skipped.items()]
        about = {"model": name, "lines": scored.lines, "skipped": skipped, "note": scored.note}
        print(json.dumps(about | json.loads(scored.result.to_json())))
        return
    console = Console()
    console.print(scored.result.table(len(scored.lines)))
    if scored.note is not None:
        print_line(console, f"Note: {scored.note}.", "dim")
