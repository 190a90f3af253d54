"""Multi-objective tree-structured Parzen estimator (Ozaki et al., "Multiobjective TPE", GECCO 2020), Optuna's."""

from __future__ import annotations

from typing import Annotated

import optuna
from pydantic import Field

from kdnas.samplers import SAMPLERS, SamplerContext


@SAMPLERS.register
def tpe(
    context: SamplerContext,
    *,
    startup_trials: Annotated[int, Field(ge=1)] = 10,
    multivariate: bool = False,
) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimator over several objectives (Optuna)."""
    return optuna.samplers.TPESampler(
        seed=context.seed, n_startup_trials=startup_trials, multivariate=multivariate, constant_liar=True
    )
