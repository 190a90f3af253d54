"""The front as a small SVG picture, for a README: the score against one cost, written by hand, so nothing is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kdnas import atomic
from kdnas.core.objective import Quantity, breaches
from kdnas.core.words import capitalised
from kdnas.record.front import comparable, front, measured_values, recommended
from kdnas.record.records import FrontMember, RunRecord
from kdnas.report.figures import (
    BROKEN,
    FAINT,
    FRONT,
    GRID,
    INK,
    RECOMMENDED,
    TEACHER,
    cost_names,
    is_log,
    ring_in_words,
    round_ticks,
    staircase,
)
from kdnas.report.wording import axis_title, front_legend, front_score, label, scaled

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 20, 52, 62
_LEGEND_ROW = 20


@dataclass(frozen=True)
class _Scale:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values inside the range."""
        return round_ticks(self.low, self.high, log=self.log)


def front_picture(run: RunRecord, path: Path) -> None:
    """Write the run's front against its first cost as an SVG picture, whole or not at all. Raises OSError."""
    atomic.write_text(path, front_svg(run))


def front_svg(run: RunRecord, name: str | None = None) -> str:
    """Return the score against the quantity `name` (by default the first) as SVG; a line of text without a front."""
    members, score = front(run), run.score
    names = cost_names(run)
    name = name or (names[0] if names else None)
    if not members or name is None:
        text = f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">No student has been scored yet.</text>'
        return _document(run, [text])
    scored = [v for trial in comparable(run) if name in (v := measured_values(trial)) and score.name in v]
    teacher = run.teacher if run.teacher is not None and name in run.teacher.values else None
    xs = [values[name] for values in scored] + [member.values[name] for member in members if name in member.values]
    ys = [values[score.name] for values in scored]
    ys += [end for m in members for end in score.ends(m.values[score.name], m.score_ci95)]
    if teacher is not None:
        xs.append(teacher.values[name])
    if run.teacher is not None:
        ys.append(run.teacher.score)
    legend, rows = _legend(run, members)
    x, y = _scales(xs, ys, score, _TOP + _LEGEND_ROW * (rows - 1))
    parts = [*_grid(run, x, y, name), *_points(run, scored, name, x, y), *_front(run, members, name, x, y)]
    if teacher is not None:
        parts.append(_star(x(teacher.values[name]), y(teacher.score)))
    elif run.teacher is not None:
        height = y(run.teacher.score)
        parts.append(_line(x.start, height, x.end, height, TEACHER, 'stroke-dasharray="5 4"'))
    return _document(run, [*parts, *legend])


def _scales(xs: list[float], ys: list[float], score: Quantity, top: float) -> tuple[_Scale, _Scale]:
    low, high = min(xs), max(xs)
    flat = 0.5 * abs(high) or 1.0
    horizontal = _Scale(*_padded(low, high, 0.05, flat, is_log(xs)), _LEFT, _WIDTH - _RIGHT, is_log(xs))
    log = not score.is_fraction and is_log(ys)
    return horizontal, _Scale(*_padded(min(ys), max(ys), 0.06, 0.02, log), _HEIGHT - _BOTTOM, top, log)


def _padded(low: float, high: float, share: float, flat: float, log: bool) -> tuple[float, float]:
    """Return a range with a margin of this share of it at both ends, `flat` where it has no length."""
    if log:
        margin = (high / low) ** share
        return low / margin, high * margin
    margin = share * (high - low) or flat
    return low - margin, high + margin


def _grid(run: RunRecord, x: _Scale, y: _Scale, name: str) -> list[str]:
    parts, score = [], run.score
    decimals = 0 if y.high - y.low > 0.05 else 1
    for value in y.ticks():
        mark = f"{100 * value:.{decimals}f} %" if score.is_fraction else f"{value:g}"
        parts.append(_line(x.start, y(value), x.end, y(value), GRID))
        parts.append(_label(x.start - 8, y(value) + 4, mark, "end"))
    for value in x.ticks():
        parts.append(_line(x(value), y.start, x(value), y.end, GRID))
        parts.append(_label(x(value), y.start + 18, scaled(value).strip(), "middle"))
    parts.append(_line(x.start, y.start, x.end, y.start, "#8793a3"))
    parts.append(_line(x.start, y.start, x.start, y.end, "#8793a3"))
    title = axis_title(name) + (", log scale" if x.log else "")
    parts.append(_label((x.start + x.end) / 2, _HEIGHT - 16, title, "middle"))
    middle = (y.start + y.end) / 2
    parts.append(f'<text x="18" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 18 {middle:.1f})">'
                 f"{capitalised(front_score(run))}</text>")  # fmt: skip
    return parts


def _points(run: RunRecord, scored: list[dict[str, float]], name: str, x: _Scale, y: _Scale) -> list[str]:
    return [
        f'<circle cx="{x(values[name]):.1f}" cy="{y(values[run.score.name]):.1f}" r="3.6" '
        f'fill="{BROKEN if breaches(values, run.limits) else FAINT}" fill-opacity="0.65"/>'
        for values in scored
    ]


def _front(run: RunRecord, members: tuple[FrontMember, ...], name: str, x: _Scale, y: _Scale) -> list[str]:
    score, steps = run.score, staircase(run, members, name)
    path = "".join(
        f"M{x(m.values[name]):.1f} {y(m.values[score.name]):.1f}" if i == 0
        else f"H{x(m.values[name]):.1f}V{y(m.values[score.name]):.1f}"
        for i, m in enumerate(steps)
    )  # fmt: skip
    parts = [f'<path d="{path}" fill="none" stroke="{FRONT}" stroke-width="1.8"/>']
    for member in members:
        if name not in member.values:
            continue
        across, mean = x(member.values[name]), member.values[score.name]
        if member.score_ci95:
            low, high = map(y, score.ends(mean, member.score_ci95))
            parts.append(_line(across, low, across, high, FRONT, 'stroke-width="1.3"'))
            parts += [_line(across - 4, end, across + 4, end, FRONT, 'stroke-width="1.3"') for end in (low, high)]
        parts.append(f'<circle cx="{across:.1f}" cy="{y(mean):.1f}" r="4.6" fill="{FRONT}"/>')
    chosen = recommended(run)
    if chosen is not None and name in (values := chosen.member.values):
        parts.append(
            f'<circle cx="{x(values[name]):.1f}" cy="{y(values[score.name]):.1f}" r="9" fill="none" '
            f'stroke="{RECOMMENDED}" stroke-width="2.2"/>'
        )
    return parts


def _legend(run: RunRecord, members: tuple[FrontMember, ...]) -> tuple[list[str], int]:
    """Return the legend, whose entries wrap at the picture's right edge, and its number of rows."""
    entries = [(FAINT, "scored by the search"), (FRONT, front_legend(run, members))]
    if (chosen := recommended(run)) is not None:
        entries.append((RECOMMENDED, ring_in_words(run, chosen)))
    if run.teacher is not None:
        entries.append((TEACHER, "teacher"))
    parts, left, row = [], float(_LEFT), 0
    for colour, text in entries:
        width = 17 + 6.9 * len(text)
        if left > _LEFT and left + width > _WIDTH - _RIGHT:
            left, row = float(_LEFT), row + 1
        height = 36 + _LEGEND_ROW * row
        if colour == TEACHER:
            parts.append(_star(left + 6, height))
        else:
            fill = f'fill="none" stroke="{colour}" stroke-width="2.2"' if colour == RECOMMENDED else f'fill="{colour}"'
            parts.append(f'<circle cx="{left + 6:.1f}" cy="{height}" r="5" {fill}/>')
        parts.append(_label(left + 17, height + 4, text, "start"))
        left += width + 22
    return parts, row + 1


def _star(x: float, y: float, size: float = 9.0) -> str:
    points = " ".join(
        f"{x + (size if k % 2 == 0 else 0.42 * size) * math.sin(k * math.pi / 5):.1f},"
        f"{y - (size if k % 2 == 0 else 0.42 * size) * math.cos(k * math.pi / 5):.1f}"
        for k in range(10)
    )
    return f'<polygon points="{points}" fill="{TEACHER}" stroke="white" stroke-width="0.8"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(run: RunRecord, parts: list[str]) -> str:
    title = escape(f"{run.config.name}: {label(run.score.name)} of the students against their cost")
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">\n<title>{title}</title>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n'
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="600">{escape(run.config.name)}</text>\n{lines}\n</svg>\n'
    )
