"""Students that begin from a supernet or from their teacher, on the real digits: the same scores everywhere."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import sharing
import torch
from safetensors.torch import load_file

from kdnas.audit.auditing import plan_audit
from kdnas.audit.result import audit_result
from kdnas.cli.main import main
from kdnas.controller.events import Note
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError, RunError, RunFolderError, TrialError
from kdnas.record.database import database_of
from kdnas.record.lock import read_lock, write_lock
from kdnas.record.run_folder import controller_lock
from kdnas.record.storage import distributions, load_run
from kdnas.report.tables import front_table, trials_table
from kdnas.store import SharedStore
from kdnas.training.supernet.shrinking_file import read_shrinking
from kdnas.workshop.jobs import final_job, search_job
from kdnas.workshop.run_files import RunFiles
from kdnas.workshop.supernets import RunSupernet, load_supernet

SHARED, TUNED, OWN = Fidelity(0, start="supernet"), Fidelity(1, 0.3, "supernet"), Fidelity(2, 0.3)


def student(opened, seed=0):
    return opened.evaluator.arch(opened.space.random(np.random.default_rng(seed)))


def job(opened, rung, seed=0):
    return search_job(opened.config, student(opened, seed), {}, rung)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return sharing.load(sharing.write(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def ready(study, tmp_path_factory):
    """A run whose supernet is trained, and nothing else."""
    return sharing.prepared(study, tmp_path_factory.mktemp("runs") / "ready")


def test_the_supernet_is_trained_once_and_its_shrinking_left(study, ready):
    folder = ready.run.folder
    assert sorted(path.name for path in (folder / "supernet").iterdir()) == ["shrinking.yaml", "weights.safetensors"]
    shrinking = read_shrinking(folder / "supernet" / "shrinking.yaml")
    assert shrinking.policy == "sandwich"
    assert sum(stage.spent for stage in shrinking.stages) == pytest.approx(1.0, abs=0.1)
    record = ready.run.supernet
    assert (record.epochs, record.data_fraction) == (2, 0.3)
    assert record.train_seconds > 0
    assert 0 < record.inherited <= 1  # the teacher is a resnet as the students are
    printed = []
    again = sharing.prepared(study, folder, observe=printed.append)
    assert not [event for event in printed if isinstance(event, Note) and "supernet" in event.text]
    assert again.run.supernet == record


def test_a_score_is_the_same_for_every_worker_and_every_time(ready):
    there = sharing.worker(ready)
    for rung in (0, 1):
        scores = [evaluator(job(ready, rung)).values for evaluator in (ready.evaluator, there, there)]
        assert scores[0] == scores[1] == scores[2]
        assert 0 < scores[0]["accuracy"] <= 1
        assert scores[0]["macs"] == ready.evaluator.price(student(ready))["macs"]
    jobs = [job(ready, 0, 1), job(ready, 1, 1), job(ready, 0, 2)]
    together = [answer.values["accuracy"] for answer in there.together(jobs)]
    assert together == [there(one).values["accuracy"] for one in jobs]


def test_what_is_scored_is_the_students_own_subnet(ready):
    shared, opened, arch = ready.evaluator.shared, ready.evaluator.workshop, student(ready)
    network = shared.cut(arch)
    hits = total = 0
    mean, std = (torch.tensor(part)[:, None, None] for part in (opened.data.channel_mean, opened.data.channel_std))
    with torch.no_grad():
        for batch in opened.validation.ordered(batch_size=128):
            hits += int((network((batch.inputs[0] - mean) / std).argmax(dim=1) == batch.targets).sum())
            total += len(batch.targets)
    assert shared.score(arch) == pytest.approx(hits / total, abs=1.5 / total)  # a close call may turn
    again = load_supernet(
        ready.run.folder,
        ready.config.supernet,
        ready.space,
        opened,
        opened.share(0.3),
        fingerprint=ready.run.supernet.fingerprint,
    )
    assert again.score(arch) == shared.score(arch)


def test_finetuning_begins_from_the_shared_weights(ready):
    built = ready.evaluator.build(job(ready, 1))
    cut = ready.evaluator.shared.cut(student(ready))
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(built.state_dict()[name], value)
    scratch = ready.evaluator.build(job(ready, 2))
    assert any(not torch.equal(scratch.state_dict()[name], value) for name, value in cut.state_dict().items())


def test_jobs_say_where_they_begin_and_what_the_score_has_seen(study, ready):
    config, arch = ready.config, student(ready)
    jobs = [search_job(config, arch, {}, rung) for rung in range(3)]
    assert [(one.start, one.trains) for one in jobs] == [("supernet", False), ("supernet", True), ("random", True)]
    assert [one.fidelity for one in jobs] == list(config.fidelities) == [SHARED, TUNED, OWN]
    assert [[leg.epochs for leg in one.legs] for one in jobs] == [[], [1], [2]]  # scratch begins anew
    assert final_job(config, 0, arch, {}, 0).fidelity == Fidelity(3, 0.3)
    tuned = sharing.load(study.folder, "final.start=supernet").config
    assert final_job(tuned, 0, arch, {}, 0).fidelity == Fidelity(3, 0.3, "supernet")


def test_a_stopped_training_of_the_supernet_is_continued_to_the_same_weights(study, ready, tmp_path):
    messages = []

    def stop(event):
        if isinstance(event, Note) and event.text.startswith("supernet  "):
            messages.append(event.text)
            if len(messages) == 2:
                raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sharing.prepared(study, run, observe=stop)
    assert [path.name for path in (run / "supernet").iterdir()] == ["checkpoint.safetensors"]
    assert read_lock(run).supernet is None
    printed = []
    continued = sharing.prepared(study, run, observe=printed.append)
    shares = [event.text for event in printed if isinstance(event, Note) and "supernet" in event.text]
    assert shares[0].startswith("going on with the supernet")
    assert not set(messages) & set(shares)
    assert "100 %" in shares[-1]
    whole, parts = (load_file(folder / "supernet" / "weights.safetensors") for folder in (ready.run.folder, run))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert continued.run.supernet.inherited == ready.run.supernet.inherited


def test_another_machine_goes_on_with_a_supernet_that_one_began(study, ready, tmp_path):
    store, evaluator = SharedStore(f"file://{tmp_path}/shared"), ready.evaluator
    one, other = (RunFiles(tmp_path, store, "run").at(tmp_path / name) for name in ("one", "other"))
    lines = []

    def stop(line):
        lines.append(line)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunSupernet(one, ready.config, evaluator.workshop).prepare(teacher_cache=evaluator.teacher_cache, notify=stop)
    shutil.rmtree(one.folder)
    told = []
    RunSupernet(other, ready.config, evaluator.workshop).prepare(
        teacher_cache=evaluator.teacher_cache, notify=told.append
    )
    assert told[0].startswith("going on with the supernet")
    whole, parts = (load_file(run / "supernet" / "weights.safetensors") for run in (ready.run.folder, other.folder))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert store.names("runs/run/supernet") == []


def test_a_controller_that_dies_before_the_lock_names_the_weights_does_not_train_again(study, ready, tmp_path):
    shutil.copytree(ready.run.folder, tmp_path / "run")
    lock = read_lock(tmp_path / "run")
    write_lock(tmp_path / "run", dataclasses.replace(lock, supernet=None))
    printed = []
    again = sharing.prepared(study, tmp_path / "run", observe=printed.append)
    assert not [event for event in printed if isinstance(event, Note) and "supernet" in event.text]
    assert again.run.supernet == ready.run.supernet


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_other_weights_than_the_locks_are_refused(study, ready, tmp_path, damage):
    shutil.copytree(ready.run.folder, tmp_path / "run")
    path = tmp_path / "run" / "supernet" / "weights.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunFolderError, match="is missing" if damage == "missing" else "is not the supernet that this"):
        sharing.prepared(study, tmp_path / "run")


def test_without_a_trained_supernet_nothing_is_scored(study, tmp_path):
    evaluator = sharing.opened(study, tmp_path)
    arch = evaluator.arch(study.space.random(np.random.default_rng(0)))
    with pytest.raises(RunFolderError, match="has no trained supernet yet"):
        evaluator(search_job(study.config, arch, {}, 0))


def test_a_supernet_that_does_not_learn_says_what_may_help(study, tmp_path, monkeypatch):
    def diverging(*arguments, **options):
        raise TrialError("loss became nan at step 3")

    monkeypatch.setattr("kdnas.workshop.supernets.train_supernet", diverging)
    with pytest.raises(RunError, match=r"the supernet failed: loss became nan at step 3; a lower .*learning_rate"):
        sharing.prepared(study, tmp_path / "run")


def test_the_teacher_is_asked_about_a_few_views_only_where_that_is_asked_for(tmp_path):
    varied = "training.augmentation={crop_padding: 1}"
    study = sharing.load(sharing.write(tmp_path), "supernet.views=2", "supernet.epochs=3", "seed=77", varied)
    printed = []
    sharing.prepared(study, tmp_path / "run", observe=printed.append)
    kept = {
        event.text.split("view ")[1][0] for event in printed if isinstance(event, Note) and "outputs on" in event.text
    }
    assert kept == {"1", "2"}


# -- the teacher's weights --------------------------------------------------------------------------------------------


def test_the_teachers_weights_are_inherited_only_where_asked_or_possible(tmp_path):
    study = sharing.load(sharing.write(tmp_path), "supernet.inherit_teacher=false")
    assert sharing.prepared(study, tmp_path / "own").run.supernet.inherited is None


def test_weights_of_another_family_cannot_be_inherited(tmp_path):
    folder = sharing.write(tmp_path, "mobilenet")
    with pytest.raises(ConfigError, match="the teacher is a resnet, the students are mobilenet: no weights"):
        sharing.load(folder, "supernet.inherit_teacher=true")
    module = "teacher={type: module, factory: 'x.py:f'}"
    with pytest.raises(ConfigError, match="the teacher is not of a student family"):
        sharing.load(folder, "supernet.inherit_teacher=true", module)


def test_students_inherit_from_a_teacher_of_their_family(tmp_path):
    """As they are cut, they are far better than chance; the teacher's own arch is the teacher; trained on, better."""
    study = sharing.load(sharing.write(tmp_path), "start=inherited", "rungs=[{epochs: 0}, {epochs: 2}]")
    evaluator = sharing.opened(study, tmp_path)
    workshop = evaluator.workshop
    assert workshop.teacher.arch is not None
    own = dataclasses.replace(search_job(study.config, workshop.teacher.arch, {}, 0), measure=False)
    as_cut = evaluator(own)
    taught = workshop.teacher.module(*workshop.samples(64)[0])
    cut = workshop.entered(evaluator.build(own).eval())(*workshop.samples(64)[0])
    torch.testing.assert_close(cut, taught, rtol=1e-3, atol=1e-3)
    assert as_cut.values["accuracy"] > 0.6
    arch = evaluator.arch(study.space.random(np.random.default_rng(1)))
    scores = [evaluator(search_job(study.config, arch, {}, rung)).values["accuracy"] for rung in (0, 1)]
    random = dataclasses.replace(search_job(study.config, arch, {}, 1), start="random", legs=())
    assert scores[1] > max(scores[0], evaluator(random).values["accuracy"] - 0.05)


def test_a_teacher_without_weights_for_the_students_is_refused(tmp_path):
    folder = sharing.write(tmp_path, "mobilenet")
    with pytest.raises(ConfigError, match=r"start: the teacher is a resnet, the students are mobilenet.*random, or a"):
        sharing.load(folder, "start=inherited")
    with pytest.raises(ConfigError, match=r"rungs\.0\.start: the teacher is not of a student family"):
        sharing.load(folder, "rungs=[{start: inherited}, {epochs: 2}]", "teacher={type: module, factory: 'x.py:f'}")


# -- whole searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_a_whole_search_by_the_command_line(tmp_path, capsys, family):
    folder, run = sharing.write(tmp_path, family), tmp_path / "run"
    settings = [*sharing.SMALL, sharing.RUNGS, "budget.trials=14", "promotion.eta=2", "export.formats=[]"]
    command = ["search", str(folder), "--out", str(run), *(word for text in settings for word in ("--set", text))]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "rungs of shared weights, 1 epoch of 30 % of the data from shared weights, 2 epochs of 30 %" in shown
    assert "supernet trained in " in shown
    assert "0 epochs" not in shown
    record = load_run(run)
    counts = [sum(trial.fidelity == fidelity for trial in record.trials) for fidelity in (SHARED, TUNED, OWN)]
    assert sum(counts) == 14
    assert counts[0] > counts[1] > 0
    assert counts[2] > 0
    assert all(trial.state == "complete" for trial in record.trials)
    table = trials_table(record)
    assert set(table["fidelity_epochs"]) == {0, 1, 2}
    assert dict(zip(table["fidelity_epochs"], table["fidelity_start"], strict=True)) == {
        0: "supernet",
        1: "supernet",
        2: "random",
    }
    front = front_table(record)
    assert set(front["fidelity_epochs"]) == {3}
    assert set(front["fidelity_start"]) == {"random"}
    assert record.supernet.inherited is None if family == "mobilenet" else record.supernet.inherited > 0
    page = (run / "report.html").read_text()
    assert "with shared weights" in page
    assert "0 epochs" not in page
    assert main(command) == 0
    assert "nothing new" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_by_shared_weights_alone_whose_finalists_are_trained_on_from_them(tmp_path, capsys):
    folder, run = sharing.write(tmp_path), tmp_path / "run"
    settings = [*sharing.SMALL, "start=supernet", "rungs=[{epochs: 0}]", "final.start=supernet", "budget.trials=6"]
    command = ["search", str(folder), "--out", str(run), *(word for text in settings for word in ("--set", text))]
    assert main(command) == 0
    assert "students of its front from shared weights: " in capsys.readouterr().out
    record = load_run(run)
    assert {trial.fidelity for trial in record.trials} == {SHARED}
    repeats = [repeat for trial in record.trials for repeat in trial.repeats]
    assert {repeat.fidelity for repeat in repeats} == {Fidelity(3, 0.3, "supernet")}
    assert all((run / "checkpoints" / repeat.checkpoint).is_file() for repeat in repeats)
    assert "retrained from shared weights" in (run / "report.html").read_text()


def test_an_audit_tells_the_agreement_of_every_rung(ready, tmp_path, capsys):
    shutil.copytree(ready.run.folder, tmp_path / "run")
    run = tmp_path / "run"
    opened = dataclasses.replace(ready, run=dataclasses.replace(ready.run, folder=run))
    with controller_lock(run):
        record = type(ready.record).open(database_of(run, ready.config.name), ready.run.objectives)
        import optuna

        frozen = []
        for seed in range(12):
            one = job(ready, 0, seed)
            result = ready.evaluator(one)
            attributes = {"arch_id": student(ready, seed).arch_id, "arch": one.arch.canonical_json, "tuned": {}}
            attributes["result"] = result.as_dict()
            values = [result.values[objective.name] for objective in opened.run.objectives]
            attributes["fidelity"] = SHARED.as_dict()
            proposed = ready.space.random(np.random.default_rng(seed))
            made_by = distributions(ready.space, {})
            frozen.append(
                optuna.trial.create_trial(values=values, params=proposed, distributions=made_by, user_attrs=attributes)
            )
        record.study.add_trials(frozen)
    plan = plan_audit(load_run(run), students=6, seeds=1)
    assert plan.brief == SHARED
    assert [config.fidelities[-1] for config in plan.rungs] == [TUNED, OWN]
    assert main(["audit", str(run), "--students", "6", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 epoch of 30 % of the data from shared weights" in shown
    result = audit_result(load_run(run))
    assert [rung.fidelity for rung in result.rungs] == [SHARED, TUNED, OWN]
    assert all(rung.taus["score"].items == 6 for rung in result.rungs)
    assert not (run / "checkpoints" / "rungs").exists()
    assert main(["audit", str(run), "--students", "6", "--seeds", "1"]) == 0
    assert "nothing is trained" in capsys.readouterr().out
