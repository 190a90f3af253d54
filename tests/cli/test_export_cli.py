from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trained_run import member_of, study_config, trained_run

from kdnas.cli.main import main
from kdnas.plain_yaml import dump_yaml
from kdnas.plan.train_file import train_file_for, with_epochs
from kdnas.record.records import RunRecord
from kdnas.report.wording import shown
from kdnas.workshop.opening import load_data


@pytest.fixture
def run(kdnas_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A hand-written run that the commands find under its folder."""
    record = trained_run(tmp_path / "run", load_data(study_config().data, tmp_path, kdnas_cache))
    monkeypatch.setattr("kdnas.record.storage.load_run", lambda folder: record)
    monkeypatch.setattr("kdnas.record.front.pick", lambda run, text: member_of(record))
    return record


@pytest.fixture
def train_yaml(run: RunRecord, kdnas_cache: Path, tmp_path: Path) -> Path:
    data = load_data(study_config().data, tmp_path, kdnas_cache)
    path = tmp_path / "train.yaml"
    path.write_text(dump_yaml(with_epochs(train_file_for(run, run.trials[0], data), 1).plain()))
    return path


def test_export_prints_each_file_with_its_size(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(run.folder), "--out", str(out), "--format", "safetensors", "--format", "train_yaml"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("student.safetensors", "train.yaml"):
        (line,) = [line for line in lines if line.startswith(str(out / name))]
        assert line.endswith(shown("size_bytes", (out / name).stat().st_size))


def test_export_of_an_unknown_format_is_one_message(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.folder), "--out", str(tmp_path / "out"), "--format", "tflite"]) == 2
    assert "error: --format: no export format is called 'tflite'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_of_no_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_train_from_a_file_then_again(train_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(train_yaml), "--format", "safetensors"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "epoch 1/1: loss " in printed
    assert "test accuracy" in printed
    (out,) = train_yaml.parent.glob("training-*")
    assert (out / "student.safetensors").exists()
    assert main(arguments) == 0
    assert "already done" in capsys.readouterr().out


def test_train_from_a_run_goes_into_it(run: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(run.folder), "--pick", "knee", "--epochs", "1", "--format", "safetensors"]
    assert main(arguments) == 0
    assert (run.folder / "training" / run.trials[0].arch.arch_id / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["train.yaml", "--pick", "knee"], "names its one student itself"),
        (["train.yaml", "--device", "tpu"], "no device 'tpu'"),
        (["train.yaml", "--format", "tflite"], "no export format"),
        (["train.yaml", "--epochs", "0"], "--epochs"),
    ],
)
def test_bad_input_to_train_is_one_message(
    train_yaml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(train_yaml.parent)
    assert main(["train", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not list(train_yaml.parent.glob("training-*"))


def test_ctrl_c_exits_130_and_the_same_command_continues(
    train_yaml: Path, kdnas_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "kdnas", "train", str(train_yaml), "--epochs", "20", "--format", "safetensors"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("epoch 2/20"):
            break
    first.send_signal(signal.SIGINT)
    _, complaint = first.communicate(timeout=60)
    assert first.returncode == 130, complaint
    assert "the same command continues" in complaint
    assert main(command[3:]) == 0  # in this process, whose imports are paid for
    second = capsys.readouterr().out
    assert "epoch 1/20" not in second
    assert "epoch 20/20" in second
