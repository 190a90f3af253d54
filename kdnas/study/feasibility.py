"""Whether a space can meet the constraints at all, and what its students cost: known before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdnas.core.arch import Arch
from kdnas.core.objective import Constraint, breaches
from kdnas.core.space import Assignment, SearchSpace
from kdnas.errors import ConfigError, Problem

_SAMPLE = 2_000
_DESCENT = 2_000


@dataclass(frozen=True)
class PricedArch:
    """An arch of the space with its cheap costs."""

    assignment: Assignment
    arch: Arch
    costs: Mapping[str, float]


def sample_prices(
    space: SearchSpace,
    arch_of: Callable[[Assignment], Arch],
    price: Callable[[Arch], Mapping[str, float]],
    *,
    constraints: Sequence[Constraint],
    seed: int,
) -> list[PricedArch]:
    """Return a seeded sample of priced archs, in order of drawing, with a feasible one among them.

    Where no random draw meets the cheap constraints, mutations descend from the nearest miss. Raises ConfigError naming
    the nearest miss when that finds none either.
    """
    rng = np.random.default_rng(seed)
    prices: dict[str, Mapping[str, float]] = {}

    def priced(assignment: Assignment) -> PricedArch:
        arch = arch_of(assignment)
        if arch.arch_id not in prices:  # small spaces are drawn from again and again, and a price may be the user's
            prices[arch.arch_id] = price(arch)
        return PricedArch(assignment, arch, prices[arch.arch_id])

    def excess(candidate: PricedArch) -> float:
        return relative_excess(candidate.costs, constraints)

    sample = [priced(space.random(rng)) for _ in range(_SAMPLE)]
    nearest = min(sample, key=excess)
    for _ in range(_DESCENT):
        if excess(nearest) == 0.0:
            break
        mutant = priced(space.mutate(nearest.assignment, rng, changes=1 + int(rng.integers(2))))
        if excess(mutant) < excess(nearest):
            nearest = mutant
    if excess(nearest) > 0.0:
        raise nearest_miss(space, constraints, nearest.arch, nearest.costs)
    return sample if any(excess(candidate) == 0.0 for candidate in sample) else [*sample, nearest]


def relative_excess(costs: Mapping[str, float], constraints: Sequence[Constraint]) -> float:
    """Return how far `costs` lie beyond the bounds, in shares of each bound, summed; 0 where all known ones hold."""
    return sum(
        max(bound.violation(costs[bound.name]), 0.0) / max(abs(bound.bound), 1e-12)
        for bound in constraints
        if bound.name in costs
    )


def nearest_miss(
    space: SearchSpace, constraints: Sequence[Constraint], arch: Arch, values: Mapping[str, float]
) -> ConfigError:
    """Return the error that no student meets the constraints, naming the one that comes nearest."""
    broken = breaches(values, constraints, known_only=True)
    wanted = ", ".join(str(bound) for bound in constraints)
    return ConfigError(
        Problem(
            "constraints",
            f"no student of space {space.name!r} meets {wanted}; the nearest miss breaks {', '.join(broken)} "
            f"({arch.canonical_json})",
        )
    )


def reference_costs(
    sample: Sequence[PricedArch], constraints: Sequence[Constraint], teacher: Mapping[str, float], names: Sequence[str]
) -> dict[str, float]:
    """Return the reference value of each cost objective: a student that costs this much is worth nothing.

    It is the constraint's bound where there is one; else the largest sampled price of a cheap cost, and the teacher's
    value of a measured one. Raises ConfigError where none of them is known.
    """
    bounds = {bound.name: bound.bound for bound in constraints if bound.operator == "<="}
    result = {}
    for name in names:
        if name in bounds:
            result[name] = bounds[name]
        elif name in sample[0].costs:
            result[name] = max(candidate.costs[name] for candidate in sample)
        elif name in teacher:
            result[name] = teacher[name]
        else:
            what = f"{name} is known only after a student was scored, so its worst value must be stated"
            raise ConfigError(Problem("constraints", what, f"a bound such as '{name}<=100'"))
    return result
