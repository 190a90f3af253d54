"""Students that somebody queued: trials that wait in the record, from Optuna's `enqueue_trial` or its dashboard.

They are read against the space before anything is asked of them: what nobody could train is closed with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdnas.core.arch import Scalar
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem


def queued_values(
    fixed: Mapping[str, Any], space: SearchSpace, domain: Mapping[str, BaseDistribution]
) -> dict[str, Scalar]:
    """Return what a queued trial states of `domain`, as the space spells it; what it leaves out is open.

    A choice that the space fixes may be stated too. Raises ConfigError with every value that the space does not have.
    """
    values: dict[str, Scalar] = {}
    problems = []
    for name, value in fixed.items():
        if name in domain:
            known = _value(value, domain[name])
            if known is None:
                problems.append(Problem(name, f"has no value {value!r}", _allowed(domain[name])))
            else:
                values[name] = known
        elif name not in space.fixed:
            problems.append(Problem(name, "is no choice of the space", ", ".join([*domain, *space.fixed])))
        elif not _alike(value, space.fixed[name]):
            problems.append(Problem(name, f"has no value {value!r}", repr(space.fixed[name])))
    if problems:
        raise ConfigError(problems)
    return values


def _value(value: Any, distribution: BaseDistribution) -> Scalar | None:
    """Return `value` as `distribution` spells it, None where it does not hold it."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if _alike(value, choice)), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    if not distribution.low <= value <= distribution.high:
        return None
    if isinstance(distribution, FloatDistribution):
        return float(value)
    return int(value) if (value - distribution.low) % distribution.step == 0 else None


def _alike(value: Any, choice: Any) -> bool:
    """Whether two scalars are the same value: 1 is 1.0, but no truth value and no text."""
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, choice)]
    return bool(value == choice) and (all(numbers) or type(value) is type(choice))


def _allowed(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    step = f" in steps of {distribution.step}" if isinstance(distribution, IntDistribution) else ""
    return f"{distribution.low:g} to {distribution.high:g}{step}"
