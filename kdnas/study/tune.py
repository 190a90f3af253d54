"""The section `tune`: what of the recipe is searched with the architecture."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import BeforeValidator, Field, model_validator

from kdnas.core.arch import Scalar
from kdnas.registry import Section


class TuneRange(Section):
    """A training setting searched jointly with the architecture, uniformly or on a log scale."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> TuneRange:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("needs low < high, and low > 0 where log is true")
        return self


Tuned = TuneRange | tuple[Scalar, ...]
"""What a study offers of one setting of the recipe: a range, or values."""


def _in_yaml(value: Any) -> Any:
    """Return a mapping among the values of a setting as the text that it is in YAML, which a trial's record holds."""
    if not isinstance(value, dict):
        return value
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=math.inf).strip()


_TUNE_VALUES: pydantic.TypeAdapter[tuple[Scalar, ...]] = pydantic.TypeAdapter(
    Annotated[tuple[Annotated[Scalar, BeforeValidator(_in_yaml)], ...], Field(min_length=2)]
)


def range_or_values(value: Any, _: Any) -> Tuned:
    """Return what is offered of a setting: a mapping is a range, a list its values. Raises ValueError."""
    if not isinstance(value, list | tuple):
        return TuneRange.model_validate(value)
    values = _TUNE_VALUES.validate_python(value)
    if len({(isinstance(one, bool), one) for one in values}) < len(values):
        raise ValueError("states a value twice")
    if any(isinstance(one, float) and not math.isfinite(one) for one in values):
        raise ValueError("needs finite numbers")
    return values
