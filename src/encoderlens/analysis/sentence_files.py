"""Files of sentences and of minimal pairs."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from encoderlens.errors import InputError
from encoderlens.given import check_text

GOOD, BAD = ("sentence_good", "good"), ("sentence_bad", "bad")  # what their columns may be called


def read_sentences(path: Path | str) -> list[str]:
    """The lines of a text file in UTF-8, without the white space around them; empty lines are passed over.

    Raises:
        InputError: for a file that is not there, is not UTF-8, or holds no sentence.
    """
    return [sentence for _, sentence in numbered_sentences(path)]


def numbered_sentences(path: Path | str) -> list[tuple[int, str]]:
    """As ``read_sentences``, each with the number of its line, from 1."""
    lines = enumerate(_text(path).split("\n"), 1)
    sentences = [(number, line.strip()) for number, line in lines if line.strip()]
    if not sentences:
        raise InputError(f"{path} holds no sentence")
    return sentences


def read_minimal_pairs(path: Path | str) -> list[tuple[str, str]]:
    """The pairs (good, bad) of a file in UTF-8, in the format that its name ends in.

    ``.jsonl``: an object a line with ``sentence_good`` and ``sentence_bad``, as in BLiMP (Warstadt et al. 2020). ``.tsv``
    (tabs; quotation marks stand for themselves) and ``.csv`` (commas; fields may be quoted): two columns, good and bad; or any
    columns, under a first line that calls two of them ``sentence_good`` and ``sentence_bad``, or ``good`` and ``bad``. Empty
    lines are passed over, and white space around a sentence is dropped.

    Raises:
        InputError: with the file and the line, for a file that is not there, is none of these, is not UTF-8, or holds no pair,
            for a line without two sentences, and for half characters.
    """
    return [pair for _, pair in numbered_pairs(path)]


def numbered_pairs(path: Path | str) -> list[tuple[int, tuple[str, str]]]:
    """As ``read_minimal_pairs``, each with the number of its line, from 1."""
    readers = {".jsonl": _json_pairs, ".tsv": _tsv_pairs, ".csv": _csv_pairs}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise InputError(
            f"{path} ends in none of {', '.join(readers)}, from which minimal pairs are read; sentences are read from .txt, "
            "one a line"
        )
    pairs = []
    for line, good, bad in readers[suffix](path, _text(path)):
        for name, value in (("good", good), ("bad", bad)):
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{path}, line {line}: the {name} sentence is missing or empty")
            check_text(value, f"{path}, line {line}: the {name} sentence")
        pairs.append((line, (good.strip(), bad.strip())))
    if not pairs:
        raise InputError(f"{path} holds no pair")
    return pairs


Pairs = Iterator[tuple[int, Any, Any]]  # the number of a line, and what should be the good and the bad sentence


def _json_pairs(path: Path | str, text: str) -> Pairs:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, since strings may hold rarer ends of lines
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(entry, dict):
            raise InputError(f"{path}, line {number}: not an object with {GOOD[0]} and {BAD[0]}")
        yield number, entry.get(GOOD[0]), entry.get(BAD[0])


def _tsv_pairs(path: Path | str, text: str) -> Pairs:
    lines = text.split("\n")
    return _columns(path, ((number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1)))


def _csv_pairs(path: Path | str, text: str) -> Pairs:
    reader = csv.reader(StringIO(text, newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from error

    return _columns(path, rows())


def _columns(path: Path | str, rows: Iterator[tuple[int, list[str]]]) -> Pairs:
    """The two columns that hold the sentences, which the first row may name."""
    named = None
    first = True
    for number, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if first:
            first, named = False, _named(row)
            if named is not None:
                continue
        if named is None and len(row) != 2:
            raise InputError(
                f"{path}, line {number}: {len(row)} columns; give two, good and bad, or a first line that names {GOOD[0]} and "
                f"{BAD[0]} among them"
            )
        good, bad = named or (0, 1)
        if len(row) <= max(good, bad):
            raise InputError(f"{path}, line {number}: {len(row)} columns, too few for those that the first line names")
        yield number, row[good], row[bad]


def _named(row: list[str]) -> tuple[int, int] | None:
    """Where a header has the good and the bad sentence; None for a row that is no header."""
    names = [cell.strip().lower() for cell in row]
    for good, bad in zip(GOOD, BAD, strict=True):
        if good in names and bad in names:
            return names.index(good), names.index(bad)
    return None


def _text(path: Path | str) -> str:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    stored = Path(path).read_bytes()
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = stored[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {stored[error.start]:#04x}); save the file as UTF-8") from error
