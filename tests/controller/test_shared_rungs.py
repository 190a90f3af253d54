"""Rungs of shared weights on paper: what a study may ask for, what the budget counts, and that old runs still load."""

from __future__ import annotations

import dataclasses
import json
import sqlite3

import pytest
import sharing
import tiny
import yaml
from audited_run import write_run
from synthetic_run import complete, run_of

from kdnas.audit.sample import scoring_configs
from kdnas.cli.main import main
from kdnas.controller.stopping import full_trainings, spent_by
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY
from kdnas.errors import ConfigError, RunFolderError
from kdnas.record.front import comparable, hypervolume_over_time
from kdnas.record.lock import DataDescription, Lock, SupernetRecord, read_lock, refuse_another_study, write_lock
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.storage import load_run
from kdnas.study.config import Budget, StudyConfig, SupernetConfig
from kdnas.study.loading import load_study

SHARED = Fidelity(0, 1.0, "shared")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sharing.write(tmp_path_factory.mktemp("study"))


def problems(folder, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_study(folder, overrides)
    return [str(problem) for problem in caught.value.problems]


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fidelity", "words", "reached"),
    [
        (Fidelity(6), "6 epochs", "after 6 epochs"),
        (Fidelity(1, 0.25), "1 epoch of 25 % of the data", "after 1 epoch of 25 % of the data"),
        (SHARED, "shared weights", "with shared weights"),
        (Fidelity(2, 1.0, "shared"), "2 epochs from shared weights", "after 2 epochs from shared weights"),
    ],
)
def test_a_fidelity_in_words(fidelity, words, reached):
    assert (fidelity.words, fidelity.reached) == (words, reached)
    assert Fidelity(**fidelity.as_dict()) == fidelity


def test_a_fidelity_that_does_not_say_whose_the_weights_are_is_of_the_students_own():
    assert Fidelity(**{"epochs": 3, "data_fraction": 0.5}) == Fidelity(3, 0.5, "own")
    assert Fidelity(3, 0.5).key == "3x0.5"
    assert Fidelity(3, 0.5, "shared").key != "3x0.5"


# -- what a study may ask for -----------------------------------------------------------------------------------------


def test_rungs_name_their_evaluators_and_the_finalists_start_from_scratch(folder):
    config = sharing.load(folder).config
    assert config.rung_evaluators == ("supernet", "finetune", "scratch")
    assert config.evaluators == ("scratch", "supernet", "finetune")
    assert config.training.epochs == 2
    assert config.fidelities == (SHARED, Fidelity(1, 0.3, "shared"), Fidelity(2, 0.3))
    alone = load_study(folder, ["evaluator=supernet"]).config
    assert alone.fidelities == (SHARED,)
    assert alone.final_evaluator == "scratch"
    assert alone.final_fidelity == Fidelity(5)
    assert alone.supernet.epochs == 20
    assert load_study(folder).config.supernet is None


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        (
            "[{evaluator: scratch, epochs: 1}, {evaluator: supernet}, {epochs: 3}]",
            "rungs.1.evaluator: scores of shared",
        ),
        ("[{evaluator: supernet, epochs: 2}, {epochs: 3}]", "rungs.0.epochs: a score of shared weights trains no stud"),
        ("[{evaluator: supernet, data_fraction: 0.5}, {epochs: 3}]", "rungs.0.data_fraction: a score of shared weight"),
        ("[{evaluator: supernet}, {evaluator: finetune}]", "rungs.1.epochs: is required"),
        ("[{evaluator: supernett}, {epochs: 3}]", "rungs.0.evaluator: no evaluator is called 'supernett'"),
        ("[{evaluator: table}, {epochs: 3}]", "rungs.0.evaluator: table must be told more (file, key, values,"),
        (
            "[{evaluator: finetune, epochs: 3}, {epochs: 3}]",
            "rungs.1: 3 epochs after 3 epochs from shared weights: each",
        ),
    ],
)
def test_rungs_that_cannot_be_are_refused_at_their_line(folder, rungs, message):
    (found,) = problems(folder, f"rungs={rungs}")
    assert message in found


def test_everything_that_is_wrong_with_rungs_is_told_at_once(folder):
    found = problems(
        folder,
        "rungs=[{epochs: 1}, {evaluator: supernet, epochs: 1}, {evaluator: finetune}]",
        "final.evaluator=supernet",
    )
    assert [one.split(": ")[1] for one in found] == [
        "rungs.1.epochs",
        "rungs.1.evaluator",
        "rungs.2.epochs",
        "final.evaluator",
    ]
    (tune,) = problems(folder, "evaluator=supernet", "tune={training.learning_rate: {low: 0.01, high: 0.1}}")
    assert "nothing can be tuned by it" in tune


def test_a_family_without_elastic_networks_is_refused(folder, monkeypatch):
    from kdnas.students import STUDENTS, StudentFamily

    monkeypatch.setattr(STUDENTS.get("resnet"), "supernet", StudentFamily.supernet)
    (found,) = problems(folder, "evaluator=finetune")
    assert "students of resnet cannot share weights in a supernet, which the evaluator finetune needs" in found


def test_data_and_teacher_are_required_by_a_rungs_evaluator_too(tmp_path):
    run = write_run(tmp_path)
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(text + "rungs: [{evaluator: supernet}, {epochs: 3}]\n")
    found = problems(tmp_path)
    assert any("data: is required by the evaluator supernet" in one for one in found)
    assert run.config.evaluator.type == "table"


def test_how_many_are_promoted_from_a_rung_that_costs_no_training(folder):
    config = sharing.load(folder).config
    assert config.eta(0) == 8
    assert config.eta(1) == pytest.approx(2.0)
    assert sharing.load(folder, "promotion.eta=4").config.eta(0) == 4
    planned = sharing.load(folder, "budget={full_trainings: 9}").config.expected_trials
    assert planned == round(9 / 3 * (3 * 0.3) / 0.3 * 8)
    assert load_study(folder, ["evaluator=supernet", "budget={full_trainings: 9}"]).config.expected_trials == 100


def test_an_audit_judges_every_rung_and_of_shared_weights_alone_a_brief_training_too(folder):
    def kinds(*overrides):
        return [config.fidelities[-1] for config in scoring_configs(load_study(folder, overrides).config)]

    assert kinds(*sharing.SMALL, sharing.RUNGS) == [SHARED, Fidelity(1, 0.3, "shared"), Fidelity(2, 0.3)]
    assert kinds("evaluator=supernet") == [SHARED, Fidelity(3, 1.0, "shared")]
    assert kinds() == [Fidelity(3)]


# -- accounting -------------------------------------------------------------------------------------------------------


def shared_run(**prepared):
    trials = [complete(number, 0.5 + number / 20, 40 - number) for number in range(4)]
    fidelities = [SHARED, SHARED, Fidelity(1, 0.5, "shared"), Fidelity(2, 0.5)]
    run = run_of([dataclasses.replace(t, fidelity=f) for t, f in zip(trials, fidelities, strict=True)])
    plain = {
        **run.config.model_dump(mode="json"),
        "rungs": [{"evaluator": "supernet"}, {"evaluator": "finetune", "epochs": 1}, {"epochs": 2}],
        "training": {"epochs": 2, "data_fraction": 0.5},
        "final": {"epochs": 4},
        "budget": {"trials": 10},
    }
    lock = dataclasses.replace(run.lock, supernet=SupernetRecord("f", 8, 0.5, 100.0))
    return dataclasses.replace(run, config=StudyConfig.model_validate(plain), lock=lock)


def test_the_supernets_training_is_counted_and_its_scores_cost_nothing():
    run = shared_run()
    costs = [full_trainings(run.config, fidelity, True) for fidelity in run.config.fidelities]
    assert costs == pytest.approx([0, 0.5 / 4, 1 / 4])
    spent = spent_by(run, True, seconds=7.0)
    assert spent.full_trainings == pytest.approx(0.5 / 4 + 1 / 4 + 4 / 4)
    assert spent.seconds == pytest.approx(107.0)
    assert run.config.budget == Budget(trials=10)


def test_only_scores_from_scratch_stand_on_the_front_and_its_time_begins_with_the_supernet():
    run = shared_run()
    assert [trial.number for trial in comparable(run)] == [3]
    ((number, seconds, _),) = hypervolume_over_time(run)
    assert (number, seconds) == (3, 100.0 + 40.0)


# -- runs from before -------------------------------------------------------------------------------------------------


def without_weights(plain):
    """Return plain data as it was written before a fidelity said whose the weights are."""
    if isinstance(plain, dict):
        gone = {"weights", "prepared", "supernet"} | ({"evaluator"} if "epochs" in plain else set())
        return {key: without_weights(value) for key, value in plain.items() if key not in gone}
    return [without_weights(value) for value in plain] if isinstance(plain, list) else plain


def test_a_run_from_before_weights_were_shared_loads_and_goes_on(tmp_path, capsys):
    rungs = [{"epochs": 3}, {"epochs": 30}]
    run = write_run(tmp_path, rungs=rungs, training={"epochs": 30}, trials=6)
    lock = yaml.safe_load((run.folder / LOCK_FILE).read_text())
    assert "evaluator" in lock["config"]["rungs"][0]
    (run.folder / LOCK_FILE).write_text(yaml.safe_dump(without_weights(lock), sort_keys=False))
    table = "trial_user_attributes"
    with sqlite3.connect(run.folder / "study.db") as database:
        for number, value in database.execute(f"select trial_user_attribute_id, value_json from {table}").fetchall():
            new = json.dumps(without_weights(json.loads(value)))
            database.execute(f"update {table} set value_json = ? where trial_user_attribute_id = ?", (new, number))
    before = load_run(run.folder)
    assert {trial.fidelity for trial in before.trials} == {Fidelity(30)}
    assert before.supernet is None
    command = ["search", str(tmp_path), "--out", str(run.folder), "--data-root", str(tmp_path)]
    assert main([*command, "--set", "budget.trials=9"]) == 0
    after = load_run(run.folder)
    assert after.trials[:6] == tuple(
        dataclasses.replace(trial, repeats=after.trials[place].repeats) for place, trial in enumerate(before.trials)
    )
    assert len(after.trials) == 9
    assert "resuming: 6 trials are done" in capsys.readouterr().out


def test_other_weights_at_a_rung_are_another_study(tmp_path):
    run = write_run(tmp_path, rungs=[{"epochs": 3}, {"epochs": 30}], training={"epochs": 30}, trials=6)
    plain = run.lock.config.model_dump(mode="json")
    plain["rungs"][0]["evaluator"] = "finetune"
    with pytest.raises(RunFolderError, match="rungs.0.weights: own -> shared"):
        refuse_another_study(run.folder, read_lock(run.folder), StudyConfig.model_validate(plain), run.lock.space, {})


def locked(folder, study, **shrinking):
    """Return the lock of `study` as it is read from its file, in which more of `supernet.shrinking` is stated."""
    write_lock(folder, Lock(study.config, study.space, {}, (ACCURACY,), {}, None, DataDescription()))
    plain = yaml.safe_load((folder / LOCK_FILE).read_text())
    if shrinking:
        plain["config"]["supernet"]["shrinking"] |= shrinking
    (folder / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    return read_lock(folder)


def test_a_study_that_shares_no_weights_may_change_what_it_says_of_a_supernet(tmp_path):
    study = load_study(tiny.write(tmp_path))
    supernet = {"supernet": SupernetConfig(epochs=9)}
    refuse_another_study(tmp_path, locked(tmp_path, study), study.config.model_copy(update=supernet), study.space, {})
    study = sharing.load(tmp_path / "tiny")
    with pytest.raises(RunFolderError, match="supernet.epochs: 2 -> 9"):
        refuse_another_study(
            tmp_path, locked(tmp_path, study), study.config.model_copy(update=supernet), study.space, {}
        )


def test_a_run_whose_lock_states_the_options_of_every_policy_goes_on(tmp_path):
    """As earlier versions wrote it."""
    tiny.write(tmp_path)
    study = sharing.load(tmp_path / "tiny", "supernet.shrinking.policy=sandwich")
    others = {"race_share": 0.16, "patience": 2, "unlock_by": "dimension"}
    refuse_another_study(tmp_path, locked(tmp_path, study, **others), study.config, study.space, {})
    other = locked(tmp_path, study, policy="delayed", **others)
    with pytest.raises(RunFolderError, match="supernet.shrinking.policy: delayed -> sandwich"):
        refuse_another_study(tmp_path, other, study.config, study.space, {})
