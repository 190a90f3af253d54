"""What an audit finds in records whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_run import as_perplexity, complete, run_of

from kdnas.audit.result import SCORE, audit_result
from kdnas.core.fidelity import Fidelity
from kdnas.record.records import AuditRecord, AuditTraining, Repeat

LONG = Fidelity(32, 1.0)
EPOCHS = (1, 2, 4, 8, 16)


def audited(n=32, *, score_noise=0.02, seed_noise=0.004, size=1.0, seeds=2, curves=False, seed=0, score_of_size=False):
    """A run of `n` students whose accuracy grows with their size and has a part of its own; all of them audited."""
    rng = np.random.default_rng(seed)
    macs = 1e6 * 2.0 ** (np.arange(n) // 4) * (1 + 0.02 * (np.arange(n) % 4))
    params = macs / 50 * rng.uniform(0.8, 1.25, n)
    truth = 0.6 + 0.03 * size * np.log2(params / params.min()) + 0.03 * rng.normal(size=n)
    base = 0.6 + 0.03 * np.log2(params / params.min()) if score_of_size else truth
    scores = base - 0.2 + score_noise * rng.normal(size=n)
    trials = [complete(k, scores[k], macs[k], params=params[k]) for k in range(n)]
    trainings = []
    for which in range(seeds):
        for k in range(n):
            end = truth[k] + seed_noise * rng.normal()
            curve = (*((e, truth[k] - 0.2 + 0.16 / e * rng.normal()) for e in EPOCHS), (32, end))
            trainings.append(AuditTraining(k, which, end, LONG, "", 60.0, curve if curves else ()))
    return replace(run_of(trials), audit=AuditRecord(tuple(range(n)), LONG, seeds, tuple(trainings)))


def means(run):
    by_trial = {}
    for training in run.audit.trainings:
        by_trial.setdefault(training.number, []).append(training.score)
    return [float(np.mean(by_trial[trial.number])) for trial in run.trials]


def test_taus_are_scipys():
    run = audited()
    result = audit_result(run)
    scores, longer = [trial.values["accuracy"] for trial in run.trials], means(run)
    overall, best, bands = result.scopes
    assert (overall.name, best.name, bands.name) == ("all", "best quarter", "equal MACs")
    assert overall.taus[SCORE].value == pytest.approx(stats.kendalltau(scores, longer).statistic)
    params = [trial.values["params"] for trial in run.trials]
    assert overall.taus["params"].value == pytest.approx(stats.kendalltau(params, longer).statistic)
    top = np.argsort(longer)[-8:]
    expected = stats.kendalltau(np.array(scores)[top], np.array(longer)[top]).statistic
    assert best.taus[SCORE].value == pytest.approx(expected)
    assert (best.taus[SCORE].items, bands.taus[SCORE].pairs) == (8, 8 * 6)
    inside = [(a, b) for start in range(0, 32, 4) for a in range(start, start + 4) for b in range(start, a)]
    agree = [np.sign((scores[a] - scores[b]) * (longer[a] - longer[b])) for a, b in inside]
    assert bands.taus[SCORE].value == pytest.approx(np.mean(agree))
    assert result.tolerance == 0.10


def test_a_score_that_only_follows_the_size_adds_nothing():
    of_params = audit_result(audited(score_of_size=True, score_noise=0.002)).baselines["params"]
    assert of_params.gain.low <= 0
    assert of_params.partial.low <= 0


def test_a_score_that_knows_more_than_the_size_adds_to_it():
    result = audit_result(audited(score_noise=0.003, size=0.5))
    of_params = result.baselines["params"]
    assert of_params.gain.low > 0
    assert of_params.partial.low > 0
    assert of_params.gain_in_bands.low > 0
    assert of_params.gain.value == pytest.approx(result.overall.value - result.scopes[0].taus["params"].value)


def test_the_ceiling_is_the_agreement_of_two_trainings():
    run = audited(seed_noise=0.02, score_noise=0.05)
    result = audit_result(run)
    first, second = ([t.score for t in run.audit.trainings if t.seed == seed] for seed in (0, 1))
    scores = [trial.values["accuracy"] for trial in run.trials]
    assert result.ceiling.value == pytest.approx(stats.kendalltau(first, second).statistic)
    single = [stats.kendalltau(scores, one).statistic for one in (first, second)]
    assert result.one_training.value == pytest.approx(np.mean(single))
    assert result.one_training.value < result.ceiling.value
    assert audit_result(audited(seeds=1)).ceiling is None
    three = audit_result(audited(seeds=3))
    assert three.ceiling.low < three.ceiling.value < three.ceiling.high


def test_the_needed_fidelity_is_read_from_curves_of_other_seeds():
    needed = audit_result(audited(curves=True)).needed
    assert needed.crossed
    assert [epoch for epoch, _ in needed.curve] == [*EPOCHS, 32]
    taus = dict(needed.curve)
    lasting = [e for e in taus if all(taus[later].value >= 0.8 for later in taus if later >= e)]
    assert needed.epochs == min(lasting)
    assert 4 <= needed.epochs <= 32
    assert needed.low <= needed.epochs <= needed.high


def test_of_one_seed_the_same_trainings_end_serves_and_is_not_compared_with_itself():
    needed = audit_result(audited(curves=True, seeds=1)).needed
    assert not needed.crossed
    assert [epoch for epoch, _ in needed.curve] == list(EPOCHS)


def test_a_fidelity_that_never_suffices_is_not_invented():
    needed = audit_result(audited(curves=True, seed_noise=0.2)).needed
    assert needed.epochs is None
    assert math.isinf(needed.high)
    assert audit_result(audited()).needed is None  # nothing was looked at


def test_losses_are_compared_on_the_same_students():
    run = audited(score_noise=0.05)
    truth = means(run)
    rng = np.random.default_rng(3)
    brief = Fidelity(3, 0.5)
    good = [AuditTraining(k, 0, truth[k] + 0.002 * rng.normal(), brief, "dkd") for k in range(20)]
    bad = [AuditTraining(k, 0, rng.normal(), brief, "ce") for k in range(20)]
    few = [AuditTraining(k, 0, 0.5 + k, brief, "hint") for k in range(3)]
    stale = [AuditTraining(k, 0, 0.5 + k, Fidelity(1, 0.5), "rkd") for k in range(20)]
    trainings = (*run.audit.trainings, *bad, *good, *few, *stale)
    result = audit_result(replace(run, audit=replace(run.audit, trainings=trainings)))
    assert [row.loss for row in result.losses] == ["dkd", "ce"]
    best, worst = result.losses
    scores = [trial.values["accuracy"] for trial in run.trials[:20]]
    assert best.tau.value == pytest.approx(stats.kendalltau([t.score for t in good], truth[:20]).statistic)
    own = stats.kendalltau(scores, truth[:20]).statistic
    assert best.gain.value == pytest.approx(best.tau.value - own)
    assert best.gain.low > 0
    assert worst.gain.high < 0
    assert result.overall == audit_result(run).overall  # losses do not touch the score


def test_retrained_finalists_count_and_other_fidelities_do_not():
    run = audited(n=8, seeds=1)
    kept = [t for t in run.audit.trainings if t.number != 0]
    wrong = AuditTraining(0, 0, 0.1, Fidelity(99), "")
    record = replace(run.audit, trainings=(*kept, wrong), seeds=2)
    repeats = (
        Repeat(0, 0.77, None, LONG, 1.0, ""),
        Repeat(1, 0.79, None, LONG, 1.0, ""),
        Repeat(2, 0.1, None, LONG, 1.0, ""),
    )
    trials = (replace(run.trials[0], repeats=repeats), *run.trials[1:])
    result = audit_result(replace(run, audit=record, trials=trials))
    assert result.students[0].longer == {0: 0.77, 1: 0.79}
    assert result.students[0].mean == pytest.approx(0.78)
    assert result.trainings == 9


def test_an_audit_of_too_little_states_nothing():
    run = audited(n=8, seeds=1)
    begun = replace(run, audit=replace(run.audit, trainings=run.audit.trainings[:5]))
    result = audit_result(begun)
    assert (len(result.students), result.asked_students, result.scopes, result.overall) == (5, 8, (), None)
    assert audit_result(replace(run, audit=None)) is None
    assert audit_result(replace(run_of([]), audit=run.audit)) is None


def test_a_score_that_is_to_be_small_ranks_as_one_that_is_to_be_large():
    run = audited(curves=True)
    losses = [AuditTraining(k, 0, 0.4 + k / 100, Fidelity(3, 0.5), "dkd") for k in range(12)]
    run = replace(run, audit=replace(run.audit, trainings=(*run.audit.trainings, *losses)))
    large, small = audit_result(run), audit_result(as_perplexity(run))
    for one, other in zip(large.scopes, small.scopes, strict=True):
        for name in one.taus:  # the mean over seeds is not that of the logarithms, so a pair or two may change places
            assert other.taus[name].value == pytest.approx(one.taus[name].value, abs=0.02)
    assert large.scopes[0].taus["params"].value > 0.5
    assert small.one_training == large.one_training
    assert small.ceiling == large.ceiling
    assert small.needed == large.needed
    assert small.losses[0].tau.value == pytest.approx(large.losses[0].tau.value, abs=0.04)
    assert [student.score > 12 for student in small.students] == [True] * 32  # what is shown stays a perplexity


def test_a_small_sample_has_no_best_quarter_and_equal_scores_no_tau():
    result = audit_result(audited(n=12))
    assert result.scopes[1].taus[SCORE] is None
    run = audited(n=12)
    same = tuple(replace(t, values={**t.values, "accuracy": 0.5}) for t in run.trials)
    assert audit_result(replace(run, trials=same)).overall is None


def test_costs_that_are_not_known_are_left_out():
    run = audited(n=12)
    bare = tuple(replace(t, values={"accuracy": t.values["accuracy"]}) for t in run.trials)
    result = audit_result(replace(run, trials=bare))
    assert [scope.name for scope in result.scopes] == ["all", "best quarter"]
    assert result.baselines == {}
