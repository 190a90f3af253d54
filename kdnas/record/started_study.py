"""The study that a run was started with, whole, its space included, as the lock file of its folder holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kdnas.plugins import plugins_named, resolved, vouch
from kdnas.record.lock import read_config, read_lock
from kdnas.record.run_folder import LOCK_FILE
from kdnas.study.loading import LoadedStudy, apply_overrides, check_study, load_study
from kdnas.study.yaml_lines import YamlDocument


def read_study(path: Path, overrides: Sequence[str] = ()) -> LoadedStudy:
    """Return the study at `path`: a folder with a study.yaml, a YAML file, or a run folder, which is one too.

    `overrides` are `key.sub=value`. Raises ConfigError with every problem, RunFolderError where a lock is damaged.
    """
    folder = run_folder(path)
    return load_study(path, overrides) if folder is None else _locked_study(folder, overrides)


def run_folder(path: Path) -> Path | None:
    """Return the run folder that `path`, or the lock file at `path`, is; None where it is a study of its own."""
    folder = path.parent if path.name == LOCK_FILE else path
    return folder if (folder / LOCK_FILE).is_file() else None


def _locked_study(folder: Path, overrides: Sequence[str]) -> LoadedStudy:
    """Return the study of the run in `folder`. Raises ConfigError, RunFolderError."""
    config = read_config(folder)
    document, problems = apply_overrides(YamlDocument(LOCK_FILE, config, {}), overrides)
    document = dataclasses.replace(document, data=resolved(document.data, folder))
    locked = {plugin.spec for plugin in plugins_named(resolved(config, folder))}
    vouch({plugin.spec for plugin in plugins_named(document.data)} - locked)  # those of the command line
    if document.data.get("space") != config.get("space"):
        return check_study(document, folder, problems)
    return check_study(document, folder, problems, read_lock(folder).space)
