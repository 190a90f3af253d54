"""The folder of one full training: whose it is, who works in it, the log of its epochs, and what came of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdnas.errors import Problem, RunFolderError
from kdnas.plain_yaml import read_plain
from kdnas.plan.train_file import in_present_form
from kdnas.record.lock import leaves, recorded_numerics, scored
from kdnas.record.products import Loss, loss_of
from kdnas.record.run_folder import refuse_links, write_text
from kdnas.training.loop import EpochRecord

LOCK_FILE = "training.lock.yaml"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
GUARD_FILE = ".training"
_COLUMNS = ("epoch", "loss", "validation_score", "seconds")
_OF_OLD = "validation_accuracy"


@dataclass(frozen=True)
class FullTraining:
    """A finished full training. `score` is on the validation split, `test_score` on the test split."""

    folder: Path
    arch_id: str
    epochs: int
    """Of the student; with a plan what all its steps together might spend."""
    score: float
    test_score: float
    train_seconds: float
    files: tuple[str, ...]
    formats: tuple[str, ...] = ()
    """Those that `files` were written in; empty where an earlier version did not write them down."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each of `files`, in hexadecimal digits."""
    already_done: bool = False

    @property
    def lost(self) -> list[Loss]:
        """The files that are gone, or are not what was written."""
        losses = (loss_of(self.folder / name, self.sha256.get(name, "")) for name in self.files)
        return [loss for loss in losses if loss is not None]


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make `out` the folder of the training that `settings` (plain data) decide, or check that it is.

    Raises RunFolderError when it holds another training, showing the differences, or anything else.
    """
    lock = out / LOCK_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(out)
        strangers = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise RunFolderError(f"{out} cannot be used for a training: {error.strerror or error}") from error
    try:
        locked = read_plain(lock) if lock.exists() else None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{lock} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not lock.exists():
        if strangers:
            raise RunFolderError(
                f"{out} is not empty and not a training (it holds {strangers[0]}); choose another --out"
            )
        header = (
            "# Written by kdnas: exactly what is trained in this folder. Continuing compares it with the request.\n"
        )
        write_text(lock, header + yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120))
        return
    if not isinstance(locked, dict):
        raise RunFolderError(f"{lock} is damaged: it holds no settings; choose another --out")
    locked = {"start": "random", **_by_todays_names(locked)}
    if isinstance(locked.get("training"), dict):
        locked = {**locked, "training": recorded_numerics(locked["training"], settings.get("training", {}))}
    before, after = leaves(locked), leaves(settings)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        raise RunFolderError(
            [
                Problem(str(out), "holds another training; choose another --out, or ask for the same one again"),
                *(Problem(key, f"{brief(before.get(key))} -> {brief(after.get(key))}") for key in changed),
            ]
        )


def _by_todays_names(locked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain lock with the plan, and the samples of its budget, by the names that they have now."""
    plain = {"plan" if key == "schedule" else key: value for key, value in locked.items()}
    if isinstance(plan := plain.get("plan"), dict) and isinstance(plan.get("budget"), dict):
        budget = {"samples" if key == "images" else key: value for key, value in plan["budget"].items()}
        plain["plan"] = {**plan, "budget": budget}
    return in_present_form(plain)


def locked_training(out: Path) -> dict[str, Any]:
    """Return the plain training section of the training in `out`, empty where there is none that can be read."""
    try:
        return dict(read_plain(out / LOCK_FILE)["training"])
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def read_result(out: Path) -> FullTraining | None:
    """Return the finished training in `out`, None while there is none. Raises RunFolderError when it is damaged."""
    path = out / RESULT_FILE
    if not path.exists():
        return None
    try:
        plain: Mapping[str, Any] = read_plain(path)
        listed = {"files": tuple(plain["files"]), "formats": tuple(plain.get("formats", ()))}
        return FullTraining(folder=out, already_done=True, **{**scored(plain), **listed})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}; remove it to finish the training again") from error


def full_trainings(folder: Path) -> tuple[list[FullTraining], list[str]]:
    """Return the full trainings in a run's folder, by name, and in words which of them are unfinished or damaged."""
    found, troubles = [], []
    for lock in sorted(folder.glob(f"training/*/{LOCK_FILE}")):
        try:
            result = read_result(lock.parent)
        except RunFolderError as error:
            troubles.append(str(error))
            continue
        if result is None:
            epochs = len(read_history(lock.parent)[0])
            troubles.append(f"{lock.parent} is not finished (epoch {epochs}): the same `kdnas train` continues it")
        else:
            found.append(result)
    return found, troubles


def read_history(out: Path) -> tuple[list[EpochRecord], dict[int, float]]:
    """Return the epochs in history.csv and the validation scores seen after some; none where it is damaged.

    It is a log: the checkpoint alone decides how far the training is.
    """
    try:
        rows = list(csv.DictReader((out / HISTORY_FILE).read_text(encoding="utf-8").splitlines()))
        records = [EpochRecord(int(row["epoch"]), float(row["loss"]), float(row["seconds"])) for row in rows]
        seen = {
            int(row["epoch"]): float(score) for row in rows if (score := row.get("validation_score", row.get(_OF_OLD)))
        }
    except (OSError, ValueError, KeyError, TypeError):
        return [], {}
    return records, seen


def write_history(out: Path, records: Sequence[EpochRecord], seen: Mapping[int, float]) -> None:
    """Write history.csv: a row an epoch, with the validation score where `seen` holds it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for record in records:
        score = f"{seen[record.epoch]:.6f}" if record.epoch in seen else ""
        writer.writerow((record.epoch, f"{record.loss:.6g}", score, f"{record.seconds:.3f}"))
    write_text(out / HISTORY_FILE, text.getvalue())


def brief(value: Any) -> str:
    """Return a plain value as short text for a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."
