"""The loop on the real digits: reproducible, resumable, honest about failures, and the front it earns."""

from __future__ import annotations

import dataclasses
import math
import os
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from optuna.exceptions import StorageInternalError

from kdnas.controller.events import Ready, RepeatEnded, SearchEnded, StudyEnded, TrialEnded, TrialStarted
from kdnas.controller.preparation import prepare_study
from kdnas.controller.retraining import Retraining
from kdnas.controller.runner import Search
from kdnas.core.measurement import Measurement
from kdnas.errors import ConfigError, RunFolderError, TeacherError, TrialError
from kdnas.record.front import front
from kdnas.record.lock import read_lock, write_lock
from kdnas.record.run_folder import controller_lock
from kdnas.record.storage import load_run
from kdnas.report.searched import tuned_in_words
from kdnas.study.loading import load_study
from kdnas.study.spaces import arch_of
from kdnas.workshop.jobs import search_job

SCORE_COLUMNS = ("number", "arch", "state", "fidelity", "tuned", "values", "reason")


def prepare(study, folder, *overrides, observe=lambda event: None):
    return prepare_study(
        load_study(study, overrides),
        folder,
        data_root=Path("nowhere"),
        cache=Path(os.environ["KDNAS_CACHE"]),
        device=torch.device("cpu"),
        observe=observe,
    )


def search(study, folder, *overrides, observe=lambda event: None):
    with controller_lock(folder):
        return Search(prepare(study, folder, *overrides, observe=observe), observe).run()


def table(run):
    return [tuple(getattr(trial, name) for name in SCORE_COLUMNS) for trial in run.trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole search of the tiny study, and every event it told."""
    study = tiny.write(tmp_path_factory.mktemp("study"))
    events = []
    run = search(study, tmp_path_factory.mktemp("runs") / "a", observe=events.append)
    return study, run, events


def test_the_budget_is_spent_and_every_student_is_new(finished):
    _, run, _ = finished
    assert Counter(trial.state for trial in run.trials) == {"complete": 4}
    assert len({trial.arch.arch_id for trial in run.trials}) == 4
    assert run.finished == "the budget of 4 trials is spent"


def test_scores_are_learned_and_carry_their_fidelity(finished):
    _, run, _ = finished
    for trial in run.trials:
        assert trial.fidelity.epochs == 3
        assert 0 < trial.values["accuracy"] <= 1
        assert trial.train_seconds > 0
    # Three epochs of ten-class digits already beats chance by far for the better half.
    assert max(trial.values["accuracy"] for trial in run.trials) > 0.2


def test_the_front_is_retrained_with_every_seed_and_tested(finished):
    _, run, _ = finished
    members = front(run)
    assert 1 <= len(members) <= 2
    for member in members:
        assert [repeat.seed for repeat in member.trial.repeats] == [0, 1]
        assert all(repeat.fidelity.epochs == 5 for repeat in member.trial.repeats)
        assert all((run.folder / "checkpoints" / repeat.checkpoint).is_file() for repeat in member.trial.repeats)
        assert member.score_ci95 is not None
        assert 0 <= member.test_score <= 1
    assert run.teacher.test_score is not None


def test_the_test_split_is_not_used_by_search_trials(finished):
    _, run, _ = finished
    assert all("test_accuracy" not in trial.values for trial in run.trials)


def test_events_tell_the_story_in_order(finished):
    _, _, events = finished
    kinds = [type(event) for event in events if not isinstance(event, Ready)]
    kinds = [kind for kind in kinds if kind.__name__ != "Note"]
    assert kinds.count(TrialStarted) == kinds.count(TrialEnded) == 4
    assert kinds.index(SearchEnded) > max(i for i, kind in enumerate(kinds) if kind is TrialEnded)
    assert kinds.count(RepeatEnded) == next(e.retrainings for e in events if isinstance(e, SearchEnded)) > 0
    assert kinds[-1] is StudyEnded


def test_the_lock_says_what_ran(finished):
    _, run, _ = finished
    lock = yaml.safe_load((run.folder / "study.lock.yaml").read_text())
    assert lock["data"].pop("statistics").keys() == {"channel_mean", "channel_std"}
    task = lock["data"].pop("task")
    assert task["kind"] == "image_classification"
    assert task["inputs"] == [{"name": "pixels", "shape": [1, 8, 8], "kind": "pixels", "levels": 256}]
    assert lock["data"] == {
        "name": "digits",
        "class_names": [str(digit) for digit in range(10)],
        "training_samples": 1079,
        "validation_samples": 359,
        "test_samples": 359,
        "validation_stated": False,
    }
    assert len(lock["teacher_answers"]) == 32
    assert lock["teacher"]["outputs"] == "logits"
    assert lock["reference_point"].keys() == {"accuracy", "macs"}
    assert 0.09 < lock["reference_point"]["accuracy"] < 0.12  # the largest of ten nearly even classes
    assert lock["machine"]["packages"]["optuna"].startswith("5.")


def test_running_it_again_does_nothing(finished):
    study, run, _ = finished
    events = []
    again = search(study, run.folder, observe=events.append)
    assert table(again) == table(run)
    ended = events[-1]
    assert (ended.new_trials, ended.new_repeats) == (0, 0)
    assert not any(isinstance(event, TrialStarted) for event in events)


def test_the_same_seed_gives_the_same_table_and_another_seed_another(finished, tmp_path):
    study, run, _ = finished
    assert table(search(study, tmp_path / "again", "final.seeds=1")) == table(run)
    other = search(study, tmp_path / "other", "final.seeds=1", "seed=1", "budget.trials=2")
    assert table(other) != table(run)[:2]


def test_a_larger_budget_continues(finished, tmp_path):
    study, run, _ = finished
    short = search(study, tmp_path / "b", "budget.trials=2", "final.seeds=1")
    assert table(short) == table(run)[:2]
    reasons = []

    def ended(event):
        if isinstance(event, TrialEnded):
            reasons.append(event.run.finished)

    assert table(search(study, tmp_path / "b", "budget.trials=4", "final.seeds=1", observe=ended)) == table(run)
    assert reasons == ["", ""]  # while it goes on, the record does not say that it is over


def test_a_controller_that_died_is_continued_and_its_trials_run_again(finished, tmp_path):
    study, run, _ = finished
    folder = tmp_path / "c"

    class Died(Exception):
        pass

    def die(event):
        if isinstance(event, TrialStarted) and event.number == 2:
            raise Died

    opened_ids = []
    with controller_lock(folder):
        opened = prepare(study, folder)
        stopped = Search(opened, die)
        # A killed process closes nothing: the trial stays running in the record.
        stopped._drop = lambda reason: opened_ids.append(reason)
        with pytest.raises(Died):
            stopped.run()
    assert [trial.state for trial in load_run(folder).trials] == ["complete", "complete", "running"]
    continued = search(study, folder)
    assert [trial.state for trial in continued.trials] == [
        "complete",
        "complete",
        "interrupted",
        "complete",
        "complete",
    ]
    assert continued.trials[2].arch == continued.trials[3].arch == run.trials[2].arch
    assert {t.arch.arch_id: t.values["accuracy"] for t in continued.trials if t.state == "complete"}.items() >= {
        t.arch.arch_id: t.values["accuracy"] for t in run.trials[:3]
    }.items()


def test_ctrl_c_closes_what_runs(finished, tmp_path):
    study, _, _ = finished
    folder = tmp_path / "d"

    def interrupt(event):
        if isinstance(event, TrialStarted) and event.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(study, folder, observe=interrupt)
    assert [trial.state for trial in load_run(folder).trials] == ["complete", "interrupted"]


def test_a_search_that_was_stopped_ends_as_an_undisturbed_one(tiny_study, tmp_path):
    settings = ("training.epochs=1", "budget.trials=3", "final.seeds=1", "final.max_students=1", "final.control=false")
    undisturbed = search(tiny_study, tmp_path / "undisturbed", *settings)

    def interrupt(event):
        if isinstance(event, TrialStarted) and event.number == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny_study, tmp_path / "stopped", *settings, observe=interrupt)
    stopped = search(tiny_study, tmp_path / "stopped", *settings)
    assert [trial.number for trial in stopped.trials if trial.state == "interrupted"] == [0]
    scored = [row[1:] for row in table(stopped) if row[2] != "interrupted"]
    assert scored == [row[1:] for row in table(undisturbed)]


def test_failing_trainings_are_recorded_and_the_search_goes_on(tiny_study, tmp_path):
    run = search(tiny_study, tmp_path / "r", "training.learning_rate=100", "training.weight_decay=10")
    assert Counter(trial.state for trial in run.trials) == {"failed": 4}
    assert all("loss became" in trial.reason for trial in run.trials)
    assert front(run) == ()


def test_a_time_limit_stops_a_trial(tiny_study, tmp_path):
    run = search(tiny_study, tmp_path / "r", "training.epochs=2000", "budget.trial_time_limit_s=1.5", "budget.trials=1")
    assert run.trials[0].state == "failed"
    assert "time limit of 1.5 s" in run.trials[0].reason


def test_cheap_constraints_are_met_by_every_proposal(tiny_study, tmp_path):
    run = search(tiny_study, tmp_path / "r", "constraints=[macs<=60e3]", "final.seeds=1")
    assert all(trial.values["macs"] <= 60e3 for trial in run.trials)
    assert run.reference_point["macs"] == 60e3


def test_unmeetable_constraints_end_before_anything_is_written(tiny_study, tmp_path):
    with pytest.raises(ConfigError, match="nearest miss breaks macs"):
        search(tiny_study, tmp_path / "r", "constraints=[macs<=10]")
    assert not (tmp_path / "r").exists()
    with pytest.raises(ConfigError, match="nearest miss breaks peak_memory_bytes"):
        search(tiny_study, tmp_path / "r", "constraints=[peak_memory_bytes<=1]")
    assert not (tmp_path / "r").exists()


def test_a_measured_constraint_refuses_students_without_training_them(tiny_study, tmp_path):
    free = search(tiny_study, tmp_path / "free", "objectives=[accuracy, peak_memory_bytes]", "final.seeds=1")
    sizes = sorted(trial.values["peak_memory_bytes"] for trial in free.trials)
    assert sizes[0] < sizes[-1]
    bound = (sizes[0] + sizes[-1]) / 2
    run = search(tiny_study, tmp_path / "bound", f"constraints=[peak_memory_bytes<={bound}]", "final.seeds=1")
    for trial in run.trials:
        over = trial.values["peak_memory_bytes"] > bound
        assert trial.state == ("infeasible" if over else "complete")
        assert (trial.train_seconds == 0) == over
    assert any(trial.state == "infeasible" for trial in run.trials)
    assert all(member.values["peak_memory_bytes"] <= bound for member in front(run))


def test_an_exhausted_space_ends_the_search(tiny_study, tmp_path):
    (tiny_study / "space.yaml").write_text(
        "family: resnet\nchoices:\n  stem_width: [4, 8]\n  stage1.width: [4]\n"
        "fixed: {stage1.depth: 1, stage1.bottleneck: plain, stage1.skip: none}\n"
    )
    run = search(tiny_study, tmp_path / "r", "final.seeds=1")
    assert len(run.trials) == 2
    assert "every student of the space" in run.finished
    events = []
    search(tiny_study, tmp_path / "r", "final.seeds=1", observe=events.append)
    assert events[-1].new_trials == 0


def test_a_space_of_one_student_is_scored_once(tiny_study, tmp_path):
    (tiny_study / "space.yaml").write_text(
        "family: resnet\nchoices: {stem_width: [4]}\n"
        "fixed: {stage1.depth: 1, stage1.width: 4, stage1.bottleneck: plain, stage1.skip: none}\n"
    )
    run = search(tiny_study, tmp_path / "r", "final.seeds=1")
    assert [trial.state for trial in run.trials] == ["complete"]
    assert "every student of the space" in run.finished


def test_what_was_interrupted_in_an_exhausted_space_is_run_again(tiny_study, tmp_path):
    (tiny_study / "space.yaml").write_text(
        "family: resnet\nchoices:\n  stem_width: [4, 8]\nfixed: {stage1.depth: 1, stage1.width: 4,"
        " stage1.bottleneck: plain, stage1.skip: none}\n"
    )

    def interrupt(event):
        if isinstance(event, TrialStarted) and event.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny_study, tmp_path / "r", "final.seeds=1", observe=interrupt)
    with controller_lock(tmp_path / "r"):  # another worker had found the space exhausted by then
        prepare(tiny_study, tmp_path / "r", "final.seeds=1").record.set_note("exhausted", "every student is scored")
    run = search(tiny_study, tmp_path / "r", "final.seeds=1")
    assert [trial.state for trial in run.trials] == ["complete", "interrupted", "complete"]
    assert run.finished == "every student is scored"


def test_changed_final_trainings_are_done_anew_and_never_averaged_with_the_old(tiny_study, tmp_path):
    folder = tmp_path / "r"
    search(tiny_study, folder, "budget.trials=1", "final.seeds=1", "final.epochs=1")
    run = search(tiny_study, folder, "budget.trials=1", "final.seeds=2", "final.epochs=2")
    (member,) = front(run)
    assert [(repeat.seed, repeat.fidelity.epochs) for repeat in member.trial.repeats] == [(0, 2), (1, 2)]
    assert member.values["accuracy"] == pytest.approx(sum(repeat.score for repeat in member.trial.repeats) / 2)
    # The way back: nothing of the longer trainings is left in the shorter ones' mean.
    back = search(tiny_study, folder, "budget.trials=1", "final.seeds=1", "final.epochs=1")
    assert [repeat.fidelity.epochs for repeat in back.trials[0].repeats] == [1]


def test_a_finalist_that_breaks_a_bound_on_the_quiet_machine_gives_its_place_to_another(
    tiny_study, tmp_path, monkeypatch
):
    ask, first = Retraining._alone, []

    def measured(self, executor, what, job, config):
        result = ask(self, executor, what, job, config)
        if what != "measure" or first:
            return result
        first.append(job)
        taken = result.measurements["peak_memory_bytes"]
        high = dataclasses.replace(taken, value=taken.value + 1e9)
        return dataclasses.replace(result, measurements={**result.measurements, "peak_memory_bytes": high})

    monkeypatch.setattr(Retraining, "_alone", measured)
    run = search(
        tiny_study, tmp_path / "r", "constraints=[peak_memory_bytes<=1e9]", "final.seeds=1", "budget.trials=2",
        "final.max_students=1",
    )  # fmt: skip
    broken = [trial for trial in run.trials if trial.values["peak_memory_bytes"] > 1e9]
    assert len(broken) == 1
    assert broken[0].repeats == ()
    (member,) = front(run)
    assert member.trial.repeats
    assert member.values["peak_memory_bytes"] <= 1e9


def test_a_value_that_is_no_number_fails_the_trial(tiny_study, tmp_path, monkeypatch):
    from kdnas.costs.peak_memory_bytes import PeakMemoryBytes

    with controller_lock(tmp_path / "r"):
        opened = prepare(tiny_study, tmp_path / "r", "objectives=[accuracy, peak_memory_bytes]")
    evaluate = opened.workplan()
    arch = arch_of(opened.space, opened.space.random(np.random.default_rng(0)), opened.evaluator.workshop.family)
    for value in (math.nan, math.inf):
        monkeypatch.setattr(PeakMemoryBytes, "measure", lambda *_, value=value: Measurement(value, 0.0, 1, "broken"))
        with pytest.raises(TrialError, match=f"the peak_memory_bytes is {value}"):
            evaluate(search_job(opened.config, arch, {}))


def test_what_was_measured_on_another_device_is_not_continued(tiny_study, tmp_path):
    folder, costs = tmp_path / "r", "costs={peak_memory_bytes: {}}"
    with controller_lock(folder):
        prepare(tiny_study, folder, costs)
        prepare(tiny_study, folder, costs)
        lock = read_lock(folder)
        write_lock(folder, dataclasses.replace(lock, device="cuda"))
        with pytest.raises(RunFolderError, match="device: cuda -> cpu"):
            prepare(tiny_study, folder, costs)


def test_a_record_that_cannot_be_written_is_told_and_not_its_consequences(tiny_study, tmp_path, monkeypatch):
    folder = tmp_path / "r"

    def fill_the_disk(event):
        if isinstance(event, TrialStarted):
            monkeypatch.setattr("optuna.Study.tell", refuse)

    def refuse(*arguments, **options):
        raise StorageInternalError("commit") from sqlite3.OperationalError("database or disk is full")

    with pytest.raises(RunFolderError, match=r"study\.db cannot be used: database or disk is full"):
        search(tiny_study, folder, "budget.trials=1", observe=fill_the_disk)
    monkeypatch.undo()
    run = search(tiny_study, folder, "budget.trials=1", "final.seeds=1")
    assert [trial.state for trial in run.trials] == ["interrupted", "complete"]


def test_tuned_settings_are_searched_with_the_architecture(tiny_study, tmp_path):
    rate = "training.learning_rate: {low: 0.01, high: 0.3, log: true}"
    tune = f"tune={{{rate}, distillation.losses.0.temperature: {{low: 1, high: 8}}}}"
    run = search(tiny_study, tmp_path / "r", tune, "final.seeds=1")
    rates = [trial.tuned["training.learning_rate"] for trial in run.trials]
    assert len(set(rates)) == 4
    assert all(0.01 <= rate <= 0.3 for rate in rates)
    assert all(1 <= trial.tuned["distillation.losses.0.temperature"] <= 8 for trial in run.trials)


def test_losses_are_searched_with_the_architecture(tiny_study, tmp_path):
    temperature = "distillation.temperature: {low: 1, high: 8}"
    tune = f"tune={{distillation.losses: [kd, ce, hint+kd], {temperature}}}"
    folder = tmp_path / "r"
    run = search(tiny_study, folder, tune, "final.seeds=1", "sampler=random", "budget.trials=6")
    assert {trial.state for trial in run.trials} == {"complete"}
    chosen = {trial.tuned["distillation.losses"] for trial in run.trials}
    assert len(chosen) > 1
    for trial in run.trials:
        assert ("distillation.temperature" in trial.tuned) == (trial.tuned["distillation.losses"] != "ce")
    first, *lines = tuned_in_words(load_run(folder))
    assert "within the search’s 6 trials" in first
    (by_loss,) = [line for line in lines if line.startswith("distillation.losses: ")]
    for part in by_loss.removeprefix("distillation.losses: ").split("; "):
        loss, said = part.split(": ")
        assert said.startswith("not tried") == (loss not in chosen)
    again = search(tiny_study, folder, tune, "final.seeds=1", "sampler=random", "budget.trials=6")
    assert [trial.number for trial in again.trials] == [trial.number for trial in run.trials]


def test_a_loss_that_students_cannot_have_is_refused_before_the_search(tiny_study, tmp_path):
    tune = "tune={distillation.losses: [kd, {type: attention_maps, task_weight: 1}]}"
    with pytest.raises(ConfigError, match=r"tune.distillation.losses.*attention_maps"):
        search(tiny_study, tmp_path / "r", tune)


def test_a_changed_study_is_refused(finished):
    study, run, _ = finished
    with pytest.raises(RunFolderError, match="training.epochs: 3 -> 2"):
        search(study, run.folder, "training.epochs=2")
    with pytest.raises(RunFolderError, match="objectives"):
        search(study, run.folder, "objectives=[accuracy, params]")
    with pytest.raises(RunFolderError, match="teacher.training.epochs: 8 -> 5"):
        search(study, run.folder, "teacher.training.epochs=5")


def test_a_lost_record_is_named(finished, tmp_path):
    study, _, _ = finished
    folder = tmp_path / "lost"
    search(study, folder, "budget.trials=1", "final.seeds=1")
    (folder / "study.db").write_bytes(b"gone")
    with pytest.raises(RunFolderError, match="not an SQLite database"):
        search(study, folder, "budget.trials=1", "final.seeds=1")


def test_a_teacher_at_chance_leaves_no_folder(tiny_study, tmp_path):
    with pytest.raises(TeacherError, match="chance"):
        search(tiny_study, tmp_path / "r", "teacher.training.learning_rate=1e-9", "teacher.training.epochs=1")
    assert not (tmp_path / "r").exists()
