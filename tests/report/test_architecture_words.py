"""What a student is: its parts in words, and its drawing, read back as SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from kdnas.core.arch import Arch
from kdnas.report.architecture import (
    architecture_drawing,
    architecture_in_words,
    architecture_lines,
    families_in_words,
    family_in_words,
    stages_of,
)

RESNET = Arch.of(
    "resnet",
    {
        "stem_width": 16,
        "stage1.depth": 2, "stage1.width": 16, "stage1.bottleneck": "plain", "stage1.skip": "identity",
        "stage2.depth": 9, "stage2.width": 64, "stage2.bottleneck": 0.25, "stage2.skip": "projection",
    },
)  # fmt: skip
MOBILENET = Arch.of(
    "mobilenet",
    {
        "stem_width": 8, "head_width": 128,
        "stage1.depth": 1, "stage1.width": 16, "stage1.expand": 4, "stage1.kernel": 5,
        "stage1.squeeze_excite": True, "stage1.skip": "none",
    },
)  # fmt: skip


def test_parts_in_words():
    assert architecture_lines(RESNET) == [
        "stem of 16 channels",
        "stage 1: 2 blocks of 16 channels, identity skips",
        "stage 2: 9 blocks of 64 channels, bottleneck of 0.25 of the width, projection skips",
    ]
    assert architecture_in_words(MOBILENET) == (
        "Inverted residual network: stem of 8 channels; stage 1: 1 block of 16 channels, expanded 4 times, 5×5 "
        "kernels, no skips, squeeze-and-excite; head of 128 channels."
    )


def test_what_is_no_staged_network_is_told_by_its_choices():
    arch = Arch.of("my<table>", {"op_1": "conv", "deep": True})
    assert architecture_lines(arch) == ["deep yes, op 1 conv"]
    assert architecture_drawing(arch) == ""
    half = Arch.of("resnet", {"stem_width": 4, "stage1.depth": 1})  # no width: not a network of the family
    assert stages_of(half) == ()
    assert architecture_lines(half) == ["stage1.depth 1, stem width 4"]


@pytest.mark.parametrize("arch", [RESNET, MOBILENET])
def test_the_drawing_holds_its_parts_and_stays_inside(arch):
    root = ElementTree.fromstring(architecture_drawing(arch))
    assert root.get("role") == "img"
    assert root.get("aria-label") == architecture_in_words(arch)
    labels = [text.text for text in root.iter("text") if text.get("text-anchor")]
    stages = [f"{stage.depth}×{stage.width}" for stage in stages_of(arch)]
    ends = [str(arch.choices[name]) for name in ("stem_width", "head_width") if name in arch.choices]
    assert sorted(labels) == sorted([*stages, *ends])
    width, height = map(float, root.get("viewBox").split()[2:])
    for group in root.iter("g"):
        shift = float(re.search(r"translate\(([\d.]+)", group.get("transform"))[1])
        for path in group.iter("path"):
            xs = [float(x) + shift for x in re.findall(r"[ML]([-\d.]+) ", path.get("d"))]
            ys = [float(y) for y in re.findall(r"[ML][-\d.]+ ([-\d.]+)", path.get("d"))]
            assert 0 <= min(xs) <= max(xs) <= width
            assert 0 <= min(ys) <= max(ys) <= height


def test_boxes_are_as_tall_as_their_channels():
    root = ElementTree.fromstring(architecture_drawing(RESNET))
    boxes = [path.get("d") for path in root.iter("path") if path.get("d").endswith("Z")]
    ends = [re.match(r"M[-\d.]+ ([\d.]+).*V([\d.]+)", box).groups() for box in boxes]
    heights = [float(low) - float(top) for top, low in ends]
    assert len(boxes) == 1 + 2 + 6  # of nine blocks six are drawn, the label has the number
    assert heights[-1] / heights[1] == pytest.approx(64 / 16, rel=0.02)


@pytest.mark.parametrize(
    ("family", "one", "many"),
    [
        ("resnet", "residual network", "residual networks"),
        ("derived", "network cut out of the teacher", "networks cut out of the teacher"),
        ("my_family.py:Tiny", "network of my_family.py:Tiny", "networks of my_family.py:Tiny"),
    ],
)
def test_a_family_is_named_in_the_singular_and_the_plural(family: str, one: str, many: str) -> None:
    assert family_in_words(family) == one
    assert families_in_words(family) == many
