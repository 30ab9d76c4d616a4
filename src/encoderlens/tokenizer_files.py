"""Reading the tokenizer of a folder: what the files are, and what to do where they cannot be read."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from encoderlens.errors import ConfigError

log = logging.getLogger("encoderlens")

SENTENCEPIECE_FILES = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
FAST = "tokenizer.json"  # whatever the class, this file is enough
TOKENIZER_FILES = (FAST, "vocab.txt", "vocab.json", "merges.txt", *SENTENCEPIECE_FILES)
READERS = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # of SentencePiece models: modules and packages


def load_tokenizer(folder: Path | None) -> Any | None:
    """The tokenizer of a checkpoint folder; None if it has no tokenizer files or, with a warning in the log, none that can be
    read.
    """
    if folder is None or not has_tokenizer(folder):
        return None
    try:
        return read_tokenizer(folder)
    except ConfigError as problem:
        log.warning("no tokenizer, so no text input: %s; or give one (tokenizer=, of a speech model processor=)", problem)
        return None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any file of a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that has files of one.

    Raises:
        ConfigError: for files that cannot be read, for a class that transformers does not know, and for packages that are
            missing, with the remedy.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # every tokenizer class has errors of its own
        raise ConfigError(f"the tokenizer files in {folder} cannot be read: {_reason(folder, error)}") from error
    if len(tokenizer) > len(tokenizer.all_special_ids):
        return tokenizer
    raise ConfigError(
        f"the tokenizer files in {folder} cannot be read: {type(tokenizer).__name__} finds no vocabulary there, only its "
        f"special tokens. Add the file that it reads, or a {FAST}"
    )


def _reason(folder: Path, error: Exception) -> str:
    """Why a tokenizer cannot be read, and the remedy."""
    again = f"Download them again (after a git clone: git lfs pull), or add a {FAST}"
    quoted = f"{type(error).__name__}: {' '.join(str(error).split())}. {again}"
    if (folder / FAST).is_file():
        return quoted
    unknown = _unknown_class(folder)
    if unknown is not None:
        return f"its class {unknown!r} is none that transformers has. Add a {FAST}"
    model = next((name for name in SENTENCEPIECE_FILES if (folder / name).is_file()), None)
    if model is None:
        return quoted
    missing = [package for module, package in READERS.items() if not _is_there(module)]
    if missing:
        return (
            f"{model} is read by {' and '.join(READERS.values())}, and {' and '.join(missing)} cannot be imported: "
            f"pip install 'encoderlens[sentencepiece]', or add a {FAST}"
        )
    return f"{model} is no SentencePiece model, or not one of its class. {again}"


def _unknown_class(folder: Path) -> Any | None:
    """The class that a folder names for its tokenizer, if transformers has no such class."""
    import transformers

    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):  # no such file, or no JSON object in it
        return None
    known = named is None or (isinstance(named, str) and hasattr(transformers, named))
    return None if known else named


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
