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
    console.print("Embedded, no download needed:", style="bold")
    for name in embedded_names():
        console.print(f"  {name}")
    console.print("\nSupported Hugging Face classes, and their heads:", style="bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for family in REGISTRY.values():
        for name, tasks in family.classes.items():
            table.add_row(f"  {name}", ", ".join(tasks) or "none")
    console.print(table)
