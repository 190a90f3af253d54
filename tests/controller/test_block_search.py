"""A search by a block library, on the real digits, and the same library asked for other budgets."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny

import kdnas
from kdnas.cli.main import main
from kdnas.core.objective import Constraint
from kdnas.errors import ConfigError
from kdnas.session import search_study
from kdnas.study.loading import load_study
from kdnas.workshop.block_library import saved_library
from kdnas.workshop.run_files import LIBRARY_FILE

STUDY = (
    tiny.STUDY.replace("stem_width: 8, stage1.depth: 1", "stem_width: 16, stage1.depth: 3")
    .replace(
        "space: space.yaml",
        "space: {derive: teacher, granularity: block, round_to: 2, width: 1, inner: [0.25, 0.5, 1]}",
    )
    .replace("seeds: 2, epochs: 5", "seeds: 1, epochs: 1")
    .replace("formats: [safetensors, student_json]", "formats: []")
)
SETTINGS = ("sampler=blocks", "blocks.samples=128", "sampler.members=6", "budget.trials=3")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "study.yaml").write_text(STUDY)
    return folder


def searched(study, *settings, run="run", said=None):
    told = said.append if said is not None else lambda event: None
    return search_study(load_study(study, (*SETTINGS, *settings)), study / run, data_root=study, observe=told)


@pytest.fixture(scope="module")
def run(study):
    return searched(study)


def test_the_first_trials_are_the_solved_front(run):
    library = saved_library(run.folder)
    front = library.front("macs", run.limits, count=6)
    predicted = {solved.costs["macs"] for solved in front}
    assert len(run.trials) == 3
    assert {trial.values["macs"] for trial in run.trials} <= predicted
    assert run.trials[0].values["macs"] == front[len(front) // 2].costs["macs"]
    for trial in run.trials:
        assert library.price(trial.arch.choices) == {name: trial.values[name] for name in ("macs", "params")}


def test_a_larger_cut_loses_more_and_the_whole_teacher_nothing(run):
    library = saved_library(run.folder)
    whole = {name: max(values) for name, values in library.choices.items()}
    assert library.loss(whole) == pytest.approx(0.0, abs=1e-4)
    smallest = {name: min(values) for name, values in library.choices.items()}
    assert library.loss(smallest) > library.loss(
        {**whole, "stage1.block1.inner": min(library.choices["stage1.block1.inner"])}
    )


@pytest.mark.slow
def test_a_stopped_library_goes_on_and_is_the_same(run, study):
    whole = json.loads((run.folder / LIBRARY_FILE).read_text())
    begun = study / "stopped"
    shutil.copytree(run.folder, begun)
    part = {**whole, "whole": False, "entries": [e for e in whole["entries"] if e["block"] in ("", "stages.0.0")]}
    (begun / LIBRARY_FILE).write_text(json.dumps(part))
    said = []
    searched(study, "budget.trials=4", run="stopped", said=said)
    assert any("going on with the block library" in str(event) for event in said)
    again = json.loads((begun / LIBRARY_FILE).read_text())
    assert (again["entries"], again["whole"]) == (whole["entries"], True)
    (begun / LIBRARY_FILE).write_text("{")  # damaged: it is made anew
    searched(study, "budget.trials=5", run="stopped")
    assert json.loads((begun / LIBRARY_FILE).read_text())["entries"] == whole["entries"]


def test_another_budget_is_solved_without_training(run, capsys):
    capsys.readouterr()
    assert main(["front", str(run.folder), "--solve", "macs<=60%", "--json"]) == 0
    members = json.loads(capsys.readouterr().out)
    library, most = saved_library(run.folder), 0.6 * run.lock.teacher.values["macs"]
    assert members[-1]["macs"] <= most
    assert members[-1]["block_loss"] == pytest.approx(library.solve([Constraint("macs", "<=", most)]).loss)
    solved = kdnas.load_run(run.folder).solve("macs<=60%")  # what the command shows
    assert [member["choices"] for member in members] == [dict(one.assignment) for one in solved]
    assert main(["front", str(run.folder), "--solve", "macs<=60%"]) == 0
    assert f"{members[0]['macs']:,.0f}" in capsys.readouterr().out


@pytest.mark.slow
def test_what_it_solved_can_be_scored_first(run, study, tmp_path, capsys):
    capsys.readouterr()
    main(["front", str(run.folder), "--solve", "params<=50%", "--json"])
    chosen = json.loads(capsys.readouterr().out)[0]
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps([chosen]))
    copy = study / "queued"
    shutil.copytree(run.folder, copy)
    command = ["search", str(copy), "--enqueue", str(mine), "--trials", "4", "--data-root", str(study)]
    assert main(command) == 0
    record = searched(study, "budget.trials=4", run="queued")
    assert chosen["params"] in [trial.values["params"] for trial in record.trials]


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ("macs<=1", "no student is within macs<=1: the least is"),
        ("latency_ms<=2", "latency_ms is no sum over blocks"),
        ("macs of 3", "is not a bound such as"),
    ],
)
def test_bounds_that_cannot_be_solved_are_told(run, bound, message, capsys):
    capsys.readouterr()
    assert main(["front", str(run.folder), "--solve", bound]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_library_says_how_to_make_one(run, study, capsys):
    copy = study / "without"
    shutil.copytree(run.folder, copy)
    (copy / LIBRARY_FILE).unlink()
    capsys.readouterr()
    assert main(["front", str(copy), "--solve", "macs<=50%"]) == 2
    assert "has no block library" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("space.inner=1", "space.depth=3", "space.width=[0.5, 1]"),
            "nothing that is searched (stage1.width) lies inside",
        ),
        (("data.validation_fraction=0.25", "blocks.samples=4"), "blocks.samples"),
    ],
)
def test_studies_without_a_library_are_refused_in_one_line(study, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        searched(study, *settings, run=f"refused{len(message)}")


def test_students_that_are_not_made_of_blocks_are_refused_on_paper(study):
    with pytest.raises(ConfigError, match="students of resnet are not made of those"):
        load_study(study, (*SETTINGS, "space=digits_resnet"))
