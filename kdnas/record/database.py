"""Where Optuna keeps the trials of a run: an SQLite file, or (`kdnas.record.postgres`) a PostgreSQL database."""

from __future__ import annotations

import shlex
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from kdnas.checksums import file_sha256
from kdnas.core.words import printable
from kdnas.errors import Problem, RunFolderError
from kdnas.outlets import Notify, silent
from kdnas.record.damage import refuse_damage
from kdnas.record.records import RunRecord
from kdnas.record.rows import Rows
from kdnas.trust import STORAGE_VARIABLE, is_own_storage

_FILE = "study.db"
_LOCK_TIMEOUT_S = 60
_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, OSError, KeyError, AssertionError)

Direction = Literal["minimize", "maximize"]


class Database(ABC):
    """Where the trials of the study `study` are kept. Every method raises RunFolderError, naming the place."""

    def __init__(self, study: str):
        self.study = study
        self.notify: Notify = silent
        """Takes what whoever waits for the database should know."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def url(self) -> str:
        """What Optuna's own tools open; it holds no password."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the study is there."""

    @abstractmethod
    def create(self, directions: Sequence[Direction]) -> None:
        """Make the study, which is empty, whole or not at all."""

    @abstractmethod
    def open(self, objectives: Sequence[str]) -> Rows:
        """Return the study's rows. Nothing is written into a foreign database; damage inside is refused."""

    @abstractmethod
    def connect(self) -> AbstractContextManager[Connection]:
        """Return a connection to the rows as they are, whose writing is one transaction."""

    @abstractmethod
    def held(self) -> AbstractContextManager[None]:
        """Hold the study for one controller, whatever machine the others are on; a dead one holds nothing."""

    def check_held(self) -> None:  # noqa: B027 - a file is held by its folder's lock
        """Raise RunFolderError where this process held the study and another controller has had it since."""

    def lost(self, error: BaseException) -> bool:
        """Whether `error` says that the database went away, in a search that waits for it to come back."""
        return False

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of what is kept, empty where it cannot be read."""

    @property
    def mark(self) -> str:
        """A text that changes when the content does, quickly computed."""
        return self.digest()

    def unusable(self, error: BaseException) -> RunFolderError:
        """Return the one message that names the place and the database's own words, which lie deepest."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        return RunFolderError(f"{self.place} cannot be used: {words}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what Optuna or the database raises inside into that message."""
        try:
            yield
        except _ERRORS as error:
            raise self.unusable(error) from error


class SqliteFile(Database):
    """study.db in the run folder."""

    def __init__(self, folder: Path, study: str):
        super().__init__(study)
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

    def exists(self) -> bool:
        """Whether the file is there."""
        return self._path.exists()

    def create(self, directions: Sequence[Direction]) -> None:
        """Write the file in one piece."""
        scratch = self._folder / f".{_FILE}.new"
        scratch.unlink(missing_ok=True)
        with self.errors():
            storage = _storage(scratch)
            optuna.create_study(study_name=self.study, storage=storage, directions=directions)
            storage.remove_session()
            storage.engine.dispose()
            scratch.replace(self._path)

    def open(self, objectives: Sequence[str]) -> Rows:
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
        self._refuse_programs()
        refuse_damage(self, self._folder, objectives)
        with self.errors():
            storage = _storage(self._path, skip_table_creation=True)
            names = optuna.get_all_study_names(storage)
            if self.study not in names:
                raise RunFolderError(
                    f"{self._path} holds no study {self.study!r} (it holds: {', '.join(names) or 'none'})"
                )
            return Rows(storage, self.study)

    def _refuse_programs(self) -> None:
        """Raise RunFolderError where the file has triggers or views, which may change what is read, or never end."""
        query = text("select type, name from sqlite_master where type in ('trigger', 'view') limit 1")
        with suppress(SQLAlchemyError), self.connect() as rows:  # Optuna reports what is no database
            if (found := rows.execute(query).first()) is not None:
                what = f"{self._path} has a {found[0]} {printable(str(found[1]), 80)!r}, which kdnas has not made"
                raise RunFolderError(f"{what}: it would change what is read or written; restore the file")

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open the file by itself, and make none."""
        file = f"file:{quote(str(self._path.resolve()))}?mode=rw"
        with connection("sqlite://", creator=partial(sqlite3.connect, file, uri=True, timeout=_LOCK_TIMEOUT_S)) as rows:
            yield rows

    def held(self) -> AbstractContextManager[None]:
        """Hold nothing: who holds the run folder holds the file in it."""
        return nullcontext()

    def digest(self) -> str:
        """Return the hash of the file."""
        return file_sha256(self._path)

    @property
    def mark(self) -> str:
        """When the file was written last, and its size."""
        marks = []
        for path in (self._path, self._path.with_name(f"{_FILE}-wal")):
            with suppress(FileNotFoundError):
                status = path.stat()
                marks.append(f"{status.st_mtime_ns}:{status.st_size}")
        return "|".join(marks)


def database_of(folder: Path, study: str, storage: str | None = None) -> Database:
    """Return where the trials of the run in `folder` are kept: at `storage`, a PostgreSQL URL, else in the folder.

    Raises RunFolderError where neither a study of this user's nor he himself named that database: a stranger's run
    would have it told his name and password.
    """
    if storage is None:
        return SqliteFile(folder, study)
    if not is_own_storage(storage):
        what = f"its trials are kept at {printable(storage, 300)}, which no study of yours on this machine named"
        how = f"where you know that server, set {STORAGE_VARIABLE}={shlex.quote(printable(storage, 300))}"
        raise RunFolderError(Problem(str(folder), f"{what}, so it is not asked, nor told your password; {how}"))
    from kdnas.record.postgres import Postgres

    return Postgres(storage, study, folder)


def database_of_run(run: RunRecord) -> Database:
    """Return where the trials of `run` are kept."""
    return database_of(run.folder, run.config.name, run.config.storage)


def database_url(path: Path) -> str:
    """Return the URL of the SQLite file at `path`, whatever characters its name holds, for Optuna and its tools."""
    place = str(path.resolve())
    url = URL.create("sqlite", database=place).render_as_string(hide_password=False)
    if make_url(url).database == place and not {"{", "}"} & {*url}:  # Optuna takes braces for a template
        return url
    # SQLAlchemy before 2.1 escapes nothing: SQLite's own URI does.
    return f"sqlite:///file:{quote(place)}?uri=true"


def _storage(path: Path, *, skip_table_creation: bool = False) -> RDBStorage:
    return RDBStorage(
        database_url(path),
        engine_kwargs={"connect_args": {"timeout": _LOCK_TIMEOUT_S}},
        skip_table_creation=skip_table_creation,
    )


@contextmanager
def connection(url: str | URL, **options: Any) -> Iterator[Connection]:
    """Give a connection of its own to the database at `url`, in one transaction; it is closed afterwards."""
    engine = create_engine(url, poolclass=NullPool, **options)
    try:
        with engine.begin() as opened:
            yield opened
    finally:
        engine.dispose()


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)
