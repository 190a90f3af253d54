"""Starts on paper: what a study may ask for, what the budget counts, and that old studies and runs still load."""

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

SHARED = Fidelity(0, 1.0, "supernet")
CUT = ("start=supernet", "rungs=[{epochs: 0}]")
"""What scores students as they are cut out of the supernet."""


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
        (Fidelity(2, 1.0, "supernet"), "2 epochs from shared weights", "after 2 epochs from shared weights"),
    ],
)
def test_a_fidelity_in_words(fidelity, words, reached):
    assert (fidelity.words, fidelity.reached) == (words, reached)
    assert Fidelity.from_dict(fidelity.as_dict()) == fidelity


def test_a_fidelity_that_does_not_say_whose_the_weights_are_is_of_the_students_own():
    assert Fidelity.from_dict({"epochs": 3, "data_fraction": 0.5, "weights": "own"}) == Fidelity(3, 0.5)
    assert Fidelity.from_dict({"epochs": 0, "weights": "shared"}) == SHARED
    with pytest.raises(ValueError, match="start is 'odd'"):
        Fidelity.from_dict({"epochs": 1, "start": "odd"})
    assert Fidelity(3, 0.5).key == "3x0.5"
    assert Fidelity(3, 0.5, "supernet").key != "3x0.5"


# -- what a study may ask for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rungs=[{evaluator: supernet, start: random}, {epochs: 3}]"], "rungs.0.evaluator: unknown key"),
        (["rungs=[{evaluator: {type: supernet}}, {epochs: 3}]"], "rungs.0.evaluator: unknown key"),
        (["final={evaluator: finetune, start: random, epochs: 2}"], "final.evaluator: unknown key"),
        (["evaluator=supernet", "start=random"], "evaluator.type: "),
    ],
)
def test_an_evaluator_of_old_beside_another_start_is_refused(folder, overrides, expected):
    assert any(expected in problem for problem in problems(folder, *overrides))


EARLIER = [
    (
        ("rungs=[{evaluator: supernet}, {evaluator: finetune, epochs: 1}, {evaluator: scratch, epochs: 3}]",),
        ("rungs=[{start: supernet}, {start: supernet, epochs: 1}, {epochs: 3}]",),
    ),
    (("evaluator=supernet",), ("start=supernet", "rungs=[{epochs: 0}]")),
    (("evaluator=scratch", "final.evaluator=scratch"), ("final.start=random",)),
    (
        ("evaluator={type: finetune}", "rungs=[{epochs: 1}, {epochs: 3}]", "final.evaluator=finetune"),
        ("start=supernet", "rungs=[{epochs: 1}, {epochs: 3}]", "final.start=supernet"),
    ),
]


@pytest.mark.parametrize(("earlier", "now"), EARLIER)
def test_evaluators_of_earlier_versions_read_as_starts(folder, earlier, now):
    was, is_now = load_study(folder, earlier).config, load_study(folder, now).config
    assert was.model_dump() == {**is_now.model_dump(), "rungs": was.model_dump()["rungs"]}
    assert (was.fidelities, was.final_fidelity) == (is_now.fidelities, is_now.final_fidelity)
    assert StudyConfig.model_validate(was.model_dump(mode="json")) == was


def test_rungs_say_where_they_begin_and_the_finalists_start_from_scratch(folder):
    config = sharing.load(folder).config
    assert config.starts == {"random", "supernet"}
    assert config.training.epochs == 2
    assert config.fidelities == (SHARED, Fidelity(1, 0.3, "supernet"), Fidelity(2, 0.3))
    alone = load_study(folder, ["start=supernet", "rungs=[{epochs: 0}]"]).config
    assert alone.fidelities == (SHARED,)
    assert alone.final_fidelity == Fidelity(5)
    assert alone.supernet.epochs == 20
    assert load_study(folder).config.supernet is None
    inherited = load_study(folder, ["start=inherited"]).config
    assert (inherited.fidelities, inherited.final_fidelity.start) == ((Fidelity(3, 1.0, "inherited"),), "inherited")
    assert not inherited.shares_weights


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ("[{epochs: 1}, {start: supernet}, {epochs: 3}]", "rungs.1: scores without training can only be the lowest"),
        ("[{start: supernet, data_fraction: 0.5}, {epochs: 3}]", "rungs.0.data_fraction: a score of weights as they"),
        ("[{epochs: 0}, {epochs: 3}]", "rungs.0.epochs: random weights are no student: they need training"),
        ("[{data_fraction: 0.5}, {epochs: 3}]", "rungs.0.epochs: is required"),
        ("[{evaluator: supernet}, {evaluator: finetune}]", "rungs.1.evaluator: unknown key"),
        ("[{evaluator: table}, {epochs: 3}]", "rungs.0.evaluator: unknown key"),
        ("[{start: supernett}, {epochs: 3}]", "rungs.0.start: must be 'random', 'inherited' or 'supernet'"),
        (
            "[{start: supernet, epochs: 3}, {epochs: 3}]",
            "rungs.1: 3 epochs after 3 epochs from shared weights: each",
        ),
    ],
)
def test_rungs_that_cannot_be_are_refused_at_their_line(folder, rungs, message):
    (found,) = problems(folder, f"rungs={rungs}")
    assert message in found


def test_everything_that_is_wrong_with_rungs_is_told_at_once(folder):
    found = problems(folder, "rungs=[{epochs: 1}, {start: supernet, data_fraction: 1}, {}]", "final.evaluator=supernet")
    printed = {"rungs.1.data_fraction", "rungs.1", "rungs.2.epochs", "final.evaluator"}
    assert {one.split(": ")[1] for one in found} == printed
    (tune,) = problems(
        folder, "start=supernet", "rungs=[{epochs: 0}]", "tune={training.learning_rate: {low: 0.01, high: 0.1}}"
    )
    assert "nothing can be tuned by it" in tune


def test_only_distil_begins_from_other_weights(tmp_path):
    write_run(tmp_path)
    (found,) = problems(tmp_path, "final.start=inherited")
    assert "final.start: the evaluator table begins from no weights of kdnas's" in found


def test_a_family_without_elastic_networks_is_refused(folder, monkeypatch):
    from kdnas.students import STUDENTS, StudentFamily

    monkeypatch.setattr(STUDENTS.get("resnet"), "supernet", StudentFamily.supernet)
    (found,) = problems(folder, "start=supernet")
    assert "students of resnet cannot share weights in a supernet, which the start supernet needs" in found


def test_a_family_for_another_kind_of_work_is_refused(folder):
    (found,) = problems(folder, "space=texts_gpt")
    assert "space: students of gpt are for language_modelling, the study is one of image_classification" in found


def test_transformers_have_no_supernet_yet(folder):
    (found,) = problems(folder, "space=digits_vit", "start=supernet")
    assert "students of vit cannot share weights in a supernet" in found


def test_how_many_are_promoted_from_a_rung_that_costs_no_training(folder):
    config = sharing.load(folder).config
    assert config.eta(0) == 8
    assert config.eta(1) == pytest.approx(2.0)
    assert sharing.load(folder, "promotion.eta=4").config.eta(0) == 4
    planned = sharing.load(folder, "budget={full_trainings: 9}").config.expected_trials
    assert planned == round(9 / 3 * (3 * 0.3) / 0.3 * 8)
    assert load_study(folder, [*CUT, "budget={full_trainings: 9}"]).config.expected_trials == 100


def test_an_audit_judges_every_rung_and_of_shared_weights_alone_a_brief_training_too(folder):
    def kinds(*overrides):
        return [config.fidelities[-1] for config in scoring_configs(load_study(folder, overrides).config)]

    assert kinds(*sharing.SMALL, sharing.RUNGS) == [SHARED, Fidelity(1, 0.3, "supernet"), Fidelity(2, 0.3)]
    assert kinds(*CUT) == [SHARED, Fidelity(3, 1.0, "supernet")]
    assert kinds() == [Fidelity(3)]


# -- accounting -------------------------------------------------------------------------------------------------------


def shared_run(**prepared):
    trials = [complete(number, 0.5 + number / 20, 40 - number) for number in range(4)]
    fidelities = [SHARED, SHARED, Fidelity(1, 0.5, "supernet"), Fidelity(2, 0.5)]
    run = run_of([dataclasses.replace(t, fidelity=f) for t, f in zip(trials, fidelities, strict=True)])
    plain = {
        **run.config.model_dump(mode="json"),
        "rungs": [{"start": "supernet"}, {"start": "supernet", "epochs": 1}, {"epochs": 2}],
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
    """Return plain data as it was written before a fidelity said where its weights came from."""
    if isinstance(plain, dict):
        gone = {"start", "prepared", "supernet"}
        return {key: without_weights(value) for key, value in plain.items() if key not in gone}
    return [without_weights(value) for value in plain] if isinstance(plain, list) else plain


def test_a_run_from_before_weights_were_shared_loads_and_goes_on(tmp_path, capsys):
    rungs = [{"epochs": 3}, {"epochs": 30}]
    run = write_run(tmp_path, rungs=rungs, training={"epochs": 30}, trials=6)
    lock = yaml.safe_load((run.folder / LOCK_FILE).read_text())
    assert "start" in lock["config"]["rungs"][0]
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
    plain["rungs"][0]["start"] = "supernet"
    with pytest.raises(RunFolderError, match="rungs.0.start: random -> supernet"):
        refuse_another_study(run.folder, read_lock(run.folder), StudyConfig.model_validate(plain), run.lock.space, {})


@pytest.mark.parametrize(("earlier", "now"), EARLIER)
def test_runs_begun_with_evaluators_of_earlier_versions_go_on(folder, tmp_path, earlier, now):
    study = load_study(folder, now)
    locked(tmp_path, study)
    plain = yaml.safe_load((tmp_path / LOCK_FILE).read_text())
    config = plain["config"]
    del config["start"]
    for section in (config["final"], *config["rungs"]):
        del section["start"]
    config |= {"evaluator": {"type": "scratch"}, "rungs": [{**rung, "evaluator": None} for rung in config["rungs"]]}
    for text in earlier:
        key, _, value = text.partition("=")
        section, inner = (config["final"], "evaluator") if key == "final.evaluator" else (config, key)
        section[inner] = yaml.safe_load(value)
    if not any(text.startswith("rungs=") for text in earlier):
        config["rungs"] = []
    (tmp_path / LOCK_FILE).write_text(yaml.safe_dump(plain, sort_keys=False))
    refuse_another_study(tmp_path, read_lock(tmp_path), study.config, study.space, {})


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
