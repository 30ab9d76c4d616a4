"""Tables in notebooks: a table of rich as HTML."""

from collections.abc import Iterable
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def html_table(table: Table) -> str:
    """A table as HTML: its title and caption, a header and a row for each of its rows; all text is escaped."""
    header = _row("th", (column.header for column in table.columns))
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(_row("td", cells) for cells in rows)
    title = "" if table.title is None else f"<caption>{_text(table.title)}</caption>"
    below = "" if table.caption is None else f"<p>{_text(table.caption)}</p>"
    return f"<table>{title}<thead>{header}</thead><tbody>{body}</tbody></table>{below}"


def _row(tag: str, cells: Iterable[RenderableType]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(cell: RenderableType) -> str:
    """The plain text of a cell, which rich reads as markup where it is a string."""
    text = Text.from_markup(cell) if isinstance(cell, str) else cell
    return escape(text.plain if isinstance(text, Text) else str(text))
