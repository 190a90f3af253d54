"""The sampler that fits the study."""

from __future__ import annotations

import optuna

from kdnas.samplers import SAMPLERS, SamplerContext

_MOST_OBJECTIVES = 4
_MOST_TRIALS = 2_000


@SAMPLERS.register
def auto(context: SamplerContext) -> optuna.samplers.BaseSampler:
    """By budget: hvi for up to 4 objectives and 2,000 trials, beyond that nsga2 (nsga3 from three objectives on).

    Where it was raced (`studies/search_efficiency`: published tables of 64 to 15,625 students, accuracy against MACs or
    latency, up to 60 full trainings), hvi was ahead of every other sampler from about the tenth training on, because it
    models only what must be trained and computes every cheap cost exactly. That it stays ahead up to 2,000 trials was
    not raced. Its proposals slow down with the history, and its boxes with the number of objectives; there evolution,
    whose proposals cost nothing, has trials enough to converge.
    """
    if len(context.objectives) <= _MOST_OBJECTIVES and context.trials <= _MOST_TRIALS:
        name = "hvi"
    else:
        name = "nsga3" if len(context.objectives) > 2 else "nsga2"
    sampler: optuna.samplers.BaseSampler = SAMPLERS.build(name, context)
    return sampler
