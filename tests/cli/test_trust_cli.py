"""Commands that would run code which a run folder or a train.yaml of somebody else names."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml

from kdnas.cli.main import main
from kdnas.record.run_folder import LOCK_FILE

_CODE = """
from pathlib import Path

def score(choices, epochs, data_fraction, seed, **options):
    return {"accuracy": choices["depth"] / 10}

def price(choices, **options):
    (Path(__file__).parent / "ran").touch()
    return {"macs": 1000 * choices["depth"]}

def build(**arguments):
    (Path(__file__).parent / "ran").touch()
    raise RuntimeError("built")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the user's own in the folder `made`, searched; its run is `run`, its code `mine.py`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(_CODE)
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "tiny", "choices": {"depth": [1, 2]}}))
    study = {
        "name": "own",
        "evaluator": {"type": "module", "function": "mine.py:score", "price": "mine.py:price"},
        "space": "space.yaml",
        "objectives": ["accuracy", "macs"],
        "budget": {"trials": 2},
        "executor": {"type": "local", "workers": 1},
        "final": {"seeds": 1},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["search", str(folder), "--out", str(folder / "run"), "--data-root", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` in which nothing has run yet."""
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "ran").unlink()
    return tmp_path / "copy"


def _search(folder: Path, *more: str) -> int:
    return main(["search", str(folder / "run"), "--data-root", str(folder), *more])


def _strip(folder: Path) -> None:
    """Make the run one that another user's kdnas wrote: the key that signed it is another."""
    lock = folder / "run" / LOCK_FILE
    text = lock.read_text()
    lines = [line for line in text.splitlines(keepends=True) if "signed it" not in line]
    assert len(lines) == len(text.splitlines()) - 1
    lock.write_text("".join(lines))


def test_a_run_of_the_users_own_goes_on_wherever_it_lies(folder: Path) -> None:
    assert _search(folder) == 0
    assert (folder / "ran").exists()


def test_a_run_of_somebody_elses_is_refused_until_it_is_trusted_once(folder: Path, capsys) -> None:
    _strip(folder)
    assert _search(folder) == 2
    printed = capsys.readouterr().err
    assert f"evaluator.function: mine.py:score() in {folder / 'mine.py'}; evaluator.price: mine.py:price()" in printed
    assert "--trust-code" in printed
    assert not (folder / "ran").exists()
    assert _search(folder, "--trust-code") == 0
    assert "trusted from now on" in capsys.readouterr().err
    (folder / "ran").unlink()
    assert _search(folder) == 0
    assert "trust" not in capsys.readouterr().err


def test_what_was_changed_after_signing_is_refused(folder: Path) -> None:
    lock = folder / "run" / LOCK_FILE
    lock.write_text(lock.read_text().replace("mine.py:price", "mine.py:build"))
    assert _search(folder) == 2
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "RUN"],
        ["export", "RUN", "--out", "student"],
        ["schedule", "RUN"],
        ["train", "RUN"],
        ["validate", "RUN", "--open"],
        ["search", "RUN"],
    ],
)
def test_every_command_that_opens_a_run_asks(folder: Path, command: list[str], capsys) -> None:
    _strip(folder)
    words = [str(folder / "run") if word == "RUN" else word for word in command]
    assert main([*words, "--data-root", str(folder)]) == 2
    printed = capsys.readouterr().err
    assert "--trust-code" in printed or command[0] == "audit"  # an audit of so few students is refused before
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", [["report", "RUN"], ["front", "RUN"], ["validate", "RUN"]])
def test_commands_that_run_no_code_ask_nothing(folder: Path, command: list[str]) -> None:
    _strip(folder)
    assert main([str(folder / "run") if word == "RUN" else word for word in command]) == 0
    assert not (folder / "ran").exists()


def _train_file(folder: Path) -> Path:
    text = yaml.safe_dump(
        {
            "format_version": 1,
            "name": "x",
            "seed": 0,
            "arch_id": "x",
            "arch": {"family": "resnet", "choices": {}},
            "input_shape": [1, 8, 8],
            "class_names": [str(digit) for digit in range(10)],
            "channel_mean": [1.0],
            "channel_std": [1.0],
            "data": {"type": "digits"},
            "data_fingerprint": "",
            "teacher": {"type": "module", "factory": "mine.py:build", "arguments": {"command": "\x1b[31mtouch it"}},
            "training": {},
            "distillation": {},
        }
    )
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def test_a_train_yaml_from_elsewhere_is_refused_and_may_be_trusted(folder: Path, capsys, monkeypatch) -> None:
    path = _train_file(folder)
    monkeypatch.setattr("kdnas.plan.train_file._arch_problems", lambda file: [])  # any student does
    words = ["train", str(path), "--data-root", str(folder)]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "teacher.factory: mine.py:build(command='" in printed
    assert "\x1b" not in printed
    assert not (folder / "ran").exists()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2)])
def test_on_a_terminal_it_is_asked(folder: Path, answer: str, code: int, capsys, monkeypatch) -> None:
    _strip(folder)
    monkeypatch.setattr("sys.stdin", _Terminal(answer))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert _search(folder) == code
    assert (folder / "ran").exists() == (code == 0)
    assert "Let it run? It is asked once" in capsys.readouterr().err
