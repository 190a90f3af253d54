"""Every sampler of the registry keeps its family's contract, and what the wrapper around all of them keeps."""

from __future__ import annotations

import optuna

from kdnas.controller.proposals import ValidProposals
from kdnas.record.storage import distributions
from kdnas.samplers import SAMPLERS
from kdnas.testing import SamplerConformance, suites
from kdnas.testing.samplers import RATE, SPACE, Loop

globals().update(suites(SamplerConformance))


def test_continuous_settings_are_proposed_within_their_range():
    domain = {**distributions(SPACE, {}), "learning_rate": RATE}
    study = optuna.create_study(directions=["maximize", "minimize"])
    drawn = []
    for number in range(40):
        inner = SAMPLERS.build("random", Loop(lambda context: SAMPLERS.build("random", context)).context(number))
        # Nothing the sampler says is taken, so that every proposal is a mutation or a draw of the wrapper's own.
        rejected = []

        def acceptable(params, rejected=rejected):
            rejected.append(params)
            return len(rejected) > 400

        study.sampler = ValidProposals(inner, domain, acceptable, seed=number)
        drawn.append(study.ask(fixed_distributions=domain).params["learning_rate"])
    assert min(drawn) >= 0.01
    assert max(drawn) <= 1.0
    # Log-uniform: half of the draws lie below the geometric mean 0.1 (binomial, 40 draws, 4 sigma).
    assert 7 <= sum(rate < 0.1 for rate in drawn) <= 33
