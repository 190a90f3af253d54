"""The run folder: locking, foreign content, the identity check."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import yaml

from kdnas.errors import RunFolderError
from kdnas.record.run_folder import (
    LOCK_FILE,
    check_identity,
    controller_lock,
    identity,
    machine,
    read_lock,
    write_lock,
    write_text,
)
from kdnas.study.loading import load_study


def test_a_new_folder_is_removed_again_when_nothing_was_recorded(tmp_path):
    folder = tmp_path / "runs" / "a"
    with pytest.raises(ValueError, match="bad data"), controller_lock(folder):
        assert (folder / "checkpoints").is_dir()
        raise ValueError("bad data")
    assert not folder.exists()


def test_a_folder_with_a_lock_file_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt), controller_lock(tmp_path / "a"):
        (tmp_path / "a" / LOCK_FILE).write_text("x")
        raise KeyboardInterrupt
    assert (tmp_path / "a" / LOCK_FILE).exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"not a kdnas run \(it holds thesis.tex\)"), controller_lock(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used as a run folder"), controller_lock(tmp_path / "run" / "a"):
        pass


def test_only_one_controller_at_a_time(tmp_path):
    folder = tmp_path / "a"
    code = f"""
from pathlib import Path
from kdnas.record.run_folder import controller_lock
with controller_lock(Path({str(folder)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(RunFolderError, match="in use by another kdnas search"), controller_lock(folder):
            pass
        assert folder.exists()
    finally:
        holder.kill()
        holder.wait()
    # The system freed the lock of the killed process.
    with controller_lock(folder):
        pass


def test_identity_notices_what_changes_a_score_and_nothing_else(tiny_study):
    study = load_study(tiny_study)

    def of(**changes):
        config = study.config.model_copy(update=changes)
        return identity(config, study.space, {"data": "d", "teacher": "t"})

    before = of()
    budget = study.config.budget.model_copy(update={"trials": 99})
    check_identity(tiny_study, before, of(budget=budget, device="cpu"))
    training = study.config.training.model_copy(update={"epochs": 7})
    with pytest.raises(RunFolderError) as caught:
        check_identity(tiny_study, before, of(training=training, seed=3))
    text = str(caught.value)
    assert "training.epochs: 3 -> 7" in text
    assert "seed: 0 -> 3" in text
    other = identity(study.config, study.space, {"data": "other", "teacher": "t"})
    with pytest.raises(RunFolderError, match="data: its content is not what it was"):
        check_identity(tiny_study, before, other)
    was, now = ({"data": {"type": "npz", "path": path}} for path in ("a.npz", "b.npz"))
    with pytest.raises(RunFolderError, match=r"data\.path: a\.npz -> b\.npz$"):
        check_identity(tiny_study, before, other, was=was, now=now)
    smaller = dataclasses.replace(study.space, choices=study.space.choices[:-1])
    with pytest.raises(RunFolderError, match="space.choices.stage1.skip") as caught:
        check_identity(tiny_study, before, identity(study.config, smaller, {"data": "d", "teacher": "t"}))
    assert len(caught.value.problems) == 2  # the folder and the choice: no hash of the space beside it


def test_an_emptied_section_is_a_difference(tiny_study):
    study = load_study(tiny_study)
    before = identity(study.config, study.space, {"data": "d", "teacher": "t"})
    assert before["costs"] == {}
    after = {**before, "costs": {"latency_ms": {}}}
    with pytest.raises(RunFolderError, match="costs.latency_ms"):
        check_identity(tiny_study, before, after)


@pytest.mark.parametrize("content", ["", "just text", "{identity: 1}", "a: [", "\x00"])
def test_a_damaged_lock_file_is_named(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with pytest.raises(RunFolderError, match=LOCK_FILE):
        read_lock(tmp_path)


def test_a_folder_without_a_lock_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="is not a kdnas run"):
        read_lock(tmp_path)


def test_the_lock_file_round_trips(tmp_path):
    lock = {"identity": {"a": 1}, "config": {"b": [1, 2]}, "teacher": {}, "reference_point": {"macs": 1e6}}
    write_lock(tmp_path, lock)
    assert read_lock(tmp_path) == lock
    assert yaml.safe_load((tmp_path / LOCK_FILE).read_text()) == lock


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").write_text("")
    with pytest.raises(RunFolderError, match="taken cannot be written"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_machine_is_described():
    found = machine()
    assert found["cores"] >= 1
    assert found["packages"]["torch"][0].isdigit()
    assert found["packages"]["nni"][0].isdigit()


def test_a_run_begun_before_there_were_evaluators_trains_from_scratch(tiny_study):
    study = load_study(tiny_study)
    now = identity(study.config, study.space, {"data": "d", "teacher": "t"})
    old = {key: value for key, value in now.items() if key != "evaluator"}
    check_identity(tiny_study, old, now)
    with pytest.raises(RunFolderError, match="evaluator.type: scratch -> table"):
        check_identity(tiny_study, old, {**now, "evaluator": {"type": "table"}})
