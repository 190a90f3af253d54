"""Numbers and names as they are printed: one spelling in tables, figures, the page and the terminal."""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING

from kdnas.core.arch import Arch
from kdnas.core.objective import Constraint, Quantity, parse_constraint, score_named
from kdnas.core.words import UNIT_SUFFIXES, capitalised
from kdnas.core.words import label as label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdnas.record.records import FrontMember, RunRecord

OFF = "off"
"""What a choice is shown as in a student that does not have it."""
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _unit(name: str) -> str:
    return next((unit for suffix, unit in UNIT_SUFFIXES.items() if name.endswith(suffix)), "")


def column_title(name: str, score: Quantity | None = None) -> str:
    """Return the heading of a column of bare values: "latency (ms)", "MACs"; "accuracy (%)" of a `score`."""
    unit = "%" if score is not None and score.is_fraction else _unit(name)
    return label(name) + (f" ({unit})" if unit else "")


def axis_title(name: str) -> str:
    """Return an axis title of a quantity, with its unit."""
    if name == "macs":
        return "MACs (FLOPs = 2 × MACs)"
    unit = _unit(name)
    return capitalised(label(name)) + (f" ({unit})" if unit else "")


def shown(of: str | Quantity, value: float | None, score: Quantity | None = None) -> str:
    """Return `value` of a score, or of the score or cost of this name, with its unit; a dash when it is not known.

    `score` is the run's, which a task of the user's own may call as it likes.
    """
    if value is None or math.isnan(value):
        return "–"
    if isinstance(of, Quantity):
        return of.shown(value)
    name = of
    is_runs = score is not None and name.rpartition(".")[2] == score.name
    if (named := score if is_runs else score_named(name)) is not None:
        return named.shown(value)
    unit = _unit(name)
    if name in ("macs", "params") or unit == "B":
        return f"{scaled(value)}{unit}" if unit else scaled(value).strip()
    return f"{value:.4g} {unit}".strip()


def volume_in_words(volume: float) -> str:
    """Return a hypervolume to six digits, a large one without an exponent: "408,256", "17,460,300"."""
    return f"{float(f'{volume:.6g}'):,.0f}" if volume >= 1e6 else f"{volume:,.6g}"


def in_html(value: object) -> str:
    """Return `value` as text of an HTML page, in an attribute or outside of one."""
    return html.escape(str(value), quote=True)


def reference_in_words(run: RunRecord) -> str:
    """Return the point from which a run's hypervolumes are measured: "accuracy 10.00 %, MACs 6 M"."""
    return ", ".join(f"{label(name)} {shown(name, value, run.score)}" for name, value in run.reference_point.items())


def front_score(run: RunRecord) -> str:
    """Return what the score of a front is: that on the validation split, where there is one."""
    return f"validation {label(run.score.name)}" if run.trains else label(run.score.name)


def front_legend(run: RunRecord, members: Sequence[FrontMember]) -> str:
    """Return what the points of the front are: "front, retrained (95 %)" where bars are drawn, "front so far"."""
    if not any(member.trial.repeats for member in members):
        return "front so far"
    bars = " (95 %)" if any(member.score_ci95 is not None for member in members) else ""
    return f"front, {'retrained' if run.trains else 'scored again'}{bars}"


def shown_interval(score: Quantity, value: float | None, half_width: float | None) -> str:
    """Return a score with its 95 % interval where there is one: "97.10 ± 0.31 %", "23.4 ± 0.82".

    One of a fraction that reaches past 0 or 100 % is given by its ends, cut off there: "97.10 % [90.20, 100]". Equal
    scores give no interval: "97.10 %, every seed".
    """
    if value is None or half_width is None:
        return shown(score, value)
    if half_width < 1e-9:
        return f"{score.shown(value)}, every seed"
    if not score.is_fraction:
        return f"{score.shown(value)} ± {half_width:.2g}"
    low, high = score.ends(value, half_width)
    if (low, high) == (value - half_width, value + half_width):
        return f"{100 * value:.2f} ± {max(100 * half_width, 0.01):.2f} %"
    ends = ["0" if end == 0 else "100" if end == 1 else f"{100 * end:.2f}" for end in (low, high)]
    return f"{100 * value:.2f} % [{', '.join(ends)}]"


def bound_in_words(bound: Constraint, score: Quantity) -> str:
    """Return a constraint in words: "at most 6 M MACs", "at least 95 % accuracy"."""
    limit = "at most" if bound.operator == "<=" else "at least"
    unit = _unit(bound.name)
    if bound.percent:
        return f"{limit} {bound.bound:g} % of the teacher’s {label(bound.name)}"
    if bound.name == score.name:
        value = f"{100 * bound.bound:g} %" if score.is_fraction else f"{bound.bound:g}"
    elif bound.name in ("macs", "params") or unit == "B":
        value = f"{scaled(bound.bound, digits=6)}{unit}".strip()
    else:
        value = f"{bound.bound:g} {unit}".strip()
    return f"{limit} {value} {label(bound.name)}"


def reason_in_words(reason: str, score: Quantity) -> str:
    """Return why a trial has no score with its constraints in words: "breaks macs<=6e+06" is "... at most 6 M MACs"."""

    def spelled(match: re.Match[str]) -> str:
        try:
            return bound_in_words(parse_constraint(match[0], score), score)
        except ValueError:
            return match[0]

    return re.sub(r"\b[a-z_][a-z0-9_]*(?:<=|>=)-?[0-9][0-9.]*(?:e[-+]?[0-9]+)?%?", spelled, reason)


def scaled(value: float, digits: int = 4) -> str:
    """Return `value` to four digits with a metric prefix after a space: "1.234 M"; the space stays without prefix."""
    rounded = abs(float(f"{value:.{digits}g}"))
    for scale, prefix in _SCALES:
        if rounded >= scale:
            return f"{value / scale:.{digits}g} {prefix}"
    return f"{value:.{digits}g} "


def number(value: float) -> str:
    """Return a setting's value in its shortest form: "8", "0.005", "1e-05"."""
    return f"{value:g}"


def fraction_of(value: float, whole: float) -> str:
    """Return what `value` is of `whole`: "1/12", "1/3.4", "83 %", "1.6 times"."""
    if value <= 0 or whole <= 0:
        return "–"
    ratio = whole / value
    if ratio >= 9.95:
        return f"1/{ratio:.0f}"
    if ratio >= 1.5:
        return f"1/{ratio:.1f}"
    if ratio > 0.67:
        return f"{100 / ratio:.0f} %"
    return f"{1 / ratio:.1f} times"


def duration(seconds: float) -> str:
    """Return a duration in the two units that matter: "41 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def arch_in_words(arch: Arch) -> str:
    """Return the choices of `arch` on one line: "depth1=2 width1=16"."""
    return " ".join(f"{name}={value}" for name, value in arch.items)
