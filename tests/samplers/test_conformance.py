"""Every sampler of the registry, through the proposals that a search makes: in the space, valid, new, reproducible."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.study.proposals import ValidProposals

optuna.logging.set_verbosity(optuna.logging.ERROR)

MACS = Quantity("macs", "MACs", "minimize", "cheap")
SPACE = SearchSpace(
    "conformance",
    "resnet",
    (Choice("depth", (0, 1, 2, 3)), Choice("width", (8, 16, 24, 32)), Choice("skip", ("identity", "none"))),
    (Condition("width", "depth", (1, 2, 3)), Condition("skip", "depth", (1, 2, 3))),
)
DOMAIN = {
    "depth": IntDistribution(0, 3),
    "width": IntDistribution(8, 32, step=8),
    "skip": CategoricalDistribution(("identity", "none")),
}
NAMES = SAMPLERS.names()


def key(params):
    """The student that `params` spell: choices that are not active do not count."""
    return tuple(sorted(SPACE.active(params).items()))


def score(params):
    depth, width = params["depth"], params["width"]
    return 1 - 1 / (1 + depth * width / 20) - 0.05 * (params["skip"] == "none"), float(depth * width**2)


class Loop:
    """A search without training: asks and tells `count` times."""

    def __init__(self, name, seed=0, limit=np.inf, domain=DOMAIN):
        self.name, self.seed, self.limit, self.domain = name, seed, limit, domain
        self.study = optuna.create_study(directions=["maximize", "minimize"])
        self.seen, self.proposals, self.exhausted = set(), [], False

    def acceptable(self, params):
        return key(params) not in self.seen and score(params)[1] <= self.limit

    def step(self):
        number = len(self.proposals)
        context = SamplerContext(SPACE, (ACCURACY, MACS), 60, 1000 * self.seed + number)
        sampler = ValidProposals(
            SAMPLERS.build(self.name, context), self.domain, self.acceptable, seed=1000 * self.seed + number
        )
        self.study.sampler = sampler
        trial = self.study.ask(fixed_distributions=self.domain)
        self.exhausted = sampler.exhausted
        if not self.exhausted:
            self.proposals.append(dict(trial.params))
            self.seen.add(key(trial.params))
            self.study.tell(trial, list(score(trial.params)))

    def run(self, count):
        while len(self.proposals) < count and not self.exhausted:
            self.step()
        return self.proposals


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_in_the_space_and_never_repeat(name):
    proposals = Loop(name).run(14)
    assert len(proposals) == 14
    for params in proposals:
        assert params["depth"] in (0, 1, 2, 3)
        assert params["width"] in (8, 16, 24, 32)
        assert params["skip"] in ("identity", "none")
    assert len({key(params) for params in proposals}) == 14


@pytest.mark.parametrize("name", NAMES)
def test_proposals_meet_the_cheap_constraint(name):
    assert all(score(params)[1] <= 600 for params in Loop(name, limit=600).run(10))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_history_give_the_same_proposals(name):
    assert Loop(name, seed=3).run(12) == Loop(name, seed=3).run(12)
    assert Loop(name, seed=3).run(6) != Loop(name, seed=4).run(6)


@pytest.mark.parametrize("name", NAMES)
def test_an_exhausted_space_ends_cleanly(name):
    loop = Loop(name, domain=DOMAIN | {"width": IntDistribution(8, 16, step=8)})
    loop.run(1000)
    assert loop.exhausted
    assert len(loop.proposals) == 3 * 2 * 2 + 1  # three active depths with all else, and depth 0 alone


def test_continuous_settings_are_proposed_within_their_range():
    domain = {**DOMAIN, "learning_rate": FloatDistribution(0.01, 1.0, log=True)}
    study = optuna.create_study(directions=["maximize", "minimize"])
    drawn = []
    for number in range(40):
        inner = SAMPLERS.build("random", SamplerContext(SPACE, (ACCURACY, MACS), 60, number))
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


def test_a_preset_is_proposed_as_it_is():
    preset = {"depth": 2, "width": 16, "skip": "none"}
    inner = SAMPLERS.build("random", SamplerContext(SPACE, (ACCURACY, MACS), 60, 0))
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=ValidProposals(inner, DOMAIN, lambda params: True, seed=0, preset=preset),
    )
    assert study.ask(fixed_distributions=DOMAIN).params == preset


@pytest.mark.parametrize(
    ("trials", "objectives", "expected"),
    [
        (5, 2, optuna.samplers.RandomSampler),
        (50, 2, optuna.samplers.GPSampler),
        (500, 2, optuna.samplers.NSGAIISampler),
        (500, 3, optuna.samplers.NSGAIIISampler),
    ],
)
def test_auto_picks_by_budget(trials, objectives, expected):
    context = SamplerContext(SPACE, (ACCURACY, MACS, MACS)[:objectives], trials, 0)
    assert type(SAMPLERS.build("auto", context)) is expected
