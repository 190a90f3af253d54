"""What the cells say: table.md in the shape of the paper's tables, and curve.svg, the loss against the tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import CELLS, CHANCE

from kdnas import atomic
from kdnas.core.text import bits_per_byte
from kdnas.report.figures import FAINT, FRONT, GRID, INK

Record = Mapping[str, Any]
_ABOVE = ("LAMBADA", "HellaSwag", "cloze")
"""Those in which the teacher is above chance, whose mean says what is kept."""
_GOAL = 0.95
_WIDTH, _HEIGHT, _EDGE = 620, 360, 56


def write_tables(results: Path) -> None:
    """Write the table and the curve of all cells in `results`, a table each for a scale."""
    records = sorted(
        (json.loads(path.read_text()) for path in results.glob("*-*.json")),
        key=lambda one: ([cell.name for cell in CELLS].index(one["name"]), one["scale"], one["seed"]),
    )
    if not records:
        return
    lines: list[str] = []
    for scale in sorted({tuple(one["scale"]) for one in records}):
        lines += _table(scale, [one for one in records if tuple(one["scale"]) == scale])
    atomic.write_text(results / "table.md", "\n".join(lines) + "\n")
    atomic.write_text(results / "curve.svg", _curve(records))


def _table(scale: tuple[int, ...], records: Sequence[Record]) -> list[str]:
    tokens, items = scale
    teacher = next((one for one in records if one["start"] == "teacher"), None)
    counts = next((one["completed"] for one in records if one["completed"]), {})
    named = " | ".join(f"{name} ({one['count']})" for name, one in counts.items())
    lines = [
        f"B = {tokens:,} tokens, {items} items; shares that are right in %, and half of their 95 % interval.",
        "",
        f"| network | params | tokens | T | task weight | perplexity | bits a byte | {named} | kept of the teacher's |",
        "|" + "---|" * (8 + len(counts)),
    ]
    for one in records:
        learnt = f"{one['temperature']:g} | {one['task_weight']:g}" if one["tokens"] else " | "
        bits = bits_per_byte(one["perplexity"], one["bytes_per_token"])
        shares = " | ".join(_share(one["completed"].get(name)) for name in counts)
        start = one["start"] if one["tokens"] or teacher is one else "inherited, as it is cut"
        seed = f", seed {one['seed']}" if one["seed"] else ""
        lines.append(
            f"| {start}{seed} | {one['params'] / 1e6:.1f} M | {one['tokens']:,} | {learnt} | {one['perplexity']:.1f} | "
            f"{bits:.3f} | {shares} | {_kept_in_words(one, teacher)} |"
        )
    lines.append("")
    lines += [f"- {line}" for line in (*_goals(records, teacher), *_truncation(teacher))]
    return [*lines, ""]


def _share(found: Record | None) -> str:
    if found is None:
        return ""
    right, count = share_right(found)
    return f"{100 * right:.1f} ± {_half(right, count):.1f}"


def share_right(found: Record) -> tuple[float, int]:
    """Return the share that is right, of endings by the likelihood of a byte, and of how many items."""
    return found["accuracy"] if found["normalised"] is None else found["normalised"], found["count"]


def _half(right: float, count: int) -> float:
    """Return the half width in % of the 95 % interval of a share of `count` (Agresti and Coull, 1998)."""
    centre = (right * count + 2) / (count + 4)
    return 196 * math.sqrt(centre * (1 - centre) / (count + 4))


def _kept(one: Record, teacher: Record | None) -> float | None:
    """Return the mean over the completions of what is above chance, as a share of the teacher's."""
    if teacher is None or not one["completed"] or not teacher["completed"]:
        return None
    above = []
    for record in (one, teacher):
        rights = [share_right(record["completed"][name])[0] for name in _ABOVE]
        above.append(math.fsum(right - CHANCE[name] for right, name in zip(rights, _ABOVE, strict=True)))
    return above[0] / above[1] if above[1] > 0 else None


def _kept_in_words(one: Record, teacher: Record | None) -> str:
    """Return what is kept, and half of its 95 % interval by the luck of which items the student is given."""
    kept = _kept(one, teacher)
    if kept is None or one is teacher:
        return ""
    halves = [_half(*share_right(one["completed"][name])) for name in _ABOVE]
    above = math.fsum(100 * (share_right(teacher["completed"][name])[0] - CHANCE[name]) for name in _ABOVE)
    return f"{100 * kept:.0f} ± {100 * math.hypot(*halves) / above:.0f} %"


def _goals(records: Sequence[Record], teacher: Record | None) -> Iterator[str]:
    plain = [one for one in records if one["tokens"] and one["temperature"] == 1 and one["task_weight"] == 0]
    ours = [one for one in plain if one["start"] == "inherited" and _kept(one, teacher) is not None]
    if ours:
        longest = max(ours, key=lambda one: one["tokens"])
        kept = _kept(longest, teacher) or 0.0
        met = "met" if kept >= _GOAL else "**missed**"
        yield (
            f"Goal: {100 * _GOAL:.0f} % of the teacher's completion accuracy above chance (mean of "
            f"{', '.join(_ABOVE)}) at a third of its parameters: {met}, {100 * kept:.0f} % after "
            f"{longest['tokens']:,} tokens."
        )
    for random in (one for one in plain if one["start"] == "random"):
        for ours in (one for one in plain if one["start"] == "inherited"):
            if abs(9 * ours["tokens"] / random["tokens"] - 1) < 0.1 and ours["seed"] == random["seed"]:
                losses = [math.log(one["perplexity"]) for one in (ours, random)]
                met = "met" if losses[0] <= losses[1] else "**missed**"
                yield (
                    f"Goal: an inherited start reaches a random start's loss with a ninth of its tokens: {met}, "
                    f"{losses[0]:.3f} after {ours['tokens']:,} against {losses[1]:.3f} after {random['tokens']:,}."
                )
    if teacher is not None and (law := _law(plain, teacher)):
        yield law


def _law(plain: Sequence[Record], teacher: Record) -> str | None:
    """Return in words the power law of the inherited students' loss above the teacher's, of three sizes or more."""
    known = sorted({one["tokens"]: one for one in plain if one["start"] == "inherited"}.items())
    if len(known) < 3:
        return None
    places = [math.log(tokens) for tokens, _ in known]
    above = [math.log(math.log(one["perplexity"] / teacher["perplexity"])) for _, one in known]
    middle, mean = math.fsum(places) / len(places), math.fsum(above) / len(above)
    spread = math.fsum((place - middle) ** 2 for place in places)
    slope = math.fsum((p - middle) * (a - mean) for p, a in zip(places, above, strict=True)) / spread
    if slope >= 0:
        return None
    told = []
    for nats in (1.0, 0.5):
        wanted = math.exp(middle + (math.log(nats) - mean) / slope)
        told.append(f"{wanted:.2g} tokens to be {nats:g} nats above it")
    return (
        f"The loss above the teacher's falls as tokens to the power of {slope:.2f} (least squares of {len(known)} "
        f"trainings, each a schedule of its own); carried on, which nothing here checks, that is {', '.join(told)}."
    )


def _truncation(teacher: Record | None) -> Iterator[str]:
    if teacher is not None:
        told = ", ".join(f"{nats:.3f} at T = {one}" for one, nats in teacher["truncation"].items())
        yield f"What is kept of the teacher's answers diverges from them by {told} nats a token."


def _curve(records: Sequence[Record]) -> str:
    """Return an SVG: test loss in nats against the tokens of a training, a line a start."""
    shown = [one for one in records if one["tokens"] and one["temperature"] == 1 and one["task_weight"] == 0]
    teacher = next((one for one in records if one["start"] == "teacher"), None)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}"><title>Loss against tokens</title>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    if shown:
        losses = [math.log(one["perplexity"]) for one in (*shown, *([teacher] if teacher else []))]
        low, high = math.floor(2 * min(losses)) / 2, math.ceil(2 * max(losses)) / 2 + 0.5
        first, last = (math.log2(pick(one["tokens"] for one in shown)) for pick in (min, max))
        first, last = math.floor(first), max(math.ceil(last), math.floor(first) + 1)

        def x(tokens: float) -> float:
            return _EDGE + (math.log2(tokens) - first) / (last - first) * (_WIDTH - 2 * _EDGE)

        def y(loss: float) -> float:
            return _HEIGHT - _EDGE - (loss - low) / (high - low) * (_HEIGHT - 2 * _EDGE)

        for tick in range(first, last + 1):
            parts.append(f'<path d="M{x(2**tick):.1f} {_EDGE}V{_HEIGHT - _EDGE}" stroke="{GRID}"/>')
            at = f'x="{x(2**tick):.1f}" y="{_HEIGHT - _EDGE + 18}" text-anchor="middle"'
            parts.append(f"<text {at}>{2**tick / 1024:g} Ki</text>")
        for tick in range(math.ceil(low), math.floor(high) + 1):
            parts.append(f'<path d="M{_EDGE} {y(tick):.1f}H{_WIDTH - _EDGE}" stroke="{GRID}"/>')
            parts.append(f'<text x="{_EDGE - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
        if teacher is not None:
            level = y(math.log(teacher["perplexity"]))
            parts.append(f'<path d="M{_EDGE} {level:.1f}H{_WIDTH - _EDGE}" stroke="{INK}" stroke-dasharray="4 3"/>')
            parts.append(f'<text x="{_WIDTH - _EDGE}" y="{level - 6:.1f}" text-anchor="end">teacher</text>')
        for place, (start, colour) in enumerate({"inherited": FRONT, "random": FAINT}.items()):
            line = sorted((one["tokens"], math.log(one["perplexity"])) for one in shown if one["start"] == start)
            points = " ".join(f"{x(tokens):.1f},{y(loss):.1f}" for tokens, loss in line)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x(t):.1f}" cy="{y(loss):.1f}" r="4" fill="{colour}"/>' for t, loss in line]
            parts.append(f'<circle cx="{_EDGE + 8 + 130 * place}" cy="24" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{_EDGE + 18 + 130 * place}" y="28">{start} start</text>')
    foot = "test loss in nats a token against the tokens that a student is trained on"
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{foot}</text></svg>')
    return "\n".join(parts) + "\n"
