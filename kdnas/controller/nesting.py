"""Finalists cut out of one another: the largest out of their teacher, every other one out of the nearest larger one.

A student is cut out of the smallest of those that hold it, trained with the same seed. So a front is one training that
goes on while it is cut, rather than many that each begin with the teacher (nested networks: Cai et al.,
"Once-for-All", ICLR 2020; pruning a model family by cutting the next smaller member out of the last one trained:
Muralidharan et al., "Minitron", NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from kdnas.controller.promotion import student_key
from kdnas.core.arch import Arch
from kdnas.record.records import Repeat, TrialRecord
from kdnas.workshop.jobs import LargerStudent

Training = tuple[str, int]
"""A student, as `student_key` names it, and the seed of a retraining."""


class _Done(NamedTuple):
    number: int
    repeat: Repeat


class Nest:
    """Which retraining each finalist is cut out of, and whether that is there yet.

    Args:
        finalists: In any order.
        is_part: Whether the first arch can be cut out of the second one.
        done: The trials whose retrainings are there.
        open_: The retrainings to be done, those that are lost included.
    """

    def __init__(
        self,
        finalists: Iterable[TrialRecord],
        is_part: Callable[[Arch, Arch], bool],
        done: Iterable[TrialRecord],
        open_: Iterable[Training],
    ):
        self._open = set(open_)
        self._done = {
            (_key(trial), repeat.seed): _Done(trial.number, repeat) for trial in done for repeat in trial.repeats
        }
        trials = sorted({_key(trial): trial for trial in finalists}.values(), key=_size)
        self._around: Mapping[str, list[TrialRecord]] = {
            _key(trial): [other for other in trials if other.arch != trial.arch and is_part(trial.arch, other.arch)]
            for trial in trials
        }

    def is_held(self, trial: TrialRecord) -> bool:
        """Whether it can be cut out of another finalist."""
        return bool(self._around.get(_key(trial)))

    def is_ready(self, trial: TrialRecord, seed: int) -> bool:
        """Whether the student that this one is cut out of is trained, or there is none."""
        nearest = self._nearest(trial, seed)
        return nearest is None or (_key(nearest), seed) not in self._open

    def larger(self, trial: TrialRecord, seed: int) -> LargerStudent | None:
        """Return the trained student that this one, which is ready, is cut out of; None: the teacher."""
        nearest = self._nearest(trial, seed)
        if nearest is None:
            return None
        number, repeat = self._done[_key(nearest), seed]
        return LargerStudent(number, nearest.arch, f"checkpoints/{repeat.checkpoint}")

    def end(self, trial: TrialRecord, seed: int, repeat: Repeat | None) -> None:
        """Take in that a retraining is done; None: it failed for good, and others are cut out of a larger one."""
        self._open.discard((_key(trial), seed))
        if repeat is None:
            self._done.pop((_key(trial), seed), None)
        else:
            self._done[_key(trial), seed] = _Done(trial.number, repeat)

    def _nearest(self, trial: TrialRecord, seed: int) -> TrialRecord | None:
        """Return the smallest finalist that holds this one and is trained with the seed, or will be."""
        known = (other for other in self._around.get(_key(trial), ()) if self._has_begun((_key(other), seed)))
        return next(known, None)

    def _has_begun(self, training: Training) -> bool:
        return training in self._open or training in self._done


def _key(trial: TrialRecord) -> str:
    return student_key(trial.arch, trial.tuned)


def _size(trial: TrialRecord) -> tuple[float, float, int]:
    return trial.values["macs"], trial.values["params"], trial.number
