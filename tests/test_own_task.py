"""A kind of work that kdnas has not, in one file of a user's: from `validate` to what is exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from page_code import examples
from safetensors.torch import load_file

from kdnas import load_run, plugins
from kdnas.cli.main import main
from kdnas.record.database import database_of
from kdnas.record.run_folder import LOCK_FILE
from kdnas.report.dashboard import LivePage

FILES = examples("tasks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, searched: its run is `run`."""
    folder = tmp_path_factory.mktemp("own") / "waves"
    folder.mkdir()
    for name in ("study.yaml", "space.yaml", "signals.py"):
        (folder / name).write_text(FILES[f"waves/{name}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins._VOUCHED, "[]")
        assert main(["search", str(folder), "--out", str(folder / "run"), "--trials", "3"]) == 0
    return folder


def test_it_is_validated_with_its_numbers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(folder), "--open"]) == 0
    out = capfd.readouterr().out
    assert "288 to train, 72 to score, 120 to test; 24 numbers, 3 classes" in out
    assert "teacher measured    validation accuracy" in out
    assert out.endswith("ok\n")


def test_its_students_are_scored_retrained_and_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = load_run(folder / "run")
    assert [trial.state for trial in run.record.trials] == ["complete"] * 3
    assert all(0 < trial.values["accuracy"] <= 1 for trial in run.record.trials)
    assert run.front["test_accuracy"].notna().any()
    assert main(["front", str(folder / "run")]) == 0
    assert "network of signals.py:Perceptrons" in capfd.readouterr().out.lower().replace("perceptrons", "Perceptrons")
    (folder / "run" / "report.html").unlink()
    assert main(["report", str(folder / "run")]) == 0
    live = LivePage(folder / "run", database_of(folder / "run", "waves")).render()
    for page in ((folder / "run" / "report.html").read_text(), live.decode()):
        words = re.sub(r"(?s)<(script|style).*?</\1>", "", page)  # of kdnas, not of the library that draws
        assert "signals.py:Perceptrons" in words
        assert " images" not in words
    events = [json.loads(line)["event"] for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    assert events.count("TrialEnded") == 3


def test_what_is_exported_is_the_student(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = folder / "run" / "export"
    assert {path.name for path in out.iterdir()} == {
        "student.safetensors", "student.json", "train.yaml", "MODEL_CARD.md", "preprocessing.json"
    }  # fmt: skip
    assert json.loads((out / "preprocessing.json").read_text()) == {
        "task": "signals.py:Signals", "class_names": ["sine", "saw", "square"]
    }  # fmt: skip
    card = (out / "MODEL_CARD.md").read_text()
    assert "for signals.py:Signals: 24 numbers in, 3 classes out" in card
    assert "Signals are as the data set has them" in card
    assert not {"picture", "image", "text"} & set(card.lower().split())
    student = load_run(folder / "run").student("near-best")
    weights = load_file(out / "student.safetensors")
    own = {name.removeprefix("network."): value for name, value in student.state_dict().items()}
    assert set(own) == set(weights)
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    assert student(torch.zeros(5, 24)).shape == (5, 3)
    assert main(["export", str(folder / "run"), "--format", "student_py", "--out", str(folder / "py")]) == 1
    assert "student.py: the network has no source of its own" in capfd.readouterr().err
    assert main(["train", str(out / "train.yaml"), "--epochs", "1", "--out", str(folder / "again")]) == 0


def test_the_run_goes_on_and_is_refused_where_the_task_has_changed(folder: Path, capfd) -> None:
    again = ["search", str(folder), "--out", str(folder / "run")]
    assert main([*again, "--trials", "3"]) == 0
    assert "nothing new" in capfd.readouterr().out
    assert (folder / "run" / LOCK_FILE).is_file()
    changed = (folder / "signals.py").read_text().replace("LENGTH, CLASSES = 24, 3", "LENGTH, CLASSES = 24, 3  #")
    (folder / "signals.py").write_text(changed)
    assert main([*again, "--trials", "4"]) == 2
    assert "signals.py: its content is not what it was" in capfd.readouterr().err


def test_costs_are_not_invented_for_inputs_that_are_not_known(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces", "show", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "What its networks cost depends on the data" in out
    assert "images" not in out
