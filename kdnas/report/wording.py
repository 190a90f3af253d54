"""Numbers and names as a reader sees them: one spelling in tables, figures, the page and the terminal."""

from __future__ import annotations

import math

from kdnas.core.arch import Arch

_LABELS = {
    "accuracy": "accuracy",
    "test_accuracy": "test accuracy",
    "macs": "MACs",
    "params": "parameters",
}
OFF = "off"
"""What a choice is shown as in a student that does not have it."""
_UNIT_SUFFIXES = {"_ms": "ms", "_mj": "mJ", "_seconds": "s", "_bytes": "B"}
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def label(name: str) -> str:
    """Return the name of a quantity in words, its unit left to the value: `latency_ms` is "latency"."""
    if name in _LABELS:
        return _LABELS[name]
    for suffix in _UNIT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace("_", " ")


def axis_title(name: str) -> str:
    """Return an axis title of a quantity, with its unit."""
    if name == "macs":
        return "MACs (FLOPs = 2 × MACs)"
    unit = next((unit for suffix, unit in _UNIT_SUFFIXES.items() if name.endswith(suffix)), "")
    text = label(name)
    return f"{text[0].upper()}{text[1:]}" + (f" ({unit})" if unit else "")


def shown(name: str, value: float | None) -> str:
    """Return `value` of the quantity `name` with its unit, to about four digits; a dash when it is not known."""
    if value is None or math.isnan(value):
        return "–"
    if name.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    unit = next((unit for suffix, unit in _UNIT_SUFFIXES.items() if name.endswith(suffix)), "")
    if name in ("macs", "params") or unit == "B":
        return f"{scaled(value)}{unit}" if unit else scaled(value).strip()
    return f"{value:.4g} {unit}".strip()


def shown_interval(name: str, value: float | None, half_width: float | None) -> str:
    """Return `shown` with its 95 % interval where there is one: "97.10 ± 0.31 %"."""
    if value is None or half_width is None:
        return shown(name, value)
    return f"{100 * value:.2f} ± {100 * half_width:.2f} %"


def scaled(value: float) -> str:
    """Return `value` to four digits with a metric prefix after a space: "1.234 M"; the space stays without prefix."""
    rounded = abs(float(f"{value:.4g}"))
    for scale, prefix in _SCALES:
        if rounded >= scale:
            return f"{value / scale:.4g} {prefix}"
    return f"{value:.4g} "


def number(value: float) -> str:
    """Return a setting's value as short as it can be told: "8", "0.005", "1e-05"."""
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
