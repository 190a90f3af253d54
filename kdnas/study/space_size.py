"""How large a search space is, and what its networks cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kdnas.core.arch import Scalar
from kdnas.core.measurement import Price
from kdnas.core.space import Assignment, SearchSpace
from kdnas.students import StudentFamily
from kdnas.study.spaces import arch_of


@dataclass(frozen=True)
class SpaceSize:
    """`assignments` counts every combination, `active` those that differ in an active choice, `networks` the archs.

    `networks` is exact where `sampled` is 0, else an estimate from that many random assignments.
    """

    assignments: int
    active: int
    networks: int
    sampled: int = 0


def space_size(
    space: SearchSpace,
    family: StudentFamily | None = None,
    *,
    enumerate_up_to: int = 300_000,
    samples: int = 200,
    seed: int = 0,
) -> SpaceSize:
    """Return the size of `space`; its networks are counted one by one where it has few enough assignments.

    Else they are estimated: were every network spelled by m assignments, there would be assignments / m of them, so the
    estimate is assignments x mean(1 / m) over random assignments. The spellings of a network are found by changing one
    active choice at a time as long as the network stays the same.
    """
    if space.assignments <= enumerate_up_to:
        archs = {arch_of(space, assignment, family) for assignment in space.enumerate()}
        return SpaceSize(space.assignments, space.count(), len(archs))
    rng = np.random.default_rng(seed)
    shares = [1 / _spellings(space, family, space.random(rng)) for _ in range(samples)]
    active = space.count()
    return SpaceSize(
        space.assignments, active, min(active, round(space.assignments * math.fsum(shares) / samples)), samples
    )


def _spellings(space: SearchSpace, family: StudentFamily | None, start: Assignment) -> int:
    """Return the number of assignments that stand for the network of `start`."""
    domains = {choice.name: choice.values for choice in space.choices}
    network = arch_of(space, start, family)
    seen: set[frozenset[tuple[str, Scalar]]] = set()
    pending = [start]
    total = 0
    while pending:
        assignment = pending.pop()
        active = space.active(assignment)
        key = frozenset(active.items())
        if key in seen:
            continue
        seen.add(key)
        total += math.prod(len(values) for name, values in domains.items() if name not in active)
        pending += [
            other
            for name, other in space.neighbours(assignment)
            if name in active and arch_of(space, other, family) == network
        ]
    return total


def random_prices(space: SearchSpace, family: StudentFamily, *, samples: int, seed: int = 0) -> list[Price]:
    """Return the prices of `samples` random archs of the space."""
    rng = np.random.default_rng(seed)
    return [family.price(arch_of(space, space.random(rng), family)) for _ in range(samples)]
