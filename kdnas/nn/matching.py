"""Which stage of a student learns from which stage of its teacher, and how the two are brought to one size.

Shapes: B batch, N tokens, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]
"""(C, H, W) of a map, (N, C) of the tokens of a layer."""
Map = Literal["uniform", "top", "bottom"]
"""Layers by relative depth, or the last, or the first ones of the longer side."""


def match_stages(student: Sequence[Shape], teacher: Sequence[Shape]) -> tuple[tuple[int, int], ...]:
    """Return pairs (student stage, teacher stage) in order, from their shapes.

    The rule, the same for every loss that does not ask for another: equally many stages pair in order. Otherwise every
    stage of the shorter side gets a partner of its own on the longer side, order kept, so that the spatial sizes differ
    least (the smallest sum of |log area ratio|); ties go to the later stages. Layers that give tokens pair by relative
    depth. No stages on either side give no pairs.
    """
    if any(len(shape) == 2 for shape in (*student, *teacher)):
        return match_by_depth(len(student), len(teacher))
    if len(student) > len(teacher):
        return tuple((s, t) for t, s in match_stages(teacher, student))

    def mismatch(chosen: Iterable[int]) -> tuple[float, tuple[int, ...]]:
        pairs = zip(student, (teacher[index] for index in chosen), strict=True)
        distance = math.fsum(abs(math.log((s[1] * s[2]) / (t[1] * t[2]))) for s, t in pairs)
        return round(distance, 9), tuple(-index for index in chosen)

    return tuple(enumerate(min(combinations(range(len(teacher)), len(student)), key=mismatch)))


def match_by_depth(student: int, teacher: int, by: Map = "uniform") -> tuple[tuple[int, int], ...]:
    """Return pairs (student layer, teacher layer) of so many layers, every one of the shorter side in one pair.

    `uniform` pairs layer i of m with layer (i + 1) n / m - 1 of n (Jiao et al., "TinyBERT", EMNLP Findings 2020).
    """
    if student > teacher:
        return tuple((s, t) for t, s in match_by_depth(teacher, student, by))
    if by == "uniform":
        return tuple((i, round((i + 1) * teacher / student) - 1) for i in range(student))
    return tuple((i, i + (teacher - student if by == "top" else 0)) for i in range(student))


def to_common_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two stages as maps [B, C, H, W] of one size: the smaller height and the smaller width of the two.

    The larger is average-pooled. Tokens [B, N, C] become maps of one column where both sides have equally many, else
    grids of the other side's proportions, squares for tokens: of the last tokens as many as fill one, what comes
    before them being no patch of the image.
    """
    if a.ndim == b.ndim == 3 and a.shape[1] == b.shape[1]:
        return a.transpose(1, 2).unsqueeze(3), b.transpose(1, 2).unsqueeze(3)
    a, b = (_grid(x, y) if x.ndim == 3 else x for x, y in ((a, b), (b, a)))
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    pooled = [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b)]
    return pooled[0], pooled[1]


def to_tokens(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two stages as equally many tokens [B, N, C]: those of their common size, row after row."""
    maps = to_common_size(a, b)
    return maps[0].flatten(2).transpose(1, 2), maps[1].flatten(2).transpose(1, 2)


def channels(shape: Shape) -> int:
    """Return how wide a stage of this shape is."""
    return shape[1] if len(shape) == 2 else shape[0]


def _grid(tokens: Tensor, other: Tensor) -> Tensor:
    """Return tokens [B, N, C] as the largest map [B, C, H, W] of the proportions of `other`, if that is a map."""
    count, proportion = tokens.shape[1], 1.0 if other.ndim == 3 else other.shape[2] / other.shape[3]
    sizes = [(max(1, round(proportion * width)), width) for width in range(1, count + 1)]
    height, width = max((size for size in sizes if math.prod(size) <= count), default=(count, 1))
    return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
