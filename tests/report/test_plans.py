"""What the report draws and tells of plans, against a plan written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import complete, run_of

from kdnas.core.objective import ACCURACY, PERPLEXITY
from kdnas.core.route import Route
from kdnas.core.shrinking import Check, FinishedStage, Panel, Probe, ShrinkingRecord, Stage
from kdnas.plan.plan_file import (
    Budget,
    DataSection,
    DistilStep,
    MeasuredRoute,
    SpaceSection,
    StudentSection,
    SupernetStep,
    TeacherSection,
    TrainingPlan,
    write_plan,
)
from kdnas.plan.train_file import ArchSection
from kdnas.report.page import page
from kdnas.report.plans import find_plans, stage_table, unlocking_figure
from kdnas.training.supernet.shrinking_file import write_shrinking

LADDERS = {"stage1.depth": (3, 2, 1), "stage1.width": (16, 8), "stage1.skip": ("identity",)}
PROBES = (
    Probe("depth", {"stage1.depth": 2}, 0.7, 0.05, 0.4),
    Probe("width", {"stage1.width": 8}, 0.6, -0.01, 0.5),
)


def allowed(depths: int, widths: int) -> dict[str, tuple]:
    whole = {**LADDERS, "resolution": (8,)}
    return {**whole, "stage1.depth": LADDERS["stage1.depth"][:depths], "stage1.width": LADDERS["stage1.width"][:widths]}


STAGES = (
    FinishedStage(
        Stage("largest", allowed(1, 1), 0.3, reason="training starts with the largest"),
        0, 10, 0.25, "it can teach", (Check(5, 0.1, 0.5, 0.5), Check(10, 0.25, 0.7, 0.7)),
    ),
    FinishedStage(
        Stage(
            "1 depth", allowed(2, 1), 0.2, learning_rate=0.7, subnets=3, sandwich=True, kd_weight=0.5,
            reason="<cheapest>", gap=0.2, probes=PROBES,
        ),
        10, 7, 0.15, "neither subnet rose", (Check(17, 0.4, 0.72, 0.6),), Panel(0.3, 0.63, 0.74, 1.25),
    ),
    FinishedStage(
        Stage("everything", allowed(3, 2), 0.6, subnets=4, sandwich=True, reason="no budget for each"),
        17, 20, 0.6, "its share is spent", (Check(37, 1.0, 0.8, 0.75),),
    ),
)  # fmt: skip
RECORDED = ShrinkingRecord("adaptive", "tiny", "resnet", 123_000_000, STAGES)


def bars(figure) -> dict[str, list[tuple[float, float, float]]]:
    """By dimension: (lane, from, to) of each bar."""
    return {
        trace.name: [(y, base, base + x) for y, base, x in zip(trace.y, trace.base, trace.x, strict=True)]
        for trace in figure.drawing.data
        if trace.type == "bar"
    }


def test_a_lane_is_filled_from_where_its_value_was_unlocked():
    figure = unlocking_figure(RECORDED, LADDERS, ACCURACY, name="plan-1", teacher=0.9)
    drawn = bars(figure)
    assert set(drawn) == {"depth", "width"}  # one value is no choice
    starts = {name: [start for _, start, _ in group] for name, group in drawn.items()}
    assert starts["depth"] == pytest.approx([0.0, 0.25, 0.4])
    assert starts["width"] == pytest.approx([0.0, 0.4])
    assert all(end == pytest.approx(1.0) for group in drawn.values() for _, _, end in group)
    lanes = [lane for group in drawn.values() for lane, _, _ in group]
    assert len(set(lanes)) == 5
    labels = dict(zip(figure.drawing.layout.yaxis.tickvals, figure.drawing.layout.yaxis.ticktext, strict=True))
    assert [labels[lane] for lane in lanes] == ["stage1.depth  3", "2", "1", "stage1.width  16", "8"]
    texts = [text for trace in figure.drawing.data if trace.type == "bar" for text in trace.text]
    assert "stage1.depth = 2: from 25.0% to 100.0%, stages 2 to 3" in texts


def test_what_was_locked_again_leaves_a_hole():
    again = (STAGES[2], STAGES[0], STAGES[2])
    drawn = bars(unlocking_figure(replace(RECORDED, stages=again), LADDERS, ACCURACY, name="plan-1"))
    spans = [(start, end) for _, start, end in drawn["width"]]
    assert spans == [(0.0, pytest.approx(1.45)), (0.0, pytest.approx(0.6)), (pytest.approx(0.85), pytest.approx(1.45))]


def test_the_accuracies_at_the_checks_are_drawn_below():
    figure = unlocking_figure(RECORDED, LADDERS, ACCURACY, name="plan-1", teacher=0.9)
    below = {trace.name: trace for trace in figure.drawing.data if trace.yaxis == "y2"}
    assert set(below) == {
        "largest subnet", "middle subnet", "smallest subnet of all", "smallest that is allowed", "teacher"
    }  # fmt: skip
    assert list(below["smallest that is allowed"].x) == [0.1, 0.25, 0.4, 1.0]
    assert list(below["smallest that is allowed"].y) == [0.5, 0.7, 0.6, 0.75]
    assert list(below["largest subnet"].y) == [0.5, 0.7, 0.72, 0.74, 0.8]
    assert (list(below["middle subnet"].x), list(below["middle subnet"].y)) == ([0.4], [0.63])
    assert set(below["teacher"].y) == {0.9}
    layout = figure.drawing.layout
    assert layout.yaxis2.domain[1] < layout.yaxis.domain[0]
    boundaries = [shape.x0 for shape in layout.shapes]
    assert boundaries == pytest.approx([0.25, 0.4])


def test_perplexities_are_shown_as_such():
    """A policy compares the mean probability of a token, 0.7; the reader sees the perplexity, 1 / 0.7."""
    drawn = unlocking_figure(RECORDED, LADDERS, PERPLEXITY, name="plan-1", teacher=1.1)
    below = {trace.name: trace for trace in drawn.drawing.data if trace.yaxis == "y2"}
    assert below["largest subnet"].y[:2] == pytest.approx([2.0, 1 / 0.7])
    assert below["largest subnet"].text[0].startswith("largest subnet 2<br>")
    assert set(below["teacher"].y) == {1.1}
    assert drawn.drawing.layout.yaxis2.title.text == "Perplexity"
    table = stage_table(RECORDED, PERPLEXITY, "Stages")
    second = [cell.text for cell in table.rows[1]]
    assert "depth: +0.0952 lost, 40.0% of MACs saved; width: −0.0282 lost, 50.0% of MACs saved" in second
    assert "neither subnet rose; then smallest 3.333, middle 1.587, largest 1.351, mean loss 1.25" in second


def test_a_policy_that_checks_nothing_has_one_panel():
    silent = replace(RECORDED, stages=tuple(replace(finished, checks=(), panel=None) for finished in STAGES))
    figure = unlocking_figure(silent, LADDERS, ACCURACY, name="plan-1")
    assert not [trace for trace in figure.drawing.data if trace.yaxis == "y2"]
    assert "scores nothing on the way" in figure.caption


def test_what_was_never_unlocked_is_an_empty_lane():
    short = replace(RECORDED, stages=STAGES[:2])
    drawn = bars(unlocking_figure(short, LADDERS, ACCURACY, name="plan-1"))
    assert [len(drawn[name]) for name in ("depth", "width")] == [2, 1]
    assert drawn["depth"][0][2] == pytest.approx(0.4)  # where the training ended


def stages(recorded: ShrinkingRecord) -> list[dict[str, str]]:
    """The rows of a table of stages, by heading."""
    table = stage_table(recorded, ACCURACY, "Stages")
    headings = [column.heading for column in table.columns]
    return [dict(zip(headings, [cell.text for cell in row], strict=True)) for row in table.rows]


def test_the_table_says_why():
    first, second, third = stages(RECORDED)
    assert first["allowed"] == "the largest network alone"
    assert second["allowed"] == "also stage1.depth 2"
    assert third["allowed"] == "also stage1.depth 1; stage1.width 8"
    assert second["budget"] == "25.0% to 40.0%"
    assert (second["learning rate"], second["subnets a step"], second["KD weight"]) == (
        "× 0.7",
        "3 (sandwich)",
        "× 0.5",
    )
    assert second["why it began"] == "<cheapest> (teacher gap 20.0%)"
    assert second["measured before it"] == (
        "depth: +5.0 points lost, 40.0% of MACs saved; width: −1.0 points lost, 50.0% of MACs saved"
    )
    assert second["how it ended"] == (
        "neither subnet rose; then smallest 30.00 %, middle 63.00 %, largest 74.00 %, mean loss 1.25"
    )


def test_the_table_tells_of_modes():
    stage = replace(STAGES[2].stage, in_turn=True, gains={"in turn": 12.5, "together": -0.5})
    first, second = stages(replace(RECORDED, stages=(replace(STAGES[2], stage=stage),) * 2))
    assert first["subnets a step"] == "1 of 4 in turn"
    gains = "in turn: ln(loss) falls by 12.5 a budget; together: ln(loss) falls by −0.5 a budget"
    assert first["measured before it"] == gains
    assert first["allowed"].startswith("stage1.depth 3, 2, 1; ")
    assert second["allowed"] == "as before"


def plan(route: Route, recorded: ShrinkingRecord | None) -> TrainingPlan:
    choices = {name: list(values) for name, values in LADDERS.items()}
    arch = {"family": "resnet", "choices": {"stem_width": 8}}
    steps = (
        SupernetStep(name="supernet", share=0.6, space=SpaceSection(family="resnet", choices=choices)),
        DistilStep(name="student", share=0.4, arch=ArchSection(**arch), init="supernet", epochs=4, learning_rate=0.3),
    )
    made = TrainingPlan(
        study="synthetic",
        student=StudentSection(arch_id="0123456789ab", **arch),
        teacher=TeacherSection(name="teacher", score=0.9),
        data=DataSection(name="digits", fingerprint="d"),
        budget=Budget(epochs=10, samples=100, student_macs=1000, macs=3_000_000),
        route=route,
        why="<b>measured</b>",
        measured=(
            MeasuredRoute(route="direct", epochs=2, score=0.5, train_seconds=3.0),
            MeasuredRoute(route="assistants", epochs=2, note="no network between"),
        ),
        steps=steps,
    )
    return made if recorded is None else made.with_recorded("supernet", recorded)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "training" / "0123456789ab-shrink").mkdir(parents=True)
    (tmp_path / "supernet").mkdir()
    write_plan(tmp_path / "plan.yaml", plan("shrink", None))
    write_plan(tmp_path / "training" / "0123456789ab-shrink" / "plan.yaml", plan("shrink", RECORDED))
    write_shrinking(tmp_path / "supernet" / "shrinking.yaml", RECORDED)
    return tmp_path


def test_the_page_has_every_plan_of_the_run(folder):
    run = run_of([complete(0, 0.8, 1e6), complete(1, 0.9, 2e6)], folder=folder)
    document = page(run)
    assert '<figure id="plan-1" class=wide>' in document
    assert '<figure id="plan-2" class=wide>' in document
    assert 'id="data-plan-2"' in document
    assert "The run’s supernet: supernet/shrinking.yaml" in document
    assert "The plan to follow for student 0123456789ab, route shrink: plan.yaml" in document
    assert "training/0123456789ab-shrink/plan.yaml" in document
    assert "&lt;b&gt;measured&lt;/b&gt;" in document
    assert "<b>measured</b>" not in document
    assert "&lt;cheapest&gt;" in document
    assert "no network between" in document
    assert document.count(">50.00 %<") == 2  # the measured route of both files


def test_damaged_files_are_told_of_and_the_page_stands(folder):
    (folder / "plan.yaml").write_text("a: [")
    (folder / "supernet" / "shrinking.yaml").write_text("format: kdnas shrinking 1\nstages: 3\n")
    run = run_of([complete(0, 0.8, 1e6)], folder=folder)
    assert [bool(found.problem) for found in find_plans(run)] == [True, True, False]
    document = page(run)
    assert document.count("cannot be shown") == 2
    assert '<figure id="plan-1" class=wide>' in document


def test_without_plans_there_is_no_section(tmp_path):
    document = page(run_of([complete(0, 0.8, 1e6)], folder=tmp_path))
    assert "Training plans" not in document
