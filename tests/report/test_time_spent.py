"""Seconds by phase add up to the trials' own, and the page shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic_run

from kdnas.report.figures import seconds_by_phase, seconds_of, time_figure
from kdnas.report.page import page

PROFILE = {"student": 5.0, "teacher": 1.0, "data": 0.5, "evaluation": 0.25, "unknown": 9.0}


def run():
    trials = [synthetic_run.complete(number, 0.9, 1e6) for number in range(3)]
    trials[0] = replace(trials[0], profile=PROFILE)
    trials.append(replace(trials[1], number=3, state="running", ended=None, train_seconds=0.0, teacher_seconds=0.0))
    return synthetic_run.run_of(trials)


def test_what_no_phase_accounts_for_is_other():
    first, second, *_, running = run().trials
    assert seconds_of(first) == {"student": 5.0, "teacher": 1.0, "data": 0.5, "evaluation": 0.25, "other": 3.25}
    assert seconds_of(second) == {"teacher": 4.0, "student": 6.0, "other": 0.0}
    assert sum(seconds_of(running).values()) == 0.0


def test_phases_are_summed_over_trials_and_sorted():
    sums = seconds_by_phase(run())
    assert list(sums.items()) == [
        ("student", 17.0), ("teacher", 9.0), ("other", 3.25), ("data", 0.5), ("evaluation", 0.25),
    ]  # fmt: skip
    assert sum(sums.values()) == pytest.approx(30.0)
    assert seconds_by_phase(synthetic_run.run_of([])) == {}


def test_the_figure_stacks_the_phases_of_each_trial():
    figure = time_figure(run())
    bars = {bar.name: list(bar.y) for bar in figure.drawing.data}
    assert bars["student’s steps: 56.7 %"] == [5.0, 6.0, 6.0, 0.0]
    assert bars["teacher: 30.0 %"] == [1.0, 4.0, 4.0, 0.0]
    assert figure.drawing.layout.barmode == "stack"
    assert "30 s of all trials" in figure.caption


def test_the_caption_says_how_students_were_packed_and_what_slowed_trials():
    assert "trials" in time_figure(run()).caption
    slow = [replace(trial, notes=("the graph failed (x < y)", "the teacher was run")) for trial in run().trials[:2]]
    trials = [*slow, replace(run().trials[2], notes=("the teacher was run",))]
    packed = replace(synthetic_run.run_of(trials), packing="8 students at a time on each device")
    caption = time_figure(packed).caption
    assert caption.endswith(
        "8 students at a time on each device. In 3 trials the teacher was run. In 2 trials the graph failed (x < y)."
    )
    assert "the graph failed (x &lt; y)" in page(packed)


def test_the_page_has_the_figure():
    assert "Where the time of the search went" in page(run())
