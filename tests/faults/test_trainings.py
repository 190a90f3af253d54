"""Trainings meet faults at named points: the teacher's, its kept outputs, rungs, supernet, full trainings, audits.

Real digits. The searches train in their own process, as one worker does; the last tests have workers of their own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faulty_run
import pytest
import yaml
from faulty_run import Ended

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "digits", "validation_fraction": 0.25},
    "teacher": {
        "type": "student",
        "family": "resnet",
        "choices": {
            "stem_width": 8,
            "stage1.depth": 1,
            "stage1.width": 8,
            "stage1.bottleneck": "plain",
            "stage1.skip": "identity",
        },
        "training": {"epochs": 6, "batch_size": 32, "learning_rate": 0.1},
    },
    "space": "space.yaml",
    "objectives": ["accuracy", "macs"],
    "costs": {},
    "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.1, "data_fraction": 0.5},
    "sampler": "random",
    "rungs": [{"epochs": 1}, {"epochs": 2}],
    "promotion": {"eta": 2},
    "executor": {"type": "local", "workers": 1},
    "budget": {"trials": 4, "trial_time_limit_s": 120},
    "final": {"seeds": 1, "epochs": 2, "max_students": 1, "control": False},
    "export": {"formats": ["safetensors", "student_json"]},
}
SPACE = {
    "family": "resnet",
    "choices": {"stem_width": [4, 8], "stage1.width": [4, 8], "stage1.skip": ["identity", "none"]},
    "fixed": {"stage1.depth": 1, "stage1.bottleneck": "plain"},
}


def write(parent: Path, **sections: Any) -> Path:
    folder = parent / "tiny"
    folder.mkdir(parents=True)
    study = {key: value for key, value in {**STUDY, **sections}.items() if value is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cold cache for each test."""
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: object, parent: Path, **options: Any) -> Ended:
    return faulty_run.run(*arguments, counts=parent / "counts", **options)


def whole_run(factory: pytest.TempPathFactory, **sections: Any) -> Path:
    parent = factory.mktemp("whole")
    study = write(parent, **sections)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNAS_CACHE", str(parent / "cache"))
        ended = run("search", study, "--out", parent / "run", parent=parent)
    assert ended.code == 0, ended.stderr
    return parent / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    return whole_run(tmp_path_factory)


def assert_same(folder: Path, other: Path) -> None:
    assert faulty_run.table(folder) == faulty_run.table(other)
    assert faulty_run.table(folder, "front.csv") == faulty_run.table(other, "front.csv")
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}


@pytest.mark.parametrize("fault", ["kill", "term"])
@pytest.mark.parametrize("point", ["teacher", "teacher epoch:3", "cache:2", "epoch:2", "weights:2", "export"])
def test_a_search_goes_on_after_a_stop(point: str, fault: str, whole: Path, tmp_path: Path) -> None:
    if fault == "term" and point in ("cache:2", "epoch:2", "weights:2"):
        pytest.skip("these are points of a worker, to which a stop of the controller is a kill")
    study, folder = write(tmp_path), tmp_path / "run"
    met = run("search", study, "--out", folder, parent=tmp_path, faults=f"{point}={fault}")
    assert met.code == (-9 if fault == "kill" else 143), met.stderr
    assert fault == "kill" or "interrupted" in met.stderr
    faulty_run.age(folder)
    again = run("search", study, "--out", folder, parent=tmp_path)
    assert again.code == 0, again.stderr
    if point.startswith("teacher epoch"):  # the third is trained, and not recorded: none is trained twice
        assert (met.stdout + met.stderr + again.stdout + again.stderr).count("teacher epoch") == 5
    assert_same(folder, whole)
    assert not list((tmp_path / "cache").rglob("*.lock.*"))


def test_a_run_whose_cache_is_gone_goes_on_with_its_own_teacher(whole: Path, tmp_path: Path) -> None:
    study, folder = write(tmp_path), tmp_path / "run"
    assert run("search", study, "--out", folder, parent=tmp_path, faults="recorded:2=kill").code == -9
    (kept,) = folder.glob("teacher-*.safetensors")
    shutil.rmtree(tmp_path / "cache")
    again = run("search", study, "--out", folder, parent=tmp_path)
    assert again.code == 0, again.stderr
    assert "training the teacher" not in again.stdout + again.stderr
    assert kept.exists()
    assert_same(folder, whole)


def test_other_threads_are_refused_before_a_teacher_is_trained_for_them(whole: Path, tmp_path: Path) -> None:
    study, folder = write(tmp_path), tmp_path / "run"
    shutil.copytree(whole, folder)
    again = run("search", study, "--out", folder, "--set", "training.threads=2", parent=tmp_path)
    assert again.code == 2
    assert "training.threads: 1 -> 2" in again.stderr
    assert not (tmp_path / "cache").exists()
    assert_same(folder, whole)


@pytest.mark.parametrize("kept", ["rungs/*.safetensors", "teacher-*.safetensors"])
def test_damaged_files_of_a_run_are_made_anew(kept: str, whole: Path, tmp_path: Path) -> None:
    study, folder = write(tmp_path), tmp_path / "run"
    assert run("search", study, "--out", folder, parent=tmp_path, faults="recorded:2=kill").code == -9
    paths = list(folder.rglob(kept))
    assert paths
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(bytes(content))
    again = run("search", study, "--out", folder, parent=tmp_path)
    assert again.code == 0, again.stderr
    assert "damaged" in again.stdout + again.stderr
    assert_same(folder, whole)


@pytest.mark.parametrize("fault", ["kill", "term"])
def test_a_supernet_goes_on(fault: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sections = {
        "start": "supernet",
        "rungs": [{"epochs": 0}],
        "promotion": None,
        "supernet": {"epochs": 2, "shrinking": {"policy": "sandwich", "subnets": 3}, "recalibration_images": 64},
    }
    undisturbed = whole_run(tmp_path_factory, **sections)
    study, folder = write(tmp_path, **sections), tmp_path / "run"
    met = run("search", study, "--out", folder, parent=tmp_path, faults=f"supernet:3={fault}")
    assert met.code == (-9 if fault == "kill" else 143), met.stderr
    again = run("search", study, "--out", folder, parent=tmp_path)
    assert again.code == 0, again.stderr
    assert_same(folder, undisturbed)


def kept_run(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copytree(whole.parent / "cache", tmp_path / "cache")
    return folder


@pytest.mark.parametrize("fault", ["kill", "term", "int", "memory"])
def test_a_full_training_goes_on(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = kept_run(whole, tmp_path)
    once = run("train", folder, "--epochs", 4, "--out", tmp_path / "once", parent=tmp_path)
    assert once.code == 0, once.stderr
    more = ("train", folder, "--epochs", 4, "--out", tmp_path / "twice")
    met = run(*more, parent=tmp_path, faults=f"epoch:2={fault}")
    assert met.code == {"kill": -9, "term": 143, "int": 130, "memory": 1}[fault], met.stderr
    again = run(*more, parent=tmp_path)
    assert again.code == 0, again.stderr
    once_log, twice_log = ((tmp_path / name / "history.csv").read_text().splitlines() for name in ("once", "twice"))
    assert [row.split(",")[:2] for row in twice_log] == [row.split(",")[:2] for row in once_log]  # epochs and losses
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("once", "twice")]
    assert results[0]["score"] == results[1]["score"]


ENDS = {"kill": (-9, ""), "term": (143, "interrupted"), "int twice": (130, "interrupted")}
DISKS = {"enospc": "No space left on device", "eio": "Input/output error", "read-only": "Read-only file system"}


def assert_ended(met: Ended, fault: str, code: int) -> None:
    """Assert that a command ended by `fault` as it should: with `code` where it is the disk that fails."""
    expected, words = ENDS.get(fault) or (code, DISKS[fault])
    assert met.code == expected, met.stderr
    assert words in met.stderr
    assert "Traceback" not in met.stderr
    assert "internal error" not in met.stderr


@pytest.mark.parametrize("fault", [*ENDS, *DISKS])
def test_a_plan_is_written_whole_or_not_at_all(fault: str, whole: Path, tmp_path: Path) -> None:
    folder = kept_run(whole, tmp_path)
    met = run("schedule", folder, parent=tmp_path, faults=f"plan={fault}")
    assert_ended(met, fault, 1)
    assert not (folder / "plan.yaml").exists()
    again = run("schedule", folder, parent=tmp_path)
    assert again.code == 0, again.stderr
    assert (folder / "plan.yaml").exists()


def compared(folder: Path, parent: Path, faults: str = "") -> Ended:
    vary = ("--vary", "distillation.task_weight=0.1,0.9", "--seeds", 2, "--epochs", 1)
    return run("compare", folder, *vary, parent=parent, faults=faults)


def comparison_rows(folder: Path) -> list[tuple[str, float]]:
    (kept,) = (folder / "compare").glob("*.jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    return [(row["key"], row["score"]) for row in rows]


@pytest.fixture(scope="module")
def compared_rows(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float]]:
    """What an undisturbed comparison keeps."""
    parent = tmp_path_factory.mktemp("compared")
    folder = kept_run(whole, parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNAS_CACHE", str(parent / "cache"))
        assert compared(folder, parent).code == 0
    rows = comparison_rows(folder)
    assert len(rows) == 4
    return rows


@pytest.mark.parametrize("fault", [*ENDS, *DISKS])
def test_a_comparison_goes_on(fault: str, compared_rows: list[tuple[str, float]], whole: Path, tmp_path: Path) -> None:
    folder = kept_run(whole, tmp_path)
    met = compared(folder, tmp_path, f"compare:3={fault}")
    assert_ended(met, fault, 2)
    assert comparison_rows(folder) == compared_rows[:2]
    again = compared(folder, tmp_path)
    assert again.code == 0, again.stderr
    assert comparison_rows(folder) == compared_rows


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[3]\n", b'{"key": "a", "score": "much"}\n', b"[" * 9999 + b"\n"])
def test_a_damaged_comparison_is_named(damage: bytes, whole: Path, tmp_path: Path) -> None:
    folder = kept_run(whole, tmp_path)
    path = folder / "compare" / "trainings.jsonl"
    path.parent.mkdir()
    path.write_bytes(damage + b'{"key": "b", "score": 0.5}\n')
    before = path.read_bytes()
    met = compared(folder, tmp_path)
    assert met.code == 2, met.stderr
    assert f"{path} is damaged: line 1" in met.stderr
    assert path.read_bytes() == before


# -- with workers ------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_its_trial(tmp_path: Path) -> None:
    study, folder = write(tmp_path, rungs=None, promotion=None), tmp_path / "run"
    met = run("search", study, "--out", folder, parent=tmp_path, faults="trial:2=kill", inline=False)
    assert met.code == 0, met.stderr
    assert [row[1] for row in faulty_run.table(folder)] == ["complete", "failed", "complete", "complete"]
    assert "SIGKILL" in (folder / "trials.csv").read_text()


@pytest.mark.parametrize("point", ["trial:2", "answer:2"])
def test_workers_end_with_their_controller(point: str, whole: Path, tmp_path: Path) -> None:
    study, folder = write(tmp_path), tmp_path / "run"
    met = run("search", study, "--out", folder, parent=tmp_path, faults=f"{point}=kill parent", inline=False)
    assert met.code == -9
    again = run("search", study, "--out", folder, parent=tmp_path, inline=False)
    assert again.code == 0, again.stderr
    assert_same(folder, whole)


def test_a_worker_that_stands_still_meets_its_time_limit(tmp_path: Path) -> None:
    study = write(tmp_path, rungs=None, promotion=None, budget={"trials": 2, "trial_time_limit_s": 20})
    met = run("search", study, "--out", tmp_path / "run", parent=tmp_path, faults="trial:1=stop", inline=False)
    assert met.code == 0, met.stderr
    assert "stopped at the time limit of 20 s" in (tmp_path / "run" / "trials.csv").read_text()
    assert (tmp_path / "run" / "front.csv").exists()
