import itertools

import pytest
import torch

from kdnas.errors import ConfigError
from kdnas.nn.cutting import Anatomy, Axis, Depth, Tie
from kdnas.students._cut_choices import Bounds, CutChoices

QUARTERS = {"depth": "0.25..1", "width": (0.25, 0.5, 0.75, 1), "inner": (0.25, 0.5, 0.75, 1), "heads": (0.25, 0.5, 1)}


def axis(name, role, size, stage=1, block=""):
    return Axis(name, role, size, (Tie(f"{name}.weight", 0, torch.arange(size)[:, None]),), stage=stage, block=block)


def staged():
    """A stem, two stages of two and three blocks (the first of the second always stays), and a head."""
    axes = [
        axis("stem", "width", 32, stage=0),
        *(axis(f"one.{index}.mid", "inner", 64, block=f"one.{index}") for index in (0, 1)),
        axis("one.out", "width", 48),
        *(axis(f"two.{index}.mid", "inner", 96 + 8 * index, stage=2, block=f"two.{index}") for index in (0, 1, 2)),
        axis("two.out", "width", 100, stage=2),
        axis("last", "width", 128, stage=3),
    ]
    depths = (
        Depth("one.depth", ("one.0", "one.1"), (1, 0), 1, 1),
        Depth("two.depth", ("two.1", "two.2"), (0, 1), 0, 2, fixed=1),
    )
    return Anatomy("convnet", tuple(axes), depths)


def layered(layers=4):
    axes = [
        axis(f"layers.{index}.{role}", role, size, block=f"layers.{index}")
        for index in range(layers)
        for role, size in (("heads", 6), ("inner", 96))
    ]
    blocks = tuple(f"layers.{index}" for index in range(layers))
    depth = Depth("layers.depth", blocks, tuple(range(layers)))
    return Anatomy("vit", (*axes, axis("width", "width", 48)), (depth,))


def choices(anatomy, granularity, *, round_to=8, freeze=(), **bounds):
    read = {role: Bounds.of(options) for role, options in {**QUARTERS, **bounds}.items()}
    return CutChoices(anatomy, granularity=granularity, bounds=read, round_to=round_to, freeze=freeze)


def test_a_network_has_one_choice_a_role_and_its_value_is_a_size():
    found = choices(layered(), "network")
    assert {choice.name: choice.values for choice in found.searched} == {
        "depth": (1, 2, 3, 4),
        "width": (16, 24, 40, 48),  # a quarter and three quarters of 48 are no multiples of 8: the nearest are
        "inner": (24, 48, 72, 96),
        "heads": (2, 3, 6),
    }
    sizes = found.sizes(found.canonical({"depth": 2, "heads": 3, "inner": 48, "width": 24}))
    assert sizes["layers.depth"] == 2
    assert sizes["layers.3.heads"] == 3
    assert sizes["width"] == 24


def test_stages_are_ruled_by_themselves_and_parts_are_cut_in_proportion():
    found = choices(staged(), "stage")
    assert {choice.name: choice.values for choice in found.searched} == {
        "stem.width": (8, 16, 24, 32),
        "stage1.depth": (1, 2),
        "stage1.width": (16, 24, 40, 48),
        "stage1.inner": (16, 32, 48, 64),
        "stage2.depth": (1, 2, 3),
        "stage2.width": (24, 48, 72, 100),  # 100 is no multiple of 8, but the teacher's own
        "stage2.inner": (32, 56, 88, 112),
        "head.width": (32, 64, 96, 128),
    }
    sizes = found.sizes(found.canonical({"stage2.depth": 3, "stage2.inner": 56}))
    assert [sizes[f"two.{index}.mid"] for index in (0, 1, 2)] == [48, 56, 56]
    assert sizes["two.depth"] == 2  # beside the block that always stays
    assert sizes["one.depth"] == 2


def test_blocks_have_choices_of_their_own_while_they_are_there():
    found = choices(staged(), "block")
    assert "stage2.block3.inner" in {choice.name for choice in found.searched}
    gates = {(gate.choice, gate.when): gate.values for gate in found.conditions}
    assert gates == {
        ("stage1.block1.inner", "stage1.depth"): (2,),  # the second block of the stage ranks first
        ("stage2.block2.inner", "stage2.depth"): (2, 3),
        ("stage2.block3.inner", "stage2.depth"): (3,),
    }
    spelled = found.canonical({"stage1.depth": 1, "stage1.block1.inner": 16})
    assert "stage1.block1.inner" not in spelled
    assert spelled["stage1.block2.inner"] == 64


def test_two_spellings_of_one_student_are_one():
    found = choices(layered(), "network")
    for one, other in [
        ({"width": 24}, {"width": 0.5}),
        ({"width": 22}, {"width": 24}),
        ({}, {"depth": 4, "width": 48, "inner": 96, "heads": 6}),
        ({"inner": 1.0}, {}),
    ]:
        assert found.canonical(one) == found.canonical(other)
    found = choices(staged(), "stage")
    # Without its other blocks stage 2 has inner widths of 96 alone, which 88 and 90 of 112 make 80 of.
    less = {"stage2.depth": 1}
    by_sizes: dict[int, set] = {}
    for value in range(8, 113, 8):
        spelled = found.canonical({**less, "stage2.inner": value})
        by_sizes.setdefault(found.sizes(spelled)["two.0.mid"], set()).add(spelled["stage2.inner"])
    assert all(len(values) == 1 for values in by_sizes.values())
    assert max(by_sizes) == 96


def test_every_student_is_a_part_of_every_larger_one():
    found = choices(staged(), "network")
    by_choice = {choice.name: choice for choice in found.choices}
    for choice in by_choice.values():
        for (_, fewer), (_, more) in itertools.pairwise(choice.sizes.items()):
            assert all(fewer[part] <= more[part] for part in fewer)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ((24, 48), (24, 48)),
        ("16..32", (16, 24, 32)),
        ("0.5..1", (24, 32, 40, 48)),
        ("0.9..0.95", 40),  # no multiple of 8 lies between: the nearest to the lower end
        ((0.5,), 24),
        (1.0, 48),
    ],
)
def test_options_are_shares_or_sizes_lists_or_ranges(options, values):
    found = choices(layered(), "network", width=options)
    searched = {choice.name: choice.values for choice in found.searched}
    assert {**searched, **found.fixed}["width"] == values


def test_what_is_frozen_stays_whole():
    found = choices(staged(), "stage", freeze=("stem", "two.1", "stage1.inner"))
    names = [choice.name for choice in found.choices]
    assert "stem.width" not in names
    assert "stage1.inner" not in names
    assert "stage2.depth" not in names  # one of its blocks must not go
    sizes = found.sizes(found.canonical({"stage2.inner": 32}))
    assert "two.1.mid" not in sizes
    assert sizes["two.2.mid"] == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ("nothing.here",)}, r"space\.freeze\.0: nothing of the teacher is called 'nothing.here'"),
        ({"width": (20, 48)}, r"width cannot be 20 of 48 \(allowed: multiples of 8 up to 48\)"),
        ({"width": (96,)}, "width cannot be 96 of 48"),
        ({"width": "64..96"}, "width has no more than 48"),
        ({"depth": 1, "width": 1, "inner": 1, "heads": 1}, "leaves every student at one size"),
        ({"freeze": ("*",)}, "leaves every student at one size"),
    ],
)
def test_what_cannot_be_is_refused_in_words(settings, message):
    with pytest.raises(ConfigError, match=message):
        choices(layered(), "network", **settings)


@pytest.mark.parametrize("options", ["half", (), (0.5, 96), (-1,), (0,), "1..0.5", "0.5..", (1.5, 2)])
def test_options_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        Bounds.of(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 3}, "size: is no choice of this teacher's students"),
        ({"width": 49}, r"width: cannot be 49 \(allowed: 8..48, or a share of it such as 0.5\)"),
        ({"width": "wide"}, "width: cannot be 'wide'"),
        ({"depth": True}, "depth: cannot be True"),
        ({"depth": 0}, "depth: cannot be 0"),
    ],
)
def test_a_student_that_cannot_be_is_refused_in_words(given, message):
    found = choices(layered(), "network")
    with pytest.raises(ConfigError, match=message):
        found.canonical(given)
