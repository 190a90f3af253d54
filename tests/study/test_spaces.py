from pathlib import Path

import numpy as np
import pytest

from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.students import family_for
from kdnas.study.space_size import random_prices, space_size
from kdnas.study.spaces import arch_of, load_space, read_space, space_names

GOOD = """\
family: resnet
description: A space
  on two lines.
choices:
  stem_width: {low: 8, high: 24, step: 8}
  stage1.depth: [1, 2]
  stage1.width: [8, 16.0]
  stage1.bottleneck: [plain, 0.5]
  stage2.depth: {low: 0, high: 2}
  stage2.width: [8, 16]
  stage2.bottleneck: [plain, 0.25]
conditions:
  - {choice: stage2.*, when: stage2.depth, in: {low: 1, high: 2}}
fixed:
  stage1.skip: none
  stage2.skip: identity
  stage2.stride: 1
"""


def load(tmp_path: Path, text: str) -> SearchSpace:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    return load_space("mine.yaml", tmp_path)


def test_every_committed_space_loads_is_large_and_its_samples_are_archs(repository):
    assert {f"{name}.yaml" for name in space_names()} == {p.name for p in (repository / "search_spaces").glob("*.yaml")}
    assert {"digits_resnet", "cifar_resnet", "cifar_mobilenet"} <= set(space_names())
    for name in space_names():
        space = load_space(name, Path("/nowhere"))
        rng = np.random.default_rng(0)
        archs = {arch_of(space, space.random(rng)) for _ in range(300)}
        assert len(archs) > 200
        assert space.count() > 10**5
        assert space.name == name
        assert space.description


@pytest.mark.parametrize(
    ("name", "task", "low", "high"),
    [
        ("digits_resnet", image_classification((1, 8, 8), 10), 4e3, 1.7e6),
        ("cifar_resnet", image_classification((3, 32, 32), 10), 0.37e6, 86e6),
        ("cifar_mobilenet", image_classification((3, 32, 32), 10), 0.79e6, 55e6),
        ("photo64_resnet", image_classification((3, 64, 64), 10), 0.5e6, 192e6),
        ("photo64_mobilenet", image_classification((3, 64, 64), 10), 0.8e6, 77.2e6),
        ("photo224_resnet", image_classification((3, 224, 224), 1000), 9e6, 3.55e9),
        ("photo224_mobilenet", image_classification((3, 224, 224), 1000), 13e6, 0.72e9),
        ("digits_vit", image_classification((1, 8, 8), 10), 9.6e3, 3.7e6),
        ("cifar_vit", image_classification((3, 32, 32), 10), 1.1e6, 488e6),
        ("photo64_vit", image_classification((3, 64, 64), 10), 1.7e6, 650e6),
    ],
)
def test_committed_spaces_cost_what_their_comments_say(name, task, low, high):
    space = load_space(name, Path())
    macs = [price.macs for price in random_prices(space, family_for(space.family, task), samples=500)]
    assert low <= min(macs) < max(macs) <= high
    assert max(macs) > 10 * min(macs)


def test_a_space_file_is_read_as_written(tmp_path):
    space = load(tmp_path, GOOD)
    assert space == SearchSpace(
        name="mine",
        family="resnet",
        description="A space on two lines.",
        choices=(
            Choice("stem_width", (8, 16, 24)),
            Choice("stage1.depth", (1, 2)),
            Choice("stage1.width", (8, 16)),
            Choice("stage1.bottleneck", ("plain", 0.5)),
            Choice("stage2.depth", (0, 1, 2)),
            Choice("stage2.width", (8, 16)),
            Choice("stage2.bottleneck", ("plain", 0.25)),
        ),
        conditions=tuple(
            Condition(f"stage2.{part}", "stage2.depth", (1, 2)) for part in ("width", "bottleneck", "skip", "stride")
        ),
        fixed={"stage1.skip": "none", "stage2.skip": "identity", "stage2.stride": 1},
    )
    assert type(space.choices[2].values[1]) is int


def test_paths_are_relative_to_the_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "it.yml").write_text("name: other\n" + GOOD, encoding="utf-8")
    assert load_space("sub/it.yml", tmp_path).name == "other"
    assert load_space(str(tmp_path / "sub" / "it.yml"), Path("/nowhere")).name == "other"


def test_arch_of_drops_what_a_condition_switches_off(tmp_path):
    space = load(tmp_path, GOOD)
    base = {"stem_width": 8, "stage1.depth": 1, "stage1.width": 8, "stage1.bottleneck": "plain", "stage2.depth": 0}
    archs = {
        arch_of(space, {**base, "stage2.width": width, "stage2.bottleneck": ratio})
        for width in (8, 16)
        for ratio in ("plain", 0.25)
    }
    assert len(archs) == 1
    assert not any(name.startswith("stage2") for name in archs.pop().choices)


def edit(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = [
    (edit("family: resnet", "family: resnett"), 1, "family", "no student family is called 'resnett'"),
    (edit("family: resnet", "family: [resnet]"), 1, "family", "must be text"),
    (GOOD + "choice: {}\n", 18, "choice", "unknown key; did you mean 'choices'?"),
    ("name: a b\n" + GOOD, 1, "name", "'a b' is no name"),
    (edit("description: A space\n  on two lines.", "description: [1]"), 2, "description", "must be text"),
    (edit("stage1.depth: [1, 2]", "stage1.depth: []"), 6, "choices.stage1.depth", "has no values"),
    (edit("stage1.depth: [1, 2]", "stage1.depth: 1"), 6, "choices.stage1.depth", "stands under `fixed:`"),
    (edit("stage1.depth: [1, 2]", "stage1.depth: [1, 2, 1.0]"), 6, "choices.stage1.depth", "the value 1 stands twice"),
    (edit("stage1.depth: [1, 2]", "stage1.depth: [1, null]"), 6, "choices.stage1.depth", "got None"),
    (edit("high: 24, step: 8", "high: 4, step: 8"), 5, "choices.stem_width", "low 8 is above high 4"),
    (edit("high: 24, step: 8", "high: 23, step: 8"), 5, "choices.stem_width", "high 23 is not reached from low 8"),
    (edit("step: 8", "step: 0"), 5, "choices.stem_width.step", "must be at least 1"),
    (edit("step: 8", "stepp: 8"), 5, "choices.stem_width.stepp", "unknown key"),
    (edit("{low: 8, high: 24, step: 8}", "{high: 24}"), 5, "choices.stem_width.low", "is required"),
    (edit("low: 8", "low: 8.5"), 5, "choices.stem_width.low", "must be a whole number, got 8.5"),
    (edit("high: 24, step: 8", "high: 99999999999, step: 1"), 5, "choices.stem_width", "more than 10000 values"),
    (edit("choice: stage2.*", "choice: stage4.*"), 13, "conditions.0.choice", "there is no choice 'stage4.*'"),
    (edit("when: stage2.depth", "when: stage9.depth"), 13, "conditions.0.when", "there is no choice 'stage9.depth'"),
    (edit("in: {low: 1, high: 2}", "in: [1, 7]"), 13, "conditions.0.in", "stage2.depth is never 7"),
    (edit("in: {low: 1, high: 2}", "in: [true]"), 13, "conditions.0.in", "stage2.depth is never True"),
    (edit("in: {low: 1, high: 2}", "is: [1]"), 13, "conditions.0", "must be {choice: NAME, when: NAME, in: [VALUES]}"),
    (edit("choice: stage2.*", "choice: stage2.depth"), 12, "conditions", "stage2.depth -> stage2.depth"),
    (edit("  stage1.skip: none", "  stage1.depth: 1"), 15, "fixed.stage1.depth", "fixed or searched, not both"),
    (edit("  stage1.skip: none", "  stage1.skip: [none]"), 15, "fixed.stage1.skip", "must be one value"),
    # what the family says
    (edit("stage2.stride: 1", "stage2.wings: 1"), 17, "fixed.stage2.wings", "is no choice of resnet"),
    (edit("[plain, 0.25]", "[plain, -1]"), 11, "choices.stage2.bottleneck", "cannot be -1"),
    (edit("stage1.depth: [1, 2]", "stage1.depth: [0, 1]"), 6, "choices.stage1.depth", "at least one stage must remain"),
    (edit("  stage1.skip: none\n", ""), 4, "choices.stage1.skip", "is required"),
]


@pytest.mark.parametrize(("text", "line", "where", "what"), BAD)
def test_bad_spaces_are_refused_with_the_line(tmp_path, text, line, where, what):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.where == f"mine.yaml:{line}: {where}"
    assert what in problem.what


def test_a_circle_of_conditions_is_refused(tmp_path):
    more = """conditions:
  - {choice: stage1.width, when: stage1.depth, in: [1]}
  - {choice: stage1.depth, when: stage1.bottleneck, in: [plain]}
  - {choice: stage1.bottleneck, when: stage1.width, in: [8]}
"""
    with pytest.raises(ConfigError, match=r"mine\.yaml:12: conditions: go in a circle: stage1\.width -> stage1\.depth"):
        load(tmp_path, edit("conditions:\n", more))


def test_all_problems_come_at_once_in_order(tmp_path):
    text = edit("stage1.depth: [1, 2]", "stage1.depth: []").replace("step: 8", "step: -8") + "color: 1\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert [problem.where.split(":")[1] for problem in caught.value.problems] == ["5", "6", "18"]


@pytest.mark.parametrize(
    "text", ["family: resnet\nfamily: mobilenet\n", "- 1\n", "", "a: [\n", "!!python/object:os.system {}\n"]
)
def test_what_is_no_plain_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load(tmp_path, text)


def test_unknown_names_and_missing_files_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"no search space is called 'digits_resnt'; did you mean 'digits_resnet'\?"):
        load_space("digits_resnt", tmp_path)
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file"):
        load_space("gone.yaml", tmp_path)


def small_space() -> SearchSpace:
    """One stage and a removable one, with projections that project nothing and ratios that round alike."""
    names = {
        "stem_width": (8, 16),
        "stage1.depth": (1, 2),
        "stage1.width": (8, 16),
        "stage1.bottleneck": ("plain", 0.25, 0.26),
        "stage1.skip": ("identity", "projection", "none"),
        "stage2.depth": (0, 1, 2),
        "stage2.width": (8, 16),
        "stage2.bottleneck": ("plain", 0.5),
        "stage2.skip": ("identity", "projection", "none"),
    }
    conditions = tuple(Condition(f"stage2.{part}", "stage2.depth", (1, 2)) for part in ("width", "bottleneck", "skip"))
    return SearchSpace("small", "resnet", tuple(Choice(*item) for item in names.items()), conditions)


def test_space_size_by_hand():
    size = space_size(small_space())
    stage1_spellings, stage2_spellings = 2 * 2 * 2 * 3 * 3, 1 + 2 * 2 * 2 * 3
    # bottlenecks 0.25 and 0.26 are one; a projection is one of its own only where the width changes (half of the pairs)
    stage1_networks = 2 * 2 * (2 + 3) * 2
    assert (size.assignments, size.sampled) == (72 * 36, 0)
    assert size.active == stage1_spellings * stage2_spellings
    assert size.networks == stage1_networks * stage2_spellings


def test_the_estimate_agrees_with_the_exact_count():
    space = small_space()
    exact = space_size(space)
    estimate = space_size(space, enumerate_up_to=0, samples=400)
    assert estimate.sampled == 400
    assert estimate.active == exact.active
    assert estimate.networks == pytest.approx(exact.networks, rel=0.15)


def test_a_space_without_a_family_is_one_for_tables_and_functions(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(
        "choices: {depth: [0, 1, 2], width: [8, 16]}\nconditions:\n  - {choice: width, when: depth, in: [1, 2]}\n"
    )
    space = read_space(path)
    assert space.count() == 5
    arch = arch_of(space, {"depth": 0, "width": 16}, None)
    assert (arch.family, arch.choices) == ("plain", {"depth": 0})
    assert arch == arch_of(space, {"depth": 0, "width": 8}, None)
