"""Finalists that are taught by what is trained before them, beside the direct way."""

from __future__ import annotations

import pytest
import tiny

from kdnas.cli.main import main
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError
from kdnas.record.storage import load_run
from kdnas.report.summary import control_in_words, trust
from kdnas.study.loading import load_study

SETTINGS = ("budget.trials=3", "training.epochs=1", "final={epochs: 4, seeds: 1, max_students: 2, ROUTE}")


def search(study, folder, route):
    settings = [part for text in SETTINGS for part in ("--set", text.replace("ROUTE", route))]
    assert main(["search", str(study), "--out", str(folder), *settings, "--set", "export.formats=[train_yaml]"]) == 0
    return load_run(folder)


def two_students(parent):
    """A study of two students, the smallest and the largest of its space."""
    study = tiny.write(parent)
    text = tiny.SPACE.replace("[4, 8]", "[8]").replace("[1, 2]", "[1]").replace("[4, 8, 16]", "[2, 16]")
    (study / "space.yaml").write_text(text.replace("[plain, 0.5]", "[plain]").replace("[identity, none]", "[identity]"))
    return study


def test_finalists_are_born_again_and_compared_with_the_direct_way(tmp_path, capsys):
    study, folder = tiny.write(tmp_path), tmp_path / "run"
    run = search(study, folder, "route: born_again, compare_direct: true")
    repeats = {trial.number: repeat for trial in run.trials for repeat in trial.repeats}
    assert {repeat.fidelity for repeat in repeats.values()} == {Fidelity(4, route="born_again")}
    assert [(control.direct, control.failure) for control in run.controls] == [(False, ""), (True, "")]
    said = control_in_words(run)
    assert "trained once on labels alone and as long" in said
    assert "distilled born again" in said
    assert "trained once directly, on the same budget, has accuracy" in said
    assert "by the route born again, two single trainings tell little" in said or "makes no difference" in said
    assert "retrained from scratch, born again" in (folder / "report.html").read_text()
    capsys.readouterr()
    again = search(study, folder, "route: born_again, compare_direct: true")
    assert {trial.number: repeat for trial in again.trials for repeat in trial.repeats} == repeats
    assert "retrained trial" not in capsys.readouterr().out
    direct = search(study, folder, "control: false")  # means over both would compare what cannot be compared
    assert {repeat.fidelity for trial in direct.trials for repeat in trial.repeats} == {Fidelity(4)}
    assert direct.controls == ()


def test_assistants_are_finalists_and_who_has_none_is_trained_directly(tmp_path, capsys):
    run = search(tiny.write(tmp_path), tmp_path / "run", "route: assistants, control: false")
    finalists = [trial for trial in run.trials if trial.repeats]
    assert {repeat.fidelity.route for trial in finalists for repeat in trial.repeats} == {"assistants"}
    largest = max(finalists, key=lambda trial: trial.values["macs"])
    assert f"student {largest.arch.arch_id} is trained directly" in " ".join(capsys.readouterr().out.split())


def test_finalists_are_shrunk_on_their_budget_and_the_largest_is_trained_directly(tmp_path, capsys):
    study = two_students(tmp_path)
    run = search(study, tmp_path / "run", "route: shrink, compare_direct: true, control: false")
    finalists = [trial for trial in run.trials if trial.repeats]
    assert {repeat.fidelity for trial in finalists for repeat in trial.repeats} == {Fidelity(4, route="shrink")}
    assert run.controls == ()  # the picked one is trained directly anyway
    said = " ".join(capsys.readouterr().out.split())
    above = {trial.arch.arch_id: f"student {trial.arch.arch_id} is trained directly" in said for trial in finalists}
    assert sorted(above.values()) == [False, True]
    direct = search(study, tmp_path / "direct", "control: false")
    score = {trial.arch.arch_id: repeat.score for trial in direct.trials for repeat in trial.repeats}
    shrunk = {trial.arch.arch_id: repeat.score for trial in finalists for repeat in trial.repeats}
    assert any(score[name] != shrunk[name] for name in score if not above[name])
    assert all(score[name] == shrunk[name] for name in score if above[name])


def test_finalists_grow_on_their_budget_and_the_smallest_is_trained_directly(tmp_path, capsys):
    study = two_students(tmp_path)
    run = search(study, tmp_path / "run", "route: grow, control: false")
    finalists = [trial for trial in run.trials if trial.repeats]
    assert {repeat.fidelity for trial in finalists for repeat in trial.repeats} == {Fidelity(4, route="grow")}
    said = " ".join(capsys.readouterr().out.split())
    below = {trial.arch.arch_id: f"student {trial.arch.arch_id} is trained directly" in said for trial in finalists}
    assert sorted(below.values()) == [False, True]
    (own,) = [trial.arch.arch_id for trial in finalists if trial.repeats[0].direct]
    assert below[own]
    assert f"The student {own} could not be trained by growing and was trained directly." in " ".join(trust(run))
    direct = search(study, tmp_path / "direct", "control: false")
    score = {trial.arch.arch_id: repeat.score for trial in direct.trials for repeat in trial.repeats}
    grown = {trial.arch.arch_id: repeat.score for trial in finalists for repeat in trial.repeats}
    assert any(score[name] != grown[name] for name in score if not below[name])
    assert all(score[name] == grown[name] for name in score if below[name])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["final={route: born_again, epochs: 1}"], "final.epochs: each of 2 generations takes one"),
        (["final.route=assistants", "distillation.losses=[{type: kd, of: ema}]"], "no loss learns of a teacher"),
        (["final={route: assistants, until: flat}"], "until: flat finds the length of direct trainings"),
        (["final.compare_direct=true"], "the route is direct: there is nothing to compare"),
        (["final={route: shrink, epochs: 1}"], "final.epochs: the supernet takes one of them"),
        (["final={route: shrink, start: supernet}"], "the route shrink trains a supernet for each student"),
        (["final.route=shrink", "distillation.losses=[{type: kd}, {type: kd, of: ema}]"], "ema is the moving average"),
        (["final.route=along"], "final.route"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load_study(tiny.write(tmp_path), settings)
