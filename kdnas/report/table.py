"""A table, laid out once and shown anywhere: as HTML whose columns sort by a click, or in a terminal.

The page renders it with `Table.html`, the command line with rich (`kdnas.cli._terminal`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdnas.report.wording import in_html


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


@dataclass(frozen=True)
class Table:
    """Columns, and rows of as many cells; the rows at `marked` places are tinted."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: frozenset[int] = frozenset()

    @classmethod
    def of_texts(
        cls,
        name: str,
        headings: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        text: Iterable[int] = (0,),
        long: Iterable[int] = (),
    ) -> Table:
        """Return a table of texts, which sort by what they show; `text` and `long` are places of columns."""
        wrapped = set(long)
        left = wrapped | set(text)
        columns = tuple(Column(head, place in left, place in wrapped) for place, head in enumerate(headings))
        return cls(name, columns, tuple(tuple(Cell(cell, cell) for cell in row) for row in rows))

    def html(self) -> str:
        """Return it as HTML; a wide one has a hint that it scrolls. Empty without rows."""
        if not self.rows:
            return ""
        heads = "".join(
            f'<th scope="col" aria-sort="none"{_class(column.css)}>'
            f'<button type="button">{in_html(column.heading)}</button></th>'
            for column in self.columns
        )
        body = []
        for place, row in enumerate(self.rows):
            cells = "".join(_cell(column, cell) for column, cell in zip(self.columns, row, strict=True))
            body.append(f"<tr{_class('chosen' if place in self.marked else '')}>{cells}</tr>")
        return (
            f'<div class="table" role="region" tabindex="0" aria-label="{in_html(self.name)}"><table class="sortable">'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
            '<p class="note scrolls" hidden>Wider than the page: the table scrolls sideways to its other columns.</p>'
        )


def _cell(column: Column, cell: Cell) -> str:
    content = f"<code>{in_html(cell.text)}</code>" if cell.code else in_html(cell.text)
    return f'<td{_class(column.css)} data-value="{in_html(cell.sort_key)}">{content}</td>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
