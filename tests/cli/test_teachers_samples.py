"""A teacher that is given samples of its own, from the study to the training that was written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from kdnas.cli.main import main
from kdnas.core.data import ImageData
from kdnas.record.storage import load_run


@pytest.fixture
def study(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny study, whose teacher is given larger digits of the same classes, out of a file of its own."""
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    arrays = {}
    for split in ("train", "test"):
        samples = getattr(digits, split)
        order = np.random.default_rng(0).permutation(len(samples))[:400]
        pixels = np.asarray(samples.inputs["pixels"])[order, 0]
        arrays |= {
            f"{split}_images": np.repeat(np.repeat(pixels, 2, 1), 2, 2),
            f"{split}_labels": samples.targets[order],
        }
    np.savez(tmp_path / "large.npz", **arrays)
    written = tiny.write(tmp_path)
    plain = yaml.safe_load((written / "study.yaml").read_text())
    plain["teacher"]["data"] = {"type": "npz", "path": "large.npz", "pair": "label"}
    (written / "study.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return written


def test_a_search_and_its_training_elsewhere(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["search", str(study), "--out", str(out), "--set", "export.formats=[train_yaml, model_card]"]) == 0
    said = capsys.readouterr()
    assert "is given samples of large.npz, one for each of digits, paired by label" in said.out + said.err
    run = load_run(out)
    assert any("paired by label" in note for note in run.teacher.notes)
    assert "paired by label" in (out / "export" / "MODEL_CARD.md").read_text()
    assert run.config.teacher.data.pair == "label"
    assert main(["search", str(study), "--out", str(out)]) == 0  # nothing is left to do, and nothing is another
    assert main(["train", str(out / "export" / "train.yaml"), "--out", str(tmp_path / "trained"), "--epochs", "1"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"type": "npz", "path": "large.npz"}}, "teacher.data.pair"),
        ({"data": {"type": "npz", "path": "large.npz", "pair": "order"}}, "as many in the same order, or pair: label"),
        ({"data": {"type": "nzp", "path": "large.npz", "pair": "label"}}, "no data set is called 'nzp'"),
        ({"data": {"type": "npz", "pth": "large.npz", "pair": "label"}}, "teacher.data.pth"),
    ],
)
def test_what_is_wrong_with_them_is_told(
    study: Path, tmp_path: Path, change: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = yaml.safe_load((study / "study.yaml").read_text())
    plain["teacher"] |= change
    (study / "study.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    assert main(["search", str(study), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_students_are_not_cut_out_of_such_a_teacher_and_samples_are_not_mixed(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", str(study), "--out", str(tmp_path / "run"), "--set"]
    assert main([*command, "space={derive: teacher}"]) == 2
    assert "teacher.data: a network of other samples has no weights for students" in capsys.readouterr().err
    assert main([*command, "training.augmentation.mixup=0.2"]) == 2
    assert "training.augmentation: mixes samples, and the teacher" in capsys.readouterr().err
