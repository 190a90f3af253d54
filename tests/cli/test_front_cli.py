"""`kdnas front`, `report` and `dashboard` on a real run folder with synthetic scores."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from synthetic_run import synthetic_run

from kdnas.cli.main import main
from kdnas.record.database import database_of_run
from kdnas.record.front import front, recommended
from kdnas.record.lock import write_lock
from kdnas.record.records import Result, RunRecord
from kdnas.record.storage import Record, load_run


def write_run(folder: Path) -> RunRecord:
    """Write the complete trials of a synthetic run as a run folder and return what is read back."""
    run = synthetic_run(folder)
    config = run.config.model_copy(update={"objectives": tuple(o.name for o in run.objectives)})
    lock = dataclasses.replace(run.lock, config=config, teacher=run.teacher, reference_point=run.reference_point)
    write_lock(folder, lock)
    record = Record.create(database_of_run(run), run.objectives)
    from optuna.samplers import RandomSampler

    for trial in run.trials:
        if trial.state != "complete":
            continue
        asked, _ = record.ask(RandomSampler(seed=0), {})
        record.describe(asked, trial.arch, trial.tuned, trial.fidelity)
        seconds = {"train_seconds": trial.train_seconds, "teacher_seconds": trial.teacher_seconds}
        record.complete(asked, Result(trial.values, trial.measurements, **seconds), run.objectives)
        for repeat in trial.repeats:
            record.add_repeat(asked, repeat)
    return load_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    return write_run(tmp_path_factory.mktemp("run"))


def test_front_shows_every_student_the_recommended_one_and_the_teacher(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["front", str(run.folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for member in front(run):
        assert member.trial.arch.arch_id in out
    assert f"◆ {recommended(run).member.trial.arch.arch_id}" in out
    assert "★ teacher" in out
    assert "choices in which they differ" in out


def test_front_fits_a_narrow_terminal(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["front", str(run.folder)]) == 0
    out, _ = capsys.readouterr()
    rows = [line for line in out.splitlines() if any(m.trial.arch.arch_id in line for m in front(run))]
    assert len([row for row in rows if " ± " in row]) == len(front(run))
    assert "…" not in out


def test_front_names_the_teachers_numbers(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["front", str(run.folder)]) == 0
    out, _ = capsys.readouterr()
    assert "98.61 %" in out
    assert "of the teacher’s accuracy (test split) at 1/" in out


def test_front_json_is_the_same_front(run, capsys):
    assert main(["front", str(run.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["arch_id"] for row in document["front"]] == [member.trial.arch.arch_id for member in front(run)]
    assert document["front"][0]["values"] == dict(front(run)[0].values)


def test_report_writes_its_four_files(run, capsys):
    assert main(["report", str(run.folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = ["report.html", "front.csv", "trials.csv", "front.svg"]
    assert [Path(line).name for line in out.split()] == names
    assert all((run.folder / name).stat().st_size > 500 for name in names)


@pytest.mark.parametrize("verb", ["front", "report", "dashboard"])
def test_what_is_no_run_folder_is_bad_input(verb, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    for folder in (tmp_path / "nowhere", tmp_path):
        assert main([verb, str(folder)]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ")
        assert str(folder) in err
        assert "Traceback" not in err + out
    assert sorted(tmp_path.iterdir()) == before


def test_dashboard_serves_until_interrupted(run):
    process = subprocess.Popen(
        [sys.executable, "-m", "kdnas", "dashboard", str(run.folder), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("http://127.0.0.1:")
        assert shlex.split(second.split("dashboard: ")[1]) == ["optuna-dashboard", database_of_run(run).url]
        with urllib.request.urlopen(first.split()[0], timeout=60) as answer:
            assert front(run)[0].trial.arch.arch_id in answer.read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in err
    finally:
        process.kill()
