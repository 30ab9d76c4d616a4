"""Write the README's table of supported models from the registry. ``--check`` only compares, and fails if it is stale."""

import argparse
import sys
from pathlib import Path

from encoderlens.families import REGISTRY

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- supported models: begin -->", "<!-- supported models: end -->"


def table() -> str:
    """The table, in Markdown."""
    rows = ["| family | Hugging Face class | heads (first: default) | LayerNorm | positions |", "|---|---|---|---|---|"]
    for family in REGISTRY.values():
        for name, tasks in family.classes.items():
            heads = ", ".join(f"`{task}`" for task in tasks) or "none"
            rows.append(f"| {family.name} | `{name}` | {heads} | {family.layer_norm} | {family.positions} |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """The README with the table of today."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the table is stale")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    if check:
        sys.exit(updated(text) != text)
    README.write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
