"""Fixtures of the tests of studies and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import scored_study

from kdnas.cli.main import main


@pytest.fixture
def scored_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `kdnas search` without worker processes: `code, stdout, stderr = scored_search(study, "--trials", 4)`.

    `study` is of `scored_study.write`, or the run folder, which is tmp_path / "run".
    """
    monkeypatch.setattr(
        "kdnas.controller.runner.start_executor", lambda opened, observe: scored_study.Inline(opened.workplan)
    )

    def run(study: Path, *arguments: str | Path | int) -> tuple[int, str, str]:
        own = ["--out", tmp_path / "run", "--data-root", tmp_path / "scored"]
        code = main([str(argument) for argument in ("search", study, *own, *arguments)])
        return code, *capfd.readouterr()

    return run
