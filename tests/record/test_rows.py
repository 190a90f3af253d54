"""The rows of a study are Optuna's: its own tools read what is written here, and what they write is seen here."""

from __future__ import annotations

import math

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event

from kdnas.core.objective import ACCURACY
from kdnas.record.database import database_of
from kdnas.record.rows import Rows, queueing, showing
from kdnas.record.storage import Record
from kdnas.record.trials import FIXED_PARAMS

DOMAIN = {
    "width": IntDistribution(8, 64, step=8),
    "kind": CategoricalDistribution(("plain", 0.5, None)),
    "rate": FloatDistribution(0.01, 1.0, log=True),
}
PARAMS = {"width": 16, "kind": 0.5, "rate": 0.1}


def opened(folder) -> tuple[Rows, optuna.Study, str]:
    """Return the rows of a study with one objective, the study on them, and the URL of Optuna's own storage."""
    database = database_of(folder, "s")
    if not database.exists():
        Record.create(database, [ACCURACY])
    rows = database.open(["accuracy"])
    return rows, optuna.Study("s", rows, optuna.samplers.RandomSampler(seed=0)), database.url


def as_optuna_reads(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="s", storage=url).get_trials()


def test_the_names_that_optuna_promises_to_nobody_are_there(tmp_path):
    """Listed in kdnas.record.rows, which was checked with this version."""
    assert optuna.__version__.startswith("5.0.")
    rows, study, url = opened(tmp_path)
    assert isinstance(optuna.storages.RDBStorage(url).engine, sqlalchemy.Engine)
    assert study._storage is rows
    study.enqueue_trial({"depth": 2})
    assert study.trials[0].system_attrs[FIXED_PARAMS] == {"depth": 2}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "NSGAIISampler", "QMCSampler"])
def test_what_is_written_is_what_optuna_reads(sampler, tmp_path):
    rows, study, url = opened(tmp_path)
    study.sampler = getattr(optuna.samplers, sampler)(seed=0)
    study.enqueue_trial({"width": 24}, user_attrs={"by": ["hand"]})
    study.add_trial(
        create_trial(value=math.inf, params=PARAMS, distributions=DOMAIN, intermediate_values={1: -math.inf})
    )
    for number in range(14):
        with rows.at_once():
            trial = study.ask(DOMAIN)
        trial.report(number / 2, step=3)
        with rows.at_once():
            trial.set_user_attr("scores", {"values": {"a": 1.5}, "curve": ((1, 0.5),)})
            trial.set_user_attr("scores", {"values": {"a": number}, "curve": ((1, 0.5),)})
            trial.set_constraint("a<=3", float(number - 3))
            if number % 4 == 3:
                study.tell(trial, state=(TrialState.PRUNED, TrialState.FAIL)[number // 4 % 2])
            else:
                study.tell(trial, number * 0.25)
    study.ask(DOMAIN)  # goes on
    study.set_user_attr("note", {"a": (1, 2)})
    study.set_user_attr("note", "other")
    theirs = as_optuna_reads(url)
    assert study.get_trials() == theirs
    assert opened(tmp_path)[1].get_trials() == theirs  # read anew
    assert len(theirs) == 16
    loaded = optuna.load_study(study_name="s", storage=url)
    assert loaded.user_attrs == study.user_attrs == {"note": "other"}
    assert loaded._storage.get_study_system_attrs(loaded._study_id) == rows.get_study_system_attrs(study._study_id)


def test_a_trial_costs_few_statements(tmp_path):
    """Optuna's own storage makes some eighty of it."""
    rows, study, _ = opened(tmp_path)
    study.tell(study.ask(DOMAIN), 0.0)
    said: list[str] = []
    event.listen(rows.beneath.engine, "before_cursor_execute", lambda *call: said.append(call[2]))
    with rows.at_once():
        trial = study.ask(DOMAIN)
        for key in "abcd":
            trial.set_user_attr(key, key)
    with rows.at_once():
        trial.set_user_attr("scores", {})
        study.tell(trial, 1.0)
    assert len(said) <= 10, said


def test_nothing_of_what_fails_is_written_or_kept(tmp_path):
    rows, study, url = opened(tmp_path)
    running = study.ask(DOMAIN)

    def fails():
        with rows.at_once():
            study.ask(DOMAIN)
            running.set_user_attr("scores", 1)
            study.set_user_attr("note", 1)
            study.tell(running, 1.0)
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the one above
        fails()
    (trial,) = study.get_trials()
    assert (trial.state, trial.user_attrs, trial.values) == (TrialState.RUNNING, {}, None)
    assert study.user_attrs == {}
    assert as_optuna_reads(url) == [trial]
    study.tell(running, 2.0)
    assert study.trials[0].values == [2.0]


def test_what_other_programs_write_is_seen(tmp_path):
    rows, study, url = opened(tmp_path)
    running = study.ask(DOMAIN)
    theirs = optuna.load_study(study_name="s", storage=url)
    theirs.enqueue_trial({"width": 32})
    theirs.enqueue_trial({"width": 40})
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "WAITING", "WAITING"]
    theirs.ask(DOMAIN)  # takes the first that waits
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "RUNNING", "WAITING"]
    assert rows.set_trial_state_values(rows.get_trial_id_from_study_id_trial_number(0, 1), TrialState.RUNNING) is False
    theirs.tell(0, 0.5)
    assert study.get_trials()[0].values == [0.5]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        running.set_user_attr("scores", 1)


def test_a_trial_that_another_program_ends_meanwhile_is_not_ended_twice(tmp_path):
    _, study, url = opened(tmp_path)
    running = study.ask(DOMAIN)
    optuna.load_study(study_name="s", storage=url).tell(0, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError, match="another program has ended trial 0"):
        study.tell(running, 1.0)
    assert study.trials[0].values == [0.5]


def test_lists_that_were_given_out_stay_as_they_were(tmp_path):
    _, study, _ = opened(tmp_path)
    running = study.ask(DOMAIN)
    (before,) = study.get_trials(deepcopy=False)
    running.set_user_attr("scores", 1)
    study.tell(running, 1.0)
    assert (before.state, before.user_attrs, before.values) == (TrialState.RUNNING, {}, None)


def test_a_parameter_of_another_kind_is_refused(tmp_path):
    _, study, _ = opened(tmp_path)
    study.ask(DOMAIN)
    with pytest.raises(ValueError, match="Cannot set different distribution kind"):
        study.ask({"width": FloatDistribution(0.0, 1.0)})


def test_a_view_shows_what_it_is_given_and_writes_through():
    study = optuna.create_study()
    for value in (3.0, 1.0, 2.0):
        study.add_trial(optuna.trial.create_trial(value=value))
    view = showing(study, [study.trials[0]])
    assert [trial.value for trial in view.trials] == [3.0]
    assert view.best_value == 3.0
    assert view.get_trials(states=(optuna.trial.TrialState.FAIL,)) == []
    asked = view.ask()
    asked.set_user_attr("seen", True)
    assert asked.number == 3
    assert study.trials[3].user_attrs == {"seen": True}


def test_the_queue_gives_who_is_asked_for_and_otherwise_nobody():
    study, sampler = optuna.create_study(study_name="s"), optuna.samplers.RandomSampler(seed=0)
    for depth in (1, 2, 3):
        study.enqueue_trial({"depth": depth})
    domain = {"depth": optuna.distributions.IntDistribution(1, 9)}
    second = queueing("s", study._storage, 1, sampler).ask(domain)
    assert (second.number, second.params) == (1, {"depth": 2})
    assert queueing("s", study._storage, None, sampler).ask(domain).number == 3
    assert [trial.state.name for trial in study.trials] == ["WAITING", "RUNNING", "WAITING", "RUNNING"]


def test_notes_and_trials_come_in_the_order_in_which_they_were_written(tmp_path):
    _, study, _ = opened(tmp_path)
    for key in ("b/2", "a/1", "c/0", "a/10"):
        study.set_user_attr(key, key)
    study.set_user_attr("b/2", "again")
    for _ in range(3):
        study.ask(DOMAIN)
    study.tell(1, 0.5)
    _, again, _ = opened(tmp_path)
    assert list(again.user_attrs) == list(study.user_attrs) == ["b/2", "a/1", "c/0", "a/10"]
    assert [trial.number for trial in again.trials] == [0, 1, 2]
