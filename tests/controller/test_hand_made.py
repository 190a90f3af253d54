"""Students made by hand: read from choices or exports, refused with every reason, scored first and marked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdnas.cli.main import main
from kdnas.controller.queue import read_students
from kdnas.errors import ConfigError
from kdnas.record.storage import load_run
from kdnas.study.config import StudyConfig
from kdnas.study.spaces import arch_of, load_space
from kdnas.study.tuning import Tuning

SPACE = load_space("digits_resnet", Path())
MINE = {"stem_width": 8, "stage1.depth": 1, "stage1.width": 8, "stage1.bottleneck": "plain", "stage1.skip": "none"}
MINE |= {name.replace("stage1", "stage2"): value for name, value in MINE.items() if name.startswith("stage1")}


def config(**changed) -> StudyConfig:
    return StudyConfig.model_validate(
        {"name": "x", "space": "digits_resnet", "data": "digits", "teacher": "student", **changed}
    )


def write(path: Path, record) -> Path:
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    return path


@pytest.mark.parametrize("name", ["digits_resnet", "cifar_resnet", "cifar_mobilenet"])
def test_any_exported_student_of_a_space_is_read_back(tmp_path, name):
    space = load_space(name, Path())
    rng = np.random.default_rng(0)
    for number in range(20):
        arch = arch_of(space, space.random(rng))
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps({"format": "kdnas-student", "arch": json.loads(arch.canonical_json)}))
        (read,) = read_students([file], config(space=name), space)
        assert read.arch == arch
        assert arch_of(space, {c.name: read.values[c.name] for c in space.choices}) == arch


def test_choices_may_stand_alone_or_in_a_list_with_tuned_settings(tmp_path):
    tuned = config(tune={"training.learning_rate": {"low": 0.01, "high": 0.1, "log": True}})
    file = write(tmp_path / "mine.yaml", [MINE, {"choices": MINE, "tuned": {"training.learning_rate": 0.05}}])
    plain, set_ = read_students([file], tuned, SPACE)
    assert plain.arch == set_.arch
    assert (plain.where, set_.where) == (f"{file}[0]", f"{file}[1]")
    stated = Tuning(tuned).stated
    assert (stated(plain.values), stated(set_.values)) == (None, {"training.learning_rate": 0.05})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**MINE, "stem_width": 7}, "stem_width: has no value 7 .allowed: "),
        ({**MINE, "stem_wdth": 8}, "stem_wdth: is no choice of the space"),
        ({name: value for name, value in MINE.items() if name != "stem_width"}, "stem_width"),
        ({"arch": {"family": "mobilenet", "choices": {"stem_width": 8}}}, "of the family mobilenet"),
        ("resnet18", "is no student"),
        ([], "is no student"),
    ],
)
def test_what_the_space_has_not_is_refused(tmp_path, record, message):
    with pytest.raises(ConfigError, match=message):
        read_students([write(tmp_path / "mine.yaml", record)], config(), SPACE)


def test_every_problem_of_every_file_is_told(tmp_path):
    files = [write(tmp_path / f"{n}.yaml", {**MINE, "stem_width": n}) for n in (7, 9)]
    with pytest.raises(ConfigError) as caught:
        read_students([*files, tmp_path / "none.yaml"], config(), SPACE)
    assert len(caught.value.problems) == 3


@pytest.fixture
def table(tmp_path):
    """A study on a table of 16 students."""
    lines = ["a,b,accuracy,m"] + [f"{a},{b},{0.5 + 0.02 * a * b},{a + b}" for a in range(4) for b in range(4)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    write(tmp_path / "space.yaml", {"name": "grid", "choices": {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}})
    evaluator = {
        "type": "table", "file": str(tmp_path / "table.csv"), "key": "{a},{b}", "key_columns": ["a", "b"],
        "values": {"accuracy": {"column": "accuracy"}, "macs": {"column": "m"}}, "full_epochs": 5, "chance": 0.1,
    }  # fmt: skip
    study = {
        "name": "grid", "evaluator": evaluator, "space": "space.yaml", "constraints": ["macs<=5"], "sampler": "random",
        "training": {"epochs": 5}, "budget": {"trials": 3}, "final": {"seeds": 1}, "executor": {"workers": 1},
    }  # fmt: skip
    return write(tmp_path / "study.yaml", study)


def test_they_are_scored_first_and_marked_and_a_second_call_adds_nothing(tmp_path, table, capsys):
    mine = write(tmp_path / "mine.yaml", {"a": 3, "b": 2})
    command = ["search", str(table), "--out", str(tmp_path / "run"), "--enqueue", str(mine)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert [trial.enqueued for trial in run.trials] == [True, False, False]
    assert run.trials[0].arch.choices == {"a": 3, "b": 2}
    assert "1 student made by hand goes first" in printed
    assert "enqueued" in next(line for line in printed.splitlines() if "trial    0" in line)
    header, first, second = (tmp_path / "run" / "trials.csv").read_text().splitlines()[:3]
    column = header.split(",").index("enqueued")
    assert (first.split(",")[column], second.split(",")[column]) == ("yes", "")
    assert main(command) == 0
    assert "is the student of trial 0 already" in capsys.readouterr().out
    assert len(load_run(tmp_path / "run").trials) == 3


def test_who_breaks_a_constraint_is_refused_at_once_and_nobody_is_queued(tmp_path, table, capsys):
    files = [write(tmp_path / "good.yaml", {"a": 1, "b": 1}), write(tmp_path / "dear.yaml", {"a": 3, "b": 3})]
    command = ["search", str(table), "--out", str(tmp_path / "run")]
    for file in files:
        command += ["--enqueue", str(file)]
    assert main(command) == 2
    assert "dear.yaml: the student breaks macs<=5 (macs is 6)" in capsys.readouterr().err
    assert load_run(tmp_path / "run").trials == ()
