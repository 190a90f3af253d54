from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from trained_run import member_of, small_network, trained_run

from kdnas.core.data import ImageData
from kdnas.errors import ConfigError, DataError, ExportError, KdnasError, RunFolderError
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.plan.exporting import available_formats, export_student
from kdnas.plan.train_file import load_train_file
from kdnas.record.records import FrontMember, RunRecord
from kdnas.workshop.afterwards import best_repeat

CHEAP = ["safetensors", "student_json", "train_yaml", "model_card"]


@pytest.fixture
def run(digits: ImageData, tmp_path: Path) -> RunRecord:
    return trained_run(tmp_path / "run", digits)


def export(run: RunRecord, out: Path, formats: list[str] = CHEAP) -> list[Path]:
    return export_student(run, member_of(run), formats, out, data_root=Path("nowhere"))


def best_checkpoint(run: RunRecord) -> Path:
    return run.folder / "checkpoints" / best_repeat(run, run.trials[0]).checkpoint


def test_the_best_on_validation_is_exported(run: RunRecord, tmp_path: Path) -> None:
    written = export(run, tmp_path / "new" / "out")
    assert sorted(path.name for path in written) == [
        "MODEL_CARD.md",
        "predict.py",
        "preprocessing.json",
        "student.json",
        "student.py",
        "student.safetensors",
        "train.yaml",
    ]
    tensors = safetensors.torch.load_file(tmp_path / "new" / "out" / "student.safetensors")
    expected = small_network(seed=1).state_dict()  # seed 1 has the best validation accuracy
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]  # no scratch folder is left


def test_what_it_says_is_what_the_run_recorded(run: RunRecord, tmp_path: Path, digits: ImageData) -> None:
    export(run, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "student.json").read_text())
    assert record["measured"]["weights"]["seed"] == 1
    assert record["measured"]["accuracy"]["validation"] == {"mean": 0.92, "ci95": 0.05, "trainings": 3}
    assert record["input"]["channel_mean"] == pytest.approx(list(digits.channel_mean))
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "held out for validation" in card
    assert "cpu, 1 thread, batch 1" in card
    assert load_train_file(tmp_path / "out" / "train.yaml").training.learning_rate == 0.15


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ("random", "Trained from random weights for 2 epochs"),
        ("inherited", "Trained from weights inherited from the teacher for 2 epochs"),
        ("supernet", "Trained from the supernet's weights for 2 epochs"),
    ],
)
def test_a_card_says_from_what_weights_the_student_began(run: RunRecord, tmp_path: Path, start, wanted) -> None:
    trial = run.trials[0]
    begun = [dataclasses.replace(r, fidelity=dataclasses.replace(r.fidelity, start=start)) for r in trial.repeats]
    export(dataclasses.replace(run, trials=(dataclasses.replace(trial, repeats=tuple(begun)),)), tmp_path / "out")
    assert wanted in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_a_card_says_when_the_student_hardly_does_better_than_guessing(run: RunRecord, tmp_path: Path) -> None:
    for guess, printed in ((0.1, False), (0.88, True)):
        out = tmp_path / str(guess)
        export(dataclasses.replace(run, reference_point={**run.reference_point, "accuracy": guess}), out)
        assert ("hardly better than guessing" in (out / "MODEL_CARD.md").read_text()) == printed


def test_other_files_stay_and_own_files_are_replaced(run: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "student.json").write_text("old")
    export(run, out)
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "student.json").read_text())["format"] == "kdnas-student"


@pytest.mark.parametrize("failure", [ExportError("it deviates"), RuntimeError("converter broke"), OSError(28, "full")])
def test_when_one_format_fails_nothing_is_written(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def broken(student: TrainedStudent, folder: Path) -> list[str]:
        (folder / "half").write_text("half")
        raise failure

    EXPORTERS.get("model_card")
    monkeypatch.setitem(EXPORTERS._members, "model_card", broken)
    out = tmp_path / "out"
    out.mkdir()
    (out / "student.json").write_text("old")
    with pytest.raises(KdnasError) as caught:
        export(run, out)
    assert isinstance(caught.value, ConfigError if isinstance(failure, OSError) else ExportError)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    assert [path.name for path in out.iterdir()] == ["student.json"]
    assert (out / "student.json").read_text() == "old"


def test_a_student_that_was_not_retrained_says_what_to_run(run: RunRecord, tmp_path: Path) -> None:
    trial = run.trials[1]
    member = FrontMember(trial, trial.values, None)
    with pytest.raises(ConfigError, match=f"kdnas train .* --pick {trial.arch.arch_id}"):
        export_student(run, member, CHEAP, tmp_path / "out", data_root=Path("nowhere"))
    assert not (tmp_path / "out").exists()


def test_unknown_formats_are_named_at_once(run: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tflite'") as caught:
        export(run, tmp_path / "out", ["tflite", "safetensors", "keras"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="names no format"):
        export(run, tmp_path / "out", [])


@pytest.mark.parametrize("length", [0, 7, 200, -10])
def test_a_truncated_checkpoint_is_refused(run: RunRecord, tmp_path: Path, length: int) -> None:
    checkpoint = best_checkpoint(run)
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.raises(RunFolderError, match="truncated"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network_is_refused(run: RunRecord, tmp_path: Path) -> None:
    checkpoint = best_checkpoint(run)
    tensors = safetensors.torch.load_file(checkpoint)
    tensors["classifier.weight"] = tensors["classifier.weight"][:, :-1].contiguous()
    safetensors.torch.save_file(tensors, checkpoint)
    with pytest.raises(RunFolderError, match="another network"):
        export(run, tmp_path / "out")


def test_a_missing_checkpoint_is_refused(run: RunRecord, tmp_path: Path) -> None:
    best_checkpoint(run).unlink()
    with pytest.raises(RunFolderError, match="no checkpoint"):
        export(run, tmp_path / "out")


def test_changed_data_is_refused(run: RunRecord, tmp_path: Path) -> None:
    run = dataclasses.replace(run, lock=dataclasses.replace(run.lock, fingerprints={"data": "0000"}))
    with pytest.raises(DataError, match="content hash"):
        export(run, tmp_path / "out")


def test_a_file_in_the_way_is_refused(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"):
        export(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(run, tmp_path / "out" / "below")
    (tmp_path / "other" / "student.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"folders where files go: student\.json"):
        export(run, tmp_path / "other")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_target_is_refused(run: RunRecord, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(ConfigError, match="cannot be written"):
        export(run, locked / "out")


def test_every_installed_format_is_available() -> None:
    available, missing = available_formats()
    assert sorted([*available, *missing]) == EXPORTERS.names()
    assert {"safetensors", "student_json", "student_py", "train_yaml", "model_card"} <= set(available)
