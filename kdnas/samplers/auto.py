"""The sampler that fits the budget."""

from __future__ import annotations

import optuna

from kdnas.samplers import SAMPLERS, SamplerContext


@SAMPLERS.register
def auto(context: SamplerContext) -> optuna.samplers.BaseSampler:
    """By budget: random up to 10 trials, gp up to 150, nsga2 beyond (nsga3 from three objectives on).

    A model needs a few trials before it helps; a Gaussian process is the most sample-efficient of Optuna's samplers but
    its proposals slow down with the history, where evolution has enough trials to converge.
    """
    if context.trials <= 10:
        name = "random"
    elif context.trials <= 150:
        name = "gp"
    else:
        name = "nsga3" if len(context.objectives) > 2 else "nsga2"
    sampler: optuna.samplers.BaseSampler = SAMPLERS.build(name, context)
    return sampler
