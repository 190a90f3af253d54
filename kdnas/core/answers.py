"""A short sketch of what a teacher answers on fixed samples, compared up to rounding.

Machines, thread counts and kernels round differently, so that a hash of the answers would call one teacher many. A
sketch is a few numbers: random projections of the answers (Achlioptas, "Database-friendly random projections", JCSS
2003), which any real change of them moves.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

_PROJECTIONS = 4
_SAME = 2e-3
"""Of the sketch's root mean square: float32 on other machines stays a hundred times below."""
_OUTLYING = 20.0
"""What lies beyond so many times the median counts only as being there: some networks mask classes with -1e9."""
_COARSE_BITS = 6
"""A coarse step is about 2**-6 of the root mean square."""


def sketch(answers: np.ndarray) -> tuple[float, ...]:
    """Return the sketch of `answers` [N, K], finite: four numbers a sample, of four digits relative to all of them."""
    values = np.asarray(answers, dtype=np.float64)
    bound = _OUTLYING * float(np.median(np.abs(values)))
    if bound > 0:
        values = values.clip(-bound, bound)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(values.shape[1], _PROJECTIONS))
    projected = (values @ signs / math.sqrt(values.shape[1])).ravel()
    digits = 4 - math.ceil(math.log10(max(_scale(projected), 1e-30)))
    return tuple(round(float(value), digits) for value in projected)


def apart(before: Sequence[float], now: Sequence[float]) -> float:
    """Return by which share of their size two sketches differ: 0 for equal ones, infinite where samples are others."""
    if len(before) != len(now):
        return math.inf
    if not before:
        return 0.0
    old, new = np.asarray(before), np.asarray(now)
    return float(_scale(old - new) / max(_scale(old), _scale(new), 1e-30))


def what_differs(before: Sequence[float], now: Sequence[float]) -> str:
    """Return the note on a teacher whose files are the same and whose outputs are not; empty where they are.

    A sketch that was never made is compared with nothing.
    """
    if not before or not now or apart(before, now) <= _SAME:
        return ""
    return (
        f"answers otherwise than before, though its files are the same: on a few fixed samples its logits differ by "
        f"{100 * apart(before, now):.2g} % of their size; code that its factory imports has changed, or a library"
    )


def coarse_key(answers: Sequence[float]) -> str:
    """Return a short hash that other answers do not share: empty for no sketch.

    Where a number lies at the border of two coarse steps, rounding may give equal answers two hashes: what is kept
    under one is made again under the other, and nothing is wrong.
    """
    if not answers:
        return ""
    values = np.asarray(answers)
    step = 2.0 ** (round(math.log2(max(_scale(values), 1e-30))) - _COARSE_BITS)
    places = np.round(values / step).astype(np.int64)
    return hashlib.sha256(f"{step!r} {places.tolist()}".encode()).hexdigest()[:8]


def _scale(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
