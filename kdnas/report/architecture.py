"""What a student is: its architecture in words, and drawn small, every block a box as tall as it is wide in channels.

The drawing reads a staged network's choices (`kdnas.students`); a student of another family is shown by its choices.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdnas.core.arch import Arch, Scalar
from kdnas.core.words import capitalised, counted
from kdnas.plugins import short_name

_FAMILIES = {
    "resnet": ("residual network", "residual networks"),
    "mobilenet": ("inverted residual network", "inverted residual networks"),
    "vit": ("vision transformer", "vision transformers"),
    "bert": ("text encoder", "text encoders"),
    "gpt": ("text decoder", "text decoders"),
    "derived": ("network cut out of the teacher", "networks cut out of the teacher"),
}
_STAGE = re.compile(r"stage(\d+)\.(.+)")
_BLOCK, _GAP, _TALLEST, _LOWEST, _TOP, _LABEL = 13.0, 16.0, 46.0, 7.0, 12.0, 15.0
_DRAWN_BLOCKS = 6
"""Of one stage: a deeper one is drawn with dots and its number in the label."""


@dataclass(frozen=True)
class Stage:
    """Equal blocks of one width; `settings` are the stage's other choices."""

    depth: int
    width: int
    settings: Mapping[str, Scalar]

    @property
    def waist(self) -> float:
        """The width inside a block over that of the block: below 1 in a bottleneck, above it where it expands."""
        inner = self.settings.get("bottleneck", self.settings.get("expand", 1))
        return float(inner) if isinstance(inner, int | float) and not isinstance(inner, bool) else 1.0


def family_in_words(family: str) -> str:
    """Return what students of a family are, in the singular."""
    return _FAMILIES[family][0] if family in _FAMILIES else f"network of {short_name(family)}"


def families_in_words(family: str) -> str:
    """Return what students of a family are, in the plural."""
    return _FAMILIES[family][1] if family in _FAMILIES else f"networks of {short_name(family)}"


def stages_of(arch: Arch) -> tuple[Stage, ...]:
    """Return the stages of a staged network, first to last; none where the arch is not spelled as one."""
    found: dict[int, dict[str, Scalar]] = {}
    for name, value in arch.items:
        if match := _STAGE.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    stages = []
    for _, settings in sorted(found.items()):
        depth, width = settings.pop("depth", None), settings.pop("width", None)
        if type(depth) is not int or type(width) is not int:
            return ()
        if depth:
            stages.append(Stage(depth, width, settings))
    return tuple(stages)


def architecture_lines(arch: Arch) -> list[str]:
    """Return what the student is, a line a part: stem, stages, head; of another network its choices on one line."""
    stages = stages_of(arch)
    if not stages:
        choices = ", ".join(f"{name.replace('_', ' ')} {_plainly(value)}" for name, value in arch.items)
        return [choices or f"the one {arch.family}"]
    others = {name: value for name, value in arch.items if not _STAGE.fullmatch(name)}
    lines = []
    if (stem := others.pop("stem_width", None)) is not None:
        stride = others.pop("stem_stride", 1)
        lines.append(f"stem of {stem} channels" + (f", stride {stride}" if stride != 1 else ""))
    lines += [f"stage {place}: {_stage_in_words(stage)}" for place, stage in enumerate(stages, 1)]
    if head := others.pop("head_width", None):
        lines.append(f"head of {head} channels")
    if projected := others.pop("projected", None):
        lines.append(f"maps of {projected} channels for the teacher's classifier")
    return lines + [f"{name.replace('_', ' ')} {_plainly(value)}" for name, value in others.items()]


def architecture_in_words(arch: Arch) -> str:
    """Return what the student is, on one line."""
    return f"{capitalised(family_in_words(arch.family))}: {'; '.join(architecture_lines(arch))}."


def architecture_drawing(arch: Arch) -> str:
    """Return the student as a small inline SVG in the colour of the text around it; empty where it has no stages.

    A box is a block, as tall as its channels and pinched or bulged as its inner width is; an arc over it is the
    skip, dashed where it projects.
    """
    stages = stages_of(arch)
    if not stages:
        return ""
    choices = arch.choices
    stem, head = choices.get("stem_width"), choices.get("projected") or choices.get("head_width")
    widest = max([*(stage.width * max(stage.waist, 1.0) for stage in stages), float(stem or 0), float(head or 0)])
    x, parts = 2.0, []
    middle = _TOP + _TALLEST / 2

    def tall(channels: float) -> float:
        return max(_LOWEST, _TALLEST * channels / widest)

    def column(shapes: Sequence[str], width: float, text: str) -> None:
        nonlocal x
        room = max(width, 5.6 * len(text))
        shift = x + (room - width) / 2
        parts.append(f'<g transform="translate({shift:.1f} 0)">{"".join(shapes)}</g>')
        y = _TOP + _TALLEST + _LABEL
        parts.append(f'<text x="{x + room / 2:.1f}" y="{y:.1f}" text-anchor="middle">{html.escape(text)}</text>')
        x += room + _GAP
        parts.append(f'<path d="M{x - _GAP + 3:.1f} {middle:.1f}h{_GAP - 6:.1f}" stroke-opacity="0.45"/>')

    if isinstance(stem, int):
        column([_box(0, 5, tall(stem), tall(stem), middle)], 5, str(stem))
    for stage in stages:
        drawn = min(stage.depth, _DRAWN_BLOCKS)
        outer = tall(stage.width)
        inner = tall(stage.width * stage.waist)
        boxes = [_box(k * _BLOCK, _BLOCK - 3, outer, inner, middle) for k in range(drawn)]
        boxes += [_arc(k * _BLOCK, stage.settings.get("skip"), k == 0, middle - max(outer, inner) / 2)
                  for k in range(drawn)]  # fmt: skip
        width = drawn * _BLOCK - 3
        if stage.depth > drawn:
            boxes.append(f'<text x="{width + 2:.1f}" y="{middle + 3:.1f}">…</text>')
            width += 12
        column(boxes, width, f"{stage.depth}×{stage.width}")
    if isinstance(head, int) and head:
        column([_box(0, 5, tall(head), tall(head), middle)], 5, str(head))
    parts.pop()  # the arrow after the last part
    width, height = x - _GAP + 2, _TOP + _TALLEST + _LABEL + 4
    words = html.escape(architecture_in_words(arch), quote=True)
    return (
        f'<svg class="arch" viewBox="0 0 {width:.0f} {height:.0f}" width="{1.4 * width:.0f}" '
        f'role="img" aria-label="{words}" fill="none" stroke="currentColor" stroke-width="1.2">'
        f"<title>{words}</title>{''.join(parts)}</svg>"
    )


def _stage_in_words(stage: Stage) -> str:
    details = [_setting_in_words(name, value) for name, value in stage.settings.items()]
    what = f"{counted(stage.depth, 'block')} of {stage.width} channels"
    return ", ".join([what, *(detail for detail in details if detail)])


def _setting_in_words(name: str, value: Scalar) -> str:
    if name == "bottleneck":
        return "" if value == "plain" else f"bottleneck of {_plainly(value)} of the width"
    if name == "expand":
        return "not expanded" if value == 1 else f"expanded {_plainly(value)} times"
    if name == "skip":
        return {"none": "no skips", "identity": "identity skips", "projection": "projection skips"}.get(
            str(value), f"skip {value}"
        )
    if name == "kernel":
        return f"{value}×{value} kernels"
    if name == "squeeze_excite":
        return "squeeze-and-excite" if value else ""
    return f"{name.replace('_', ' ')} {_plainly(value)}"


def _plainly(value: Scalar) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _box(x: float, width: float, outer: float, inner: float, middle: float) -> str:
    """Return a block from `x` on: `outer` tall at both ends, `inner` in between."""
    top, waist = middle - outer / 2, middle - inner / 2
    bottom, low = middle + outer / 2, middle + inner / 2
    centre = x + width / 2
    return (
        f'<path d="M{x:.1f} {top:.1f}L{centre:.1f} {waist:.1f}L{x + width:.1f} {top:.1f}V{bottom:.1f}'
        f'L{centre:.1f} {low:.1f}L{x:.1f} {bottom:.1f}Z" fill="currentColor" fill-opacity="0.22"/>'
    )


def _arc(x: float, skip: Scalar | None, first: bool, top: float) -> str:
    """Return the skip over a block; only the first of a stage can project."""
    if skip not in ("identity", "projection"):
        return ""
    dashes = ' stroke-dasharray="2 2"' if skip == "projection" and first else ""
    width = _BLOCK - 3
    return f'<path d="M{x - 0.5:.1f} {top - 1:.1f}q{width / 2 + 0.5:.1f} -8 {width + 1:.1f} 0"{dashes}/>'
