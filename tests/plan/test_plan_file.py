"""plan.yaml: written, read back, and everything wrong with an edited one told at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned_training import basis_of
from trained_run import study_config

from kdnas.core.data import ImageData
from kdnas.core.route import ROUTES, Route
from kdnas.core.shrinking import Check, FinishedStage, ShrinkingRecord, Stage
from kdnas.errors import ConfigError
from kdnas.plan.making import PlanBasis, make_plan
from kdnas.plan.plan_file import (
    MeasuredRoute,
    SpaceSection,
    SupernetSection,
    SupernetStep,
    TrainingPlan,
    check_plan,
    find_plan,
    load_plan,
    plan_problems,
    write_plan,
)
from kdnas.record.lock import space_record
from kdnas.study.spaces import load_space
from kdnas.workshop.opening import load_data

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def digits(kdnas_cache: Path) -> ImageData:
    return load_data(study_config().data, Path("nowhere"), kdnas_cache)


@pytest.fixture(scope="module")
def bases(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PlanBasis]:
    return {name: basis_of(name, digits, tmp_path_factory.mktemp(name), epochs=20) for name in ("resnet", "mobilenet")}


def recorded(plan: TrainingPlan) -> TrainingPlan:
    """The plan of route shrink with invented stages."""
    step = plan.steps[0]
    assert isinstance(step, SupernetStep)
    largest = {name: tuple(values[:1]) for name, values in step.space.choices.items()} | {"resolution": (8,)}
    everything = {name: tuple(values) for name, values in step.space.choices.items()} | {"resolution": (8,)}
    stages = (
        FinishedStage(Stage("largest", largest, 0.2), 0, 9, 0.2, "spent", (Check(9, 0.2, 0.9, 1e-05),)),
        FinishedStage(Stage("everything", everything, 0.8, subnets=4, sandwich=True, gap=0.1), 9, 20, 0.8, "over"),
    )
    budget = step.budget(plan.budget.macs)
    return plan.with_recorded(step.name, ShrinkingRecord("adaptive", "supernet", step.space.family, budget, stages))


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
@pytest.mark.parametrize("route", ["direct", "shrink", "assistants", "born_again", "recorded"])
def test_written_and_read_back_it_is_equal_and_sound(bases, tmp_path, family, route):
    basis = bases[family]
    plan = recorded(make_plan(basis, "shrink", "so")) if route == "recorded" else make_plan(basis, route, "so")
    write_plan(tmp_path / "plan.yaml", plan)
    again, document = load_plan(tmp_path / "plan.yaml")
    assert again == plan
    check_plan(again, document, basis.file, basis.family)
    if route == "recorded":
        assert again.steps[0].recorded == plan.steps[0].recorded
    header = [line for line in (tmp_path / "plan.yaml").read_text().splitlines() if line.startswith("#")]
    assert "3 x MACs" in " ".join(header)


def test_every_route_spends_the_same_budget(bases):
    for basis in bases.values():
        macs = basis.inputs.student.macs
        for route in [route for route in ROUTES if route != "grow"]:  # who is the smallest cannot
            plan = make_plan(basis, route, "so")
            assert plan.budget.macs == 3 * macs * basis.samples * 20
            total = sum(step.share for step in plan.steps)
            assert 1.0 - 1.0 / 20 <= total <= 1.0 + 1e-5, route
            assert plan.steps[-1].name == "student"
        shrink = make_plan(basis, "shrink", "so")
        tuning = shrink.steps[1].epochs * 3 * macs * basis.samples
        assert shrink.steps[0].budget(shrink.budget.macs) + tuning == pytest.approx(shrink.budget.macs, rel=1e-6)


def test_a_chain_learns_one_from_the_other(bases):
    first, last = make_plan(bases["resnet"], "assistants", "so").steps
    assert (first.name, first.teacher, last.teacher, last.init) == ("assistant1", "teacher", "assistant1", "random")
    assert first.network(bases["resnet"].family) != last.network(bases["resnet"].family)
    assert first.epochs >= 1


def test_generations_learn_one_from_the_other_and_begin_anew(bases):
    basis = bases["resnet"].with_epochs(21)
    first, last = make_plan(basis, "born_again", "so").steps
    assert (first.name, first.teacher, last.teacher, last.init) == ("generation1", "teacher", "generation1", "random")
    assert first.network(basis.family) == last.network(basis.family) == basis.file.student
    assert (first.epochs, last.epochs) == (10, 11)


def test_the_student_is_the_smallest_of_its_supernet(bases):
    for basis in bases.values():
        step = make_plan(basis, "shrink", "so").steps[0]
        assert step.network(basis.family) == basis.file.student
        assert all(len(values) > 1 for name, values in step.space.choices.items() if name != "stage1.skip")


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_who_grows_is_the_largest_of_its_supernet(digits, tmp_path, family):
    basis = basis_of(family, digits, tmp_path / "run", epochs=20, grows=True)
    plan = make_plan(basis, "grow", "so")
    step, tuning = plan.steps
    assert (step.cut, step.settings.shrinking.policy, tuning.init) == ("largest", "growing", "supernet")
    assert step.network(basis.family) == basis.file.student
    elastic = step.elastic(basis.family)
    assert elastic.macs(elastic.smallest) < elastic.macs(elastic.largest) == basis.inputs.student.macs
    write_plan(tmp_path / "plan.yaml", plan)
    again, document = load_plan(tmp_path / "plan.yaml")
    assert again == plan
    check_plan(again, document, basis.file, basis.family)
    wrong = edited(tmp_path / "wrong.yaml", plan, set_in("steps", 0, "cut", None))
    with pytest.raises(ConfigError, match=r"steps\.1\.init: supernet gives .*, this one trains"):
        check_plan(*load_plan(wrong), basis.file, basis.family)


@pytest.mark.parametrize(
    ("change", "route", "expected"),
    [
        (
            {"spaces": {}, "no_supernet": {"shrink": "the student is the largest"}},
            "shrink",
            "route shrink: the student is the largest",
        ),
        ({"epochs": 1}, "shrink", "the budget is one epoch"),
        ({"no_supernet": {"grow": "the student is the smallest"}}, "grow", "route grow: the student is the smallest"),
        ({"front": ()}, "assistants", "the front has no student between"),
        ({"epochs": 1}, "assistants", "the front has no student between"),
        ({"epochs": 1}, "born_again", "the budget is 1 epoch, and each of 2 generations takes one"),
    ],
)
def test_routes_that_cannot_be_taken_say_why(bases, change, route: Route, expected):
    basis = bases["resnet"]
    inputs = {name: change[name] for name in ("epochs", "front") if name in change}
    own = {name: value for name, value in change.items() if name not in inputs}
    with pytest.raises(ConfigError, match=expected):
        make_plan(replace(basis, inputs=replace(basis.inputs, **inputs), **own), route, "so")


def edited(path: Path, plan: TrainingPlan, edit: Edit) -> Path:
    plain = plan.plain()
    edit(plain)
    path.write_text("# a comment\n" + yaml.safe_dump(plain, sort_keys=False))
    return path


def line_with(path: Path, text: str, start: int = 0) -> int:
    lines = path.read_text().splitlines()
    return 1 + next(index for index, line in enumerate(lines) if index >= start and text in line)


def test_mistakes_of_form_are_told_at_once_with_their_lines(bases, tmp_path):
    def edit(plain: dict[str, Any]) -> None:
        plain["budget"]["epochs"] = 0
        plain["rout"] = plain.pop("route")
        plain["steps"][0]["space"]["choices"]["stage1.depth"] = []
        plain["steps"][0]["space"]["conditions"] = [{"choice": "stage1.skip", "when": "stage1.depth"}]
        plain["steps"][0]["settings"]["shrinking"]["policy"] = "adoptive"
        plain["steps"][1]["epochs"] = "many"
        plain["steps"].append({"kind": "prune"})

    path = edited(tmp_path / "plan.yaml", make_plan(bases["resnet"], "shrink", "so"), edit)
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    places = [problem.where for problem in caught.value.problems]
    assert f"plan.yaml:{line_with(path, 'epochs: 0')}: budget.epochs" in places
    assert f"plan.yaml:{line_with(path, 'epochs: many')}: steps.1.epochs" in places
    assert f"plan.yaml:{line_with(path, 'adoptive')}: steps.0.settings.shrinking.policy" in places
    assert f"plan.yaml:{line_with(path, 'stage1.depth: []')}: steps.0.space.choices.stage1.depth" in places
    assert any(place.endswith(": steps.0.space.conditions.0.in") for place in places)
    assert any(place.endswith(": steps.2.kind") for place in places)
    assert any(place.endswith(": rout") for place in places)
    assert any(place.endswith(": route") for place in places)
    assert len(places) == 8


def set_in(*path: Any) -> Edit:
    """An edit that puts the last of `path` at the rest."""

    def edit(plain: dict[str, Any]) -> None:
        for key in path[:-2]:
            plain = plain[key]
        plain[path[-2]] = path[-1]

    return edit


@pytest.mark.parametrize(
    ("route", "edit", "where", "expected"),
    [
        ("shrink", set_in("steps", 1, "name", "supernet"), "steps.1.name", "already taken"),
        ("shrink", set_in("steps", 1, "name", "random"), "steps.1.name", "already taken"),
        ("shrink", set_in("steps", 1, "init", "later"), "steps.1.init", r"step \(allowed: random, inherited, supernet"),
        ("shrink", set_in("steps", 1, "teacher", "student"), "steps.1.teacher", "no earlier step"),
        ("shrink", set_in("steps", 1, "epochs", 9), "steps.1.share", r"is 0.4, but 9 epochs are 0.45 of the budget"),
        ("shrink", set_in("steps", 0, "share", 0.7), "steps", "spend 1.1 of the budget together"),
        ("shrink", set_in("steps", 0, "settings", "resolutions", [4]), "steps.0.settings.resolutions", "size of"),
        ("shrink", set_in("steps", 0, "space", "family", "rasnet"), "steps.0.space", "did you mean 'resnet'"),
        ("shrink", set_in("steps", 0, "space", "choices", "stage1.width", [16, "x"]), "steps.0.space", "stage1.width"),
        ("shrink", set_in("steps", 0, "space", "choices", "stage1.width", [16, 8]), "steps.1.init", "this one trains"),
        ("assistants", set_in("steps", 1, "init", "assistant1"), "steps.1.init", "this one trains"),
        ("direct", set_in("steps", 0, "arch", "choices", "stage1.width", "wide"), "steps.0.arch.choices", "width"),
        ("direct", set_in("steps", 0, "arch", "choices", "stage1.width", 8), "steps.0", "not the student"),
        ("direct", set_in("student", "choices", "stage1.width", 8), "student.arch_id", "one was edited"),
        ("direct", set_in("student", "family", "rasnet"), "student.family", "did you mean 'resnet'"),
        ("direct", set_in("budget", "student_macs", 1), "budget.student_macs", "is 1"),
        ("direct", set_in("budget", "macs", 1), "budget.macs", "not 3 x student_macs x samples x epochs"),
        ("recorded", set_in("steps", 0, "recorded", "stages", 1, "first_step", None), None, None),
        ("recorded", set_in("steps", 0, "recorded", "policy", {}), None, None),
        ("recorded", set_in("steps", 0, "recorded", "budget_macs", 1), "steps.0.recorded.budget_macs", "share is"),
        ("recorded", set_in("steps", 0, "recorded", "stages", 0, "allowed", {"stage1.width": [16]}),
         "steps.0.recorded.stages", "are the choices"),
        ("recorded", set_in("steps", 0, "recorded", "stages", 0, "allowed", "stage1.width", [99]),
         "steps.0.recorded.stages", "99 is no value of the space"),
    ],
)  # fmt: skip
def test_mistakes_of_content_are_told_with_their_places(bases, tmp_path, route, edit, where, expected):
    basis = bases["resnet"]
    plan = recorded(make_plan(basis, "shrink", "so")) if route == "recorded" else make_plan(basis, route, "so")
    loaded, document = load_plan(edited(tmp_path / "plan.yaml", plan, edit))
    if where is None:  # odd, but nothing that following it could stumble over
        check_plan(loaded, document, basis.file, basis.family)
        return
    problems = plan_problems(loaded, basis.family)
    assert any(problem.where.startswith(where) for problem in problems), problems
    with pytest.raises(ConfigError, match=expected) as caught:
        check_plan(loaded, document, basis.file, basis.family)
    assert all(problem.where.startswith("plan.yaml:") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (set_in("steps", 0, "recorded", "stages", 1, 3), "steps.0.recorded: stage 2 of the shrinking is damaged"),
        (
            set_in("steps", 0, "recorded", "stages", 0, {}),
            "stage 1 of .*: 'first_step' is missing",
        ),
        (set_in("steps", 0, "recorded", "colour", 1), "the record of the shrinking is damaged: .*'colour'"),
    ],
)
def test_damaged_stages_are_told_with_their_place(bases, tmp_path, edit, expected):
    path = edited(tmp_path / "plan.yaml", recorded(make_plan(bases["resnet"], "shrink", "so")), edit)
    with pytest.raises(ConfigError, match=expected):
        load_plan(path)


def test_a_plan_of_an_earlier_version_is_read(bases, tmp_path):
    """It was called schedule.yaml then, and a training schedule inside; scores were accuracies, samples images."""
    plan = recorded(make_plan(bases["resnet"], "shrink", "so"))
    plan = plan.model_copy(update={"measured": (MeasuredRoute(route="direct", epochs=2, score=0.5),)})
    write_plan(tmp_path / "schedule.yaml", plan)
    text = (tmp_path / "schedule.yaml").read_text()
    for now, then in (("training plan 1", "training schedule 1"), ("samples:", "images:"), (" score:", " accuracy:")):
        assert now in text
        text = text.replace(now, then)
    (tmp_path / "schedule.yaml").write_text(text)
    assert find_plan(tmp_path) == tmp_path / "schedule.yaml"
    assert load_plan(find_plan(tmp_path))[0] == plan
    write_plan(tmp_path / "plan.yaml", plan)
    assert find_plan(tmp_path) == tmp_path / "plan.yaml"


def test_conditions_of_a_space_are_read_back(bases, tmp_path):
    plan = make_plan(bases["resnet"], "shrink", "so")
    plain = space_record(load_space("cifar_resnet", Path()))
    assert plain["conditions"]
    step = plan.steps[0].model_copy(update={"space": SpaceSection(**plain)})
    write_plan(tmp_path / "plan.yaml", plan.model_copy(update={"steps": (step, *plan.steps[1:])}))
    space = load_plan(tmp_path / "plan.yaml")[0].steps[0].search_space
    assert space_record(space) == plain


def test_several_mistakes_of_content_at_once(bases, tmp_path):
    def edit(plain: dict[str, Any]) -> None:
        plain["steps"][1]["init"] = "nothing"
        plain["steps"][1]["epochs"] = 15
        plain["budget"]["macs"] += 1

    basis = bases["mobilenet"]
    loaded, document = load_plan(edited(tmp_path / "s.yaml", make_plan(basis, "shrink", "so"), edit))
    with pytest.raises(ConfigError) as caught:
        check_plan(loaded, document, basis.file, basis.family)
    assert [problem.where.partition(": ")[2] for problem in caught.value.problems] == [
        "budget.macs", "steps.1.share", "steps.1.init"
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["student", "teacher", "data set", "search space"])
def test_a_plan_for_something_else_is_one_message(bases, tmp_path, what):
    basis = bases["resnet"]
    plan = make_plan(basis, "shrink", "so").model_copy(update={"space": "0123"})
    file, space = basis.file.model_copy(update={"teacher_fingerprint": "feed"}), "0123"
    plan = plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"fingerprint": "feed"})})
    write_plan(tmp_path / "plan.yaml", plan)
    loaded, document = load_plan(tmp_path / "plan.yaml")
    check_plan(loaded, document, file, basis.family, space=space)
    other = bases["mobilenet"].file
    changes: dict[str, Any] = {
        "student": {"arch_id": other.arch_id, "arch": other.arch},
        "teacher": {"teacher_fingerprint": "beef"},
        "data set": {"data_fingerprint": "beef"},
    }
    file = file.model_copy(update=changes.get(what, {}))
    with pytest.raises(ConfigError, match=f"is a plan for another {what}") as caught:
        check_plan(loaded, document, file, basis.family, space="4567" if what == "search space" else space)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("format: kdnas schedule 1\nstages: []\n", "begins with 'format: kdnas training plan 1'"),
        ("format: kdnas training schedule 1\n", "study"),
        ("format: kdnas training plan 1\nsteps: [1]\n", "steps.0.kind"),
        ("a: [\n", "plan.yaml"),
        ("!!python/object/apply:os.system ['true']\n", "plan.yaml"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, expected):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_plan(tmp_path / "plan.yaml")


def test_stages_keep_what_is_not_known(bases):
    """`cost` is null where nothing is saved, and the gap of a first stage."""
    plan = recorded(make_plan(bases["resnet"], "shrink", "so"))
    plain = plan.plain()["steps"][0]["recorded"]["stages"]
    assert plain[0]["gap"] is None
    assert math.isclose(plain[1]["gap"], 0.1)


def test_a_plan_from_the_runs_supernet_needs_it(bases, tmp_path):
    supernet = SupernetSection(fingerprint="5e7", macs=10**9)
    basis = replace(bases["resnet"], supernet=supernet)
    plan = make_plan(basis, "shrink", "so")
    assert [(step.kind, step.init, step.epochs, step.share) for step in plan.steps] == [
        ("distil", "run-supernet", 20, 1.0)
    ]
    write_plan(tmp_path / "plan.yaml", plan)
    loaded, document = load_plan(tmp_path / "plan.yaml")
    check_plan(loaded, document, basis.file, basis.family, supernet="5e7")
    with pytest.raises(ConfigError, match=r"another supernet \(5e7, here it is 5e8\)"):
        check_plan(loaded, document, basis.file, basis.family, supernet="5e8")
    with pytest.raises(ConfigError, match=r"plan.yaml:\d+: supernet: begins from the supernet that"):
        check_plan(loaded, document, basis.file, basis.family)
    assert make_plan(basis, "direct", "so").supernet is None
    foreign = edited(tmp_path / "s.yaml", make_plan(basis, "direct", "so"), set_in("steps", 0, "init", "run-supernet"))
    loaded, document = load_plan(foreign)
    with pytest.raises(ConfigError, match="'run-supernet' is no earlier step"):
        check_plan(loaded, document, basis.file, basis.family, supernet="5e7")
