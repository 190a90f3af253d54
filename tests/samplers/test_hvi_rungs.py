"""hvi in a search with rungs: how far it trusts a short score, and what it does next."""

from __future__ import annotations

import itertools
import math

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import create_trial
from scipy.stats import kendalltau

from kdnas.core.fidelity import Fidelity
from kdnas.core.hypervolume import hypervolume
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.pareto import non_dominated
from kdnas.core.space import Choice, SearchSpace
from kdnas.samplers import SAMPLERS, Ladder, SamplerContext, Step
from kdnas.samplers.hvi.process import Blend, Process, Rows

optuna.logging.set_verbosity(optuna.logging.ERROR)

RUNGS = (Fidelity(1), Fidelity(9))
LADDER = Ladder((1 / 9, 1.0), 1.0, (9.0,))
SPACE = SearchSpace("grid", "table", tuple(Choice(name, tuple(range(1, 6))) for name in ("a", "b", "c")))
SEEDS = range(3)
DOMAIN = {choice.name: IntDistribution(1, 5) for choice in SPACE.choices}


class Grid:
    """125 students; `faith` [0, 1] is how much of a short score is the full one, the rest being luck."""

    def __init__(self, faith: float):
        rng = np.random.default_rng(3)
        self.params = [dict(zip("abc", values, strict=True)) for values in itertools.product(range(1, 6), repeat=3)]
        strength = np.array([0.5 * math.log(p["a"] * p["b"]) + 0.4 * math.log(p["c"]) for p in self.params])
        self.full = 0.8 - 0.45 * np.exp(-strength) + rng.normal(0, 0.012, len(strength))
        luck = rng.normal(self.full.mean(), self.full.std(), len(strength))
        self.short = 0.6 * (faith * self.full + (1 - faith) * luck)
        self.macs = np.array([float(p["a"] * p["b"] ** 2 + 3 * p["c"]) for p in self.params])
        self.reference = np.array([-np.quantile(self.full, 0.1), self.macs.max()])
        self.row = {tuple(params.values()): row for row, params in enumerate(self.params)}
        self.best = self.volume(range(len(self.full)))

    def volume(self, rows):
        points = np.stack([-self.full[list(rows)], self.macs[list(rows)]], axis=1)
        points = points[np.all(points < self.reference, axis=1)]
        return hypervolume(points[non_dominated(points)], self.reference)

    def sampler(self, number, seed, rungs):
        return SAMPLERS.build(
            "hvi",
            SamplerContext(
                SPACE,
                (ACCURACY, Quantity("macs", "MACs", "minimize", "cheap")),
                60,
                1000 * seed + number,
                price=lambda params: {"macs": self.macs[self.row[tuple(params.values())]]},
                acceptable=lambda params: True,
                reference_point={"accuracy": -self.reference[0], "macs": self.reference[1]},
                fidelities=rungs,
            ),
        )

    def trial(self, row, rung):
        scores = (self.short, self.full)[rung]
        return create_trial(
            values=[scores[row], self.macs[row]],
            params=self.params[row],
            distributions=DOMAIN,
            user_attrs={"fidelity": RUNGS[rung].as_dict()},
        )

    def search(self, seed, rungs, limit=8.0):
        """Return (share of the best volume after `limit` full trainings, steps: s short, F full at once, p promoted).

        The seed of a proposal is of the students begun, so that the first are the same with and without rungs.
        """
        study = optuna.create_study(directions=["maximize", "minimize"])
        spent, full, begun, steps = 0.0, [], set(), ""
        while True:
            sampler = self.sampler(len(begun), seed, rungs)
            step = (sampler.next_step(study, LADDER) or Step(None)) if rungs else Step(None, 1)
            params = study.trials[step.promoted].params if step.promoted is not None else None
            rung = 1 if params is not None else step.rung
            spent += LADDER.costs[rung]
            if spent > limit + 1e-9:
                return self.volume(full) / self.best, steps
            row = self.row[tuple((params or sampler.sample_relative(study, None, {})).values())]
            study.add_trial(self.trial(row, rung))
            begun.add(row)
            full += [row] if rung else []
            steps += "sF"[rung] if params is None else "p"


@pytest.fixture(scope="module")
def misled():
    return Grid(faith=0.2)


def test_the_more_a_short_score_says_the_more_it_is_taken_to_explain(misled):
    def explained(table, first):
        study = optuna.create_study(directions=["maximize", "minimize"])
        short = range(first, 125, 4)
        study.add_trials([table.trial(row, 0) for row in short] + [table.trial(row, 1) for row in short[::4]])
        sampler = table.sampler(0, 0, RUNGS)
        sampler._chooses = True
        _, sample, outlook = sampler._look(sampler._history(study))
        return outlook.explained(sample, 0)

    faithful = Grid(faith=0.95)
    assert kendalltau(faithful.short, faithful.full)[0] > 0.9
    assert np.mean([explained(faithful, first) - explained(misled, first) for first in range(4)]) > 0.3


@pytest.fixture(scope="module")
def alone(misled):
    return np.mean([misled.search(seed, ())[0] for seed in SEEDS])


def test_short_scores_that_say_little_cost_next_to_nothing(misled, alone):
    volumes, steps = zip(*[misled.search(seed, RUNGS) for seed in SEEDS], strict=True)
    assert np.mean(volumes) > alone - 0.03
    assert sum(each[-4:].count("s") for each in steps) < sum(each[-4:].count("F") for each in steps)


def test_short_scores_that_rank_well_save_full_trainings(alone):
    assert np.mean([Grid(faith=0.95).search(seed, RUNGS)[0] for seed in SEEDS]) > alone


def test_the_first_students_go_through_all_rungs_so_that_short_scores_are_known_for_what_they_are(misled):
    assert [misled.search(seed, RUNGS, limit=3.4)[1][:6] for seed in SEEDS] == ["spspsp"] * len(SEEDS)


def rows_of(count, rungs, seed=0):
    rng = np.random.default_rng(seed)
    levels = rng.normal(size=(count, 4))
    levels /= np.linalg.norm(levels, axis=1, keepdims=True)
    return Rows(
        levels, rng.normal(size=(count, 1)), np.zeros((count, 0)), np.zeros(count, int), np.arange(count), rungs
    )


def at(rows, rung):
    return Rows(rows.levels, rows.costs, rows.counts, np.full(len(rows), rung), rows.identity, rows.rungs)


@pytest.mark.parametrize("faith", [0.0, 1.0])
def test_trust_follows_what_the_lower_rung_says_of_the_higher(faith):
    rng = np.random.default_rng(0)
    rows = rows_of(24, 2)
    full = rng.normal(size=24)  # nothing that features explain
    short = full if faith else rng.normal(size=24)
    some = np.arange(12)
    blend = Blend.fit(
        at(rows, 0).joined(at(rows[some], 1)), np.concatenate([short, full[some]]), 120, rng, weighs_rungs=True
    )
    assert (blend.trust > 0.9) if faith else (blend.trust < 0.6)


def test_one_rung_is_trusted_whole():
    rows = rows_of(10, 1)
    assert Blend.fit(rows, rows.costs[:, 0], 120, np.random.default_rng(0)).trust == pytest.approx(1.0)


def test_what_a_short_score_should_explain_is_what_it_explains():
    # The variance of a normal posterior does not depend on what is observed.
    rng = np.random.default_rng(1)
    rows = rows_of(30, 2)
    known = at(rows[np.arange(20)], 0).joined(at(rows[np.arange(8)], 1))
    process = Process.fit(known, rng.normal(size=28), 120, rng)
    new = rows[np.array([25])]
    explained = process.explained(at(new, 0), at(new, 1))[0]
    more = Process(known.joined(at(new, 0)), np.append(process._warped, 0.3), process.hyper, process.warp)
    before, after = (p.predict(at(new, 1))[1] / p._unit for p in (process, more))
    assert 0 < explained < 1
    assert (after / before) ** 2 == pytest.approx(1 - explained, rel=1e-6)


@pytest.fixture
def looked(misled):
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(
        [misled.trial(row, 0) for row in range(0, 125, 5)] + [misled.trial(row, 1) for row in (0, 50, 100)]
    )
    return misled.sampler(0, 0, RUNGS), study


class Explaining:
    """An outlook to which the short scores explain as much as is said."""

    def __init__(self, *shares):
        self.shares = shares

    def explained(self, codes, rung):
        return self.shares[rung]


def wanted(looked, outlook, ladder):
    sampler, study = looked
    _, sample, _ = sampler._look(sampler._history(study))
    return sampler._wanted_below(outlook, sample[:5], ladder).tolist()


def test_as_many_are_scored_briefly_as_double_sampling_takes(looked):
    # c = 1/10 of what a student costs in all: sqrt(share / (1 - share) / c), from 4 c / (1 + c)^2 = .33 on.
    ladder = Ladder((1 / 9, 1.0), 1.0, (9.0,))
    assert wanted(looked, Explaining(0.8), ladder) == pytest.approx([math.sqrt(4 * 10)])
    assert wanted(looked, Explaining(0.34), ladder)[0] > 1
    assert wanted(looked, Explaining(0.32), ladder) == [0]
    assert wanted(looked, Explaining(0.99), ladder) == [9]  # eta
    # Where everyone passes the lower rung it is never skipped; a score that costs nothing is always worth it.
    assert wanted(looked, Explaining(0.1), Ladder((1 / 9, 1.0), math.inf, (9.0,)))[0] > 0
    assert wanted(looked, Explaining(0.1), Ladder((0.0, 1.0), 1.0, (8.0,))) == [8]


def test_in_the_end_nobody_begins_briefly_and_of_a_spent_space_nobody_at_all(looked):
    sampler, study = looked
    ending = sampler.next_step(study, Ladder((1 / 9, 1.0), 1.0, (9.0,), is_open=False))
    assert ending not in (None, Step(None, 0))
    spent = sampler.next_step(study, Ladder((1 / 9, 1.0), math.inf, (9.0,), is_open=False))
    assert spent.promoted in range(25)


def test_no_more_is_trained_briefly_than_eta_allows(misled):
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([misled.trial(row, 0) for row in range(0, 80, 10)] + [misled.trial(row, 1) for row in (0, 10, 20)])
    step = misled.sampler(0, 0, RUNGS).next_step(study, Ladder((1e-6, 1.0), math.inf, (2.0,)))
    assert step.promoted is not None
