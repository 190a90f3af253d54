"""Where Optuna keeps the trials of a run: an SQLite file, behind what any other database would have to do.

Beside it, what is taken from Optuna that it promises to nobody. Checked with Optuna 5.0; tests/record/test_database.py
fails where one of these has gone: `Study._storage`, `storages.get_storage`, `RDBStorage.scoped_session` and `.engine`,
and the system attribute `fixed_params` (`kdnas.record.trials`), which holds what a queued trial states.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from kdnas.errors import RunFolderError
from kdnas.record.damage import leave_out, refuse_damage

_FILE = "study.db"
_LOCK_TIMEOUT_S = 60
_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, OSError, KeyError, AssertionError)

Direction = Literal["minimize", "maximize"]


class _Session(Session):
    """A session whose commits can be held back, so that what belongs together reaches the disk at once."""

    held = False

    def commit(self) -> None:
        """Commit, or only flush while held."""
        if self.held:
            self.flush()
        else:
            super().commit()

    def close(self) -> None:
        """Close, unless held."""
        if not self.held:
            super().close()


class Database(ABC):
    """Where the trials of one run are kept. Every method raises RunFolderError, naming the place, where it fails."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def url(self) -> str:
        """What Optuna's own tools open."""

    @abstractmethod
    def create(self, study: str, directions: Sequence[Direction]) -> None:
        """Make it with an empty study, whole or not at all."""

    @abstractmethod
    def open(self, study: str, objectives: Sequence[str]) -> RDBStorage:
        """Return Optuna's storage of it. Nothing is written into a foreign database; damage inside is refused."""

    @abstractmethod
    def leave_out(
        self, study: str, objectives: Sequence[str], params: Collection[str], names: Sequence[str]
    ) -> list[str]:
        """Leave the damaged trials and notes that `names` say out for good; return in words what was done."""

    def unusable(self, error: BaseException) -> RunFolderError:
        """Return the one message that names the place and what it said itself, which lies deepest."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(str(cause).split())[:200] or type(cause).__name__
        return RunFolderError(f"{self.place} cannot be used: {text}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what Optuna or the database raises inside into that message."""
        try:
            yield
        except _ERRORS as error:
            raise self.unusable(error) from error


class SqliteFile(Database):
    """study.db in the run folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / _FILE

    @property
    def place(self) -> str:
        """Its path."""
        return str(self._path)

    @property
    def url(self) -> str:
        """Its path as a URL."""
        return database_url(self._path)

    def create(self, study: str, directions: Sequence[Direction]) -> None:
        """Write the file in one piece."""
        scratch = self._folder / f".{_FILE}.new"
        scratch.unlink(missing_ok=True)
        with self.errors():
            storage = _open_storage(scratch)
            optuna.create_study(study_name=study, storage=storage, directions=directions)
            storage.remove_session()
            storage.engine.dispose()
            scratch.replace(self._path)

    def open(self, study: str, objectives: Sequence[str]) -> RDBStorage:
        """Open the file that is there."""
        try:
            header = _header(self._path) if self._path.is_file() else None
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be read: {error}") from error
        if header is None:
            raise RunFolderError(f"{self._folder} has no {_FILE}: it is not a kdnas run, or its record was removed")
        if header != b"SQLite format 3\x00":
            raise RunFolderError(
                f"{self._path} is not an SQLite database: it is damaged or foreign; restore it or choose another --out"
            )
        refuse_damage(self._path, study, objectives)
        with self.errors():
            storage = _open_storage(self._path, skip_table_creation=True)
            names = optuna.get_all_study_names(storage)
            if study not in names:
                raise RunFolderError(f"{self._path} holds no study {study!r} (it holds: {', '.join(names) or 'none'})")
            return storage

    def leave_out(
        self, study: str, objectives: Sequence[str], params: Collection[str], names: Sequence[str]
    ) -> list[str]:
        """Change the rows of the file."""
        return leave_out(self._path, study, objectives, params, names)


def database_of(folder: Path) -> Database:
    """Return where the trials of the run in `folder` are kept."""
    return SqliteFile(folder)


def database_url(path: Path) -> str:
    """Return the URL of the SQLite file at `path`, whatever characters its name holds, for Optuna and its tools."""
    place = str(path.resolve())
    url = URL.create("sqlite", database=place).render_as_string(hide_password=False)
    if make_url(url).database == place and not {"{", "}"} & {*url}:  # Optuna takes braces for a template
        return url
    # SQLAlchemy before 2.1 escapes nothing: SQLite's own URI does.
    return f"sqlite:///file:{quote(place)}?uri=true"


def _open_storage(path: Path, *, skip_table_creation: bool = False) -> RDBStorage:
    storage = RDBStorage(
        database_url(path),
        engine_kwargs={"connect_args": {"timeout": _LOCK_TIMEOUT_S}},
        skip_table_creation=skip_table_creation,
    )
    storage.scoped_session = scoped_session(sessionmaker(bind=storage.engine, class_=_Session))
    return storage


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


@contextmanager
def at_once(storage: RDBStorage) -> Iterator[None]:
    """Hold back what is written to the storage of a Database inside, then write all of it; nothing on an error.

    Optuna commits every parameter and attribute by itself, some thirty times a trial, and each waits for the disk.
    """
    session = storage.scoped_session()
    assert isinstance(session, _Session)
    session.held = True
    try:
        yield
        session.held = False
        session.commit()
    finally:
        session.held = False
        session.close()  # rolls back what is not committed


def cached(storage: RDBStorage) -> BaseStorage:
    """Return `storage` as a study uses it: trials that have ended are read once."""
    return optuna.storages.get_storage(storage)


# -- studies that show only some of their trials ---------------------------------------------------------------------


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(self.beneath, name)(*arguments, **options)

    return method


_Passing: Any = type("_Passing", (BaseStorage,), {name: _passed_on(name) for name in BaseStorage.__abstractmethods__})


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
