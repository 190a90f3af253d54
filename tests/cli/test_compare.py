"""`kdnas compare`: recipes side by side on real digits; stopped, it goes on; the best recipe is a study."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from kdnas.audit.comparing import Comparisons, Row, kept, result_of
from kdnas.cli.main import build_app
from kdnas.core.objective import ACCURACY, PERPLEXITY
from kdnas.report.comparison import picture, table
from kdnas.study.loading import load_study

VARY = ("--vary", "distillation.losses=ce,kd", "--seeds", "2", "--epochs", "1", "--pick", "smallest")


def compare(*arguments: object):
    return CliRunner().invoke(build_app(), ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two recipes, of a study that was never searched."""
    root = tmp_path_factory.mktemp("compare")
    study = tiny.write(root)
    done = compare(study, "--out", root / "run", *VARY)
    assert done.exit_code == 0, done.output
    assert "4 trainings to do" in done.output
    assert "2 recipes, 1 student, 2 seeds: 1 epoch each" in " ".join(done.output.split())
    return root


def test_every_recipe_has_every_seed_and_files_say_so(compared: Path) -> None:
    out = compared / "run" / "compare"
    lines = (out / "scores.csv").read_text().splitlines()
    assert lines[0] == "recipe,arch_id,seed,score,mean,ci95"
    assert len(lines) == 5
    assert "<svg" in (out / "scores.svg").read_text()
    assert len(kept(compared / "run")) == 4


def test_repeated_it_trains_nothing_and_with_more_recipes_only_those(compared: Path) -> None:
    again = compare(compared / "tiny", "--out", compared / "run", *VARY, "--json")
    assert "0 trainings to do (4 are there already)" in " ".join(again.stderr.split())
    found = json.loads(again.stdout)
    assert {row["recipe"] for row in found["rows"]} == {"ce", "kd"}
    assert [len(row["scores"]) for row in found["rows"]] == [2, 2]
    assert found["differences"][0]["pairs"] == 2
    more = ["--vary", "distillation.losses=ce,kd,dist", *VARY[2:], "--dry-run"]
    dry = compare(compared / "run", *more)
    assert "2 trainings to do (4 are there already)" in " ".join(dry.output.split())


def test_a_line_that_was_cut_short_is_trained_again(compared: Path, tmp_path: Path) -> None:
    text = (compared / "run" / "compare" / "trainings.jsonl").read_text()
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "trainings.jsonl").write_text(text[:-20])
    assert len(kept(tmp_path)) == 3


def test_the_best_recipe_is_a_study(compared: Path) -> None:
    out = compared / "run" / "compare"
    best = (out / "scores.csv").read_text().splitlines()[1].split('"')[1]
    study = load_study(out)
    assert [term.type for term in study.config.distillation.losses] == ([] if best == "ce" else ["kd"])
    assert study.config.training.epochs == 3  # the study's own length, not that of the comparison
    assert study.space.choices == load_study(compared / "tiny").space.choices
    assert study.config.teachers == load_study(compared / "tiny").config.teachers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "distillation.losses=kd,relations"], "relations compares what layers attend with"),
        (["--vary", "distillation.losses=kd"], "there is one recipe, and nothing to compare it with"),
        (["--vary", "distillation.losses=kd,ce", "--pick", "best"], "has no front to pick 'best' from yet"),
        (["--vary", "training.epochs=1,2"], "recipes are compared on one budget"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(compared: Path, arguments: list[str], message: str) -> None:
    from kdnas.errors import InputError

    failed = compare(compared / "run", *arguments)
    assert isinstance(failed.exception, InputError)
    assert message in str(failed.exception)


# -- what the numbers say ----------------------------------------------------------------------------------------------


class _Task:
    def __init__(self, arch_id: str, name: str, seed: int):
        self.name, self.seed, self._key = name, seed, f"{arch_id} {name} {seed}"
        self.student = type("S", (), {"arch": type("A", (), {"arch_id": arch_id})})

    def key(self, fidelity: object) -> str:
        return self._key


class _Plan:
    """Three recipes, two students, six seeds."""

    names = ("a", "b", "c")
    fidelity = None
    tasks = tuple(_Task(arch, name, seed) for seed in range(6) for arch in "xy" for name in "abc")


def _scores(lead: float) -> dict[str, float]:
    """`a` is ahead of `b` by `lead` in every pair, while students and seeds differ by far more; `c` is noise."""
    noise = {0: 0.02, 1: -0.03, 2: 0.01, 3: -0.02, 4: 0.03, 5: -0.01}
    scores = {}
    for task in _Plan.tasks:
        base = (0.6 if task.student.arch.arch_id == "x" else 0.8) + 0.05 * task.seed
        own = {"a": lead + 0.001 * task.seed, "b": 0.0, "c": noise[task.seed]}[task.name]
        scores[task.key(None)] = base + own
    return scores


def test_pairs_tell_what_students_and_seeds_would_hide() -> None:
    result = result_of(_Plan, ACCURACY, _scores(0.01))
    sure = [d for d in result.differences if d.p_value < 0.05]
    assert [(d.better, d.worse, d.pairs) for d in sure] == [("a", "b", 12)]
    assert sure[0].gain == pytest.approx(0.0125)
    assert result.ranking[0] == "a"
    assert result.worse_than("a") == ["b"]
    printed = [cells[-1].text for cells in table(result).rows]
    assert printed == ["the best", *("beyond noise" if name == "b" else "≈ the best" for name in result.ranking[1:])]


def test_a_score_that_is_to_be_small_turns_the_order() -> None:
    result = result_of(_Plan, PERPLEXITY, {key: 2 + score for key, score in _scores(0.01).items()})
    assert result.ranking[-1] == "a"
    assert result.worse_than("b") == ["a"]


def test_missing_trainings_leave_the_pairs_that_there_are() -> None:
    scores = _scores(0.01)
    del scores["x a 0"], scores["y b 3"]
    result = result_of(_Plan, ACCURACY, scores)
    pairs = {frozenset((d.better, d.worse)): d.pairs for d in result.differences}
    assert pairs == {frozenset("ab"): 10, frozenset("ac"): 11, frozenset("bc"): 11}
    assert result.failed == 2


def test_a_pictures_intervals_end_where_scores_do() -> None:
    rows = (Row("ema", "a", {0: 0.8, 1: 0.9}, 0.85, 0.6), Row("kd", "a", {0: 0.94, 1: 0.95}, 0.945, 0.07))
    drawing = picture(Comparisons(ACCURACY, rows, (), 0))
    assert "100.00 %" in drawing
    assert "120.00 %" not in drawing
    ends = {float(end) for end in re.findall(r"H([\d.]+)", drawing)}
    assert len(ends) == 1  # both reach 100 %


def test_a_picture_of_one_training_each_needs_no_interval() -> None:
    rows = tuple(Row("x", name, {0: 0.5}, 0.5, None) for name in ("kd", "<dkd>"))
    drawing = picture(Comparisons(ACCURACY, rows, (), 0))
    assert "&lt;dkd&gt;" in drawing
    assert drawing.count("<circle") == 4
