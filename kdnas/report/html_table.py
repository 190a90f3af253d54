"""A table of a report's page: every column sorts by a click or the keyboard, and a wide one says that it scrolls."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """What one cell shows, and what it sorts by: a number, a text, or nothing, which stays last."""

    text: str
    key: Any = None
    code: bool = False

    @property
    def sort_key(self) -> str:
        """The key as an attribute: empty where it is not known."""
        unknown = self.key is None or (isinstance(self.key, float) and math.isnan(self.key))
        return "" if unknown else self.key if isinstance(self.key, str) else repr(self.key)


@dataclass(frozen=True)
class Column:
    """A column's heading; `text` ones are aligned left and sort by letters, `long` ones wrap."""

    heading: str
    text: bool = False
    long: bool = False

    @property
    def css(self) -> str:
        """The classes of its cells."""
        return "text long" if self.long else "text" if self.text else ""


def table_html(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell]], name: str, *, marked: Sequence[bool] = ()
) -> str:
    """Return a table called `name` as HTML; rows that are `marked` are tinted."""
    heads = "".join(
        f'<th scope="col" aria-sort="none"{_class(column.css)}>'
        f'<button type="button">{_text(column.heading)}</button></th>'
        for column in columns
    )
    body = []
    for place, row in enumerate(rows):
        cells = "".join(_cell(column, cell) for column, cell in zip(columns, row, strict=True))
        body.append(f"<tr{_class('chosen' if place < len(marked) and marked[place] else '')}>{cells}</tr>")
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{_text(name)}"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note scrolls" hidden>Wider than the page: the table scrolls sideways to its other columns.</p>'
    )


def plain_rows(rows: Iterable[Sequence[str]]) -> list[list[Cell]]:
    """Return rows of texts as cells that sort by what they show."""
    return [[Cell(text, text) for text in row] for row in rows]


def _cell(column: Column, cell: Cell) -> str:
    content = f"<code>{_text(cell.text)}</code>" if cell.code else _text(cell.text)
    return f'<td{_class(column.css)} data-value="{_text(cell.sort_key)}">{content}</td>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
