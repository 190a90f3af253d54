"""The rows of one study as Optuna's samplers see them: kept in memory, and written together.

Optuna's own storage asks the database some hundred times a trial and makes every row an object. Here one process writes
a study, so what it has read or written it knows; what belongs together reaches the disk in a few statements, into
Optuna's own tables, which its tools open.

Beside it, studies that show only some of their trials. What is taken from Optuna that it promises to nobody was checked
with Optuna 5.0; tests/record/test_rows.py fails where one of these has gone: `Study._storage`, `RDBStorage.engine`, the
tables of `storages._rdb.models`, and the system attribute `fixed_params` (`kdnas.record.trials`), which holds what a
queued trial states.
"""

from __future__ import annotations

import copy
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, Table, UniqueConstraint, bindparam, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from kdnas.faults import reach

Kind = Literal["user_attrs", "system_attrs"]

_STUDIES: Table = models.StudyModel.__table__
_TRIALS: Table = models.TrialModel.__table__
_PARAMS: Table = models.TrialParamModel.__table__
_VALUES: Table = models.TrialValueModel.__table__
_STEPS: Table = models.TrialIntermediateValueModel.__table__
_ATTRIBUTES: Mapping[Kind, Table] = {
    "user_attrs": models.TrialUserAttributeModel.__table__,
    "system_attrs": models.TrialSystemAttributeModel.__table__,
}
_NOTES: Mapping[Kind, Table] = {
    "user_attrs": models.StudyUserAttributeModel.__table__,
    "system_attrs": models.StudySystemAttributeModel.__table__,
}
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
_STATES = select(_TRIALS.c.trial_id, _TRIALS.c.state).where(
    _TRIALS.c.study_id == bindparam("study"),
    or_(_TRIALS.c.trial_id > bindparam("last"), _TRIALS.c.state.in_(_UNFINISHED)),
)
"""Of the trials that may have changed: made once, for making it takes longer than answering it."""
_MANY = 500
"""Ids beyond which all rows are read: SQLite takes some thousand values in a statement."""


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(self.beneath, name)(*arguments, **options)

    return method


_Passing: Any = type("_Passing", (BaseStorage,), {name: _passed_on(name) for name in BaseStorage.__abstractmethods__})


class Rows(_Passing):
    """The study `name` in `storage`, for the one process that writes it; others may read it, and add trials.

    What is written is in the database when the method returns; inside `at_once`, when that ends. Raises SQLAlchemyError
    where the database refuses, and UpdateFinishedTrialError where another program has ended a trial of this one's;
    what is known is read anew after that. `connect` gives a connection; None: the storage's own.
    """

    def __init__(self, storage: RDBStorage, name: str, connect: Callable[[], Connection] | None = None):
        self.beneath = storage
        self._connect = connect or storage.engine.connect
        self._study_id: int = storage.get_study_id_from_name(name)
        self._name = name
        self._directions: list[StudyDirection] = storage.get_study_directions(self._study_id)
        self._transaction: Connection | None = None
        self.may_be_written = False
        """Whether the last transaction got to its end: where an error came then, nobody knows what became of it."""
        self._forget()

    def _forget(self) -> None:
        self._trials: dict[int, FrozenTrial] = {}
        """By number, in their order. A trial that changes is replaced: lists that were given out stay as they were."""
        self._numbers: dict[int, int] = {}
        """Of trials, by their ids in the database."""
        self._notes: dict[Kind, dict[str, Any]] = {}
        """Of the study; read once."""
        self._unwritten: dict[Table, dict[tuple[Any, ...], dict[str, Any]]] = {}
        """Rows to be put, by table and unique key."""
        self._ended: list[dict[str, Any]] = []
        """Trials to be closed."""
        self._distributions: dict[str, BaseDistribution] = {}
        """Of each parameter, as a trial had it."""
        self._going: set[int] = set()
        """Ids of the trials that wait or run."""

    # -- transactions --------------------------------------------------------------------------------------------------

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is under way."""
        return self._transaction is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold back what is written inside, then write all of it; nothing on an error."""
        with self._connected():
            yield

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Give the transaction under way, or one that ends with the context."""
        if self._transaction is not None:
            yield self._transaction
            return
        self.may_be_written = False
        try:
            with self._connect() as connection, connection.begin():
                self._transaction = connection
                try:
                    yield connection
                    self._write(connection)
                    self.may_be_written = True
                finally:
                    self._transaction = None
        except BaseException:
            self._forget()
            raise

    def _write(self, connection: Connection) -> None:
        for table, rows in self._unwritten.items():
            reach("writing")
            connection.execute(_put(connection.dialect.name, table), list(rows.values()))
        for row in self._ended:
            still = _TRIALS.c.state.in_(_UNFINISHED)
            change = _TRIALS.update().where(_TRIALS.c.trial_id == bindparam("id"), still)
            if not connection.execute(change, row).rowcount:
                raise UpdateFinishedTrialError(f"another program has ended trial {self._numbers[row['id']]}")
        self._unwritten, self._ended = {}, []

    def _add(self, table: Table, key: tuple[Any, ...], row: dict[str, Any]) -> None:
        self._unwritten.setdefault(table, {})[key] = row

    # -- the study -----------------------------------------------------------------------------------------------------

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id in the database."""
        return self._study_id if study_name == self._name else int(self.beneath.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of each objective."""
        return list(self._directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what was noted of the study."""
        return dict(self._noted("user_attrs"))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what Optuna and its samplers noted of the study."""
        return dict(self._noted("system_attrs"))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Note something of the study."""
        self._note("user_attrs", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Note something for Optuna's samplers or tools."""
        self._note("system_attrs", key, value)

    def _noted(self, kind: Kind) -> dict[str, Any]:
        if kind not in self._notes:
            table = _NOTES[kind]
            own = table.c.study_id == self._study_id
            wanted = select(table.c.key, table.c.value_json).where(own).order_by(*table.primary_key)
            with self._connected() as connection:
                self._notes[kind] = {key: json.loads(text) for key, text in connection.execute(wanted)}
        return self._notes[kind]

    def _note(self, kind: Kind, key: str, value: Any) -> None:
        text = json.dumps(value)
        with self._connected():
            self._noted(kind)[key] = json.loads(text)
            self._add(_NOTES[kind], (key,), {"study_id": self._study_id, "key": key, "value_json": text})

    # -- reading trials ------------------------------------------------------------------------------------------------

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number; outside `at_once` with what other programs have added."""
        if self._transaction is None or not self._trials:
            self._refresh()
        found = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; a copy of one that goes on, since Optuna writes into it."""
        trial = self._known(trial_id)
        return trial if trial.state.is_finished() else _copied(trial)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of the trial of that number."""
        if trial_number not in self._trials:
            self._refresh()
        return int(self._trials[trial_number]._trial_id)

    def _known(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._numbers:
            self._refresh()
        return self._trials[self._numbers[trial_id]]

    def _refresh(self) -> None:
        """Read the trials that are not known yet, and those of which another program has changed the state."""
        own = _TRIALS.c.study_id == self._study_id
        with self._connected() as connection:
            self._write(connection)
            if self._numbers:
                recent = {"study": self._study_id, "last": max(self._numbers)}
                there = {row.trial_id: row.state for row in connection.execute(_STATES, recent)}
                changed = [one for one, state in there.items() if self._state(one) != state]
                changed += self._going - there.keys()
                wanted = _TRIALS.c.trial_id.in_(changed) if len(changed) < _MANY else own
            if not self._numbers or changed:
                for trial in _read(connection, wanted if self._numbers else own):
                    if self._state(trial._trial_id) != trial.state:
                        self._keep(trial)
                self._trials = dict(sorted(self._trials.items()))

    def _state(self, trial_id: int) -> TrialState | None:
        number = self._numbers.get(trial_id)
        return None if number is None else self._trials[number].state

    def _keep(self, trial: FrozenTrial) -> None:
        self._trials[trial.number] = trial
        self._numbers[trial._trial_id] = trial.number
        (self._going.discard if trial.state.is_finished() else self._going.add)(trial._trial_id)

    # -- writing trials ------------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Make a trial that runs, or one like the template; return its id."""
        own = _TRIALS.c.study_id == self._study_id
        with self._connected() as connection:
            # Nobody makes another meanwhile, whose number would be the same: SQLite has one who writes.
            lock = select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == self._study_id).with_for_update()
            connection.execute(lock)
            number = connection.execute(select(func.count()).select_from(_TRIALS).where(own)).scalar_one()
            trial = copy.deepcopy(template_trial) if template_trial else _running()
            times = {"datetime_start": _utc(trial.datetime_start), "datetime_complete": _utc(trial.datetime_complete)}
            row = {"number": number, "study_id": self._study_id, "state": trial.state, **times}
            key = connection.execute(_TRIALS.insert(), row).inserted_primary_key
            assert key is not None
            trial._trial_id, trial.number = key[0], number
            self._keep(trial)
            for name, value in trial.params.items():
                distribution = trial.distributions[name]
                self._add_param(trial._trial_id, name, distribution.to_internal_repr(value), distribution)
            for kind in _ATTRIBUTES:
                for key, value in getattr(trial, kind).items():
                    self._add_attribute(kind, trial._trial_id, key, json.dumps(value))
            self._add_values(trial._trial_id, trial.values)
            for step, value in trial.intermediate_values.items():
                self._add_step(trial._trial_id, step, value)
        return int(trial._trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Give a trial a parameter. Raises ValueError where trials before had another kind of it."""
        trial = self._updatable(trial_id)
        known = self._distributions.get(param_name)
        if known is None:
            every = (each.distributions for each in self._trials.values())
            known = next((each[param_name] for each in every if param_name in each), distribution)
            self._distributions[param_name] = known
        if known is not distribution:
            check_distribution_compatibility(known, distribution)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = {**trial.params, param_name: value}
        trial.distributions = {**trial.distributions, param_name: distribution}
        with self._connected():
            self._keep(trial)
            self._add_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state; False where another program has begun it."""
        trial = self._updatable(trial_id)
        now = datetime.now()
        with self._connected() as connection:
            if state == TrialState.RUNNING:
                waits = _TRIALS.c.state == TrialState.WAITING
                begin = _TRIALS.update().where(_TRIALS.c.trial_id == trial_id, waits)
                if not connection.execute(begin, {"state": state, "datetime_start": _utc(now)}).rowcount:
                    return False
                trial.datetime_start = now
            if values is not None:
                trial.values = list(values)
                self._add_values(trial_id, values)
            if state.is_finished():
                trial.datetime_complete = now
                self._ended.append({"id": trial_id, "state": state, "datetime_complete": _utc(now)})
            trial.state = state
            self._keep(trial)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write what a trial reports on its way."""
        trial = self._updatable(trial_id)
        trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}
        with self._connected():
            self._keep(trial)
            self._add_step(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write something of a trial."""
        self._set_attribute("user_attrs", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write what Optuna, its samplers or its tools keep of a trial."""
        self._set_attribute("system_attrs", trial_id, key, value)

    def _set_attribute(self, kind: Kind, trial_id: int, key: str, value: Any) -> None:
        trial, text = self._updatable(trial_id), json.dumps(value)
        setattr(trial, kind, {**getattr(trial, kind), key: json.loads(text)})
        with self._connected():
            self._keep(trial)
            self._add_attribute(kind, trial_id, key, text)

    def _updatable(self, trial_id: int) -> FrozenTrial:
        """Return a copy of a trial, for a change. Raises UpdateFinishedTrialError where it has ended."""
        trial = self._known(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return copy.copy(trial)

    def _add_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        row = {"param_name": name, "param_value": value, "distribution_json": _as_json(distribution)}
        self._add(_PARAMS, (trial_id, name), {"trial_id": trial_id, **row})

    def _add_attribute(self, kind: Kind, trial_id: int, key: str, text: str) -> None:
        self._add(_ATTRIBUTES[kind], (trial_id, key), {"trial_id": trial_id, "key": key, "value_json": text})

    def _add_values(self, trial_id: int, values: Sequence[float] | None) -> None:
        for objective, value in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
            self._add(_VALUES, (trial_id, objective), row)

    def _add_step(self, trial_id: int, step: int, value: float) -> None:
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        self._add(_STEPS, (trial_id, step), row)


def _read(connection: Connection, wanted: ColumnElement[bool]) -> Iterator[FrozenTrial]:
    """Yield the trials that are `wanted`, each table asked once."""
    chosen = select(_TRIALS.c.trial_id).where(wanted)

    def by_trial(table: Table) -> Mapping[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        for row in connection.execute(select(table).where(table.c.trial_id.in_(chosen)).order_by(*table.primary_key)):
            found[row.trial_id].append(row)
        return found

    params, values, steps = by_trial(_PARAMS), by_trial(_VALUES), by_trial(_STEPS)
    attributes = {kind: by_trial(table) for kind, table in _ATTRIBUTES.items()}
    for row in connection.execute(select(_TRIALS).where(wanted).order_by(_TRIALS.c.trial_id)).all():
        known = {each.param_name: (distribution_of(each.distribution_json), each.param_value) for each in
                 params.get(row.trial_id, ())}  # fmt: skip
        told = sorted(values.get(row.trial_id, ()), key=lambda each: each.objective)
        yield FrozenTrial(
            number=row.number,
            trial_id=row.trial_id,
            state=row.state,
            value=None,
            values=[models.TrialValueModel.stored_repr_to_value(each.value, each.value_type) for each in told] or None,
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            params={name: distribution.to_external_repr(value) for name, (distribution, value) in known.items()},
            distributions={name: distribution for name, (distribution, _) in known.items()},
            intermediate_values={each.step: _step_value(each) for each in steps.get(row.trial_id, ())},
            **{
                kind: {each.key: json.loads(each.value_json) for each in found.get(row.trial_id, ())}
                for kind, found in attributes.items()
            },
        )


def _step_value(row: Any) -> float:
    kind = row.intermediate_value_type
    return float(models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(row.intermediate_value, kind))


@functools.cache
def _put(dialect: str, table: Table) -> Any:
    """Return the statement that puts a row in the place of one with the same unique key, or anew."""
    insert = {"sqlite": sqlite, "postgresql": postgresql}[dialect].insert(table)
    unique = next(one for one in table.constraints if isinstance(one, UniqueConstraint))
    own = {*unique.columns, *table.primary_key.columns}
    changed = {column.name: insert.excluded[column.name] for column in table.columns if column not in own}
    return insert.on_conflict_do_update(index_elements=list(unique.columns), set_=changed)


@functools.lru_cache(maxsize=4096)  # of a search's thousands of trials each has the same
def distribution_of(text: str) -> BaseDistribution:
    """Return the distribution that a row holds as text."""
    return json_to_distribution(text)


@functools.lru_cache(maxsize=4096)
def _as_json(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)


def _running() -> FrozenTrial:
    return optuna.trial.create_trial(state=TrialState.RUNNING)


def _copied(trial: FrozenTrial) -> FrozenTrial:
    copied = copy.copy(trial)
    for name in ("params", "distributions", "user_attrs", "system_attrs"):
        setattr(copied, name, dict(getattr(trial, name)))
    return copied


def _utc(time: datetime | None) -> datetime | None:
    """Return a local time as Optuna's tables have it."""
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


def _local(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


# -- studies that show only some of their trials ---------------------------------------------------------------------


class _Showing(_Passing):
    """A storage that shows the `trials` it is given; all else, what is written too, is that of the storage beneath."""

    def __init__(self, beneath: BaseStorage, trials: Sequence[FrozenTrial]):
        self.beneath = beneath
        self._trials = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return what is shown."""
        shown = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown


class _Queueing(_Passing):
    """A storage whose queue holds one of the waiting trials, or none: Optuna's `ask` takes the first that waits."""

    def __init__(self, beneath: BaseStorage, waiting: int | None):
        self.beneath = beneath
        self._waiting = waiting

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return all trials, and of the queue, where that alone is asked for, the one."""
        found: list[FrozenTrial] = self.beneath.get_all_trials(study_id, deepcopy, states)
        return [trial for trial in found if trial.number == self._waiting] if states == (TrialState.WAITING,) else found


def showing(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Return `study` as if it had these `trials`; what is written to it is written to `study`."""
    return optuna.Study(study.study_name, _Showing(study._storage, trials), study.sampler)


def queueing(
    study: str, storage: BaseStorage, waiting: int | None, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """Return the study whose next `ask` is answered by `sampler`: as a new trial, or as the `waiting` one."""
    return optuna.Study(study, _Queueing(storage, waiting), sampler)
