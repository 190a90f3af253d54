"""Events as lines of JSON in a file of the run folder: what `kdnas search --json` prints, kept."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator

from kdnas.controller.events import Advanced, Event, plain_event
from kdnas.errors import ConfigError, Problem
from kdnas.record.records import RunRecord
from kdnas.trackers import TRACKERS, Tracker


def _inside(name: str) -> str:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError("must lie in the run folder")
    return name


@TRACKERS.register
class JsonLines(Tracker):
    """A file of one JSON object an event, in the run folder: what `kdnas search --json` prints.

    A search that continues appends to it. Each line is written at once, so that another program can follow the file.

    Args:
        file: The file, relative to the run folder.
    """

    def __init__(self, run: RunRecord, *, file: Annotated[str, AfterValidator(_inside)] = "events.jsonl"):
        super().__init__(run)
        path = run.folder / file
        if not path.resolve().is_relative_to(run.folder.resolve()):  # a link, as a stranger's folder may have
            raise ConfigError(Problem(f"tracker jsonl: {path}", f"leads out of the run folder, to {path.resolve()}"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(Problem(f"tracker jsonl: {path}", f"cannot be written: {error.strerror}")) from error

    def take(self, event: Event) -> None:
        """Write the event; how far single trainings are is left to screens."""
        if not isinstance(event, Advanced):
            self._lines.write(json.dumps(plain_event(event), default=str, allow_nan=False) + "\n")
            self._lines.flush()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
