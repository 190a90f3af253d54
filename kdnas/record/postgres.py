"""Trials in a PostgreSQL database, which many studies and machines share.

The password comes from where PostgreSQL's own tools have it: PGPASSWORD, ~/.pgpass or a service file. A URL with one in
it is refused (`kdnas.study.config`), so none is printed or written.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.record.damage import refuse_damage
from kdnas.record.database import Database, Direction, connection
from kdnas.record.rows import Rows

_CONNECT_S = 10
_AWAY_S = 300.0
"""How long a search waits for a server that is away: it restarts, or is moved, within minutes."""
_KNOCK_S = 2.0
_TABLES = {
    "trials": "study_id = :study",
    "trial_params": "trial_id in (select trial_id from trials where study_id = :study)",
    "trial_values": "trial_id in (select trial_id from trials where study_id = :study)",
    "trial_user_attributes": "trial_id in (select trial_id from trials where study_id = :study)",
    "study_user_attributes": "study_id = :study",
}
"""What a study's report is made from, and whose rows they are."""
_ALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""The server's settings, in seconds and tries: it notices within a minute that a machine is gone."""

_OWNERS = "kdnas_controllers"
"""Who held a study last, by a token of its own: a table next to Optuna's."""


class Postgres(Database):
    """The study `study` in the database at `url`; its run folder is `folder`.

    Raises ConfigError where psycopg is not installed.
    """

    def __init__(self, url: str, study: str, folder: Path):
        super().__init__(study)
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise ConfigError(Problem("storage", "needs psycopg: pip install 'kdnas[postgres]'")) from None
        for name in ("psycopg", "sqlalchemy.pool"):  # what comes of a lost server is told in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self._folder = folder
        self._hold: _Hold | None = None

    @property
    def place(self) -> str:
        """The database's URL."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=True)

    @property
    def url(self) -> str:
        """The database's URL, with the driver that reads it."""
        return self._url.render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether the database has the study."""
        with self.errors(), self.connect() as rows:
            return inspect(rows).has_table("studies") and self._id(rows) is not None

    def create(self, directions: Sequence[Direction]) -> None:
        """Make the study, and Optuna's tables where the database has none."""
        with self.errors():
            storage = self._storage()
            try:
                optuna.create_study(study_name=self.study, storage=storage, directions=directions)
            finally:
                storage.remove_session()
                storage.engine.dispose()

    def open(self, objectives: Sequence[str]) -> Rows:
        """Open the study that is there."""
        if not self.exists():
            raise RunFolderError(f"{self.place} holds no study {self.study!r}: the record of this run was removed")
        refuse_damage(self, self._folder, objectives)
        with self.errors():
            storage = self._storage(skip_table_creation=True)
            return Rows(storage, self.study, lambda: self.patiently(storage.engine.connect))

    def connect(self) -> AbstractContextManager[Connection]:
        """Connect once more."""
        return connection(self._url, connect_args={"connect_timeout": _CONNECT_S})

    def engine(self, **options: Any) -> Engine:
        """Return what connects once more, each time anew."""
        return create_engine(self._url, poolclass=NullPool, connect_args={"connect_timeout": _CONNECT_S}, **options)

    def patiently(self, connect: Callable[[], Connection]) -> Connection:
        """Return a connection; one that holds the study waits some minutes for a server that is away, with a line.

        Raises SQLAlchemyError where the server does not come back.
        """
        began, told = time.monotonic(), False
        while True:
            try:
                connected = connect()
            except OperationalError as error:
                if self._hold is None or time.monotonic() - began > _AWAY_S:
                    raise
                if not told:
                    told = True
                    self.notify(f"{self.unusable(error)}; waiting up to {_AWAY_S:g} s for the server to come back")
                time.sleep(_KNOCK_S)
            else:
                if told:
                    self.notify(f"{self.place} is back after {time.monotonic() - began:.0f} s")
                return connected

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a lock of the server's, which falls with its connection however the process or its machine dies."""
        hold = _Hold(self)  # a server that is not there now is none that comes back
        self._hold = hold
        try:
            yield
        finally:
            self._hold = None
            hold.close()

    def check_held(self) -> None:
        """Take the lock again that a restart of the server freed. Raises RunFolderError where another has been here."""
        if self._hold is not None:
            self._hold.check()

    def lost(self, error: BaseException) -> bool:
        """Whether a search lost its connection, as when the server restarts."""
        return self._hold is not None and isinstance(error, DBAPIError) and error.connection_invalidated

    def digest(self) -> str:
        """Return a hash of the study's rows."""
        digest = hashlib.sha256()
        with self.errors(), self.connect() as rows:
            study = self._id(rows) if inspect(rows).has_table("studies") else None
            for table, own in _TABLES.items() if study is not None else ():
                query = f"select md5(string_agg(t::text, ' ' order by t::text)) from {table} t where {own}"
                digest.update(str(rows.execute(text(query), {"study": study}).scalar()).encode())
        return digest.hexdigest()

    def _id(self, rows: Connection) -> int | None:
        query = text("select study_id from studies where study_name = :study")
        found: int | None = rows.execute(query, {"study": self.study}).scalar()
        return found

    def _storage(self, *, skip_table_creation: bool = False) -> RDBStorage:
        return RDBStorage(
            self.url,
            engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": _CONNECT_S}},
            skip_table_creation=skip_table_creation,
        )


class _Hold:
    """The lock of one study, and the connection that has it. Raises RunFolderError where another controller has it."""

    def __init__(self, database: Postgres):
        self._database = database
        self._token = secrets.token_hex(16)
        self._take()
        try:
            with database.errors():
                self._rows.execute(text(f"create table if not exists {_OWNERS} (study text primary key, token text)"))
                claim = f"insert into {_OWNERS} values (:study, :token) on conflict (study) do update set token"
                self._rows.execute(text(f"{claim} = :token"), {"study": database.study, "token": self._token})
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Take the lock again where its connection is gone: others may have had it meanwhile."""
        try:
            self._rows.execute(text("select 1"))
            return
        except SQLAlchemyError:
            self.close()
        self._take()
        database, owner = self._database, text(f"select token from {_OWNERS} where study = :study")
        with database.errors():
            if self._rows.execute(owner, {"study": database.study}).scalar() != self._token:
                what = "was searched by another kdnas search while its server was away: the same command continues"
                raise RunFolderError(f"the study {database.study!r} in {database.place} {what}")

    def close(self) -> None:
        """Let go, whatever became of the server. Idempotent."""
        if not self._rows.closed:
            self._rows.invalidate()
            self._rows.close()

    def _take(self) -> None:
        database, lock = self._database, text("select pg_try_advisory_lock(hashtextextended(:study, 0))")
        with database.errors():
            self._rows = database.patiently(database.engine(isolation_level="AUTOCOMMIT").connect)
            for name, value in _ALIVE.items():
                self._rows.execute(text(f"set {name} = {value}"))
            free = self._rows.execute(lock, {"study": f"kdnas {database.study}"}).scalar_one()
        if not free:
            self.close()
            raise RunFolderError(f"the study {database.study!r} in {database.place} is in use by another kdnas search")
