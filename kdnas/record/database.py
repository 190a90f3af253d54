"""Optuna's database of a run: an SQLite file in which what belongs together is written in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import optuna
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session, scoped_session, sessionmaker

_LOCK_TIMEOUT_S = 60


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


def database_url(path: Path) -> str:
    """Return the URL of the SQLite file at `path`, whatever characters its name holds, for Optuna and its tools."""
    place = str(path.resolve())
    url = URL.create("sqlite", database=place).render_as_string(hide_password=False)
    if make_url(url).database == place and not {"{", "}"} & {*url}:  # Optuna takes braces for a template
        return url
    # SQLAlchemy before 2.1 escapes nothing: SQLite's own URI does.
    return f"sqlite:///file:{quote(place)}?uri=true"


def open_storage(path: Path, *, skip_table_creation: bool = False) -> optuna.storages.RDBStorage:
    """Return Optuna's storage in the file at `path`."""
    storage = optuna.storages.RDBStorage(
        database_url(path),
        engine_kwargs={"connect_args": {"timeout": _LOCK_TIMEOUT_S}},
        skip_table_creation=skip_table_creation,
    )
    storage.scoped_session = scoped_session(sessionmaker(bind=storage.engine, class_=_Session))
    return storage


@contextmanager
def at_once(storage: optuna.storages.RDBStorage) -> Iterator[None]:
    """Hold back what is written to a storage of `open_storage` inside, then write all of it; nothing on an error.

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
