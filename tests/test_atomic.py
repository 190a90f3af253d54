"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from kdnas import atomic


def test_text_replaces_what_was_there_to_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    atomic.write_text(path, "µ\r\nnew\n")
    assert path.read_bytes() == "µ\r\nnew\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_on_the_way_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as scratch:
        scratch.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "nowhere" / "a.txt", "text")


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("content"), sync(file)))
    monkeypatch.setattr(type(tmp_path), "replace", lambda path, to: (order.append("name"), replace(path, to)))
    atomic.write_text(tmp_path / "a.txt", "text")
    assert order == ["content", "name"]


def test_what_killed_processes_left_is_removed_by_the_next_write(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = time.time() - 60
    path, others = tmp_path / "a[1].txt", [".a1.txt.9", ".a[1].txt.bak", ".b.txt.9", ".a[1].txt.1"]
    left = tmp_path / f".{path.name}.{gone.pid}"
    for name in (left.name, *others):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (old, old))
    atomic.write_text(path, "whole")  # process 1 lives: its scratch file is left alone
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *others}


def test_a_scratch_folder_is_removed_at_its_end_or_by_the_next_call(tmp_path):
    kill = "import os, sys, pathlib; from kdnas import atomic\n"
    kill += "with atomic.scratch_folder(pathlib.Path(sys.argv[1])) as folder: os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", kill, tmp_path / "export"], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".export-mine").mkdir()
    out = tmp_path / "export"
    with atomic.scratch_folder(out) as first, atomic.scratch_folder(out) as second:  # the first one's process lives
        assert {path.name for path in tmp_path.iterdir()} == {".export-mine", first.name, second.name}
    assert [path.name for path in tmp_path.iterdir()] == [".export-mine"]


def test_a_link_that_was_planted_in_the_place_of_the_scratch_file_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "run" / "report.html"
    victim.write_text("mine")
    path.parent.mkdir()
    (path.parent / f".report.html.{os.getpid()}").symlink_to(victim)
    path.symlink_to(victim)
    atomic.write_text(path, "page")
    assert victim.read_text() == "mine"
    assert path.read_text() == "page"
    assert not path.is_symlink()
