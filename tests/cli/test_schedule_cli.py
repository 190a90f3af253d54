"""`kdnas schedule` and `kdnas train --plan` on a real run of the tiny digits study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
import yaml

from kdnas.cli.main import main
from kdnas.plan.plan_file import load_plan
from kdnas.record.storage import load_run


@pytest.fixture(scope="module")
def run(kdnas_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of the tiny study, without retraining."""
    parent = tmp_path_factory.mktemp("searched")
    folder = parent / "run"
    study = tiny.write(parent)
    brief = ["final.seeds=1", "final.epochs=1", "final.max_students=1", "budget.trials=3", "training.epochs=1"]
    settings = [part for setting in brief for part in ("--set", setting)]
    assert main(["search", str(study), "--out", str(folder), *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def smallest(run: Path) -> str:
    """The student with the fewest MACs: there is a supernet to shrink for it."""
    trials = [trial for trial in load_run(run).trials if trial.state == "complete"]
    return min(trials, key=lambda trial: trial.values["macs"]).arch.arch_id


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "student.safetensors")


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_by_default_a_rule_picks_the_route_and_train_follows(run, smallest, capsys):
    assert main(["schedule", str(run), "--pick", smallest, "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"student {smallest}: route direct (rule: " in printed
    assert str(run / "plan.yaml") in printed
    arguments = ["train", str(run), "--plan", str(run / "plan.yaml"), "--format", "safetensors"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2: loss" in printed
    assert "test accuracy" in printed
    assert (run / "training" / f"{smallest}-direct" / "1-student" / "step.json").exists()
    assert main(arguments) == 0
    assert "already done" in capsys.readouterr().out


@pytest.mark.slow
def test_shrink_is_killed_continued_and_followed_again(run, smallest, tmp_path, kdnas_cache, capsys):
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    asked = ["schedule", str(run), "--pick", smallest, "--route", "shrink", "--epochs", "4", "--out", str(file)]
    assert main([*asked, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain == json.loads(json.dumps(yaml.safe_load(file.read_text())))
    assert [step["kind"] for step in plain["steps"]] == ["supernet", "distil"]
    command = ["train", str(run), "--plan", str(file), "--out", str(out), "--format", "safetensors"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdnas", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/2 supernet, stage"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert main(command) == 0
    assert "step 2/2 student, epoch 2/2" in capsys.readouterr().out
    recorded, again = out / "plan.yaml", tmp_path / "again"
    assert main(["train", str(run), "--plan", str(recorded), "--out", str(again), "--format", "safetensors"]) == 0
    assert same(again, out)
    assert load_plan(again / "plan.yaml")[0] == load_plan(recorded)[0]


def test_measured_routes_stand_in_the_file(run, smallest, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    asked = ["schedule", str(run), "--pick", smallest, "--epochs", "10", "--measure", "--out", str(file)]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "shrink: step 1/2 supernet" in printed
    assert "direct: validation accuracy" in printed
    plan, _ = load_plan(file)
    assert {item.route for item in plan.measured} == {"direct", "shrink", "grow", "assistants", "born_again"}
    assert "best on the" in plan.why
    assert main(asked) == 0
    assert "loss" not in capsys.readouterr().out  # nothing is trained again


def test_the_report_draws_what_was_unlocked(run, smallest, tmp_path):
    file = run / "plan.yaml"
    assert (
        main(["schedule", str(run), "--pick", smallest, "--route", "shrink", "--epochs", "2", "--out", str(file)]) == 0
    )
    assert main(["train", str(run), "--plan", str(file), "--format", "safetensors"]) == 0
    assert main(["report", str(run)]) == 0
    document = (run / "report.html").read_text()
    assert f"Training of student {smallest}, route shrink" in document
    assert 'id="data-plan-1"' in document


@pytest.fixture(scope="module")
def names(run: Path, smallest: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """What the arguments of bad commands stand for."""
    folder = tmp_path_factory.mktemp("files")
    file, strange, lines = (folder / f"{name}.yaml" for name in ("file", "strange", "lines"))
    assert main(["schedule", str(run), "--pick", smallest, "--epochs", "2", "--out", str(file)]) == 0
    strange.write_text(file.read_text().replace(smallest, "0123456789ab"))
    lines.write_text(file.read_text().replace("epochs: 2", "epochs: two"))
    other = next(trial.arch.arch_id for trial in load_run(run).trials if trial.arch.arch_id != smallest)
    return {"RUN": run, "FILE": file, "OTHER": other, "STRANGE": strange, "LINES": lines}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["schedule", "RUN", "--route", "fast"],
            "'fast' is no route (allowed: auto, direct, shrink, grow, assistants, born_again)",
        ),
        (["schedule", "RUN", "--route", "direct", "--measure"], "picks the route itself"),
        (["schedule", "RUN", "--pick", "macs<=1"], "no student of the front meets"),
        (["schedule", "nowhere"], "nowhere"),
        (["schedule", "RUN", "--device", "tpu"], "no device 'tpu'"),
        (["schedule", "RUN", "--epochs", "1", "--route", "shrink"], "route shrink: "),
        (["schedule", "RUN", "--out", "no/folder/plan.yaml"], "cannot be written"),
        (["train", "RUN", "--schedule", "gone.yaml", "--epochs", "3"], "gone.yaml: No such file"),
        (["train", "RUN", "--schedule", "FILE", "--epochs", "3"], "states its own budget"),
        (["train", "RUN", "--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "RUN", "--schedule", "FILE", "--pick", "OTHER"], "is a plan for another student"),
        (["train", "RUN", "--schedule", "STRANGE"], "is a plan for student 0123456789ab, not of"),
        (["train", "RUN", "--schedule", "LINES"], "lines.yaml:"),
    ],
)
def test_bad_input_is_one_message(names, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert main([str(names.get(argument, argument)) for argument in arguments]) == 2
    complaint = capsys.readouterr().err
    assert expected in complaint
    assert "Traceback" not in complaint
