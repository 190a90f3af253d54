from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from trained_run import trained_run
from workshops import split_of

from kdnas.core.data import ImageData
from kdnas.errors import ConfigError, DataError, RunFolderError, TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.plan.train_file import TrainFile, train_file_for, with_epochs
from kdnas.plan.training import FullTraining, Progress, train_fully

EPOCHS = 6
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def file(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> TrainFile:
    run = trained_run(tmp_path_factory.mktemp("run"), digits)
    return with_epochs(train_file_for(run, run.trials[0], digits), EPOCHS)


@pytest.fixture(scope="module")
def whole(file: TrainFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[FullTraining, list[Progress]]:
    """An uninterrupted training and what it reported."""
    reports: list[Progress] = []
    out = tmp_path_factory.mktemp("whole")
    return train_fully(file, out, data_root=NOWHERE, on_progress=reports.append), reports


def stop_after(epoch: int) -> Callable[[Progress], None]:
    def on_progress(report: Progress) -> None:
        if report.at == at(epoch):
            raise KeyboardInterrupt

    return on_progress


def at(epoch: int) -> str:
    return f"epoch {epoch}/{EPOCHS}"


def history(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "history.csv").open()))


def test_it_trains_and_leaves_the_student(whole: tuple[FullTraining, list[Progress]], file: TrainFile) -> None:
    result, reports = whole
    assert [report.at for report in reports] == [at(epoch) for epoch in range(1, EPOCHS + 1)]
    assert [report.done for report in reports] == pytest.approx([epoch / EPOCHS for epoch in range(1, EPOCHS + 1)])
    assert reports[0].score is not None
    assert reports[-1].loss < reports[0].loss
    assert result.score > 0.3  # chance is 0.1
    assert {
        *("student.safetensors", "student.json", "student.py", "train.yaml", "MODEL_CARD.md"),
        *("preprocessing.json", "predict.py"),
    } == set(result.files)
    assert not (result.folder / "checkpoint.safetensors").exists()
    assert [row["epoch"] for row in history(result.folder)] == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert json.loads((result.folder / "result.json").read_text())["test_score"] == result.test_score


def test_the_accuracies_are_those_of_the_written_weights(
    whole: tuple[FullTraining, list[Progress]], file: TrainFile, digits: ImageData
) -> None:
    from kdnas.students import family_for

    result, _ = whole
    network = family_for(file.arch.family, file.task).build(file.student)
    network.load_state_dict(safetensors.torch.load_file(result.folder / "student.safetensors"))
    module = Normalised(network, digits.channel_mean, digits.channel_std).eval()
    _, validation = split_of(digits, file.data.validation_fraction, file.seed)

    def share(images: np.ndarray, labels: np.ndarray) -> float:
        with torch.no_grad():
            answers = module(torch.from_numpy(np.array(images)).float()).argmax(dim=1).numpy()
        return float((answers == labels).mean())

    # One image's difference may come from the other summation order of the training's memory layout.
    slack = 1.5 / len(validation)
    expected = share(digits.train.inputs["pixels"][validation], digits.train.targets[validation])
    assert result.score == pytest.approx(expected, abs=slack)
    assert result.test_score == pytest.approx(share(digits.test.inputs["pixels"], digits.test.targets), abs=slack)


@pytest.mark.parametrize("stop", [1, EPOCHS])
def test_interrupted_and_continued_it_gives_the_same_student(
    whole: tuple[FullTraining, list[Progress]], file: TrainFile, tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fully(file, out, data_root=NOWHERE, on_progress=stop_after(stop))
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "result.json").exists()
    later: list[str] = []
    result = train_fully(
        file, out, data_root=NOWHERE, formats=["safetensors"], on_progress=lambda report: later.append(report.at)
    )
    assert later == [at(epoch) for epoch in range(stop + 1, EPOCHS + 1)]
    reference = whole[0]
    ours, theirs = (safetensors.torch.load_file(f / "student.safetensors") for f in (out, reference.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (result.score, result.test_score) == (reference.score, reference.test_score)
    assert [row["loss"] for row in history(out)] == [row["loss"] for row in history(reference.folder)]


def test_a_finished_training_is_not_repeated(
    whole: tuple[FullTraining, list[Progress]], file: TrainFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("kdnas.plan.training.distil", refuse)
    again = train_fully(file, whole[0].folder, data_root=NOWHERE)
    assert again.already_done
    assert (again.score, again.files) == (whole[0].score, whole[0].files)


def test_lost_files_of_a_finished_training_are_written_anew_and_lost_weights_trained_again(
    whole: tuple[FullTraining, list[Progress]], file: TrainFile, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0].folder, out)
    kept = safetensors.torch.load_file(out / "student.safetensors")

    def mended() -> tuple[list[str], list[str]]:
        trained: list[str] = []
        printed: list[str] = []
        result = train_fully(
            file, out, data_root=NOWHERE, on_progress=lambda at: trained.append(at.at), notify=printed.append
        )
        assert result.score == whole[0].score
        ours = safetensors.torch.load_file(out / "student.safetensors")
        assert all(torch.equal(ours[name], tensor) for name, tensor in kept.items())
        assert not result.lost
        return trained, [line for line in printed if line.startswith(str(out))]

    (out / "student.json").unlink()
    assert mended() == ([], [f"{out / 'student.json'} is missing"])
    safetensors.torch.save_file({name: 0 * tensor for name, tensor in kept.items()}, out / "student.safetensors")
    trained, printed = mended()
    assert len(trained) == EPOCHS
    assert printed == [f"{out / 'student.safetensors'} is not the file that kdnas wrote"]


def test_another_training_in_the_folder_is_refused_with_the_difference(
    whole: tuple[FullTraining, list[Progress]], file: TrainFile
) -> None:
    with pytest.raises(RunFolderError, match="holds another training") as caught:
        train_fully(with_epochs(file, 50), whole[0].folder, data_root=NOWHERE)
    assert [problem.where for problem in caught.value.problems][1:] == ["training.epochs"]


def test_a_foreign_folder_is_refused_and_left_alone(file: TrainFile, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds thesis\.txt"):
        train_fully(file, tmp_path, data_root=NOWHERE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["", "[1, 2", "- a\n"])
def test_a_damaged_lock_is_refused(file: TrainFile, tmp_path: Path, text: str) -> None:
    (tmp_path / "training.lock.yaml").write_text(text)
    with pytest.raises(RunFolderError):
        train_fully(file, tmp_path, data_root=NOWHERE)


def test_a_damaged_result_is_refused(file: TrainFile, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train_fully(file.model_copy(update={"data_fingerprint": "0"}), tmp_path, data_root=NOWHERE)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"result\.json is damaged"):
        train_fully(file.model_copy(update={"data_fingerprint": "0"}), tmp_path, data_root=NOWHERE)


def test_changed_data_is_refused_with_all_differences(file: TrainFile, tmp_path: Path) -> None:
    changed = file.model_copy(
        update={"data_fingerprint": "0000", "statistics": {"channel_mean": (1.0,), "channel_std": (2.0,)}}
    )
    with pytest.raises(DataError) as caught:
        train_fully(changed, tmp_path, data_root=NOWHERE)
    assert [problem.where for problem in caught.value.problems] == ["data_fingerprint", "statistics"]


def test_another_teacher_is_refused(file: TrainFile, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="teacher_fingerprint"):
        train_fully(file.model_copy(update={"teacher_fingerprint": "0000"}), tmp_path, data_root=NOWHERE)


def test_unknown_formats_are_refused_before_any_training(file: TrainFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tflite'"):
        train_fully(file, tmp_path / "out", data_root=NOWHERE, formats=["tflite"])
    assert not (tmp_path / "out").exists()
