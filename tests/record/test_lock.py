"""study.lock.yaml: what is written is read back, of this version and of earlier ones, and what a resume compares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import scored_study
import yaml

from kdnas.core.latency_table import LatencyTable, TableFit
from kdnas.core.measurement import Calibration
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.task import image_classification
from kdnas.costs.latency_ms import LatencyCalibration
from kdnas.errors import RunFolderError
from kdnas.record.lock import (
    DataDescription,
    Lock,
    Machine,
    SupernetRecord,
    TeacherReport,
    read_calibrations,
    read_lock,
    refuse_another_study,
    space_record,
    this_machine,
    write_lock,
    written_calibrations,
)
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.started_study import read_study
from kdnas.record.storage import load_run
from kdnas.study.loading import load_study

EARLIER = Path(__file__).parent / "earlier"
"""A run of version 0.1."""
CALIBRATIONS = {
    "latency_ms": LatencyCalibration(
        0.25,
        LatencyTable(0.5, {"conv dense 3x3 stride1": (0.1,) * 7}),
        TableFit(50, 30, 0.01, 0.1, 0.99, 0.9),
    ),
    "peak_memory_bytes": Calibration(),
}
FINGERPRINTS = {"data": "d", "teacher": "t"}


@pytest.fixture
def lock(tiny_study) -> Lock:
    """A lock with something in every section."""
    study = load_study(tiny_study)
    return Lock(
        config=study.config,
        space=study.space,
        fingerprints=FINGERPRINTS,
        quantities=(ACCURACY, Quantity("macs", "MACs", "minimize", "cheap")),
        reference_point={"accuracy": 0.1, "macs": 1e6},
        teacher=TeacherReport("resnet", 0.9, None, {"macs": 1e7}, ("a note",), "probabilities"),
        data=DataDescription(
            "digits",
            ("0", "1"),
            image_classification((1, 8, 8), 2),
            100,
            20,
            30,
            {"channel_mean": (1.5,), "channel_std": (2.5,)},
            notes=("few",),
        ),
        calibrations=written_calibrations(CALIBRATIONS),
        teacher_answers=(0.5, -1.25),
        device="cpu",
        machine=this_machine(),
        resumed_on=(Machine("3.11", "Linux", "Another 9000", 4, {"torch": "2"}),),
        supernet=SupernetRecord("abc", 3, 0.5, 12.5, 0.75),
    )


def test_the_lock_file_round_trips(tmp_path, lock):
    for written in (lock, dataclasses.replace(lock, teacher=None, supernet=None, resumed_on=(), calibrations={})):
        write_lock(tmp_path, written)
        assert read_lock(tmp_path) == written
    assert read_calibrations(lock, tmp_path) == CALIBRATIONS
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    assert plain["teacher"] is None
    assert not {"supernet", "resumed_on"} & plain.keys()


def test_a_lock_of_an_earlier_version_is_read_and_goes_on(tmp_path):
    lock = read_lock(EARLIER)
    plain = yaml.safe_load((EARLIER / LOCK_FILE).read_text())
    assert space_record(lock.space) == plain["identity"]["space"]
    assert lock.space.name == "cifar_resnet"
    assert lock.fingerprints == {name: plain["identity"]["fingerprints"][name] for name in ("data", "teacher")}
    assert lock.teacher.score == plain["teacher"]["accuracy"]
    assert (
        read_calibrations(lock, EARLIER)["latency_ms"].reference_ms
        == plain["calibrations"]["latency_ms"]["reference_ms"]
    )
    assert (lock.data.training_samples, lock.data.test_samples) == (45000, 10000)
    assert (lock.teacher_answers, lock.supernet, lock.resumed_on) == ((), None, ())
    write_lock(tmp_path, lock)
    assert read_lock(tmp_path) == lock
    refuse_another_study(tmp_path, lock, lock.config, lock.space, lock.fingerprints, "cpu")


def test_the_sections_of_an_earlier_version_are_those_of_today(tmp_path, lock):
    """As the version before wrote them: space, hashes and supernet inside other sections, samples called images."""
    write_lock(tmp_path, lock)
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    hashes = {**plain.pop("fingerprints"), "space": "0123"}
    plain["identity"] = {"name": "tiny", "seed": 0, "space": plain.pop("space"), "fingerprints": hashes}
    plain["prepared"] = {"supernet": plain.pop("supernet")}
    plain["data"] = {name.replace("_samples", "_images"): value for name, value in plain["data"].items()}
    plain["teacher"]["accuracy"] = plain["teacher"].pop("score")
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    assert read_lock(tmp_path) == lock


@pytest.mark.parametrize("content", ["", "just text", "{identity: 1}", "a: [", "\x00"])
def test_a_damaged_lock_file_is_named(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with pytest.raises(RunFolderError, match=LOCK_FILE):
        read_lock(tmp_path)


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("quantities", None, "quantities: Field required"),
        ("data", {"class_names": 3}, "data.class_names: Input should be a valid tuple"),
        ("space", {"family": "resnet"}, "space: the record of the search space has no 'choices'"),
        ("space", {"family": "f", "choices": {"a": [{}]}, "conditions": [], "fixed": {}}, "{} is no value of a choice"),
        ("reference_point", {"macs": "many"}, "reference_point.macs: Input should be a valid number"),
        ("calibrations", {"latency_ms": {}}, "calibrations.latency_ms.reference_ms: Field required"),
        ("teacher", {"name": "resnet"}, "teacher.score: Field required"),
    ],
)
def test_what_is_damaged_is_told_by_its_key(tmp_path, lock, section, value, expected):
    write_lock(tmp_path, lock)
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    plain |= {section: value}
    if value is None:
        del plain[section]
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(RunFolderError) as caught:
        read_calibrations(read_lock(tmp_path), tmp_path)
    assert expected in str(caught.value)


def test_a_folder_without_a_lock_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="is not a kdnas run"):
        read_lock(tmp_path)


def test_a_resume_notices_what_changes_a_score_and_nothing_else(tmp_path, lock):
    write_lock(tmp_path, lock)
    lock = read_lock(tmp_path)

    def check(*, space=lock.space, fingerprints=FINGERPRINTS, device=None, **changes):
        refuse_another_study(tmp_path, lock, lock.config.model_copy(update=changes), space, fingerprints, device)

    check(budget=lock.config.budget.model_copy(update={"trials": 99}), device="cpu")
    with pytest.raises(RunFolderError) as caught:
        check(training=lock.config.training.model_copy(update={"epochs": 7}), seed=3)
    assert "training.epochs: 3 -> 7" in str(caught.value)
    assert "seed: 0 -> 3" in str(caught.value)
    own = lock.config.final.model_copy(update={"distillation": lock.config.distillation})
    with pytest.raises(RunFolderError, match=r"final\.distillation"):  # retrainings by both would be averaged
        check(final=own)
    with pytest.raises(RunFolderError, match="device: cpu -> cuda"):
        check(device="cuda")
    other = {"data": "other", "teacher": "t"}
    with pytest.raises(RunFolderError, match="data: its content is not what it was"):
        check(fingerprints=other)
    made_here = {**FINGERPRINTS, "teacher": "trained again"}  # by a run that keeps no copy of it, without its cache
    with pytest.raises(RunFolderError, match="teacher: the network that was trained here .* KDNAS_CACHE"):
        check(fingerprints=made_here)
    with pytest.raises(RunFolderError, match=r"data\.validation_fraction: 0\.25 -> 0\.5$") as caught:
        check(data=lock.config.data.model_copy(update={"validation_fraction": 0.5}), fingerprints=other)
    assert len(caught.value.problems) == 2  # the folder and the setting, which says why its content differs
    smaller = dataclasses.replace(lock.space, choices=lock.space.choices[:-1])
    with pytest.raises(RunFolderError, match=r"space.choices.stage1.skip") as caught:
        check(space=smaller)
    assert len(caught.value.problems) == 2
    with pytest.raises(RunFolderError, match="costs.latency_ms"):
        check(costs={"latency_ms": {}})


def test_what_a_lock_does_not_state_may_have_meant_something_else(tmp_path, lock):
    write_lock(tmp_path, lock)
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    del plain["config"]["training"]["momentum"], plain["config"]["evaluator"]
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(RunFolderError) as caught:  # but there was one evaluator only
        refuse_another_study(tmp_path, read_lock(tmp_path), lock.config, lock.space, FINGERPRINTS)
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path), "training.momentum"]


def test_a_run_begun_before_there_were_evaluators_trains_from_scratch(tmp_path, lock):
    write_lock(tmp_path, lock)
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    del plain["config"]["evaluator"]
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    old = read_lock(tmp_path)
    refuse_another_study(tmp_path, old, lock.config, lock.space, FINGERPRINTS)
    table = lock.config.model_copy(update={"evaluator": type(lock.config.evaluator)(type="table")})
    with pytest.raises(RunFolderError, match="evaluator.type: distil -> table"):
        refuse_another_study(tmp_path, old, table, lock.space, FINGERPRINTS)


def test_the_machine_is_described():
    found = this_machine()
    assert found.cores >= 1
    assert found.packages["torch"][0].isdigit()
    assert found.packages["nni"][0].isdigit()


def test_a_run_folder_alone_is_its_whole_study(scored_search, tmp_path):
    study = scored_study.write(tmp_path, tune={"training.learning_rate": {"low": 0.01, "high": 0.2, "log": True}})
    assert scored_search(study)[0] == 0
    run, before = tmp_path / "run", load_study(study)
    (study / "study.yaml").unlink()
    (study / "space.yaml").unlink()
    for path in (run, run / "study.lock.yaml"):
        again = read_study(path, ["budget.trials=7"])
        assert space_record(again.space) == space_record(before.space)
        assert again.config.budget.trials == 7
        plain, locked = again.config.model_dump(mode="json"), read_lock(run).config.model_dump(mode="json")
        assert {**plain, "budget": None} == {**locked, "budget": None}
    assert "nothing new" in scored_search(run)[1]
    assert scored_search(run, "--trials", 5)[0] == 0
    assert len(load_run(run).trials) == 5
    code, _, stderr = scored_search(run, "--set", "training.epochs=9")
    assert (code, "training.epochs: 1 -> 9" in stderr) == (2, True)
    code, _, stderr = scored_search(run, "--set", "space=other.yaml")
    assert (code, "other.yaml" in stderr) == (2, True)
    code, _, stderr = scored_search(run, "--set", "budget.trails=9")
    assert (code, "did you mean 'trials'" in stderr) == (2, True)
