"""The page's tables of students: the front, every trial, and full trainings. Score and costs stand first.

Accuracies are shown in per cent, the CSV files hold fractions; each cell sorts by the number of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from kdnas.core.arch import Arch
from kdnas.plan.training_folder import FullTraining
from kdnas.record.front import recommended
from kdnas.record.records import RunRecord
from kdnas.report.architecture import architecture_lines
from kdnas.report.html_table import Cell, Column, table_html
from kdnas.report.tables import front_table, other_quantities, trials_table
from kdnas.report.wording import column_title, duration, reason_in_words, shown, shown_interval

Row = Mapping[str, Any]
_NAMES = {
    "arch_id": "student",
    "fidelity_epochs": "epochs",
    "fidelity_data_fraction": "share of the data (%)",
    "fidelity_resolution_fraction": "resolution (%)",
    "fidelity_weights": "weights",
    "train_seconds": "training (s)",
    "teacher_seconds": "of it the teacher’s (s)",
    "search_accuracy": "accuracy in the search (%)",
    "indistinguishable_from": "accuracy not distinguishable from",
    "arch": "what it is",
}
_TEXT, _LONG = ("arch_id", "fidelity_weights", "state", "enqueued", "arch"), ("reason", "indistinguishable_from")
_CODE = ("arch_id", "indistinguishable_from")
_LAST = (
    "state", "enqueued", "reason", "seeds", "fidelity_epochs", "fidelity_data_fraction", "fidelity_weights",
    "fidelity_resolution_fraction", "train_seconds", "teacher_seconds", "indistinguishable_from", "arch",
)  # fmt: skip


def front_html(run: RunRecord) -> str:
    """Return the table of the front, the recommended student tinted."""
    table = front_table(run)
    chosen = recommended(run)
    number = None if chosen is None else chosen.member.trial.number
    rows = _rows(table)
    first = ["arch_id", "accuracy", "test_accuracy", "macs", "params", *other_quantities(run)]
    columns = _ordered(table, [*first, "search_accuracy"])
    return _students(columns, rows, "Students of the front", [row["trial"] == number for row in rows])


def trials_html(run: RunRecord) -> str:
    """Return the table of every trial."""
    table = trials_table(run)
    columns = _ordered(table, ["trial", "arch_id", "accuracy", "macs", "params", *other_quantities(run), "state"])
    return _students(columns, _rows(table), "All trials with the search’s scores", ())


def full_trainings_html(run: RunRecord, trainings: Sequence[FullTraining]) -> str:
    """Return the table of the students that `kdnas train` trained in this run."""
    headings, rows = full_trainings_rows(run, trainings)
    return table_html([Column(h, text=h in ("student", "folder")) for h in headings], rows, "Full trainings")


def full_trainings_rows(run: RunRecord, trainings: Sequence[FullTraining]) -> tuple[list[str], list[list[Cell]]]:
    """Return (headings, rows) of full trainings, the most accurate first."""
    costs = {trial.arch.arch_id: trial.values for trial in run.trials if trial.state == "complete"}
    rows = []
    for training in sorted(trainings, key=lambda training: -training.test_score):
        values = costs.get(training.arch_id, {})
        rows.append(
            [
                Cell(training.arch_id, training.arch_id, code=True),
                Cell(shown("accuracy", training.test_score), training.test_score),
                Cell(shown("accuracy", training.score), training.score),
                *(Cell(shown(name, values.get(name)), values.get(name)) for name in ("macs", "params")),
                Cell(str(training.epochs), training.epochs),
                Cell(duration(training.train_seconds), training.train_seconds),
                Cell(f"training/{training.folder.name}", training.folder.name),
            ]
        )
    headings = ["student", "test accuracy", "validation accuracy", "MACs", "parameters", "epochs", "took", "folder"]
    return headings, rows


def _rows(table: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _ordered(table: pd.DataFrame, first: Sequence[str]) -> list[str]:
    """Return the columns to show, `first` ones first; intervals stand with their value, what nobody has is left out."""
    middle = [str(column) for column in table.columns if column not in _LAST]
    names = dict.fromkeys([*first, *middle, *_LAST])
    return [
        name
        for name in names
        if name in table.columns and not name.endswith(("_ci95", "_spread")) and any(map(_is_known, table[name]))
    ]


def _students(columns: Sequence[str], rows: Sequence[Row], name: str, marked: Sequence[bool]) -> str:
    heads = [
        Column(_heading(column, rows), text=column in (*_TEXT, *_LONG), long=column in _LONG) for column in columns
    ]
    return table_html(heads, [[_cell(column, row) for column in columns] for row in rows], name, marked=marked)


def _heading(column: str, rows: Sequence[Row]) -> str:
    if column.endswith("accuracy") and any(_is_known(row.get(f"{column}_ci95")) for row in rows):
        return f"{column_title(column)}, 95 % interval"
    name = _NAMES.get(column) or (column if "." in column else column_title(column))
    return f"{name}, spread in brackets" if f"{column}_spread" in rows[0] else name


def _cell(column: str, row: Row) -> Cell:
    value = row[column]
    if not _is_known(value):
        return Cell("–")
    shows: dict[str, Callable[[Any], str]] = {
        "arch": lambda text: "; ".join(architecture_lines(Arch.from_json(text))),
        "reason": reason_in_words,
        "fidelity_data_fraction": lambda share: f"{100 * share:g}",
        "fidelity_resolution_fraction": lambda share: f"{100 * share:g}",
    }
    if column in (*_TEXT, *_LONG):
        text = shows.get(column, str)(value)
        return Cell(text, text, code=column in _CODE)
    if column.endswith("accuracy"):
        half = row.get(f"{column}_ci95")
        return Cell(shown_interval(column, value, half if _is_known(half) else None).replace(" %", ""), value)
    if column in shows:
        return Cell(shows[column](value), value)
    spread = row.get(f"{column}_spread")
    text = _number(value) + (f" ({spread:.2g})" if _is_known(spread) else "")
    return Cell(text, value)


def _number(value: Any) -> str:
    """Return a number whole where it is a count, with thin spaces between its thousands, else to four digits."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.4g}"


def _is_known(value: Any) -> bool:
    return not (value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)))
