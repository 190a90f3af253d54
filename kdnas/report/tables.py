"""A run as tables: every number that figures, page and terminal show is taken from here.

trials.csv holds the search's own scores (one brief training each, so no interval); front.csv the students of the
final front, with the mean and 95 % interval of their retrainings, and the search's score next to it. Columns of scores
bear the score's own name: `accuracy`, `accuracy_ci95`, `test_accuracy`. The page's tables show the same numbers, a
fraction in per cent; each cell sorts by the number of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pandas as pd

from kdnas import atomic
from kdnas.core.arch import Arch
from kdnas.core.objective import ACCURACY, Quantity, score_named
from kdnas.core.pick import FEWEST_FOR_A_KNEE
from kdnas.plan.training_folder import FullTraining, full_trainings
from kdnas.record.front import (
    doubts,
    front,
    hypervolume,
    indistinguishable,
    knee_of,
    measured_values,
    recommended,
    rise,
)
from kdnas.record.records import FrontMember, RunRecord, TrialRecord
from kdnas.report.architecture import architecture_lines
from kdnas.report.table import Cell, Column, Table
from kdnas.report.wording import arch_in_words, column_title, duration, label, reason_in_words, shown, shown_interval

Row = Mapping[str, Any]
_FIDELITY = ("fidelity_data_fraction", "fidelity_start", "fidelity_resolution_fraction")
_INTEGERS = ("trial", "fidelity_epochs", "macs", "params", "seeds")

_HEADINGS = {
    "arch_id": "student",
    "fidelity_epochs": "epochs",
    "fidelity_data_fraction": "share of the data (%)",
    "fidelity_resolution_fraction": "resolution (%)",
    "fidelity_start": "start",
    "train_seconds": "training (s)",
    "teacher_seconds": "of it the teacher’s (s)",
    "indistinguishable_from": "not distinguishable from",
    "arch": "what it is",
}
_TEXT, _LONG = ("arch_id", "fidelity_start", "state", "enqueued", "arch"), ("reason", "indistinguishable_from")
_SPENT = ("train_seconds", "teacher_seconds")
"""Known once a trial has ended."""
_CODE = ("arch_id", "indistinguishable_from")
_LAST = (
    "state", "enqueued", "reason", "seeds", "fidelity_epochs", "fidelity_data_fraction", "fidelity_start",
    "fidelity_resolution_fraction", "train_seconds", "teacher_seconds", "indistinguishable_from", "arch",
)  # fmt: skip


def first_columns(score: Quantity) -> list[str]:
    """Return the columns that both files begin with."""
    return ["trial", "arch_id", "state", "fidelity_epochs", score.name, f"{score.name}_ci95", "macs", "params"]


def other_quantities(run: RunRecord) -> list[str]:
    """Return the quantities known of any student in addition to the score, MACs and parameters; objectives first."""
    known = {name for trial in run.trials for name in measured_values(trial)}
    names = [objective.name for objective in run.objectives] + [name for name in run.quantities if name in known]
    names += sorted(known - set(run.quantities))
    taken = first_columns(run.score)
    return [name for name in dict.fromkeys(names) if name not in taken]


def trials_table(run: RunRecord) -> pd.DataFrame:
    """Return every trial, in the order of their numbers, as trials.csv has it."""
    columns = [*first_columns(run.score), *_quantity_columns(run), *_FIDELITY]
    spent = ["train_seconds"] if run.config.teacher is None else ["train_seconds", "teacher_seconds"]
    columns += [*_tuned_names(run), *spent, "enqueued", "reason", "arch"]
    queued = enqueued_numbers(run)
    rows = [
        {**_common(run, trial, measured_values(trial), queued), "reason": trial.reason}
        for trial in sorted(run.trials, key=lambda trial: trial.number)
    ]
    return _frame(rows, columns)


def front_table(run: RunRecord) -> pd.DataFrame:
    """Return the Pareto front, sorted by the first cheap objective, as front.csv has it.

    `indistinguishable_from` holds the arch_ids of the members whose score does not differ (Welch's t-test over the
    retrainings, 5 %), "none" where all do, nothing where a single training cannot decide.
    """
    score = run.score.name
    columns = [*first_columns(run.score), *_quantity_columns(run), f"test_{score}", f"test_{score}_ci95", "seeds"]
    columns += ["indistinguishable_from", f"search_{score}", *_FIDELITY]
    columns += [*_tuned_names(run), "train_seconds", "enqueued", "reason", "arch"]
    members = front(run)
    alike, queued = indistinguishable(members), enqueued_numbers(run)
    return _frame(
        [
            {**_front_row(run, member, queued), "indistinguishable_from": _ids(alike[member.trial.number])}
            for member in members
        ],
        columns,
    )


def front_document(run: RunRecord) -> dict[str, Any]:
    """Return the front as plain data, as `kdnas front --json` prints it; scores are fractions, or as their task has it.

    Keys: study, folder, finished (why the search ended, empty while it has not), retrained (true when scores are means
    over retrainings), objectives (name, unit, direction), constraints, reference_point, hypervolume (null while
    unknown), recommended (arch_id, rule, and doubts: why it may be none to recommend) or null, knee (arch_id, null
    below three members), control (the student trained on labels alone) or null, teacher (name, accuracy,
    test_accuracy, values) or null, and front: one record a student with trial, arch_id, accuracy_ci95, test_accuracy,
    test_accuracy_ci95, further (what else is known on the test split, by name: mean and ci95), rise_per_doubling (of
    the training, null where not known), seeds, values, tuned, arch, and indistinguishable_from (arch_ids whose score
    does not differ by Welch's t-test at 5 %; null where not testable). The teacher has `further` as well, by name.
    Where the score is another than accuracy, its name stands in these keys.
    """
    members, score = front(run), run.score.name
    alike = indistinguishable(members)
    teacher, chosen = run.teacher, recommended(run)
    return {
        "study": run.config.name,
        "folder": str(run.folder),
        "finished": run.finished,
        "retrained": any(member.trial.repeats for member in members),
        "objectives": [{"name": o.name, "unit": o.unit, "direction": o.direction} for o in run.objectives],
        "constraints": [str(constraint) for constraint in run.constraints],
        "reference_point": dict(run.reference_point),
        "hypervolume": hypervolume(run),
        "recommended": chosen
        and {"arch_id": chosen.member.trial.arch.arch_id, "rule": chosen.words, "doubts": doubts(run, chosen.member)},
        "knee": None if len(members) < FEWEST_FOR_A_KNEE else knee_of(run, members).trial.arch.arch_id,
        "control": _control_document(run),
        "teacher": teacher
        and {
            "name": teacher.name,
            score: teacher.score,
            f"test_{score}": teacher.test_score,
            "further": dict(run.teacher_further),
            "values": dict(teacher.values),
        },
        "front": [
            {
                "trial": member.trial.number,
                "arch_id": member.trial.arch.arch_id,
                f"{score}_ci95": member.score_ci95,
                f"test_{score}": member.test_score,
                f"test_{score}_ci95": member.test_score_ci95,
                "further": {name: {"mean": mean, "ci95": half} for name, (mean, half) in member.further.items()},
                "rise_per_doubling": rise(run, member),
                "seeds": len(member.trial.repeats),
                "values": dict(member.values),
                "tuned": dict(member.trial.tuned),
                "arch": {"family": member.trial.arch.family, "choices": member.trial.arch.choices},
                "indistinguishable_from": None if others is None else [other.trial.arch.arch_id for other in others],
            }
            for member, others in ((member, alike[member.trial.number]) for member in members)
        ],
    }


def _control_document(run: RunRecord) -> dict[str, Any] | None:
    labels = (control for control in reversed(run.controls) if not control.direct)
    control = next((control for control in labels if control.score is not None), None)
    if control is None:
        return None
    arch_id = next(trial.arch.arch_id for trial in run.trials if trial.number == control.number)
    return {"arch_id": arch_id, run.score.name: control.score, f"test_{run.score.name}": control.test_score}


def full_trainings_document(run: RunRecord) -> list[dict[str, Any]]:
    """Return the students that `kdnas train` trained in this run as plain data."""
    return [
        {
            "arch_id": training.arch_id,
            "folder": str(training.folder),
            "epochs": training.epochs,
            run.score.name: training.score,
            f"test_{run.score.name}": training.test_score,
            "train_seconds": training.train_seconds,
        }
        for training in full_trainings(run.folder)[0]
    ]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` to `path`, whole or not at all. Raises OSError."""
    atomic.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def short_archs(trials: Sequence[TrialRecord]) -> dict[int, str]:
    """Return, by trial number, the choices in which these trials differ; of a single trial all of them."""
    spellings = {
        name: {trial.arch.choices.get(name) for trial in trials} for trial in trials for name in trial.arch.choices
    }
    varying = {name for name, values in spellings.items() if len(values) > 1} or set(spellings)
    return {
        trial.number: arch_in_words(type(trial.arch)(trial.arch.family, _only(trial.arch.items, varying)))
        for trial in trials
    }


def enqueued_numbers(run: RunRecord) -> set[int]:
    """Return the trials of students that somebody queued, at every rung that these reached."""
    theirs = {(trial.arch, tuple(trial.tuned.items())) for trial in run.trials if trial.enqueued}
    return {trial.number for trial in run.trials if (trial.arch, tuple(trial.tuned.items())) in theirs}


def front_of_page(run: RunRecord) -> Table:
    """Return the front as the page shows it, score and costs first, the recommended student tinted."""
    table, score = front_table(run), run.score.name
    chosen = recommended(run)
    number = None if chosen is None else chosen.member.trial.number
    first = ["arch_id", score, f"test_{score}", "macs", "params", *other_quantities(run), f"search_{score}"]
    return _students(run, table, first, "Students of the front", number)


def trials_of_page(run: RunRecord) -> Table:
    """Return every trial as the page shows it."""
    first = ["trial", "arch_id", run.score.name, "macs", "params", *other_quantities(run), "state"]
    return _students(run, trials_table(run), first, "All trials with the search’s scores")


def further_scores_table(run: RunRecord) -> Table:
    """Return what is known of the retrained front and of the teacher on the test split in addition to the score."""
    members = [member for member in front(run) if member.further]
    names = list(dict.fromkeys(name for member in members for name in member.further))

    def cell(name: str, value: float | None, half: float | None = None) -> Cell:
        quantity = score_named(name) or ACCURACY  # what is completed is a share, too
        return Cell("–") if value is None else Cell(shown_interval(quantity, value, half), value)

    rows = [
        (
            Cell(member.trial.arch.arch_id, member.trial.arch.arch_id, code=True),
            *(cell(name, *member.further.get(name, (None,))) for name in names),
        )
        for member in members
    ]
    if members and run.teacher_further:
        theirs = (cell(name, run.teacher_further.get(name)) for name in names)
        rows.append((Cell("teacher", "teacher"), *theirs))
    columns = (Column("student", text=True), *(Column(label(name)) for name in names))
    return Table("Further scores on the test split", columns, tuple(rows))


def full_trainings_table(run: RunRecord, trainings: Sequence[FullTraining]) -> Table:
    """Return the students that `kdnas train` trained in this run, the best first."""
    score, costs = run.score, {t.arch.arch_id: t.values for t in run.trials if t.state == "complete"}
    rows = []
    for training in sorted(trainings, key=lambda training: score.minimised(training.test_score)):
        values = costs.get(training.arch_id, {})
        rows.append(
            (
                Cell(training.arch_id, training.arch_id, code=True),
                Cell(score.shown(training.test_score), training.test_score),
                Cell(score.shown(training.score), training.score),
                *(Cell(shown(name, values.get(name)), values.get(name)) for name in ("macs", "params")),
                Cell(str(training.epochs), training.epochs),
                Cell(duration(training.train_seconds), training.train_seconds),
                Cell(f"training/{training.folder.name}", training.folder.name),
            )
        )
    scores = [f"test {label(score.name)}", f"validation {label(score.name)}"]
    headings = ["student", *scores, "MACs", "parameters", "epochs", "took", "folder"]
    columns = tuple(Column(heading, text=heading in ("student", "folder")) for heading in headings)
    return Table("Full trainings", columns, tuple(rows))


def _only(items: tuple[tuple[str, Any], ...], names: set[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in items if name in names)


def _quantity_columns(run: RunRecord) -> list[str]:
    measured = {name for trial in run.trials for name in trial.measurements}
    columns = []
    for name in other_quantities(run):
        columns += [name, f"{name}_spread"] if name in measured else [name]
    return columns


def _tuned_names(run: RunRecord) -> list[str]:
    return sorted({name for trial in run.trials for name in trial.tuned})


def _common(run: RunRecord, trial: TrialRecord, values: Mapping[str, float], queued: Set[int]) -> dict[str, Any]:
    return {
        **values,
        **{f"{name}_spread": taken.spread for name, taken in trial.measurements.items()},
        **trial.tuned,
        "trial": trial.number,
        "arch_id": trial.arch.arch_id,
        "state": trial.state,
        "fidelity_epochs": trial.fidelity.epochs,
        f"{run.score.name}_ci95": None,
        "fidelity_data_fraction": trial.fidelity.data_fraction,
        "fidelity_start": trial.fidelity.start,
        "fidelity_resolution_fraction": trial.fidelity.resolution_fraction,
        "train_seconds": trial.train_seconds,
        "teacher_seconds": trial.teacher_seconds,
        "enqueued": "yes" if trial.number in queued else None,
        "arch": trial.arch.canonical_json,
    }


def _front_row(run: RunRecord, member: FrontMember, queued: Set[int]) -> dict[str, Any]:
    trial, repeats, score = member.trial, member.trial.repeats, run.score.name
    fidelity = repeats[0].fidelity if repeats else trial.fidelity
    seconds = sum(repeat.train_seconds for repeat in repeats) / len(repeats) if repeats else trial.train_seconds
    return {
        **_common(run, trial, member.values, queued),
        f"{score}_ci95": member.score_ci95,
        f"test_{score}": member.test_score,
        f"test_{score}_ci95": member.test_score_ci95,
        "seeds": len(repeats) or 1,
        f"search_{score}": measured_values(trial).get(score),
        "fidelity_epochs": fidelity.epochs,
        "fidelity_data_fraction": fidelity.data_fraction,
        "fidelity_start": fidelity.start,
        "fidelity_resolution_fraction": fidelity.resolution_fraction,
        "train_seconds": seconds,
        "reason": trial.reason,
    }


def _ids(members: Sequence[FrontMember] | None) -> str | None:
    return None if members is None else " ".join(member.trial.arch.arch_id for member in members) or "none"


def _frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=list(columns))
    for column in _INTEGERS:
        if column in table and _all_whole(table[column].tolist()):
            table[column] = pd.array([None if pd.isna(v) else int(v) for v in table[column].tolist()], dtype="Int64")
    return table


def _all_whole(values: Sequence[Any]) -> bool:
    return all(pd.isna(value) or float(value).is_integer() for value in values)


def _students(run: RunRecord, table: pd.DataFrame, first: Sequence[str], name: str, marked: int | None = None) -> Table:
    """Return a file's rows with the columns of `first` first; the trial of number `marked` is tinted."""
    rows: list[Row] = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    columns = _ordered(table, first)
    texts = {name for name in columns if name in (*_TEXT, *_LONG) or any(isinstance(row[name], str) for row in rows)}
    heads = tuple(Column(_heading(name, rows, run.score), name in texts, name in _LONG) for name in columns)
    cells = tuple(tuple(_cell(column, row, run.score) for column in columns) for row in rows)
    return Table(name, heads, cells, frozenset(k for k, row in enumerate(rows) if row["trial"] == marked))


def _ordered(table: pd.DataFrame, first: Sequence[str]) -> list[str]:
    """Return the columns to show, `first` ones first; intervals stand with their value.

    What nobody has is left out, and the resolution where all have the whole one.
    """
    middle = [str(column) for column in table.columns if column not in _LAST]
    names = dict.fromkeys([*first, *middle, *_LAST])
    return [
        name
        for name in names
        if name in table.columns
        and not name.endswith(("_ci95", "_spread"))
        and any(map(_is_known, table[name]))
        and not (name == "fidelity_resolution_fraction" and (table[name].dropna() == 1.0).all())
    ]


def _is_score(column: str, score: Quantity) -> bool:
    of_task = "." in column and score_named(column) == score
    return of_task or column in (score.name, f"test_{score.name}", f"search_{score.name}")


def _heading(column: str, rows: Sequence[Row], score: Quantity) -> str:
    if column == f"search_{score.name}":
        return f"{label(score.name)} in the search{' (%)' if score.is_fraction else ''}"
    if _is_score(column, score):
        known = any(_is_known(row.get(f"{column}_ci95")) for row in rows)
        return column_title(column, score) + (", 95 % interval" if known else "")
    name = _HEADINGS.get(column) or (column if "." in column else column_title(column))
    return f"{name}, spread in brackets" if f"{column}_spread" in rows[0] else name


def _cell(column: str, row: Row, score: Quantity) -> Cell:
    value = row[column]
    if not _is_known(value) or (column in _SPENT and row.get("state") in ("running", "waiting")):
        return Cell("–")
    shows: dict[str, Callable[[Any], str]] = {
        "arch": lambda text: "; ".join(architecture_lines(Arch.from_json(text))),
        "reason": lambda text: reason_in_words(text, score),
        "fidelity_data_fraction": lambda share: f"{100 * share:g}",
        "fidelity_resolution_fraction": lambda share: f"{100 * share:g}",
    }
    if column in (*_TEXT, *_LONG) or isinstance(value, str | bool):
        text = shows.get(column, str)(value)
        return Cell(text, text, code=column in _CODE)
    if _is_score(column, score):
        half = row.get(f"{column}_ci95")
        return Cell(shown_interval(score, value, half if _is_known(half) else None).replace(" %", ""), value)
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
