"""What a run wrote in addition to its record, by hash, so that a later call finds what was lost or changed since.

`.products.json` in the run folder holds of each kind of product (report, export) the hash of the record it was made
from and of every file of it. The hashes of checkpoints are in the record itself (`Repeat.sha256`): nothing can be
made anew from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdnas.checksums import file_sha256
from kdnas.record.database import database_of_run
from kdnas.record.records import Repeat, RunRecord, TrialRecord
from kdnas.record.run_folder import write_text

Kind = Literal["report", "export"]

_FILE = ".products.json"


@dataclass(frozen=True)
class Loss:
    """A file that is `missing`, or that is not what was written."""

    path: Path
    missing: bool

    @property
    def words(self) -> str:
        """What is wrong with it."""
        return "is missing" if self.missing else "is not the file that kdnas wrote"


def note_products(run: RunRecord, kind: Kind, paths: Sequence[Path], made_by: str = "") -> None:
    """Write that `paths`, in the run folder, were made from the record as it is, under the settings `made_by`."""
    noted = {
        "record": _record(run),
        "made_by": made_by,
        "files": {str(path.resolve().relative_to(run.folder.resolve())): file_sha256(path) for path in paths},
    }
    write_text(run.folder / _FILE, json.dumps({**_noted(run.folder), kind: noted}, indent=1) + "\n")


def is_current(run: RunRecord, kind: Kind, made_by: str = "") -> bool:
    """Whether products of this kind were made from the record as it is, under the settings `made_by`."""
    noted = _of(run, kind)
    return noted.get("record") == _record(run) and noted.get("made_by") == made_by


def lost_products(run: RunRecord, kind: Kind) -> list[Loss]:
    """Return the files of this kind that are gone, or are not what was written."""
    files = _of(run, kind).get("files")
    losses = (
        loss_of(run.folder / name, str(known)) for name, known in (files if isinstance(files, dict) else {}).items()
    )
    return [loss for loss in losses if loss is not None]


def lost_checkpoints(run: RunRecord) -> Iterator[tuple[TrialRecord, Repeat, Loss]]:
    """Give every retraining whose weights are gone, or are not those that were written."""
    for trial in run.trials:
        for repeat in trial.repeats:
            loss = loss_of(checkpoint_path(run, repeat), repeat.sha256) if repeat.checkpoint else None
            if loss is not None:
                yield trial, repeat, loss


def checkpoint_path(run: RunRecord, repeat: Repeat) -> Path:
    """Return where the weights of a retraining are kept."""
    return run.folder / "checkpoints" / Path(repeat.checkpoint).name


def loss_of(path: Path, known: str) -> Loss | None:
    """Return what is wrong with the file at `path`; earlier versions noted no hash: `known` is empty then."""
    if not path.is_file():
        return Loss(path, missing=True)
    return Loss(path, missing=False) if known and file_sha256(path) != known else None


def _record(run: RunRecord) -> list[str]:
    """Return the hashes of what products are made from: the record, and the results of full trainings."""
    trainings = sorted(run.folder.glob("training/*/result.json"))
    return [database_of_run(run).digest(), *(file_sha256(path) for path in trainings)]


def _of(run: RunRecord, kind: Kind) -> dict[str, Any]:
    noted = _noted(run.folder).get(kind)
    return noted if isinstance(noted, dict) else {}


def _noted(folder: Path) -> dict[str, Any]:
    """Return the content of `.products.json`; nothing where it is missing or damaged: all is written anew then."""
    try:
        noted = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}
