"""The run folder: locking and foreign content."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdnas.errors import RunFolderError
from kdnas.record.run_folder import LOCK_FILE, controller_lock, write_text


def test_a_new_folder_is_removed_again_when_nothing_was_recorded(tmp_path):
    folder = tmp_path / "runs" / "a"
    with pytest.raises(ValueError, match="bad data"), controller_lock(folder):
        assert (folder / "checkpoints").is_dir()
        raise ValueError("bad data")
    assert not folder.exists()


def test_a_folder_with_a_lock_file_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt), controller_lock(tmp_path / "a"):
        (tmp_path / "a" / LOCK_FILE).write_text("x")
        raise KeyboardInterrupt
    assert (tmp_path / "a" / LOCK_FILE).exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"not a kdnas run \(it holds thesis.tex\)"), controller_lock(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used as a run folder"), controller_lock(tmp_path / "run" / "a"):
        pass


def test_only_one_controller_at_a_time(tmp_path):
    folder = tmp_path / "a"
    code = f"""
from pathlib import Path
from kdnas.record.run_folder import controller_lock
with controller_lock(Path({str(folder)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(RunFolderError, match="in use by another kdnas search"), controller_lock(folder):
            pass
        assert folder.exists()
    finally:
        holder.kill()
        holder.wait()
    # The system freed the lock of the killed process.
    with controller_lock(folder):
        pass


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").write_text("")
    with pytest.raises(RunFolderError, match="taken cannot be written"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
