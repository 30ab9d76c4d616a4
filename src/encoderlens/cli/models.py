"""``encoderlens models``: what ships with the package, and what can be loaded."""

import json

from rich.console import Console
from rich.table import Table

from encoderlens.cli.common import AsJson
from encoderlens.families import REGISTRY
from encoderlens.loading import embedded_names


def models(as_json: AsJson = False) -> None:
    """List the embedded checkpoints and the supported model classes."""
    classes = {family.name: list(family.classes) for family in REGISTRY.values()}
    if as_json:
        print(json.dumps({"embedded": embedded_names(), "supported": classes}))
        return
    console = Console()
    console.print("Embedded (no download needed):", style="bold")
    for name in embedded_names():
        console.print(f"  {name}")
    table = Table(title="Supported Hugging Face classes", title_justify="left")
    for column in ("family", "class", "heads", "LayerNorm", "positions"):
        table.add_column(column)
    for family in REGISTRY.values():
        for name, tasks in family.classes.items():
            table.add_row(family.name, name, ", ".join(tasks) or "none", family.layer_norm, family.positions)
    console.print(table)
