"""A run as tables: every number that figures, page and terminal show is taken from here.

trials.csv holds the search's own scores (one brief training each, so no interval); front.csv the students of the
final front, with the mean and 95 % interval of their retrainings, and the search's score beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdnas import atomic
from kdnas.core.pick import FEWEST_FOR_A_KNEE
from kdnas.plan.training_folder import full_trainings
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
from kdnas.report.wording import arch_in_words

FIRST_COLUMNS = ("trial", "arch_id", "state", "fidelity_epochs", "accuracy", "accuracy_ci95", "macs", "params")
_FIDELITY = ("fidelity_data_fraction", "fidelity_weights", "fidelity_resolution_fraction")
_INTEGERS = ("trial", "fidelity_epochs", "macs", "params", "seeds")


def other_quantities(run: RunRecord) -> list[str]:
    """Return the quantities known of any student besides accuracy, MACs and parameters; objectives first."""
    known = {name for trial in run.trials for name in measured_values(trial)}
    names = [objective.name for objective in run.objectives] + [name for name in run.quantities if name in known]
    names += sorted(known - set(run.quantities))
    return [name for name in dict.fromkeys(names) if name not in FIRST_COLUMNS]


def trials_table(run: RunRecord) -> pd.DataFrame:
    """Return every trial, in the order of their numbers, as trials.csv has it."""
    columns = [*FIRST_COLUMNS, *_quantity_columns(run), *_FIDELITY]
    columns += [*_tuned_names(run), "train_seconds", "teacher_seconds", "enqueued", "reason", "arch"]
    rows = [
        {**_common(run, trial, measured_values(trial)), "reason": trial.reason}
        for trial in sorted(run.trials, key=lambda trial: trial.number)
    ]
    return _frame(rows, columns)


def front_table(run: RunRecord) -> pd.DataFrame:
    """Return the Pareto front, sorted by the first cheap objective, as front.csv has it.

    `indistinguishable_from` holds the arch_ids of the members whose accuracy does not differ (Welch's t-test over the
    retrainings, 5 %), "none" where all do, nothing where a single training cannot tell.
    """
    columns = [*FIRST_COLUMNS, *_quantity_columns(run), "test_accuracy", "test_accuracy_ci95", "seeds"]
    columns += ["indistinguishable_from", "search_accuracy", *_FIDELITY]
    columns += [*_tuned_names(run), "train_seconds", "enqueued", "reason", "arch"]
    members = front(run)
    alike = indistinguishable(members)
    return _frame(
        [{**_front_row(run, member), "indistinguishable_from": _ids(alike[member.trial.number])} for member in members],
        columns,
    )


def front_document(run: RunRecord) -> dict[str, Any]:
    """Return the front as plain data, as `kdnas front --json` prints it.

    Keys: study, folder, finished (why the search ended, empty while it has not), retrained (true when accuracies are
    means over retrainings), objectives (name, unit, direction), constraints, reference_point, hypervolume (null while
    unknown), recommended (arch_id, rule, and doubts: why it may be none to recommend) or null, knee (arch_id, null
    below three members), control (the student trained without its teacher) or null,
    teacher (name, accuracy, test_accuracy, values) or null, and front: one record a student with trial, arch_id,
    accuracy_ci95, test_accuracy, test_accuracy_ci95, rise_per_doubling (of the training, null where not known), seeds,
    values, tuned, arch, and indistinguishable_from (arch_ids whose accuracy does not differ by Welch's t-test at 5 %;
    null where not testable).
    """
    members = front(run)
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
        "control": control_document(run),
        "teacher": teacher
        and {
            "name": teacher.name,
            "accuracy": teacher.score,
            "test_accuracy": teacher.test_score,
            "values": dict(teacher.values),
        },
        "front": [
            {
                "trial": member.trial.number,
                "arch_id": member.trial.arch.arch_id,
                "accuracy_ci95": member.score_ci95,
                "test_accuracy": member.test_score,
                "test_accuracy_ci95": member.test_score_ci95,
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


def control_document(run: RunRecord) -> dict[str, Any] | None:
    """Return the last student that was trained without its teacher, as plain data."""
    control = next((control for control in reversed(run.controls) if control.score is not None), None)
    if control is None:
        return None
    arch_id = next(trial.arch.arch_id for trial in run.trials if trial.number == control.number)
    return {"arch_id": arch_id, "accuracy": control.score, "test_accuracy": control.test_score}


def full_trainings_document(run: RunRecord) -> list[dict[str, Any]]:
    """Return the students that `kdnas train` trained in this run as plain data; accuracies are fractions."""
    return [
        {
            "arch_id": training.arch_id,
            "folder": str(training.folder),
            "epochs": training.epochs,
            "accuracy": training.score,
            "test_accuracy": training.test_score,
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


def _common(run: RunRecord, trial: TrialRecord, values: Mapping[str, float]) -> dict[str, Any]:
    return {
        **{name: values.get(name) for name in ("accuracy", "macs", "params", *other_quantities(run))},
        **{f"{name}_spread": taken.spread for name, taken in trial.measurements.items()},
        **trial.tuned,
        "trial": trial.number,
        "arch_id": trial.arch.arch_id,
        "state": trial.state,
        "fidelity_epochs": trial.fidelity.epochs,
        "accuracy_ci95": None,
        "fidelity_data_fraction": trial.fidelity.data_fraction,
        "fidelity_weights": trial.fidelity.weights,
        "fidelity_resolution_fraction": trial.fidelity.resolution_fraction,
        "train_seconds": trial.train_seconds,
        "teacher_seconds": trial.teacher_seconds,
        "enqueued": "yes" if trial.number in enqueued_numbers(run) else None,
        "arch": trial.arch.canonical_json,
    }


def enqueued_numbers(run: RunRecord) -> set[int]:
    """Return the trials of students that somebody queued, at every rung that these reached."""
    theirs = {(trial.arch, tuple(trial.tuned.items())) for trial in run.trials if trial.enqueued}
    return {trial.number for trial in run.trials if (trial.arch, tuple(trial.tuned.items())) in theirs}


def _front_row(run: RunRecord, member: FrontMember) -> dict[str, Any]:
    trial, repeats = member.trial, member.trial.repeats
    fidelity = repeats[0].fidelity if repeats else trial.fidelity
    seconds = sum(repeat.train_seconds for repeat in repeats) / len(repeats) if repeats else trial.train_seconds
    return {
        **_common(run, trial, member.values),
        "accuracy_ci95": member.score_ci95,
        "test_accuracy": member.test_score,
        "test_accuracy_ci95": member.test_score_ci95,
        "seeds": len(repeats) or 1,
        "search_accuracy": measured_values(trial).get("accuracy"),
        "fidelity_epochs": fidelity.epochs,
        "fidelity_data_fraction": fidelity.data_fraction,
        "fidelity_weights": fidelity.weights,
        "fidelity_resolution_fraction": fidelity.resolution_fraction,
        "train_seconds": seconds,
        "reason": trial.reason,
    }


def _ids(members: Sequence[FrontMember] | None) -> str | None:
    return None if members is None else " ".join(member.trial.arch.arch_id for member in members) or "none"


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=list(columns))
    for column in _INTEGERS:
        if column in table and _all_whole(table[column].tolist()):
            table[column] = pd.array([None if pd.isna(v) else int(v) for v in table[column].tolist()], dtype="Int64")
    return table


def _all_whole(values: Sequence[Any]) -> bool:
    return all(pd.isna(value) or float(value).is_integer() for value in values)
