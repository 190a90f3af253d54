"""Which students of a rung are worth a longer training: rules of successive halving for several objectives.

N students, R rungs, M objectives (minimised). A rung is a fidelity at which students are scored; of those scored at
one, 1 / eta go on to the next, as in successive halving and Hyperband (Li et al., JMLR 2018). Whenever a worker is free
a promotion is looked for from the highest rung down, and only where there is none a new student begins at the lowest,
as in ASHA (Li et al., MLSys 2020): no worker waits for a rung to fill.

Once no new student can be had, and for the last part of a budget, whoever is there may be promoted (`Call`): first who
may gain something, then everyone, and the rule is but the order. Until then the rules differ in who is promoted:

- `rank`: as long as fewer than floor(N / eta) of a rung were promoted, its first Pareto fronts, as many as hold so many
  students, stand for promotion. The next is who would add most hypervolume to the rung above, each student's score
  there being predicted by its own plus the median difference of those that have both. Who would add nothing, since a
  cheaper student has scored higher there already, is not promoted. An objective that is known exactly does not change
  between rungs, so nothing is predicted of it.
- `moasha`: MO-ASHA (Schmucker et al., "Multi-objective asynchronous successive halving", 2021): first fronts again, and
  within a front the order of an epsilon-net, each the farthest from those before it.
- `halving`: plain successive halving by the score alone: of each block of students that came to a rung one after the
  other, as many as lead to one student at the highest, the best 1 / eta are promoted once all are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdnas.core.improvement import free_boxes, improvement

Rule = Literal["rank", "moasha", "halving"]
Call = Literal["share", "gain", "all"]
"""Who may be promoted: the rule's share of a rung; of all that wait there those who may gain something, by `rank` who
would add hypervolume, by `moasha` the first front, by `halving` who beats one that was promoted; all that wait."""


@dataclass(frozen=True)
class Rung:
    """The students scored at one rung, in the order in which their scores came, and what became of them above."""

    values: np.ndarray
    """[N, M]"""
    above: np.ndarray
    """[N, M]: their scores at the next rung, NaN where there is none."""
    started: np.ndarray
    """[N] bool: whether they were promoted, whatever came of it."""
    running: np.ndarray
    """[N] bool: of these, who is being trained there now."""
    rungs_above: int = 1
    """How many rungs there are above this one."""

    def __len__(self) -> int:
        return len(self.values)


def promotable(
    rule: Rule, rung: Rung, *, eta: float, reference: np.ndarray, lead: int = 0, call: Call = "share"
) -> list[int]:
    """Return the students of `rung` to be promoted now, the most promising first.

    `reference` [M] is the point from which hypervolume is measured; `lead` is the objective that plain halving ranks
    by, and whose best goes first where the call is wider than the rule's share.
    """
    best = _called(rule, rung, eta, reference, lead, call)
    leader = int(np.argmin(rung.values[:, lead])) if call != "share" and len(rung) else None
    if leader is None or rung.started[leader]:
        return best
    return [leader, *(index for index in best if index != leader)]


def _called(rule: Rule, rung: Rung, eta: float, reference: np.ndarray, lead: int, call: Call) -> list[int]:
    quota = int(len(rung) / eta) if call == "share" else len(rung)
    if rule == "rank":
        room = max(quota - int(rung.started.sum()), 0)
        waiting = np.flatnonzero((fronts(rung.values, quota) >= 0) & ~rung.started)
        best = _by_improvement(rung, waiting, _met(reference, rung), call == "all") if room else []
        return best[:room]
    if rule == "moasha":
        best = best_by_front(rung.values, quota, _spread)
        first = fronts(rung.values, 1) == 0
        best = [index for index in best if first[index] or call != "gain"]
    elif call != "share":
        scores = rung.values[:, lead]
        beaten = scores[rung.started].max(initial=-np.inf) if call == "gain" and rung.started.any() else np.inf
        best = [index for index in np.argsort(scores, kind="stable").tolist() if scores[index] <= beaten]
    else:
        best = _block_winners(rung.values[:, lead], eta, rung.rungs_above)
    return [index for index in best if not rung.started[index]]


def fronts(values: np.ndarray, count: int | None = None) -> np.ndarray:
    """Return the number [N] of the Pareto front that each row of `values` [N, M] is on, 0 the first.

    Equal rows share a front (Deb et al., IEEE Transactions on Evolutionary Computation 2002). Once `count` rows are on
    a front the rest is not looked at, and stays at -1.
    """
    values = np.asarray(values, dtype=float)
    at_most = np.ones((len(values), len(values)), dtype=bool)
    better = np.zeros_like(at_most)
    for column in values.T:
        at_most &= column[:, None] <= column[None, :]
        better |= column[:, None] < column[None, :]
    dominates = at_most & better
    ranks = np.full(len(values), -1)
    wanted = len(values) if count is None else min(count, len(values))
    front = 0
    while np.count_nonzero(~(left := ranks < 0)) < wanted:
        ranks[left & ~(dominates & left[:, None]).any(axis=0)] = front
        front += 1
    return ranks


def best_by_front(values: np.ndarray, count: int, order: Callable[[np.ndarray, int], list[int]]) -> list[int]:
    """Return `count` rows of `values` [N, M], first fronts first, each front by `order(its values, how many)`."""
    ranks = fronts(values, count)
    chosen: list[int] = []
    for front in range(ranks.max(initial=-1) + 1):
        if len(chosen) >= count:
            break
        members = np.flatnonzero(ranks == front)
        chosen += [int(members[place]) for place in order(values[members], count - len(chosen))]
    return chosen


def lifted(scores: np.ndarray) -> np.ndarray:
    """Return comparable scores [N, M] from `scores` [N, R, M], which are NaN at rungs that a student did not reach.

    A student stands with its score at the highest rung it reached, plus the median differences of the students that
    have a rung and the next, up to the highest rung that anybody reached. Of one without a score all is NaN.
    """
    known = ~np.isnan(scores).any(axis=2)
    shift = np.zeros(scores.shape[2])
    result = np.full((len(scores), scores.shape[2]), np.nan)
    higher = np.zeros(len(scores), dtype=bool)
    for rung in reversed(range(scores.shape[1])):
        if rung + 1 < scores.shape[1]:
            shift = shift + _typical_change(scores[:, rung], scores[:, rung + 1])
        here = known[:, rung] & ~higher
        result[here] = scores[here, rung] + shift
        higher |= here
    return result


def _typical_change(values: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return the median [M] of `above` - `values` [N, M] over the students that have both; zeros where none has."""
    both = ~np.isnan(values).any(axis=1) & ~np.isnan(above).any(axis=1)
    return np.median(above[both] - values[both], axis=0) if both.any() else np.zeros(values.shape[1])


def _forecast(rung: Rung) -> np.ndarray:
    """Return the scores [N, M] that are to be expected at the next rung."""
    return rung.values + _typical_change(rung.values, rung.above)


def _met(reference: np.ndarray, rung: Rung) -> np.ndarray:
    """Return `reference` [M], put past all students where none is expected to beat it, so that they still compare."""
    forecast = _forecast(rung)
    if not len(rung) or np.all(forecast < reference, axis=1).any():
        return reference
    worst, span = forecast.max(axis=0), np.ptp(forecast, axis=0)
    return np.maximum(reference, worst + np.where(span > 0, span, 1.0))


def _by_improvement(rung: Rung, waiting: np.ndarray, reference: np.ndarray, everyone: bool) -> list[int]:
    """Return those of `waiting` that would add hypervolume to the rung above, the largest gain first.

    Where `everyone` may go, those who would add nothing follow, first fronts first.
    """
    forecast = _forecast(rung)
    scored = ~np.isnan(rung.above).any(axis=1)
    there = np.concatenate([rung.above[scored], forecast[rung.running]])
    gains = improvement(forecast[waiting], free_boxes(there, reference))
    order = np.lexsort((fronts(rung.values)[waiting], -gains)) if everyone else np.argsort(-gains, kind="stable")
    return [int(waiting[place]) for place in order if everyone or gains[place] > 0]


def _spread(values: np.ndarray, count: int) -> list[int]:
    """Return an epsilon-net: first the best of the first objective, then always the farthest from those chosen.

    Distances are Euclidean, each objective scaled to its range over `values`.
    """
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    chosen = [int(np.argmin(scaled[:, 0]))]
    distance = np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
        distance[chosen] = -1.0
        chosen.append(int(np.argmax(distance)))
    return chosen


def _block_winners(scores: np.ndarray, eta: float, rungs_above: int) -> list[int]:
    """Return the best 1 / eta of each whole block of `scores` [N], smaller being better; earlier blocks first."""
    block = max(round(eta**rungs_above), 1)
    winners = max(round(block / eta), 1)
    starts = range(0, len(scores) - block + 1, block)
    ranked = [start + np.argsort(scores[start : start + block], kind="stable")[:winners] for start in starts]
    return [int(index) for block_winners in ranked for index in block_winners]
