"""What verbs print on a terminal: rich's console, tables, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from kdnas.outlets import fits, in_ascii
from kdnas.report.wording import label, shown, shown_interval

if TYPE_CHECKING:
    from kdnas.record.records import FrontMember, RunRecord
    from kdnas.report.table import Table

_WIDE = 180
"""Columns of a terminal from which a student's choices fit next to its numbers."""
_NARROW = 100


class _Console(Console):
    """Replaces what the terminal's encoding lacks before tables are laid out, not after."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` rendered, in ASCII where the terminal cannot show it: a cell is as wide as it will be."""
        return super().render_str(text if fits(text, self.encoding) else in_ascii(text), **options)


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error."""
    return _Console(highlight=False, stderr=stderr)


def say(terminal: Console, line: str) -> None:
    """Print a line as it is: wrapped by the terminal alone, whole in a file."""
    terminal.print(line, markup=False, soft_wrap=True)


def redraws(terminal: Console) -> bool:
    """Return whether `terminal` can be drawn anew in place: neither a file nor a dumb terminal."""
    return terminal.is_terminal and not terminal.is_dumb_terminal


def printed(table: Table, *, caption: str = "", without: Sequence[str] = ()) -> RenderableType:
    """Return `table` for a terminal, but for the columns headed as in `without`, `caption` below it."""
    shown_table = RichTable(box=None, pad_edge=False, header_style="bold")
    places = [place for place, column in enumerate(table.columns) if column.heading not in without]
    yielding = any(table.columns[place].text for place in places[1:])  # texts wrap before numbers do
    for place in places:
        column = table.columns[place]
        is_name = place == 0 and not any(" " in row[place].text for row in table.rows)
        shown_table.add_column(
            column.heading,
            justify="left" if column.text else "right",
            no_wrap=is_name or (yielding and not column.text),
            overflow="fold",
        )
    for number, row in enumerate(table.rows):
        style = "bold green" if number in table.marked else None
        shown_table.add_row(*(escape(row[place].text) for place in places), style=style)
    return _captioned(shown_table, caption)


def printed_front(run: RunRecord, width: int, rows: int | None = None) -> RenderableType:
    """Return the front as a terminal table, the recommended student marked, the teacher as its last row.

    A wide one shows the choices, too. Of a front longer than `rows`, as many members spread over it, the recommended
    one among them.
    """
    from kdnas.record.front import front, indistinguishable, recommended
    from kdnas.report.tables import enqueued_numbers, other_quantities, short_archs  # here, because it brings pandas

    members, score = front(run), run.score
    chosen = recommended(run)
    marked = None if chosen is None else chosen.member.trial.number
    alike = indistinguishable(members)
    archs = short_archs([member.trial for member in members])
    known = {name for member in members for name in member.values}
    names = [name for name in ("macs", "params", *other_quantities(run)) if name in known]
    seeds = max((len(member.trial.repeats) for member in members), default=0)
    retrained = seeds > 0
    kind = (
        "brief, one seed" if not seeds else "one retraining each" if seeds == 1 else "means of the retrainings ± 95 %"
    )
    queued = enqueued_numbers(run)
    caption = "  ".join(
        filter(
            None,
            [
                "+ enqueued" if any(member.trial.number in queued for member in members) else "",
                f"◆ {chosen.words}" if chosen is not None else "",
                "★ teacher" if run.teacher is not None else "",
                f"≈ {label(score.name)} like another’s" if any(alike.values()) else "",
                f"scores: {kind}",
            ],
        )
    )
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    table.add_column("student", no_wrap=True)
    for heading in (label(score.name), *(["on test"] if retrained else []), *map(_heading, names)):
        table.add_column(heading, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("choices in which they differ", overflow="fold")  # the numbers stay whole

    def interval(value: float | None, ci95: float | None) -> str:
        """Return a score with its interval; the ends of one that is cut off go below it on a narrow terminal."""
        text = shown_interval(score, value, ci95)
        return text.replace(" [", "\n[") if width < _NARROW else text

    for member in _spread(members, rows, marked):
        number, own = member.trial.number, member.values
        table.add_row(
            f"{'◆' if number == marked else ' '} {member.trial.arch.arch_id}"
            f"{' ≈' if alike[number] else ''}{' +' if number in queued else ''}",
            interval(own.get(score.name), member.score_ci95),
            *([interval(member.test_score, member.test_score_ci95)] if retrained else []),
            *(shown(name, own.get(name), score) for name in names),
            *([escape(archs[number])] if width >= _WIDE else []),
            style="bold green" if number == marked else None,
        )
    if run.teacher is not None:
        scores = [run.teacher.score, run.teacher.test_score] if retrained else [run.teacher.score]
        costs = [shown(name, run.teacher.values.get(name), score) for name in names]
        table.add_row("★ teacher", *(shown(score, value) for value in scores), *costs, style="dim")
    return _captioned(table, caption)


def _captioned(table: RichTable, caption: str) -> RenderableType:
    """Return `table` with a line below it that may be as wide as the terminal: rich's own captions may not."""
    return Group(table, f"[dim italic]{escape(caption)}[/]") if caption else table


def _heading(name: str) -> str:
    return "params" if name == "params" else label(name)


def _spread(members: Sequence[FrontMember], rows: int | None, marked: int | None) -> list[FrontMember]:
    if rows is None or len(members) <= rows:
        return list(members)
    last = len(members) - 1
    kept = {round(index * last / (rows - 1)) for index in range(rows)}
    return [member for index, member in enumerate(members) if index in kept or member.trial.number == marked]
