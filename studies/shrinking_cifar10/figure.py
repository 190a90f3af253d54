"""The figure: test accuracy of every method, a panel a target size, each seed a dot, in plain SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from kdnas.report.figures import FAINT, FRONT, GRID, INK, round_ticks

_LEFT, _PANEL, _GAP, _ROW, _TOP = 330, 220, 26, 26, 64


def accuracies(points: Mapping[str, Mapping[str, Sequence[float]]], macs: Mapping[str, int]) -> str:
    """Return an SVG of `points`: for each method and size the test accuracy of every seed, in [0, 1]."""
    height = _TOP + _ROW * len(points)
    parts = []
    for row, method in enumerate(points):
        y = _TOP + _ROW * (row + 0.5)
        weight = ' font-weight="600"' if "kdnas" in method else ""
        parts.append(f'<text x="{_LEFT - 14}" y="{y + 4:.0f}" text-anchor="end"{weight}>{escape(method)}</text>')
    for place, size in enumerate(macs):
        parts += _panel(_LEFT + place * (_PANEL + _GAP), height, size, macs[size], points)
    width = _LEFT + len(macs) * (_PANEL + _GAP)
    foot = "test accuracy in %, one dot a seed, the bar is their mean; equal budget"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 52}" '
        f'viewBox="0 0 {width} {height + 52}" role="img" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{INK}">'
        "<title>Test accuracy of every method at three target sizes</title>"
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}'
        f'<text x="{_LEFT}" y="{height + 44}" font-size="12">{foot}</text></svg>\n'
    )


def _panel(
    left: float, bottom: float, size: str, macs: int, points: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    values = [value for method in points.values() for value in method[size]]
    margin = 0.05 * (max(values) - min(values)) + 0.005
    low, high = min(values) - margin, max(values) + margin

    def x(value: float) -> float:
        return left + _PANEL * (value - low) / (high - low)

    parts = [f'<text x="{left}" y="30" font-weight="600">{escape(size)}: {macs / 1e6:.1f} M MACs</text>']
    for tick in round_ticks(low, high, log=False):
        parts.append(f'<path d="M{x(tick):.1f} {_TOP - 12}V{bottom:.0f}" stroke="{GRID}"/>')
        label = f"{100 * tick:.1f}".removesuffix(".0")
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 18:.0f}" text-anchor="middle" font-size="11">{label}</text>'
        )
    for row, (method, sizes) in enumerate(points.items()):
        y = _TOP + _ROW * (row + 0.5)
        colour = FRONT if "kdnas" in method else FAINT
        mean = sum(sizes[size]) / len(sizes[size])
        parts.append(f'<rect x="{x(mean) - 1.5:.1f}" y="{y - 9:.1f}" width="3" height="18" fill="{colour}"/>')
        parts += [
            f'<circle cx="{x(v):.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.7"/>' for v in sizes[size]
        ]
    return parts
