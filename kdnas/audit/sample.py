"""Which students of a search an audit trains again: a stratified sample, its strata scores within bands of MACs.

Rank agreement inside bands of equal MACs can only be measured on students that have equals, so the sample is drawn from
a few narrow bands spread over the search's MACs, and within each over the quantiles of the search score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from kdnas.controller.promotion import student_key
from kdnas.core.fidelity import Fidelity
from kdnas.core.rank import equal_bands
from kdnas.core.seeds import derive_seed
from kdnas.record.front import front
from kdnas.record.records import Repeat, RunRecord, TrialRecord
from kdnas.study.config import StudyConfig

FEWEST = 6
"""Students below which no agreement can be stated."""
TOLERANCES = (0.10, 0.25, 0.50)
"""Relative width of a band of equal MACs: the first in which half of the students have two others near them."""
_A_BAND = 4
"""Students that are wanted of a band: six pairs of equal MACs."""


def scored_trials(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the complete trials of the search's usual fidelity, one a student: of several the first."""
    complete = [trial for trial in run.trials if trial.state == "complete" and math.isfinite(_score(run, trial))]
    if not complete:
        return ()
    usual = search_fidelity(complete)
    students = {trial.arch.arch_id: trial for trial in reversed(complete) if trial.fidelity == usual}
    return tuple(sorted(students.values(), key=lambda trial: trial.number))


def trials_of_scored(run: RunRecord) -> Iterator[tuple[int, TrialRecord]]:
    """Yield every trial of a scored student, of whichever rung, with the number of the student's scored one."""
    numbers = {student_key(trial.arch, trial.tuned): trial.number for trial in scored_trials(run)}
    for trial in run.trials:
        if (key := student_key(trial.arch, trial.tuned)) in numbers:
            yield numbers[key], trial


def retrainings(run: RunRecord) -> tuple[tuple[int, Repeat], ...]:
    """Return (trial number, retraining) of every scored student, whichever rung's trial it is recorded with."""
    return tuple((number, repeat) for number, trial in trials_of_scored(run) for repeat in trial.repeats)


def search_fidelity(trials: Sequence[TrialRecord]) -> Fidelity:
    """Return the fidelity that most of `trials` have; of equals the higher."""
    counts = Counter(trial.fidelity for trial in trials)
    return max(counts, key=lambda fidelity: (counts[fidelity], fidelity.amount))


def scoring_configs(config: StudyConfig) -> tuple[StudyConfig, ...]:
    """Return a study for each kind of score whose rank agreement an audit measures: its highest rung is that score.

    They are the search's rungs, lowest first, and where all its scores are of weights as they were cut out, a brief
    training from these as well.
    """
    rungs = config.rungs
    found = [config.model_copy(update={"rungs": rungs[: count + 1]}) for count in range(len(rungs))] or [config]
    if [fidelity.epochs for fidelity in config.fidelities] == [0]:
        found.append(config.model_copy(update={"rungs": (), "start": config.fidelities[0].start}))
    return tuple(found)


def scores_at(run: RunRecord, fidelity: Fidelity) -> dict[int, float]:
    """Return the scores of `fidelity` by the number of the student's scored trial: the search's or an audit's."""
    made = {
        t.number: t.score for t in (run.audit.trainings if run.audit else ()) if t.fidelity == fidelity and not t.loss
    }
    searched = {
        number: _score(run, trial)
        for number, trial in trials_of_scored(run)
        if trial.state == "complete" and trial.fidelity == fidelity
    }
    return {**made, **searched}


def macs_bands(trials: Sequence[TrialRecord]) -> tuple[dict[int, int], float]:
    """Return the band of equal MACs of each trial by its number, and how wide a band may be, relative to its smallest.

    Empty where the MACs are not known.
    """
    known = [trial for trial in trials if trial.values.get("macs", 0.0) > 0]
    macs = [trial.values["macs"] for trial in known]
    bands: dict[int, int] = {}
    tolerance = TOLERANCES[0]
    for tolerance in TOLERANCES:
        labels = equal_bands(macs, tolerance)
        bands = {trial.number: int(label) for trial, label in zip(known, labels, strict=True)}
        sizes = Counter(bands.values())
        if 2 * sum(size for size in sizes.values() if size >= 3) >= len(known):
            break
    return bands, tolerance


def stratified_sample(run: RunRecord, students: int, paid: Set[int] = frozenset()) -> tuple[TrialRecord, ...]:
    """Return at most `students` scored trials, in trial order: members of the front (half at most), then the strata.

    Trials of `paid` numbers, whose longer training is there already, are kept as far as there is room. A function of
    the study's seed and the record alone. Where the MACs are not known, strata are of scores alone.
    """
    draw = _Draw(run.config.seed, paid)
    trials = scored_trials(run)
    if len(trials) <= students:
        return trials
    ranked = sorted(trials, key=lambda trial: (-run.score.minimised(_score(run, trial)), trial.number))
    ids = {member.trial.arch.arch_id for member in front(run)}
    members = [trial for trial in ranked if trial.arch.arch_id in ids]
    chosen = {trial.number for trial in draw.one_a_stratum(members, min(students // 2, len(members)))}
    kept = [trial for trial in ranked if trial.number in paid - chosen]
    chosen |= {trial.number for trial in draw.one_a_stratum(kept, min(students - len(chosen), len(kept)))}
    for band in _spread_bands(trials, max(students // _A_BAND, 1), chosen):
        pool = [trial for trial in ranked if trial.number in band]
        room = students - len(chosen) + len(chosen & band)
        chosen |= draw.filled(pool, min(_A_BAND, len(pool), room), chosen)
    chosen |= draw.filled(ranked, students, chosen)
    return tuple(trial for trial in trials if trial.number in chosen)


def _spread_bands(trials: Sequence[TrialRecord], count: int, chosen: set[int]) -> list[set[int]]:
    """Return about `count` bands of two students or more, as trial numbers, spread over the MACs.

    Bands of `chosen` students come first: what matters most is how the front's members rank among their equals.
    """
    bands, _ = macs_bands(trials)
    groups: dict[int, set[int]] = {}
    for number, band in bands.items():
        groups.setdefault(band, set()).add(number)
    shared = {number: band for number, band in bands.items() if len(groups[band]) >= 2}
    by_macs = sorted(shared, key=lambda number: (shared[number], number))
    of_front = list(dict.fromkeys(shared[number] for number in by_macs if number in chosen))
    order = dict.fromkeys([*_evenly(of_front, count), *(shared[number] for number in _evenly(by_macs, count))])
    return [groups[band] for band in list(order)[: max(count, len(of_front))]]


def _evenly(items: list[int], count: int) -> list[int]:
    """Return `count` of `items`, evenly spaced; all of them where there are no more."""
    return items if len(items) <= count else [items[int((k + 0.5) * len(items) / count)] for k in range(count)]


@dataclass(frozen=True)
class _Draw:
    """Draws from strata of equal size, by a seed and the students' ids."""

    seed: int
    paid: Set[int]

    def filled(self, ranked: Sequence[TrialRecord], wanted: int, chosen: set[int]) -> set[int]:
        """Return more of `ranked`, so that `wanted` of them are in `chosen`: of the strata that have none yet first."""
        missing = wanted - sum(trial.number in chosen for trial in ranked)
        if missing <= 0:
            return set()
        strata = np.array_split(np.arange(len(ranked)), wanted)
        empty = [i for part in strata if not any(ranked[k].number in chosen for k in part) for i in part]
        rest = [i for i in range(len(ranked)) if ranked[i].number not in chosen and i not in set(empty)]
        drawn = self.one_a_stratum([ranked[i] for i in empty], min(missing, len(empty)))
        drawn += self.one_a_stratum([ranked[i] for i in rest], min(missing - len(drawn), len(rest)))
        return {trial.number for trial in drawn}

    def one_a_stratum(self, ranked: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
        """Return `count` of `ranked`, one of each of as many equal parts."""
        parts = np.array_split(np.arange(len(ranked)), count) if count > 0 else []
        return [min((ranked[i] for i in part), key=self._place) for part in parts]

    def _place(self, trial: TrialRecord) -> tuple[bool, int]:
        return trial.number not in self.paid, derive_seed(self.seed, "audit", trial.arch.arch_id)


def _score(run: RunRecord, trial: TrialRecord) -> float:
    return trial.values.get(run.score.name, math.nan)
