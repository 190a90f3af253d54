"""Nobody takes what is printed, or somebody asks to stop: the search goes on, or ends with a word."""

from __future__ import annotations

import os
from pathlib import Path

import faulty_run
import pytest
import scored_study

from kdnas.cli.main import main


@pytest.mark.parametrize(("stdout", "code"), [("full", 1), ("closed", 0), ("left", 0)])
@pytest.mark.parametrize("json", [False, True])
def test_a_search_goes_on_whoever_takes_its_output(
    stdout: faulty_run.Outlet, code: int, json: bool, tmp_path: Path
) -> None:
    study = scored_study.write(tmp_path)
    more = ["--json"] if json else []
    ended = faulty_run.run("search", study, "--out", tmp_path / "run", "--data-root", study, *more, stdout=stdout)
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    lost = "error: standard output could not be written: No space left on device" in ended.stderr
    assert lost == (stdout == "full")
    assert len(faulty_run.table(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "study.db").read_bytes()[:15] == b"SQLite format 3"
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("verb", ["front", "report", "train", "schedule", "dashboard", "export", "audit"])
def test_a_command_that_is_told_to_stop_says_so(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(folder: Path) -> None:
        os.kill(os.getpid(), 15)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr("kdnas.record.storage.load_run", stopped)
    more = ["--out", str(tmp_path / "out")] if verb == "export" else []
    assert main([verb, str(tmp_path / "run"), *more]) == 143
    assert capsys.readouterr().err.startswith("interrupted")
