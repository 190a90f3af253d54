"""Which student of a run is trained on, and which weights are kept for it. The rules are `kdnas.core.promotion`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from kdnas.core.arch import Arch, Scalar
from kdnas.core.objective import breaches, minimised
from kdnas.core.promotion import Call, Rung, best_by_front, promotable
from kdnas.record.front import measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.workshop.jobs import rung_checkpoint

Place = tuple[str, int]
"""A student, as `student_key` names it, and a rung."""

_ALL_KEPT = 20
"""Of a rung with so many waiting students or fewer, every one's weights are kept."""


def student_key(arch: Arch, tuned: Mapping[str, Scalar]) -> str:
    """Return what makes two trials of one fidelity the same training."""
    return f"{arch.arch_id} {json.dumps(dict(tuned), sort_keys=True)}" if tuned else arch.arch_id


def rung_of(run: RunRecord, trial: TrialRecord) -> int:
    """Return the rung that `trial` was scored at, 0 the lowest."""
    return run.config.fidelities.index(trial.fidelity)


def places(run: RunRecord, *, running: bool = False) -> set[Place]:
    """Return every place where a student was scored or is being, or only where one is `running`.

    An interrupted trial leaves no place: it is run again.
    """
    return {
        (student_key(trial.arch, trial.tuned), rung_of(run, trial))
        for trial in run.trials
        if (trial.state == "running" if running else trial.state != "interrupted")
    }


def next_promotion(run: RunRecord, call: Call = "share") -> TrialRecord | None:
    """Return the trial whose student should be trained on at the next rung, looking from the highest rung down.

    None where no trial deserves it now; `call` selects who may. Depends on the trials of `run` alone, those that are
    running included.
    """
    fidelities = run.config.fidelities
    if len(fidelities) == 1:
        return None
    started, running = places(run), places(run, running=True)
    for rung in reversed(range(len(fidelities) - 1)):
        trials = _scored_at(run, rung)
        above = [(student_key(trial.arch, trial.tuned), rung + 1) for trial in trials]
        rule = run.config.promotion_rule
        best = promotable(
            "rank" if rule == "model" else rule,
            Rung(
                _values(run, trials),
                _scores_above(run, rung, trials),
                np.array([place in started for place in above], dtype=bool),
                np.array([place in running for place in above], dtype=bool),
                len(fidelities) - 1 - rung,
            ),
            eta=run.config.eta(rung),
            reference=minimised([run.reference_point], run.objectives)[0],
            lead=run.lead,
            call=call,
        )
        if best:
            return trials[best[0]]
    return None


def kept_checkpoints(run: RunRecord) -> set[str]:
    """Return the checkpoints that are still needed, relative to the run folder.

    Of students that are being trained or were interrupted, and of those that may yet be promoted: the better half of a
    rung. Who is called up without one trains through the lower rungs again, to the same score.
    """
    started, kept = places(run), set()
    for trial in run.trials:
        rung, student = rung_of(run, trial), student_key(trial.arch, trial.tuned)
        if trial.state == "running" or (trial.state == "interrupted" and (student, rung) not in started):
            kept |= {rung_checkpoint(trial.arch, trial.tuned, index) for index in range(rung + 1)}
    for rung in range(len(run.config.fidelities) - 1):
        trials = _scored_at(run, rung)
        best = range(len(trials)) if len(trials) <= _ALL_KEPT else _better_half(_values(run, trials))
        kept |= {
            rung_checkpoint(trial.arch, trial.tuned, rung)
            for trial in (trials[index] for index in best)
            if (student_key(trial.arch, trial.tuned), rung + 1) not in started
        }
    return kept


def _better_half(values: np.ndarray) -> Sequence[int]:
    return best_by_front(values, len(values) // 2, lambda front, count: [*range(len(front))])


def _scored_at(run: RunRecord, rung: int) -> list[TrialRecord]:
    """Return the complete trials of a rung that meet the constraints, in the order in which they ended."""
    fidelity = run.config.fidelities[rung]
    trials = [
        trial
        for trial in run.trials
        if trial.state == "complete" and trial.fidelity == fidelity and not breaches(measured_values(trial), run.limits)
    ]
    return sorted(trials, key=lambda trial: (trial.ended or datetime.max, trial.number))


def _scores_above(run: RunRecord, rung: int, trials: list[TrialRecord]) -> np.ndarray:
    """Return the values [N, M] of the same students at the next rung, NaN where there are none."""
    above = _scored_at(run, rung + 1)
    values = dict(zip((student_key(t.arch, t.tuned) for t in above), _values(run, above), strict=True))
    missing = np.full(len(run.objectives), np.nan)
    rows = [values.get(student_key(trial.arch, trial.tuned), missing) for trial in trials]
    return np.array(rows).reshape(len(trials), len(run.objectives))


def _values(run: RunRecord, trials: list[TrialRecord]) -> np.ndarray:
    return minimised([measured_values(trial) for trial in trials], run.objectives)
