"""What varied in a search: choices that students have, importance over them, and settings stuck at a bound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_run import complete, run_of

from kdnas.core.arch import Arch
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.report.parallel import parallel_figure
from kdnas.report.searched import _better_by_chance, importance, searched, stuck_at_bounds
from kdnas.study.spaces import arch_of
from kdnas.study.tune import TuneRange

SPACE = SearchSpace(
    name="staged",
    family="",
    choices=(
        Choice("stem_width", (8, 16, 32)),
        Choice("stage4.depth", (0, 1, 2)),
        Choice("stage4.width", (16, 32, 64)),
        Choice("stage4.bottleneck", ("plain", 0.5)),
        Choice("stage4.kernel", (3, 5)),
        Choice("stage4.skip", ("identity",)),
    ),
    conditions=tuple(
        Condition(f"stage4.{name}", "stage4.depth", (1, 2)) for name in ("width", "bottleneck", "kernel", "skip")
    ),
)


def student(number, accuracy, proposed, space=SPACE, tuned=None):
    trial = complete(number, accuracy, 10.0 + number)
    return replace(trial, arch=arch_of(space, proposed, None), proposed=proposed, tuned=tuned or {})


def run_in(space, trials, **changes):
    run = run_of(trials)
    config = run.config.model_copy(update=changes)
    return replace(run, config=config, lock=replace(run.lock, space=space))


def presence_run(*, recorded=True):
    """Students whose accuracy depends on nothing but whether stage 4 is there, and a little noise."""
    rng = np.random.default_rng(3)
    trials = []
    for number in range(48):
        proposed = SPACE.random(rng)
        trial = student(number, 0.5 + 0.3 * (proposed["stage4.depth"] > 0) + 0.01 * rng.normal(), proposed)
        if not recorded:  # as a family spells it: a stage that is left out has no choices at all
            depth = proposed["stage4.depth"]
            choices = {name: value for name, value in trial.arch.choices.items() if depth or name != "stage4.depth"}
            trial = replace(trial, arch=Arch.of("resnet", choices), proposed={})
        trials.append(trial)
    return run_in(SPACE, trials) if recorded else run_of(trials)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_absence_of_a_stage_is_its_depths_doing_alone(recorded):
    shares = importance(presence_run(recorded=recorded)).shares
    assert "stage4.skip" not in shares  # it has one value wherever it is
    assert set(shares) == {"stem_width", "stage4.depth", "stage4.width", "stage4.bottleneck", "stage4.kernel"}
    assert shares["stage4.depth"] > 0.95
    assert sum(shares.values()) == pytest.approx(1.0)


def test_importance_of_an_additive_function_follows_its_variances():
    trials, weights = [], {"a": 0.04, "b": 0.02, "c": 0.01}
    grid = itertools.product((0, 1), (0, 1), (0, 1), range(8))
    for number, (a, b, c, noise) in enumerate(grid):
        score = 0.5 + weights["a"] * a + weights["b"] * b + weights["c"] * c
        arch = Arch.of("table", {"a": f"x{a}", "b": f"x{b}", "c": f"x{c}", "noise": noise})
        trials.append(replace(complete(number, score, 10.0), arch=arch))
    shares = importance(run_of(trials)).shares
    whole = sum(weight**2 for weight in weights.values())
    for name, weight in weights.items():
        assert shares[name] == pytest.approx(weight**2 / whole, abs=0.1)  # a forest is rough
    assert shares["noise"] < 0.01


def test_what_was_proposed_counts_where_an_arch_numbers_its_stages_anew():
    space = replace(
        SPACE,
        family="resnet",
        choices=(
            Choice("stem_width", (8,)),
            *(
                Choice(f"stage{i}.{name}", values)
                for i in (1, 2)
                for name, values in [("depth", (0, 1)), ("width", (8, 16) if i == 2 else (8,)), ("skip", ("none",))]
            ),
        ),
        conditions=(),
    )
    rows = [
        {"stem_width": 8, "stage1.depth": d, "stage1.width": 8, "stage1.skip": "none", "stage2.depth": 1,
         "stage2.width": w, "stage2.skip": "none"}
        for d, w in itertools.product((0, 1), (8, 16))
    ]  # fmt: skip
    trials = []
    for number, row in enumerate(rows):
        kept = [i for i in (1, 2) if row[f"stage{i}.depth"]]
        choices = {f"stage{k}.{n}": row[f"stage{i}.{n}"] for k, i in enumerate(kept, 1) for n in ("depth", "width")}
        arch = Arch.of("resnet", {"stem_width": 8, **choices})
        trials.append(replace(complete(number, 0.5, 1.0), arch=arch, proposed=row))
    found = {setting.name: setting.values for setting in searched(run_in(space, trials), trials)}
    assert found == {"stage1.depth": (0, 0, 1, 1), "stage2.width": (8, 16, 8, 16)}


def test_parallel_coordinates_have_an_axis_for_each_tuned_setting():
    rng = np.random.default_rng(0)
    rates = np.geomspace(0.001, 0.1, 20)
    trials = [
        student(number, 0.5 + 0.01 * number, SPACE.random(rng), tuned={"training.learning_rate": float(rate)})
        for number, rate in enumerate(rates)
    ]
    run = run_in(SPACE, trials, tune={"training.learning_rate": TuneRange(low=0.001, high=0.1, log=True)})
    drawing = parallel_figure(run).drawing
    axes = list(drawing.layout.xaxis.ticktext)
    assert axes[-3:] == ["training.learning_rate", "accuracy", "MACs"]
    assert "stage4.skip" not in axes
    place = axes.index("training.learning_rate")
    heights = sorted(trace.y[place] for trace in drawing.data if trace.mode == "lines")
    assert heights == pytest.approx(np.linspace(0, 1, 20))  # logarithmic, as it was searched
    assert {"0.001", "0.1"} <= {annotation.text for annotation in drawing.layout.annotations}


def tuned_run(rates, accuracy, *, low=0.001, high=0.1):
    trials = [
        replace(complete(number, accuracy(rate), 10.0 + number), tuned={"training.learning_rate": float(rate)})
        for number, rate in enumerate(rates)
    ]
    run = run_of(trials)
    tune = {"training.learning_rate": TuneRange(low=low, high=high, log=True)}
    return replace(run, config=run.config.model_copy(update={"tune": tune}))


@pytest.mark.parametrize(
    ("accuracy", "end"),
    [
        (lambda rate: 0.5 + 0.1 * np.log10(rate), "upper"),
        (lambda rate: 0.5 - 0.1 * np.log10(rate), "lower"),
        (lambda rate: 0.9 - abs(np.log10(rate) + 2), None),  # best in the middle
    ],
)
def test_a_tuned_setting_stuck_at_its_bound_is_said(accuracy, end):
    printed = stuck_at_bounds(tuned_run(np.geomspace(0.001, 0.1, 24), accuracy))
    if end is None:
        assert printed == []
    else:
        assert len(printed) == 1
        assert printed[0].startswith(f"training.learning_rate is stuck at the {end} end of its range, 0.001 to 0.1")


def test_a_width_stuck_at_the_largest_is_said_and_a_depth_of_none_is_not():
    rng = np.random.default_rng(5)
    trials = []
    for number in range(40):
        proposed = SPACE.random(rng)
        gain = 0.01 * proposed["stem_width"] - 0.1 * proposed["stage4.depth"]
        trials.append(student(number, 0.5 + gain + 0.001 * rng.normal(), proposed))
    (printed,) = stuck_at_bounds(run_in(SPACE, trials))
    assert printed.startswith("stem_width is stuck at 32, its largest value")


def test_chance_alone_hardly_ever_looks_stuck():
    rng = np.random.default_rng(11)
    runs = [tuned_run(0.001 * 100 ** rng.random(20), lambda rate: float(rng.random())) for _ in range(100)]
    assert sum(bool(stuck_at_bounds(run)) for run in runs) <= 2


def test_how_likely_one_group_is_better_by_chance_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    for ours, others in ((rng.normal(size=30), rng.normal(0.5, size=50)), (rng.integers(0, 4, 20), np.arange(12) % 4)):
        pairs = len(ours) * len(others)
        wins = pairs - stats.mannwhitneyu(ours, others).statistic
        deviation = np.sqrt(pairs * (len(ours) + len(others) + 1) / 12)
        expected = stats.norm.sf((wins - pairs / 2) / deviation)
        assert _better_by_chance(list(ours), list(others)) == pytest.approx(expected)
