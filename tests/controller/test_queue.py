"""Trials that others put into the record: queued ones are trained or refused in words, scored ones stand aside."""

from __future__ import annotations

import contextlib
import sqlite3

import optuna
import pytest
import scored_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from kdnas.controller.queue import queued_values
from kdnas.core.arch import Arch
from kdnas.core.space import Choice, SearchSpace
from kdnas.errors import ConfigError
from kdnas.record.database import database_url
from kdnas.record.storage import load_run

DOMAIN = {
    "a": IntDistribution(2, 8, step=2),
    "skip": CategoricalDistribution(("none", "identity")),
    "inner": CategoricalDistribution(("plain", 0.5, True, 4)),
    "training.learning_rate": FloatDistribution(0.01, 0.2, log=True),
}
SPACE = SearchSpace("s", "", (Choice("a", (2, 4, 6, 8)),), fixed={"stem": 16})


@pytest.mark.parametrize(
    ("fixed", "values"),
    [
        ({}, {}),
        ({"a": 4.0, "skip": "none"}, {"a": 4, "skip": "none"}),
        ({"inner": True}, {"inner": True}),
        ({"inner": 4.0, "stem": 16}, {"inner": 4}),
        ({"training.learning_rate": 0.2}, {"training.learning_rate": 0.2}),
    ],
)
def test_what_a_queued_trial_states_is_spelled_as_the_space_spells_it(fixed, values):
    read = queued_values(fixed, SPACE, DOMAIN)
    assert read == values
    assert [type(value) for value in read.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"a": 3}, r"a: has no value 3 \(allowed: 2 to 8 in steps of 2\)"),
        ({"a": 10}, "a: has no value 10"),
        ({"a": "4"}, "a: has no value '4'"),
        ({"a": True}, "a: has no value True"),
        ({"a": float("nan")}, "a: has no value nan"),
        ({"a": None}, "a: has no value None"),
        ({"inner": 1}, r"inner: has no value 1 \(allowed: plain, 0.5, True, 4\)"),
        ({"training.learning_rate": 1}, "0.01 to 0.2"),
        ({"depth": 3}, r"depth: is no choice of the space \(allowed: a, skip, inner, training.learning_rate, stem\)"),
        ({"stem": 8}, r"stem: has no value 8 \(allowed: 16\)"),
    ],
)
def test_what_the_space_does_not_have_is_refused(fixed, message):
    with pytest.raises(ConfigError, match=message):
        queued_values(fixed, SPACE, DOMAIN)


@contextlib.contextmanager
def database(run):
    with contextlib.closing(sqlite3.connect(run / "study.db")) as rows, rows:
        yield rows


def opened(run) -> optuna.Study:
    return optuna.load_study(study_name="scored", storage=database_url(run / "study.db"))


def test_queued_trials_are_trained_completed_or_refused_by_the_next_search(scored_search, tmp_path):
    study, run = scored_study.write(tmp_path, constraints=["macs<=15000"]), tmp_path / "run"
    assert scored_search(study)[0] == 0
    first = load_run(run).trials[0].arch.choices
    for values in (
        {"a": 7, "b": 7},
        {"a": 8},
        first,
        {"a": 8, "b": 8},
        {"a": 99, "b": 1},
        {"c": 1},
        {},
        {"a": 7.0, "b": 7},
    ):
        opened(run).enqueue_trial(values)
    code, stdout, _ = scored_search(study)
    assert code == 0
    assert "8 queued trials left waiting for a larger budget" in stdout
    assert len(load_run(run).others) == 8
    code, stdout, stderr = scored_search(run, "--trials", 6)
    assert code == 0, stderr
    trials = {trial.number: trial for trial in load_run(run).trials}
    assert trials.keys() == {0, 1, 2, 3, 4, 9}  # the queue's own numbers
    assert trials[3].arch.choices == {"a": 7, "b": 7}
    assert trials[4].arch.choices["a"] == 8
    assert all(trial.state == "complete" and trial.values["macs"] <= 15000 for trial in trials.values())
    left_out = {other.number: other.reason for other in load_run(run).others}
    assert left_out.keys() == {5, 6, 7, 8, 10}
    for number, words in {
        5: "the student of trial 0",
        6: "it breaks macs<=15000",
        7: "a: has no value 99",
        8: "c: is no choice",
        10: "the student of trial 3",
    }.items():
        assert words in left_out[number]
        assert words in stdout
    assert "the student of trial 3" in (run / "report.html").read_text()


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "hvi"])
def test_a_trial_that_another_tool_added_is_shown_and_teaches_no_sampler(scored_search, tmp_path, sampler):
    study, run = scored_study.write(tmp_path, sampler=sampler), tmp_path / "run"
    assert scored_search(study)[0] == 0
    record = opened(run)
    trial = optuna.trial.create_trial
    record.add_trial(trial(params={"a": 8}, distributions={"a": IntDistribution(1, 8)}, values=[2.0, -5.0]))
    record.add_trial(trial(params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, values=[float("inf"), 0.0]))
    record.add_trial(trial(state=optuna.trial.TrialState.FAIL))
    code, stdout, stderr = scored_search(study, "--trials", 5)
    assert code == 0, stderr
    assert "trial 3: another tool added it" in stdout
    numbers = [trial.number for trial in load_run(run).trials]
    assert numbers == [0, 1, 2, 6, 7]
    assert [other.number for other in load_run(run).others] == [3, 4, 5]


def test_who_was_interrupted_and_is_queued_too_is_trained_once(scored_search, tmp_path):
    study, run = scored_study.write(tmp_path), tmp_path / "run"
    assert scored_search(study)[0] == 0
    record, done = opened(run), load_run(run).trials[0]
    arch = Arch.of(done.arch.family, {"a": 8, "b": 7})
    lost = record.ask({"a": IntDistribution(1, 8), "b": IntDistribution(1, 8)})
    with database(run) as rows:
        rows.execute("delete from trial_params where trial_id = 4")
        for name, value in arch.choices.items():
            rows.execute(
                "insert into trial_params (trial_id, param_name, param_value, distribution_json) values (4, ?, ?, ?)",
                (name, value, distribution_to_json(IntDistribution(1, 8))),
            )
    for name, value in {**record.trials[0].user_attrs, "arch_id": arch.arch_id, "arch": arch.canonical_json}.items():
        if name != "result":
            lost.set_user_attr(name, value)
    record.enqueue_trial(arch.choices)
    assert scored_search(study, "--trials", 4)[0] == 0
    assert [trial.state for trial in load_run(run).trials if trial.arch == arch] == ["interrupted", "complete"]
