"""A search as JSON lines, for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdnas.cli._search_view import View
from kdnas.controller.events import Advanced, Event
from kdnas.record.front import measured_values
from kdnas.record.records import RunRecord, TrialRecord


class JsonView(View):
    """One JSON object a line: `{"event": ..., ...}`; the last is `result`.

    Standard output is these lines alone: while the view is open, what a user's module prints goes to the errors.
    """

    def __init__(self) -> None:
        self._lines = sys.stdout
        self._elsewhere = contextlib.redirect_stdout(sys.stderr)

    def __enter__(self) -> JsonView:
        self._elsewhere.__enter__()
        return self

    def release(self) -> None:
        """Give standard output back."""
        self._elsewhere.__exit__(None, None, None)

    def observe(self, event: Event) -> None:
        """Print `event`; what is said many times while a training runs is left to screens."""
        if isinstance(event, Advanced):
            return
        record: dict[str, Any] = {"event": type(event).__name__}
        for field in dataclasses.fields(event):
            value = getattr(event, field.name)
            if field.name == "run":
                continue
            record[field.name] = _plain(value)
        self._print(record)

    def close(self, run: RunRecord, written: Sequence[Path]) -> None:
        """Print the result."""
        from kdnas.report.tables import front_document

        self._print({"event": "result", **front_document(run), "written": [str(path) for path in written]})

    def _print(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(_finite(record), default=str, allow_nan=False) + "\n")
        self._lines.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, TrialRecord):
        return {
            "number": value.number,
            "arch_id": value.arch.arch_id,
            "state": value.state,
            "fidelity": value.fidelity.as_dict(),
            "values": measured_values(value),
            "reason": value.reason,
            "train_seconds": value.train_seconds,
        }
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _finite(value: Any) -> Any:
    """Return `value` with null for each number that JSON cannot write."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
