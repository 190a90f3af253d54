"""The picture of the rates: one bar a way, quartiles as whiskers, in plain SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from measure import KDNAS, PLAIN, TUNED, Spread

_COLOURS = {PLAIN: "#9fb0c3", TUNED: "#5c8ab8", KDNAS: "#1d5fa8"}
_WIDTH, _LEFT, _BAR = 760, 150, 30


def rates_picture(groups: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return an SVG with a group of bars for each entry of `groups`, the rates of its rounds by way."""
    spreads = {
        title: {way: Spread.of([rates[way] for rates in rounds]) for way in rounds[0]}
        for title, rounds in groups.items()
    }
    largest = max(spread.high for rates in spreads.values() for spread in rates.values())
    scale = (_WIDTH - _LEFT - 150) / largest
    parts, y = [], 34
    for title, rates in spreads.items():
        parts.append(f'<text x="16" y="{y}" font-weight="600">{escape(title)}</text>')
        y += 12
        for way, spread in rates.items():
            middle = y + _BAR / 2
            end, low, high = (_LEFT + scale * value for value in (spread.median, spread.low, spread.high))
            ratio = Spread.of([rates[KDNAS] / rates[way] for rates in groups[title]]).median
            note = f"{spread.median:,.0f}" + ("" if way == KDNAS else f"   (kdnas: {ratio:.1f}×)")
            parts += [
                f'<text x="{_LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(way)}</text>',
                f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR - 8}" fill="{_COLOURS[way]}"/>',
                f'<path d="M{low:.1f} {middle - 4:.0f}H{high:.1f}" stroke="#2b3440" stroke-width="1.5"/>',
                f'<text x="{max(end, high) + 8:.1f}" y="{middle + 1:.0f}">{note}</text>',
            ]
            y += _BAR
        y += 26
    foot = "images a second; a ResNet-20 beside a ResNet-56, CIFAR-10; medians and quartiles of interleaved rounds"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 14}" viewBox="0 0 {_WIDTH} {y + 14}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#2b3440">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}'
        f'<text x="16" y="{y}" font-size="12">{foot}</text></svg>\n'
    )
