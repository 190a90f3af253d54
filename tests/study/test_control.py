"""The picked student on labels alone, and final trainings of the length at which a student's curve is flat."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny
from synthetic_run import complete, run_of

from kdnas.cli.main import main
from kdnas.controller.retraining import Retraining
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError, TrialError
from kdnas.record.front import front, rise
from kdnas.record.lock import DataDescription
from kdnas.record.records import Control, RunNotes
from kdnas.record.storage import load_run
from kdnas.report.summary import control_in_words, still_rising, updates
from kdnas.study.loading import load_study
from kdnas.workshop.jobs import control_job, final_job


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole small study with a control, its final length found out."""
    study = tiny.write(tmp_path_factory.mktemp("study"))
    folder = tmp_path_factory.mktemp("runs") / "a"
    settings = ["budget.trials=2", "final.epochs=1", "final.until=flat", "final.max_epochs=2", "final.seeds=1"]
    command = ["search", str(study), "--out", str(folder), *(part for text in settings for part in ("--set", text))]
    assert main(command) == 0
    return load_run(folder), command


def test_the_picked_student_is_trained_on_labels_alone_once(run, capsys):
    run, command = run
    (control,) = run.controls
    assert control.fidelity == run.config.final_fidelity
    assert 0 <= control.score <= 1
    assert control.number in {member.trial.number for member in front(run)}
    assert main(command) == 0  # nothing is trained again
    assert load_run(run.folder).controls == run.controls
    capsys.readouterr()
    assert main(["front", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["control"]["accuracy"] == control.score
    card = json.loads((run.folder / "export" / "student.json").read_text())["measured"]
    assert card["control"]["validation"] == control.score
    assert "on labels alone" in (run.folder / "report.html").read_text()


def test_the_length_that_was_found_is_that_of_every_final_training(run):
    run, _ = run
    epochs = run.config.final.epochs
    assert epochs in (1, 2)
    assert {repeat.fidelity.epochs for trial in run.trials for repeat in trial.repeats} == {epochs}


def test_a_control_is_the_first_retraining_but_for_the_loss(tmp_path):
    config = load_study(tiny.write(tmp_path)).config
    arch = complete(0, 0.5, 10).arch
    alone, taught = control_job(config, 0, arch, {}, 0), final_job(config, 0, arch, {}, 0)
    assert alone.recipe.distillation.losses == ()
    assert alone.recipe.distillation.task_weight == 1.0
    assert (alone.init_seed, alone.view_seed, alone.recipe.training) == (
        taught.init_seed, taught.view_seed, taught.recipe.training,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "most", "found"),
    [
        ({5: 0.5, 10: 0.7, 20: 0.705}, 100, 10),  # 20 add half a point
        ({5: 0.5, 10: 0.7, 20: 0.8}, 20, 20),  # still rising at the most
        ({5: 0.5}, 8, 5),
        ({5: 0.1, 10: 0.1, 20: 0.8, 40: 0.8}, 100, 20),  # 5 and 10 have not begun to learn
        ({5: 0.5, 10: 0.4}, 100, 5),
        ({5: 0.5, 10: 0.7}, 100, 10),  # 20 fail
    ],
)
def test_the_length_is_doubled_until_a_doubling_gives_less_than_a_point(tmp_path, monkeypatch, scores, most, found):
    notes, tried = {}, []
    config = load_study(tiny.write(tmp_path), [f"final={{until: flat, epochs: 5, max_epochs: {most}}}"]).config

    def score(self, executor, trial, epochs, others):
        tried.append(epochs)
        if epochs not in scores:
            raise TrialError("the loss is not finite")
        return scores[epochs]

    retraining = Retraining.__new__(Retraining)
    retraining._config, retraining._observe = config, lambda event: None
    run = dataclasses.replace(run_of([]), reference_point={"accuracy": 0.1, "macs": 100.0})
    retraining._opened = SimpleNamespace(run=run)
    retraining._record = type(
        "Notes", (), {"notes": staticmethod(lambda: RunNotes(**notes)), "set_note": staticmethod(notes.__setitem__)}
    )
    monkeypatch.setattr(Retraining, "_score_of_length", score)
    retraining.find_length(None, (complete(0, 0.3, 5), complete(1, 0.4, 9)))
    assert notes["final_epochs"] == found
    assert tried == sorted(set(tried))
    notes.pop("final_epochs")
    again = len(tried)
    retraining.find_length(None, (complete(1, 0.4, 9),))  # what was tried is in the record
    assert [epochs for epochs in tried[again:] if epochs in scores] == []
    assert notes["final_epochs"] == found


def test_a_budget_in_final_trainings_needs_their_length(tmp_path):
    with pytest.raises(ConfigError, match="final.until: flat"):
        load_study(tiny.write(tmp_path), ["final.until=flat", "budget={full_trainings: 3}"])


def trained(brief: float, mean: float, epochs: int = 12):
    trial = complete(0, brief, 10, repeats=[mean])
    repeats = tuple(dataclasses.replace(repeat, fidelity=Fidelity(epochs)) for repeat in trial.repeats)
    return run_of([dataclasses.replace(trial, fidelity=Fidelity(3), repeats=repeats)])


def test_a_curves_rise_is_by_doubling_of_the_training():
    rising = trained(0.5, 0.9)
    assert rise(rising, front(rising)[0]) == pytest.approx(0.2)  # twice doubled
    assert "Far from flat" in still_rising(rising)
    assert "about flat" in still_rising(trained(0.9, 0.91))
    same = trained(0.5, 0.9, epochs=3)
    assert rise(same, front(same)[0]) is None
    assert still_rising(same) == ""


def test_what_distillation_adds_is_said():
    run = trained(0.5, 0.9)
    assert control_in_words(run) == ""
    run = dataclasses.replace(run, controls=(Control(0, 0.87, 0.86, Fidelity(12)),))
    assert "(3.0 points more by distillation, two single trainings tell little)" in control_in_words(run)
    noise = "3.0 points more by distillation, which is within noise"
    for spread, said in ((0.02, noise), (0.001, "improves it by 3.0")):
        (trial,) = run.trials
        repeats = tuple(dataclasses.replace(trial.repeats[0], seed=s, score=0.9 + s * spread) for s in (-1, 0, 1))
        several = dataclasses.replace(run, trials=(dataclasses.replace(trial, repeats=repeats),))
        assert said in control_in_words(several)
    failed = dataclasses.replace(run, controls=(Control(0, None, None, Fidelity(12), failure="no memory"),))
    assert control_in_words(failed) == ""


@pytest.mark.parametrize(("images", "few"), [(1_000, True), (40_000, False)])
def test_too_few_updates_are_warned_of(images, few):
    run = run_of([])
    lock = dataclasses.replace(run.lock, data=DataDescription(training_samples=images))
    run = dataclasses.replace(run, lock=lock)
    assert ("means little" in updates(run)) == few
    assert f"{5 * -(-images // 128):,}" in updates(run) or not few
