"""Which stage of a student learns from which stage of its teacher, and how their maps are brought to one size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, int, int]


def match_stages(student: Sequence[Shape], teacher: Sequence[Shape]) -> tuple[tuple[int, int], ...]:
    """Return pairs (student stage, teacher stage) in order, from their shapes (C, H, W).

    The rule, the same for every loss: equally many stages pair in order. Otherwise every stage of the shorter side
    gets a partner of its own on the longer side, order kept, so that the spatial sizes differ least (the smallest sum
    of |log area ratio|); ties go to the later stages. No stages on either side give no pairs.
    """
    if len(student) > len(teacher):
        return tuple((s, t) for t, s in match_stages(teacher, student))

    def mismatch(chosen: Iterable[int]) -> tuple[float, tuple[int, ...]]:
        pairs = zip(student, (teacher[index] for index in chosen), strict=True)
        distance = math.fsum(abs(math.log((s[1] * s[2]) / (t[1] * t[2]))) for s, t in pairs)
        return round(distance, 9), tuple(-index for index in chosen)

    return tuple(enumerate(min(combinations(range(len(teacher)), len(student)), key=mismatch)))


def to_common_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps [B, C, H, W] average-pooled to the smaller height and the smaller width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    pooled = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b)]
    return pooled[0], pooled[1]
