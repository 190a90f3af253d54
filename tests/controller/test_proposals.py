"""Proposals in spaces whose acceptable students are rare, and what is said when there are no more."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import IntDistribution

from kdnas.controller.proposals import Preset, ValidProposals

optuna.logging.set_verbosity(optuna.logging.ERROR)

WIDE = {f"w{i}": IntDistribution(1, 10) for i in range(9)}  # 10^9 assignments: none can enumerate them


def propose(domain, acceptable, excess, seed=0):
    proposals = ValidProposals(optuna.samplers.RandomSampler(seed=seed), domain, acceptable, seed=seed, excess=excess)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=proposals)
    return study.ask(fixed_distributions=domain).params, proposals.exhausted


def test_needles_of_a_large_space_are_found_one_after_the_other():
    # A sum of at most 10: the ten assignments of all ones but at most one two, of 10^9.
    seen = set()

    def excess(params):
        return max(sum(params.values()) - 10, 0) / 10

    def acceptable(params):
        return excess(params) == 0 and tuple(params.values()) not in seen

    for number in range(10):
        params, exhausted = propose(WIDE, acceptable, excess, seed=number)
        assert not exhausted
        assert sum(params.values()) <= 10
        assert tuple(params.values()) not in seen
        seen.add(tuple(params.values()))
    _, exhausted = propose(WIDE, acceptable, excess)
    assert exhausted == "no further student that meets the constraints was found in the space"


@pytest.mark.parametrize("high", [2, 20])
def test_a_small_space_is_proven_exhausted(high):
    _, exhausted = propose({"w": IntDistribution(1, high)}, lambda params: False, lambda params: 1.0)
    assert exhausted == "every student of the space that meets the constraints has been scored"


def test_a_preset_is_proposed_as_it_is():
    domain = {"depth": IntDistribution(1, 3), "width": IntDistribution(4, 8, step=4)}
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=Preset({"depth": 2, "width": 8}, domain))
    assert study.ask(fixed_distributions=domain).params == {"depth": 2, "width": 8}
