"""Damage inside a record: rows that are no longer as they were written, found before anything uses them.

The database is read as it is, row by row, since Optuna reads all trials or none. What is damaged can be left out, which
closes a trial as failed with the reason, or removes what was noted of the study; it is never done unasked.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import Connection
from sqlalchemy import text as sql
from sqlalchemy.exc import SQLAlchemyError

from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import unsound
from kdnas.core.words import command_line, printable
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.record.rows import distribution_of
from kdnas.record.trials import audit_training, control_of, measurements_of, repeat_of, trial_record

if TYPE_CHECKING:
    from kdnas.record.database import Database

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError)
_SHOWN = 10
_TEXTS = {"finished", "packing"}
_SCORES = {"teacher_test_score", "teacher_test_accuracy"}
_NUMBERS = {"search_seconds", "final_epochs", *_SCORES}
"""Facts of a run, by kind; the test score of a teacher of old was an accuracy."""
_OWN = {"arch", "arch_id", "fidelity", "result"}
"""Attributes that only trials of kdnas have."""


@dataclass(frozen=True)
class Damage:
    """A trial, by its number, or something noted of the whole study, by its key, that cannot be read."""

    name: str
    reason: str

    @property
    def words(self) -> str:
        """What is damaged, and how."""
        return f"{f'trial {self.name}' if self.name.isdecimal() else f'the note {self.name!r}'}: {self.reason}"


def refuse_damage(database: Database, folder: Path, objectives: Sequence[str]) -> None:
    """Raise RunFolderError, naming each and the way to leave it out, where rows of `database` are damaged.

    Every complete trial has to state `objectives`; `folder` is the run's.
    """
    found = find_damage(database, objectives)
    if not found:
        return
    names = [word for damage in found for word in ("--leave-out", damage.name)]
    remedy = command_line("kdnas", "report", folder, *names)
    what = "1 entry is" if len(found) == 1 else f"{len(found)} entries are"
    raise RunFolderError(
        [
            *(Problem(database.place, damage.words) for damage in found[:_SHOWN]),
            Problem(
                database.place,
                f"{what} damaged: restore it, or leave them out, which closes a trial as failed: {remedy}",
            ),
        ]
    )


def find_damage(database: Database, objectives: Sequence[str], params: Collection[str] = ()) -> list[Damage]:
    """Return what cannot be read; nothing where the database itself cannot, which Optuna reports."""
    try:
        with database.connect() as connection:
            rows = _Rows.read(connection, database.study)
    except SQLAlchemyError:
        return []
    trials = ((str(row[1]), _trial_problem(rows, row, objectives, params)) for row in rows.trials)
    notes = ((str(key), _note_problem(str(key), text)) for key, text in rows.notes)
    return [Damage(name, printable(reason, 200)) for name, reason in (*trials, *notes) if reason]


def leave_out(
    database: Database, objectives: Sequence[str], params: Collection[str], names: Sequence[str]
) -> list[str]:
    """Leave what is in `names` out for good, and return in words what was done. The caller holds the run.

    Raises ConfigError where one of them is not damaged, RunFolderError where the database cannot be written.
    """
    found = {damage.name: damage for damage in find_damage(database, objectives, params)}
    if sound := [name for name in names if name not in found]:
        allowed = ", ".join(found) or "nothing: every entry is sound"
        raise ConfigError([Problem("--leave-out", f"{name} is not damaged", allowed) for name in sound])
    with database.errors(), database.connect() as connection:
        for name in names:
            _remove(connection, database.study, found[name])
    return [f"left out {found[name].words}" for name in names]


def _remove(connection: Connection, study: str, damage: Damage) -> None:
    def run(statement: str, **values: Any) -> Any:
        return connection.execute(sql(statement), values)

    study_id = run("select study_id from studies where study_name = :name", name=study).scalar_one()
    if not damage.name.isdecimal():
        run("delete from study_user_attributes where study_id = :study and key = :key", study=study_id, key=damage.name)
        return
    of = "select trial_id from trials where study_id = :study and number = :number"
    trial = run(of, study=study_id, number=int(damage.name)).scalar_one()
    for table in ("user_attributes", "system_attributes", "params", "values", "intermediate_values"):
        run(f"delete from trial_{table} where trial_id = :trial", trial=trial)
    closed = "state = 'FAIL', datetime_start = null, datetime_complete = null"
    run(f"update trials set {closed} where trial_id = :trial", trial=trial)
    note = json.dumps(f"left out as damaged: {damage.reason}")
    row = "(trial_id, key, value_json) values (:trial, 'set_aside', :note)"
    run(f"insert into trial_user_attributes {row}", trial=trial, note=note)


@dataclass(frozen=True)
class _Rows:
    """What the database holds of one study, as text and numbers."""

    trials: list[tuple[int, int, str, Any, Any]]
    """(trial_id, number, state, begun, ended)"""
    attributes: Mapping[int, list[tuple[str, Any]]]
    system: Mapping[int, list[tuple[str, Any]]]
    params: Mapping[int, list[tuple[str, Any, Any]]]
    values: Mapping[int, list[tuple[int, Any]]]
    notes: list[tuple[str, Any]]

    @classmethod
    def read(cls, connection: Connection, study: str) -> _Rows:
        """Raises SQLAlchemyError."""
        of = "study_id = (select study_id from studies where study_name = :study)"

        def rows(query: str) -> list[Any]:
            return [tuple(row) for row in connection.execute(sql(query), {"study": study})]

        def by_trial(columns: str, table: str) -> dict[int, list[Any]]:
            grouped: dict[int, list[Any]] = defaultdict(list)
            within = f"trial_id in (select trial_id from trials where {of})"
            for trial_id, *row in rows(f"select trial_id, {columns} from {table} where {within}"):
                grouped[trial_id].append(tuple(row))
            return grouped

        trials = "select trial_id, number, state, datetime_start, datetime_complete from trials where"
        return cls(
            rows(f"{trials} {of} order by number"),
            by_trial("key, value_json", "trial_user_attributes"),
            by_trial("key, value_json", "trial_system_attributes"),
            by_trial("param_name, param_value, distribution_json", "trial_params"),
            by_trial("objective, value", "trial_values"),
            rows(f"select key, value_json from study_user_attributes where {of}"),
        )


def _trial_problem(
    rows: _Rows, row: tuple[int, int, str, Any, Any], objectives: Sequence[str], params: Collection[str]
) -> str:
    """Return what is wrong with a trial, empty where it can be read."""
    trial_id, number, state, begun, ended = row
    if state not in OptunaState.__members__:
        return f"its state is {state!r}"
    moments = []
    for moment in (begun, ended):
        try:
            known = moment is None or isinstance(moment, datetime)
            moments.append(moment if known else datetime.fromisoformat(moment))
        except (TypeError, ValueError):
            return f"its time {moment!r} is none"
    attributes: dict[str, Any] = {}
    for key, text in (*rows.system[trial_id], *rows.attributes[trial_id]):
        try:
            attributes[key] = json.loads(text)
        except _UNREADABLE as error:
            return f"its attribute {key!r} is not JSON: {error}"
    for name, value, distribution in rows.params[trial_id]:
        try:
            distribution_of(distribution).to_external_repr(float(value))
        except (*_UNREADABLE, IndexError, AssertionError) as error:
            return f"its parameter {name!r} cannot be read: {error}"
    if state == "COMPLETE" and sorted(place for place, _ in rows.values[trial_id]) != list(range(len(objectives))):
        return "it has no value of every objective"
    if "fidelity" not in attributes:
        own = sorted(_OWN & attributes.keys())
        return f"its attribute 'fidelity' is missing, it has {', '.join(own)}" if own and state == "COMPLETE" else ""
    if lost := sorted({*params} - {name for name, _, _ in rows.params[trial_id]}):
        return f"its parameter {lost[0]!r} is missing"
    return _student_problem(number, OptunaState[state], attributes, (moments[0], moments[1]), objectives)


def _student_problem(
    number: int,
    state: OptunaState,
    attributes: Mapping[str, Any],
    moments: tuple[datetime | None, datetime | None],
    objectives: Sequence[str],
) -> str:
    if missing := [name for name in ("arch_id", "arch") if name not in attributes]:
        return f"its attribute {missing[0]!r} is missing"
    if state == OptunaState.COMPLETE and "result" not in attributes:
        return "its attribute 'result' is missing"
    try:
        # Its parameters have been read above; without them Optuna's own checks find nothing.
        frozen = FrozenTrial(number, state, None, *moments, {}, {}, dict(attributes), {}, {}, number)
        record = trial_record(frozen)
        _check_settings(record.tuned)
        _check_amounts(record.profile)
        _check_amounts({"train_seconds": record.train_seconds, "teacher_seconds": record.teacher_seconds})
        _check_amounts({name: taken.spread for name, taken in record.measurements.items()})
        _check_amounts(record.fidelity.training)
        _check_values(record.values)
        _check_values({name: taken.value for name, taken in record.measurements.items()})
        if record.arch.arch_id != attributes["arch_id"]:
            return f"its arch is {record.arch.arch_id}, not {attributes['arch_id']}"
    except KeyError as error:
        return f"an attribute has no {error}"
    except _UNREADABLE as error:
        return f"its attributes are no student's: {error}"
    known = {**record.values, **record.measurements}
    without_value = [name for name in objectives if name not in known]
    return f"its result has no {', '.join(without_value)}" if without_value and state == OptunaState.COMPLETE else ""


def _note_problem(key: str, text: Any) -> str:
    """Return what is wrong with something noted of the study, empty where it can be read."""
    try:
        value = json.loads(text)
        kind = key.partition(":")[0]
        if kind == "final":
            repeat = repeat_of(value)
            _check_amounts(repeat.fidelity.training)
            _check_amounts({"train_seconds": repeat.train_seconds, "seed": repeat.seed})
            tested = {} if repeat.test_score is None else {"test": repeat.test_score}
            _check_numbers({"score": repeat.score, **tested, **repeat.further})
            if not isinstance(repeat.checkpoint, str) or not isinstance(repeat.sha256, str):
                raise TypeError("its checkpoint is no file name")
        elif kind == "failed":
            _check_amounts({"attempts": value["attempts"]})
            str(value["reason"]).encode()
        elif kind == "measured":
            _check_values({name: taken.value for name, taken in measurements_of(value).items()})
        elif key == "audit":
            _check_amounts(Fidelity.from_dict(value["fidelity"]).training)
            _check_amounts({"seeds": value["seeds"], **{str(place): n for place, n in enumerate(value["students"])}})
        elif kind == "audit":
            training = audit_training(value)
            _check_amounts(training.fidelity.training)
            _check_amounts({"train_seconds": training.train_seconds})
            _check_numbers({"score": training.score})
        elif kind == "control":
            control = control_of(value)
            _check_amounts(control.fidelity.training)
            _check_amounts({"train_seconds": control.train_seconds, "trial": control.number})
            scores = {"score": control.score, "test": control.test_score}
            _check_numbers({name: score for name, score in scores.items() if score is not None})
        elif kind == "note":
            _check_note(key.partition(":")[2], value)
        if kind in ("final", "failed", "measured"):
            int(key.split(":")[1])
    except KeyError as error:
        return f"it has no {error}"
    except (*_UNREADABLE, IndexError) as error:
        return f"it cannot be read: {error}"
    return ""


def _check_note(name: str, value: Any) -> None:
    """Raise TypeError or ValueError where a fact that `Record.set_note` wrote is none of its kind."""
    if name in _TEXTS:
        if not isinstance(value, str):
            raise TypeError(f"it is {value!r}, no text")
    elif name in _NUMBERS and value is not None:  # there may be no teacher to test
        (_check_numbers if name in _SCORES else _check_amounts)({name: value})
    elif name == "teacher_further":
        _check_numbers(value)
    elif name == "lengths":
        _check_numbers({str(int(length)): score for length, score in value.items()})


def _check_amounts(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where one of `values` is no finite number, or below 0."""
    _check_numbers(values)
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} is {value}, below 0")


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where one of `values`, by quantity, can be none of it."""
    _check_numbers(values)
    for name, value in values.items():
        if wrong := unsound(name, value):
            raise ValueError(wrong)


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where one of `values` is no finite number."""
    for name, value in _items(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}, no number")
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def _check_settings(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where one of `values` is no finite number, truth value or text."""
    _check_numbers({name: value for name, value in _items(values) if not isinstance(value, str | bool)})


def _items(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r} is no mapping")
    yield from values.items()
