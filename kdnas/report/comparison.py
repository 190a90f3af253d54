"""What a comparison of recipes shows: a table, sentences, a picture, and the best recipe as a study."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from kdnas import atomic
from kdnas.audit.comparing import FOLDER, SIGNIFICANT, Comparison, Comparisons, Row, settings_of
from kdnas.core.objective import Quantity
from kdnas.core.words import counted
from kdnas.record.run_folder import write_text
from kdnas.report.figures import FAINT, FRONT, GRID, INK, round_ticks
from kdnas.report.study_file import write_study
from kdnas.report.table import Table
from kdnas.report.wording import shown_interval

_WIDTH, _ROW, _TOP, _BOTTOM, _LETTER = 760, 26, 44, 48, 7.2


def table(result: Comparisons) -> Table:
    """Return the recipes, the best first, with the mean of each student's scores."""
    students = list(dict.fromkeys(row.arch_id for row in result.rows))
    found = {(row.name, row.arch_id): row for row in result.rows}
    best = result.ranking[0]
    worse = set(result.worse_than(best))
    lines = []
    for name in result.ranking:
        rows = [found.get((name, arch_id)) for arch_id in students]
        cells = ["" if row is None else shown_interval(result.score, row.mean, row.ci95) for row in rows]
        seeds = ", ".join(str(len(row.scores)) for row in rows if row is not None)
        verdict = "the best" if name == best else "beyond noise" if name in worse else "≈ the best"
        lines.append([name, *cells, seeds, verdict])
    headings = ["recipe", *(f"student {arch_id}" for arch_id in students), "trainings", "apart"]
    return Table.of_texts("comparison", headings, lines, text=(0, len(headings) - 1))


def sentences(comparison: Comparison, result: Comparisons) -> list[str]:
    """Return in words which differences are beyond noise, and on what they rest."""
    fidelity, students = comparison.fidelity, len(comparison.students)
    many = counted(len(result.ranking), "recipe")
    caption = f"{many}, {counted(students, 'student')}, {counted(comparison.seeds, 'seed')}: {fidelity.words} each, "
    lines = [f"{caption}scored on the validation split."]
    if result.failed:
        lines.append(f"{counted(result.failed, 'training')} of {len(comparison.tasks)} failed and are missing.")
    sure = [difference for difference in result.differences if difference.p_value < SIGNIFICANT]
    if not result.differences:
        return [*lines, "One training of each cannot separate a difference from noise: use --seeds 3 or more."]
    for difference in sure:
        lines.append(
            f"{difference.better} is better than {difference.worse} by "
            f"{result.score.shown_points(difference.gain)} (p {difference.p_value:.3g}, {difference.pairs} pairs)."
        )
    pairs = counted(len(result.differences), "pair")
    test = f"Student's t-test of paired trainings, Holm's correction for {pairs} of recipes, 5 %"
    if not sure:
        lines.append(f"No recipe differs from another beyond noise ({test}).")
    else:
        lines.append(f"{len(sure)} of {pairs} of recipes differ beyond noise ({test}).")
    return lines


def picture(result: Comparisons) -> str:
    """Return the means with their 95 % intervals as SVG, a panel for each student."""
    students = list(dict.fromkeys(row.arch_id for row in result.rows))
    left = 24 + _LETTER * max(len(row.name) for row in result.rows)
    ends = [end for row in result.rows for end in _ends(row, result.score)]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low or abs(high) or 1.0)
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return left + (_WIDTH - 24 - left) * (value - low) / (high - low)

    panel = _TOP + _ROW * len(result.ranking)
    height = panel * len(students) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{_WIDTH}" height="{height:g}" fill="white"/>',
    ]
    least, greatest = result.score.range
    for tick in round_ticks(max(low, least), min(high, greatest), log=False):
        parts.append(f'<path d="M{x(tick):.1f} {_TOP - 10}V{height - _BOTTOM + 6:g}" stroke="{GRID}"/>')
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - _BOTTOM + 24:g}" text-anchor="middle">'
            f"{escape(result.score.shown(tick))}</text>"
        )
    best, worse = result.ranking[0], set(result.worse_than(result.ranking[0]))
    for place, arch_id in enumerate(students):
        top = place * panel
        parts.append(f'<text x="12" y="{top + 22}" font-weight="600">student {escape(arch_id)}</text>')
        for line, name in enumerate(result.ranking):
            row = next((row for row in result.rows if (row.name, row.arch_id) == (name, arch_id)), None)
            y = top + _TOP + _ROW * line
            parts.append(f'<text x="{left - 12:.1f}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
            if row is not None:
                colour = FAINT if name != best and name in worse else FRONT
                begin, end = _ends(row, result.score)
                parts.append(f'<path d="M{x(begin):.1f} {y}H{x(end):.1f}" stroke="{colour}" stroke-width="2"/>')
                parts += [
                    f'<circle cx="{x(score):.1f}" cy="{y}" r="2" fill="{colour}"/>' for score in row.scores.values()
                ]
                parts.append(f'<circle cx="{x(row.mean):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    label = f"{result.score.name}, mean ± 95 %; pale: worse than the best beyond noise"
    parts.append(f'<text x="{_WIDTH - 24}" y="{height - 8:g}" text-anchor="end">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ends(row: Row, score: Quantity) -> tuple[float, float]:
    least, greatest = score.ends(row.mean, row.ci95)
    return min(least, *row.scores.values()), max(greatest, *row.scores.values())


def document(comparison: Comparison, result: Comparisons) -> dict[str, Any]:
    """Return the comparison as plain data."""
    return {
        "score": result.score.name,
        "fidelity": comparison.fidelity.as_dict(),
        "seeds": comparison.seeds,
        "ranking": result.ranking,
        "rows": [
            {
                "recipe": row.name,
                "arch_id": row.arch_id,
                "mean": row.mean,
                "ci95": row.ci95,
                "scores": {str(seed): score for seed, score in sorted(row.scores.items())},
            }
            for row in result.rows
        ],
        "differences": [
            {
                "better": each.better,
                "worse": each.worse,
                "gain": each.gain,
                "pairs": each.pairs,
                "p_value": each.p_value,
                "beyond_noise": each.p_value < SIGNIFICANT,
            }
            for each in result.differences
        ],
        "missing": result.failed,
    }


def write_comparison(folder: Path, comparison: Comparison, result: Comparisons, space: Any) -> list[Path]:
    """Write table, picture and the best recipe's study into the run in `folder`; return what was written."""
    out = folder / FOLDER
    out.mkdir(exist_ok=True)
    students = list(dict.fromkeys(row.arch_id for row in result.rows))
    lines = ["recipe,arch_id,seed,score,mean,ci95"]
    for name in result.ranking:
        for row in sorted(result.rows, key=lambda row: students.index(row.arch_id)):
            if row.name == name:
                half = "" if row.ci95 is None else repr(row.ci95)
                quoted = '"' + name.replace('"', '""') + '"'
                lines += [
                    f"{quoted},{row.arch_id},{seed},{score!r},{row.mean!r},{half}"
                    for seed, score in sorted(row.scores.items())
                ]
    write_text(out / "scores.csv", "\n".join([*lines, ""]))
    atomic.write_text(out / "scores.svg", picture(result))
    best = result.ranking[0]
    words = f"kdnas compare: the study with its best recipe, {best}"
    written = write_study(out, comparison.config, space, settings_of(comparison, best), words)
    return [out / "scores.csv", out / "scores.svg", *written]
