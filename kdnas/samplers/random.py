"""Uniform random search: the baseline every other sampler must beat."""

from __future__ import annotations

import optuna

from kdnas.samplers import SAMPLERS, SamplerContext


@SAMPLERS.register
def random(context: SamplerContext) -> optuna.samplers.BaseSampler:
    """Uniform random search."""
    return optuna.samplers.RandomSampler(seed=context.seed)
