"""The public face: names, a search from Python, and what a run gives."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import yaml

import kdnas
from kdnas.controller.events import TrialEnded
from kdnas.errors import ConfigError
from kdnas.record.run_folder import LOCK_FILE


def test_the_public_face_is_this():
    assert kdnas.__all__ == ["Run", "Study", "__version__", "load_run", "search"]
    assert set(kdnas.__all__) <= set(dir(kdnas))
    shown = {name: str(inspect.signature(getattr(kdnas, name))) for name in ("search", "load_run", "Study")}
    assert list(inspect.signature(kdnas.search).parameters) == [
        "study", "out", "trials", "workers", "device", "settings", "data_root", "observe",
    ]  # fmt: skip
    assert shown["load_run"].startswith("(folder: 'str | Path', *, data_root")
    public = {name for name in vars(kdnas.Run) if not name.startswith("_")}
    assert public == {"folder", "finished", "front", "trials", "pick", "student", "export", "solve", "report"}
    with pytest.raises(AttributeError, match="no attribute 'seach'"):
        _ = kdnas.seach


def test_importing_kdnas_imports_no_framework():
    code = "import kdnas, sys; assert kdnas.__version__; assert not {'torch', 'optuna', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def sections() -> dict:
    return {**yaml.safe_load(tiny.STUDY), "space": yaml.safe_load(tiny.SPACE)}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(the run of a study built in code, the events it told of)."""
    events: list = []
    study = kdnas.Study(**sections())
    out = tmp_path_factory.mktemp("api") / "run"
    return kdnas.search(study, out=out, trials=3, observe=events.append), events


def test_a_search_tells_its_events_and_gives_tables(searched):
    run, events = searched
    assert sum(isinstance(event, TrialEnded) for event in events) == 3
    assert run.finished
    assert isinstance(run.front, pd.DataFrame)
    assert list(run.front.columns[:8]) == [
        "trial", "arch_id", "state", "fidelity_epochs", "accuracy", "accuracy_ci95", "macs", "params",
    ]  # fmt: skip
    assert len(run.trials) == 3
    assert (run.folder / "report.html").is_file()
    assert "3 trials" in repr(run)
    assert "<svg" in run._repr_html_()
    assert "<table" in run._repr_html_()
    assert "None" not in run._repr_html_()  # columns that nobody has, and costs to their last digit, are for `front`


def test_a_student_is_a_module_on_raw_images_that_scores_as_recorded(searched):
    from kdnas.workshop.afterwards import open_run
    from kdnas.workshop.opening import cache_dir

    run, _ = searched
    member = run.pick("best")
    student = run.student("best")
    assert not student.training
    opened = open_run(run.record, data_root=Path("nowhere"), cache=cache_dir())
    data, held_out = opened.data, opened.validation_indices
    images = torch.from_numpy(data.train.inputs["pixels"][held_out]).float()
    with torch.no_grad():
        answers = student(images).argmax(dim=1).numpy()
    best = max(member.trial.repeats, key=lambda repeat: repeat.score)
    assert (answers == data.train.targets[held_out]).mean() == pytest.approx(best.score, abs=0.01)


def test_a_run_is_loaded_exported_and_continued(searched, tmp_path):
    run, _ = searched
    again = kdnas.load_run(run.folder)
    assert again.front.equals(run.front)
    written = again.export("best", tmp_path / "student", formats=["safetensors", "student_py"])
    assert {path.name for path in written} >= {"student.safetensors", "student.py"}
    more = kdnas.search(run.folder, trials=4)
    assert len(more.trials) == 4
    assert more.folder == run.folder


def test_a_run_is_made_of_a_record_not_of_a_path():
    with pytest.raises(ConfigError, match=r"Run: takes a record, got 'runs/x' \(allowed: kdnas.load_run\('runs/x'\)\)"):
        kdnas.Run("runs/x")


def test_a_study_in_code_is_checked_as_a_file_is():
    wrong = {**sections(), "objectives": ["accuracy", "speed"], "training": {"epochs": 0}}
    with pytest.raises(ConfigError) as refused:
        kdnas.Study(**wrong)
    printed = str(refused.value)
    assert "Study: training.epochs: must be at least 1" in printed
    assert "speed" in printed
    space = {**yaml.safe_load(tiny.SPACE), "family": "resnett"}
    with pytest.raises(ConfigError, match="no student family is called 'resnett'") as refused:
        kdnas.Study(**{**sections(), "space": space})
    assert "no search space" not in str(refused.value)
    study = kdnas.Study(**sections())
    assert study.config.training.epochs == 3
    assert study.loaded({"training.epochs": 7}).config.training.epochs == 7
    with pytest.raises(ConfigError, match=r"--set: training\.epochs"):
        study.loaded({"training.epochs": -1})
    assert repr(study) == "Study('tiny')"


def test_a_study_in_code_is_that_of_its_file(tmp_path):
    folder = tiny.write(tmp_path)
    short = {"training.epochs": 1, "teacher.training.epochs": 2, "final.seeds": 1, "final.epochs": 1}
    inner = {**yaml.safe_load(tiny.SPACE), "name": "space"}
    studies = {
        "file": folder,
        "code": kdnas.Study(**{**sections(), "space": inner}),  # its space in code as well
    }
    locks, trials = {}, {}
    for name, study in studies.items():
        run = kdnas.search(study, out=tmp_path / name, trials=2, settings=short)
        locks[name] = yaml.safe_load((run.folder / LOCK_FILE).read_text())
        trials[name] = [(trial.arch.arch_id, trial.values) for trial in run.record.trials]
    assert trials["file"] == trials["code"]
    assert locks["file"]["config"].pop("space") == "space.yaml"
    assert locks["code"]["config"].pop("space") == "space"
    assert locks["file"] == locks["code"]


def test_a_script_may_search_at_its_top_level(tmp_path):
    study = tiny.write(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import kdnas\n"
        "print('once')\n"
        f"run = kdnas.search({str(study)!r}, out={str(tmp_path / 'run')!r}, trials=1, settings={{'final.seeds': 1}})\n"
        "print(len(run.trials), 'trial')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["once", "1 trial"]
