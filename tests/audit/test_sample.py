"""The sample of an audit: seeded, stratified, with the front, and with students of equal MACs to compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from synthetic_run import complete, run_of

from kdnas.audit.sample import macs_bands, scored_trials, stratified_sample
from kdnas.core.fidelity import Fidelity
from kdnas.record.front import front


def many(n=150, seed=0):
    rng = np.random.default_rng(seed)
    macs = 10 ** rng.uniform(6, 7, n)
    return run_of([complete(k, 0.5 + 0.1 * np.log10(m / 1e6) + 0.03 * rng.normal(), m) for k, m in enumerate(macs)])


def numbers(trials):
    return {trial.number for trial in trials}


def test_the_sample_is_a_function_of_the_record():
    run = many()
    first, again = stratified_sample(run, 24), stratified_sample(run, 24)
    assert first == again
    assert len(first) == len(numbers(first)) == 24
    other = run.config.model_copy(update={"seed": 1})
    assert numbers(stratified_sample(replace(run, config=other), 24)) != numbers(first)


def test_the_front_is_in_it():
    run = many()
    members = {member.trial.number for member in front(run)}
    assert 5 < len(members) <= 16
    assert members <= numbers(stratified_sample(run, 32))


def test_a_front_larger_than_half_the_sample_leaves_room_for_others():
    run = run_of([complete(k, 0.5 + k / 100, 1e6 * (1 + k)) for k in range(40)])  # all on the front
    assert len(stratified_sample(run, 12)) == 12
    poor = run_of([*run.trials, *(complete(100 + k, 0.3, 1.01e6 * (1 + k)) for k in range(40))])
    assert 3 <= sum(number >= 100 for number in numbers(stratified_sample(poor, 12))) <= 6


def test_it_spreads_over_accuracy():
    run = many()
    scores = sorted(trial.values["accuracy"] for trial in run.trials)
    quartiles = np.quantile(scores, [0.25, 0.5, 0.75])
    counts = Counter(int(np.searchsorted(quartiles, trial.values["accuracy"])) for trial in stratified_sample(run, 24))
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) >= 2


def test_it_holds_far_more_pairs_of_equal_macs_than_a_random_draw():
    run = many()
    bands, tolerance = macs_bands(scored_trials(run))

    def pairs(sample):
        return sum(n * (n - 1) // 2 for n in Counter(bands[number] for number in sample).values())

    ours = pairs(numbers(stratified_sample(run, 24)))
    rng = np.random.default_rng(0)
    random = np.mean([pairs(rng.choice(150, 24, replace=False)) for _ in range(200)])
    assert tolerance == 0.10
    assert ours >= 2 * random


def test_bands_widen_until_half_of_the_students_have_company():
    tight = [complete(k, 0.5, 1e6 * (1 + 0.02 * (k % 3)) * 2 ** (k // 3)) for k in range(12)]
    assert macs_bands(tight)[1] == 0.10
    loose = [complete(k, 0.5, 1e6 * (1 + 0.2 * (k % 3)) * 4 ** (k // 3)) for k in range(12)]
    bands, tolerance = macs_bands(loose)
    assert tolerance == 0.50
    assert Counter(Counter(bands.values()).values()) == {3: 4}
    assert macs_bands([complete(k, 0.5, 10.0 ** (k + 2)) for k in range(8)])[1] == 0.50
    assert macs_bands([replace(complete(0, 0.5, 1), values={"accuracy": 0.5})])[0] == {}


def test_what_is_trained_already_is_preferred():
    run = many()
    plain = numbers(stratified_sample(run, 24))
    unchosen = frozenset(trial.number for trial in run.trials) - plain
    forced = {member.trial.number for member in front(run)}
    paid = numbers(stratified_sample(run, 24, unchosen))
    assert len(paid & unchosen) >= 20 - len(forced)
    assert stratified_sample(run, 24, frozenset(plain)) == stratified_sample(run, 24)


def test_only_complete_students_of_the_usual_fidelity_are_drawn_once_each():
    trials = [complete(k, 0.5 + k / 100, 100.0 + k) for k in range(8)]
    trials[0] = replace(trials[0], state="failed")
    trials[1] = replace(trials[1], fidelity=Fidelity(9, 1.0))
    trials[2] = replace(trials[2], values={"accuracy": float("nan"), "macs": 1.0})
    trials.append(replace(complete(20, 0.9, 103.0), arch=trials[3].arch))
    assert [trial.number for trial in scored_trials(run_of(trials))] == [3, 4, 5, 6, 7]
    assert scored_trials(run_of([])) == ()


def test_a_run_without_macs_is_sampled_over_accuracy():
    trials = [replace(complete(k, k / 100, 1.0), values={"accuracy": k / 100, "macs": 0.0}) for k in range(60)]
    assert len(stratified_sample(run_of(trials), 10)) == 10
