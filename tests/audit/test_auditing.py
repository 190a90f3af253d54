"""An audit's plan and its trainings: what is asked for, resumed, reused and never paid twice."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter

import audited_run
import pytest
import yaml
from audited_run import BRIEF, FULL, InProcess
from synthetic_run import complete, run_of
from trained_run import study_config

from kdnas.audit import auditing as audit
from kdnas.audit.auditing import limited, look_epochs, open_run, pending, plan_audit, restated, run_audit
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, RunFolderError
from kdnas.record.records import Repeat
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.storage import load_run, record_of, refreshed
from kdnas.study.losses import parse_losses
from kdnas.training.recipe import Distillation
from kdnas.workshop.evaluators import Workplan
from kdnas.workshop.jobs import final_job, search_job


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return audited_run.write_run(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def run(written, tmp_path):
    return audited_run.copy_run(written, tmp_path)


def reopened(run):
    return open_run(run, data_root=run.folder.parent, cache=run.folder, workers=None, notify=lambda line: None)


def carry_out(plan, monkeypatch, observe=lambda event: None, **options):
    """Run `plan` in this process; return (the run, the jobs that were run)."""
    executors = []

    def start(opened, observe):
        executors.append(InProcess(opened.workplan, **options))
        return executors[0]

    monkeypatch.setattr(audit, "start_executor", start)
    try:
        return run_audit(reopened(plan.run), plan, observe), executors[0].jobs if executors else []
    except KeyboardInterrupt:
        return None, executors[0].jobs


def test_the_finalists_fidelity_is_the_default(written):
    plan = plan_audit(written, students=12)
    assert (plan.brief, plan.fidelity, plan.seeds, len(plan.students)) == (BRIEF, FULL, 2, 12)
    assert plan_audit(written, students=12, epochs=50, data_fraction=0.5).fidelity == Fidelity(50, 0.5)
    assert len(plan_audit(written, students=500).students) == 48


def test_where_finalists_train_no_longer_the_default_is_four_times_the_searchs(written):
    final = written.config.final.model_copy(update={"epochs": BRIEF.epochs, "data_fraction": BRIEF.data_fraction})
    run = dataclasses.replace(written, config=written.config.model_copy(update={"final": final}))
    assert run.config.final_fidelity == BRIEF
    assert plan_audit(run, students=12).fidelity == Fidelity(4 * BRIEF.epochs, BRIEF.data_fraction)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_run_with_too_few_students_is_told_so(count):
    run = run_of([complete(k, 0.5 + k / 100, 100 + k) for k in range(count)])
    with pytest.raises(ConfigError, match=f"has {count} scored student.*at least 6"):
        plan_audit(run, students=24, epochs=30)


@pytest.mark.parametrize("options", [{"epochs": 3}, {"epochs": 2}, {"epochs": 30, "data_fraction": 0.1}])
def test_trainings_that_are_no_longer_than_the_searchs_are_refused(written, options):
    with pytest.raises(ConfigError, match=r"--epochs: .* the search already did for 3 epochs"):
        plan_audit(written, students=12, **options)


def test_losses_need_trainings(written):
    with pytest.raises(ConfigError, match="--loss: the evaluator table trains no students here"):
        plan_audit(written, students=12, losses=parse_losses(["ce"], Distillation()))


def test_the_first_seed_of_all_comes_before_losses_and_the_second(written):
    plan = dataclasses.replace(plan_audit(written, students=8), losses={"ce": Distillation()})
    tasks = pending(plan, written)
    assert [(task.seed, task.loss) for task in tasks[::8]] == [(0, ""), (0, "ce"), (1, "")]
    assert len({task.key for task in tasks}) == len(tasks) == 24
    assert {task.fidelity for task in tasks if task.loss} == {BRIEF}
    # Ten seconds a trial of three epochs: a hundred for thirty.
    assert {(task.loss, round(task.seconds, 6)) for task in tasks} == {("", 100.0), ("ce", 10.0)}


def test_retrained_finalists_of_the_same_fidelity_are_reused(written):
    plan = plan_audit(written, students=8)
    student = plan.students[0]
    repeats = (Repeat(0, 0.7, 0.7, FULL, 44.0, "x"), Repeat(1, 0.7, 0.7, Fidelity(7), 44.0, "x"))
    trials = [dataclasses.replace(t, repeats=repeats) if t.number == student.number else t for t in written.trials]
    tasks = pending(plan, dataclasses.replace(written, trials=tuple(trials)))
    assert len(tasks) == 15
    assert [task.seed for task in tasks if task.trial.number == student.number] == [1]
    assert {round(task.seconds, 6) for task in tasks} == {44.0}  # its pace is known now


@pytest.mark.parametrize(
    ("changed", "start"),
    [({"start": "inherited"}, "inherited"), ({"start": "inherited", "final": "nested"}, "inherited"), ({}, "random")],
)
def test_longer_trainings_begin_as_finalists_do_that_are_trained_alone(written, changed, start):
    final = written.config.final.model_copy(update={"start": changed.pop("final", None)})
    config = written.config.model_copy(update={"final": final, **changed})
    trials = tuple(
        dataclasses.replace(t, fidelity=dataclasses.replace(t.fidelity, start=config.start)) for t in written.trials
    )
    run = dataclasses.replace(written, config=config, trials=trials)
    plan = plan_audit(run, students=8)
    assert plan.fidelity == dataclasses.replace(FULL, start=start)
    assert {audit._job(plan, task).start for task in pending(plan, run)} == {start}
    number = plan.students[0].number
    retrained = (Repeat(0, 0.7, 0.7, plan.fidelity, 44.0, "x"),)
    trials = tuple(dataclasses.replace(t, repeats=retrained) if t.number == number else t for t in trials)
    tasks = pending(plan, dataclasses.replace(run, trials=trials))
    assert [task.seed for task in tasks if task.trial.number == number] == [1]


def test_longer_trainings_that_were_recorded_as_of_random_weights_keep_counting(run, monkeypatch):
    audited, _ = carry_out(plan_audit(run, students=8), monkeypatch)
    earlier = dataclasses.replace(audited, config=audited.config.model_copy(update={"start": "inherited"}))
    read = refreshed(earlier, record_of(earlier))
    inherited = dataclasses.replace(FULL, start="inherited")
    assert read.audit.fidelity == inherited
    assert {training.fidelity for training in read.audit.trainings} == {inherited}
    final = earlier.config.final.model_copy(update={"start": "inherited"})  # it may have been another then
    stated = dataclasses.replace(earlier, config=earlier.config.model_copy(update={"final": final}))
    assert refreshed(stated, record_of(stated)).audit.fidelity == FULL


def test_retrainings_count_whichever_rung_they_are_recorded_with(written):
    plan = plan_audit(written, students=8)
    student = plan.students[0]
    repeats = (Repeat(0, 0.7, 0.7, FULL, 44.0, "x"),)
    promoted = dataclasses.replace(student, number=900, fidelity=Fidelity(12), repeats=repeats)
    tasks = pending(plan, dataclasses.replace(written, trials=(*written.trials, promoted)))
    assert [task.seed for task in tasks if task.trial.number == student.number] == [1]
    other = dataclasses.replace(promoted, tuned={"training.learning_rate": 0.3})
    assert len(pending(plan, dataclasses.replace(written, trials=(*written.trials, other)))) == 16


def test_an_audit_is_recorded_and_repeated_for_nothing(run, monkeypatch):
    plan = plan_audit(run, students=10)
    events = []
    audited, jobs = carry_out(plan, monkeypatch, events.append)
    assert len(jobs) == 20
    assert [event.done for event in events] == list(range(1, 21))
    assert audited.audit == load_run(run.folder).audit
    assert audited.audit.students == tuple(trial.number for trial in plan.students)
    assert Counter(training.seed for training in audited.audit.trainings) == {0: 10, 1: 10}
    again = plan_audit(audited, students=10)
    assert again.students == plan.students
    assert pending(again, audited) == ()
    assert carry_out(dataclasses.replace(again, run=audited), monkeypatch)[1] == []


def test_the_recorded_accuracies_are_the_tables(run, monkeypatch):
    audited, _ = carry_out(plan_audit(run, students=6), monkeypatch)
    rows = {}
    for line in (run.folder.parent / "table.csv").read_text().splitlines()[1:]:
        *choices, _, full1, full2, _, _ = line.split(",")
        rows[tuple(map(int, choices))] = float(full1) / 100, float(full2) / 100
    trials = {trial.number: trial for trial in audited.trials}
    for training in audited.audit.trainings:
        choices = trials[training.number].arch.choices
        expected = rows[choices["depth1"], choices["depth2"], choices["width"]][training.seed]
        assert training.score == pytest.approx(expected)
        assert training.fidelity == FULL


def test_an_interrupted_audit_continues_where_it_stopped(run, monkeypatch):
    plan = plan_audit(run, students=10)
    nothing, first = carry_out(plan, monkeypatch, stop_after=7)
    assert nothing is None
    assert len(first) == 7
    between = load_run(run.folder)
    assert len(between.audit.trainings) == 7
    audited, second = carry_out(plan_audit(between, students=10), monkeypatch)
    assert len(second) == 13
    keys = [(t.number, t.seed) for t in audited.audit.trainings]
    assert len(keys) == len(set(keys)) == 20


def test_a_failed_training_is_told_and_tried_again(run, monkeypatch):
    plan = plan_audit(run, students=6, seeds=1)
    broken = pending(plan, run)[2].key
    events = []
    audited, _ = carry_out(plan, monkeypatch, events.append, broken=[broken])
    assert [event.failure for event in events if event.training is None] == ["broke"]
    assert [task.key for task in pending(plan, audited)] == [broken]


def test_more_students_keep_those_that_are_paid(run, monkeypatch):
    audited, _ = carry_out(plan_audit(run, students=8), monkeypatch)
    larger = plan_audit(audited, students=16)
    kept = {trial.number for trial in larger.students} & set(audited.audit.students)
    assert len(kept) == 8
    assert len(pending(larger, audited)) == 2 * 8


def test_the_evaluators_trainings_limit_the_seeds(run):
    assert limited(plan_audit(run, students=6, seeds=5), reopened(run)).seeds == 2


def test_another_audit_of_what_is_there_replaces_the_last(run, monkeypatch):
    audited, _ = carry_out(plan_audit(run, students=8), monkeypatch)
    one = plan_audit(audited, students=8, seeds=1)
    assert audit.is_last(plan_audit(audited, students=8))
    assert not audit.is_last(one)
    assert restated(one).audit.seeds == 1
    assert len(load_run(run.folder).audit.trainings) == 16


def test_what_the_run_rests_on_must_still_be_there(run):
    table = run.folder.parent / "table.csv"
    table.write_text(table.read_text().replace("1,1,8,4", "1,1,8,5", 1))
    with pytest.raises(RunFolderError, match="another study"):
        reopened(run)


def test_a_damaged_space_in_the_lock_file_is_told(run):
    path = run.folder / LOCK_FILE
    lock = yaml.safe_load(path.read_text())
    del lock["space"]["choices"]
    path.write_text(yaml.safe_dump(lock, sort_keys=False))
    with pytest.raises(RunFolderError, match="space: the record of the search space has no 'choices'"):
        reopened(run)


def test_an_opened_run_has_the_workers_asked_for(run):
    opened = open_run(run, data_root=run.folder.parent, cache=run.folder, workers=3, notify=lambda line: None)
    assert opened.workers == 3
    assert isinstance(opened.workplan, Workplan)


def test_jobs_are_a_finalists_and_the_searchs_own():
    config = study_config()
    tuned = {"training.learning_rate": 0.2, "distillation.losses.0.temperature": 2.0}
    trial = dataclasses.replace(complete(7, 0.5, 1.0), fidelity=Fidelity(1, 0.5), tuned=tuned)
    run = dataclasses.replace(run_of([trial]), config=config)
    losses = {"ce": Distillation(task_weight=1.0, losses=())}
    plan = audit.AuditPlan(run, (trial,), Fidelity(1, 0.5), Fidelity(9, 0.8), 1, losses)
    longer, other = (audit._job(plan, task) for task in pending(plan, run))
    finalist = final_job(config, 7, trial.arch, trial.tuned, 0)
    assert (longer.init_seed, longer.view_seed) == (finalist.init_seed, finalist.view_seed)
    assert longer.fidelity == Fidelity(9, 0.8)
    assert (longer.test, longer.checkpoint, longer.looks) == (False, None, look_epochs(9))
    assert longer.recipe.distillation == finalist.recipe.distillation
    brief = search_job(config, trial.arch, trial.tuned)
    assert (other.init_seed, other.view_seed, other.fidelity) == (brief.init_seed, brief.view_seed, Fidelity(1, 0.5))
    assert other.recipe.training.learning_rate == 0.2
    assert other.recipe.distillation == losses["ce"]
    assert pickle.loads(pickle.dumps(longer)) == longer
    assert derive_seed(config.seed, "views") == other.view_seed


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 37, 300])
def test_looks_are_below_the_last_epoch_and_about_ten(epochs):
    looks = look_epochs(epochs)
    assert list(looks) == sorted(set(looks))
    assert all(1 <= epoch < epochs for epoch in looks)
    assert len(looks) <= 10
    assert epochs < 10 or len(looks) >= 7
