"""Files that are written whole or not at all."""

from __future__ import annotations

import os

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
