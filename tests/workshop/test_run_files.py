"""The folders that workers without a shared disk keep of runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdnas.store import SharedStore
from kdnas.workshop import run_files
from kdnas.workshop.run_files import RunFiles

_WORKER = """
import sys
from pathlib import Path
from kdnas.store import SharedStore
from kdnas.workshop.run_files import RunFiles
RunFiles(Path("gone"), SharedStore(sys.argv[1]), "worked-on").at(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


def _folder(cache: Path, name: str, days: float, size: int = 1) -> Path:
    folder = cache / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights").write_bytes(bytes(size))
    guard = folder / ".worker"
    guard.touch()
    os.utime(guard, (time.time() - 86_400 * days,) * 2)
    return folder


def test_folders_that_nobody_has_used_for_long_are_removed_but_not_those_in_use(tmp_path: Path) -> None:
    url, cache = f"file://{tmp_path}/shared", tmp_path / "cache"
    old, recent = _folder(cache, "old", 20), _folder(cache, "recent", 10)
    command = [sys.executable, "-c", _WORKER, url, str(cache)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    assert not old.exists()
    in_use = cache / "runs" / "worked-on"
    looked = cache / "runs" / ".looked"
    for path in (in_use / ".worker", looked):
        os.utime(path, (0, 0))
    RunFiles(tmp_path, SharedStore(url), "another").at(cache)
    assert in_use.exists()
    assert recent.exists()
    worker.communicate()
    RunFiles(tmp_path, SharedStore(url), "another").at(cache)
    assert in_use.exists(), "nobody looks twice in an hour"
    os.utime(looked, (0, 0))
    RunFiles(tmp_path, SharedStore(url), "another").at(cache)
    assert not in_use.exists()


def test_of_too_much_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_KEPT_BYTES", 1000)
    folders = [_folder(tmp_path, name, days, 400) for name, days in (("a", 3), ("b", 2), ("c", 1))]
    RunFiles(tmp_path, SharedStore(f"file://{tmp_path}/shared"), "now").at(tmp_path)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_who_goes_on_elsewhere_has_what_was_shared_last_and_nothing_older_is_kept(tmp_path: Path) -> None:
    store = SharedStore(f"file://{tmp_path}/shared")
    one, other = (RunFiles(tmp_path, store, "run").at(tmp_path / name) for name in ("one", "other"))
    for files, content in ((one, "a"), (one, "b"), (other, "c")):
        files.have_latest("state")
        (files.folder / "state").write_text(content)
        files.share_latest("state")
    one.have_latest("state")
    assert (one.folder / "state").read_text() == "c"
    assert len(list((tmp_path / "shared" / "objects").rglob("state/*"))) == 1
    (one.folder / "own").write_text("not shared")
    one.have_latest("own")
    assert (one.folder / "own").read_text() == "not shared"
