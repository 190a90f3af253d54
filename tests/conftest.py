"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scored_study
import tiny

from kdnas.cli.main import main

if TYPE_CHECKING:
    from kdnas.core.data import ImageData

REPOSITORY = Path(__file__).resolve().parents[1]

# One thread a process: tests run side by side, and torch reads these when it is first imported.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# A suite begun in the background of a shell, or by nohup, ignores these: so would all that tests start and interrupt.
for _signal, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _handler)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def __iter__(self) -> Iterator[int | str]:
        return iter((self.code, self.stdout, self.stderr))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: the environment variable KDNAS_DATA, else ../shared/data. Skips where absent."""
    root = Path(os.environ.get("KDNAS_DATA") or REPOSITORY.parent / "shared" / "data").resolve()
    if not root.is_dir():
        pytest.skip(f"needs real data: there is no {root} (set KDNAS_DATA)")
    return root


@pytest.fixture(scope="session", autouse=True)
def kdnas_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep decoded data and teachers in a folder of this test session, never in the user's own cache."""
    folder = tmp_path_factory.mktemp("kdnas-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNAS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def kdnas_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep this session's key and what code it trusts apart from the user's own."""
    folder = tmp_path_factory.mktemp("kdnas-config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNAS_CONFIG", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits(kdnas_cache: Path) -> ImageData:
    """The real digits, opened once."""
    from kdnas.datasets import DATASETS

    data: ImageData = DATASETS.build("digits", Path("nowhere"), kdnas_cache)
    return data


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Keep torch on one thread, where a test has imported it (a test process that has not does not pay for it)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kdnas(kdnas_cache: Path) -> Callable[..., Result]:
    """Run the command line in a process of its own: `code, stdout, stderr = kdnas("list", "losses", cwd=folder)`."""

    def run(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120, **environment: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "kdnas", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study on the real digits that ends in seconds; edit its study.yaml and space.yaml at will."""
    return tiny.write(tmp_path)


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
