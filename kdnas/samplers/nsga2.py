"""NSGA-II (Deb et al., IEEE Transactions on Evolutionary Computation 2002), Optuna's."""

from __future__ import annotations

from typing import Annotated

import optuna
from pydantic import Field

from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.samplers._evolution import population_for


@SAMPLERS.register
def nsga2(
    context: SamplerContext,
    *,
    population_size: Annotated[int, Field(ge=2)] | None = None,
    mutation_probability: Annotated[float, Field(ge=0, le=1)] | None = None,
    crossover_probability: Annotated[float, Field(ge=0, le=1)] = 0.9,
) -> optuna.samplers.BaseSampler:
    """Elitist non-dominated sorting genetic algorithm (Optuna). Population: a fifth of the budget, within 10..50."""
    return optuna.samplers.NSGAIISampler(
        seed=context.seed,
        population_size=population_size or population_for(context.trials),
        mutation_prob=mutation_probability,
        crossover_prob=crossover_probability,
    )
