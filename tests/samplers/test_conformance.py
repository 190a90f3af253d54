"""Every sampler of the registry, through the proposals that a search makes: in the space, valid, new, reproducible."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from kdnas.controller.proposals import ValidProposals
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.record.storage import distributions
from kdnas.samplers import SAMPLERS, SamplerContext

optuna.logging.set_verbosity(optuna.logging.ERROR)

MACS = Quantity("macs", "MACs", "minimize", "cheap")
PARAMS = Quantity("params", "parameters", "minimize", "cheap")
LATENCY = Quantity("latency_ms", "ms", "minimize", "measured")
OBJECTIVES = (ACCURACY, MACS, PARAMS, LATENCY)
REFERENCE = {"accuracy": 0.0, "macs": 4000.0, "params": 200.0, "latency_ms": 30.0}
SPACE = SearchSpace(
    "conformance",
    "resnet",
    (Choice("depth", (0, 1, 2, 3)), Choice("width", (8, 16, 24, 32)), Choice("skip", ("identity", "none"))),
    (Condition("width", "depth", (1, 2, 3)), Condition("skip", "depth", (1, 2, 3))),
)
RUNGS = (Fidelity(1), Fidelity(8))
RATE = FloatDistribution(0.01, 1.0, log=True)
NAMES = SAMPLERS.names()


def key(space, params):
    """The student that `params` spell: choices that are not active do not count, settings do."""
    settings = {name: value for name, value in params.items() if name not in {c.name for c in space.choices}}
    choices = {name: value for name, value in params.items() if name not in settings}
    return tuple(sorted({**space.active(choices), **settings}.items()))


def price(params):
    depth, width = params["depth"], params["width"]
    return {"macs": float(1 + depth * width**2), "params": float(1 + depth * width)}


def values(params, fidelity=RUNGS[-1]):
    depth, width = params["depth"], params["width"]
    accuracy = 1 - 1 / (1 + depth * width / 20) - 0.05 * (params["skip"] == "none") - 0.2 / fidelity.epochs
    return {"accuracy": accuracy, "latency_ms": 1.0 + depth * width / 5, **price(params)}


class Loop:
    """A search without training: asks and tells. `waiting` proposals are told late, as with several workers."""

    def __init__(self, name, seed=0, limit=np.inf, space=SPACE, objectives=2, rungs=(), tuned=(), waiting=0):
        self.name, self.seed, self.limit, self.space, self.rungs = name, seed, limit, space, rungs
        self.objectives, self.tuned, self.waiting = OBJECTIVES[:objectives], dict(tuned), waiting
        self.domain = distributions(space, {}) | self.tuned
        self.study = optuna.create_study(
            study_name="loop",
            storage=optuna.storages.InMemoryStorage(),
            directions=[objective.direction for objective in self.objectives],
        )
        self.seen, self.proposals, self.running, self.exhausted = set(), [], [], ""

    def acceptable(self, params):
        return key(self.space, params) not in self.seen and price(params)["macs"] <= self.limit

    def context(self, number):
        return SamplerContext(
            self.space,
            self.objectives,
            60,
            1000 * self.seed + number,
            price=price,
            acceptable=self.acceptable,
            reference_point={objective.name: REFERENCE[objective.name] for objective in self.objectives},
            fidelities=self.rungs,
            tuned=self.tuned,
        )

    def step(self):
        number = len(self.proposals)
        sampler = ValidProposals(
            SAMPLERS.build(self.name, self.context(number)),
            self.domain,
            self.acceptable,
            seed=1000 * self.seed + number,
            fidelities=self.rungs,
        )
        self.study.sampler = sampler
        trial = self.study.ask(fixed_distributions=self.domain)
        self.exhausted = sampler.exhausted
        if self.exhausted:
            return
        self.proposals.append(dict(trial.params))
        self.seen.add(key(self.space, trial.params))
        fidelity = self.rungs[0] if self.rungs else RUNGS[-1]
        self.describe(trial, fidelity)
        self.running.append((trial, fidelity))
        while len(self.running) > self.waiting:
            self.tell(*self.running.pop(0))
        if self.rungs and number % 3 == 2:  # every third student is trained on
            self.study.enqueue_trial(self.proposals[-2])
            promoted = self.study.ask(fixed_distributions=self.domain)
            self.describe(promoted, self.rungs[-1])
            self.tell(promoted, self.rungs[-1])

    def describe(self, trial, fidelity):
        trial.set_user_attr("arch_id", str(key(self.space, trial.params)))
        trial.set_user_attr("tuned", {})
        trial.set_user_attr("fidelity", fidelity.as_dict())

    def tell(self, trial, fidelity):
        known = values(trial.params, fidelity)
        trial.set_user_attr("result", {"values": known})
        self.study.tell(trial, [known[objective.name] for objective in self.objectives])

    def run(self, count):
        while len(self.proposals) < count and not self.exhausted:
            self.step()
        return self.proposals


def assert_in_space(loop):
    for params in loop.proposals:
        for choice in loop.space.choices:
            assert params[choice.name] in choice.values
    assert len({key(loop.space, params) for params in loop.proposals}) == len(loop.proposals)


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_in_the_space_and_never_repeat(name):
    loop = Loop(name)
    assert len(loop.run(14)) == 14
    assert_in_space(loop)


@pytest.mark.parametrize("name", NAMES)
def test_proposals_meet_the_cheap_constraint(name):
    assert all(price(params)["macs"] <= 600 for params in Loop(name, limit=600).run(10))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_history_give_the_same_proposals(name):
    assert Loop(name, seed=3).run(12) == Loop(name, seed=3).run(12)
    assert Loop(name, seed=3).run(6) != Loop(name, seed=4).run(6)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(name):
    whole, resumed = Loop(name, seed=5), Loop(name, seed=5)
    whole.run(12)
    resumed.run(7)
    resumed.study = optuna.load_study(study_name="loop", storage=resumed.study._storage)
    assert resumed.run(12) == whole.proposals


@pytest.mark.parametrize("name", NAMES)
def test_an_exhausted_space_ends_cleanly(name):
    narrow = Choice("width", (8, 16))
    loop = Loop(name, space=dataclasses.replace(SPACE, choices=(SPACE.choices[0], narrow, SPACE.choices[2])))
    loop.run(1000)
    assert loop.exhausted
    assert len(loop.proposals) == 3 * 2 * 2 + 1  # three active depths with all else, and depth 0 alone


@pytest.mark.parametrize("objectives", [3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_three_and_four_objectives(name, objectives):
    loop = Loop(name, objectives=objectives)
    assert len(loop.run(12)) == 12
    assert_in_space(loop)


@pytest.mark.parametrize("name", NAMES)
def test_several_workers_get_different_students(name):
    loop = Loop(name, waiting=4)
    assert len(loop.run(14)) == 14
    assert_in_space(loop)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_over_rungs(name):
    loop = Loop(name, rungs=RUNGS)
    assert len(loop.run(13)) == 13
    assert_in_space(loop)


@pytest.mark.parametrize("name", NAMES)
def test_tuned_settings_stay_within_their_range(name):
    loop = Loop(name, tuned={"learning_rate": RATE})
    assert len(loop.run(13)) == 13
    assert all(0.01 <= params["learning_rate"] <= 1.0 for params in loop.proposals)
    assert len({params["learning_rate"] for params in loop.proposals}) > 1


def test_continuous_settings_are_proposed_within_their_range():
    domain = {**distributions(SPACE, {}), "learning_rate": RATE}
    study = optuna.create_study(directions=["maximize", "minimize"])
    drawn = []
    for number in range(40):
        inner = SAMPLERS.build("random", Loop("random").context(number))
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
