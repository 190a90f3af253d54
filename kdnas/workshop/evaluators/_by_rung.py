"""Several evaluators in one search: each answers the jobs that name it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.errors import ConfigError, Problem, TrialError
from kdnas.record.lock import Findings, SupernetRecord
from kdnas.record.records import TrialRecord
from kdnas.training.packing import Packing
from kdnas.workshop.evaluators import Evaluator, EvaluatorContext, Progress, Say
from kdnas.workshop.jobs import Job, Result


class ByRung(Evaluator):
    """The evaluators of a study whose rungs, or finalists, are scored by different ones.

    Whoever trains the finalists leads: quantities, prices and the run's facts are its. The others are opened beside it,
    and one that the study does not name when the first job asks for it, as an audit may.

    Args:
        context: The study.
        open_member: Opens the evaluator of a name.
    """

    def __init__(self, context: EvaluatorContext, open_member: Callable[[EvaluatorContext, str], Evaluator]):
        super().__init__(context)
        self._open_member = open_member
        leader, *others = context.config.evaluators
        self._leader = open_member(context, leader)
        self._members = {leader: self._leader}
        for name in others:
            missing = [quantity for quantity in self.quantities if quantity not in self._member(name).quantities]
            if missing:
                what = f"{name} does not tell {', '.join(missing)}, which {leader} does"
                raise ConfigError(Problem("rungs", what))
        self.repeats = self._leader.repeats

    def _member(self, name: str) -> Evaluator:
        if name not in self._members:
            member = self._open_member(dataclasses.replace(self.context, beside=self._leader), name)
            member.say, member.progress, member.supernet = self.say, self.progress, self.supernet
            member.calibrate(self.calibrations)
            self._members[name] = member
        return self._members[name]

    @property
    def say(self) -> Say:
        """What all of them say lines to."""
        return self._say

    @say.setter
    def say(self, say: Say) -> None:
        self._say = say
        for member in getattr(self, "_members", {}).values():
            member.say = say

    @property
    def progress(self) -> Progress:
        """What all of them tell how far a job is."""
        return self._progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self._progress = progress
        for member in getattr(self, "_members", {}).values():
            member.progress = progress

    @property
    def continues(self) -> bool:  # type: ignore[override]
        """Whether students go on from the weights of a rung below that the same evaluator trained."""
        return self._leader.continues

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """Those of whoever trains the finalists."""
        return self._leader.quantities

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of all of them."""
        return {name: value for member in self._members.values() for name, value in member.fingerprints.items()}

    @property
    def teacher_answers(self) -> tuple[float, ...]:
        """Of the teacher that all of them share."""
        return self._leader.teacher_answers

    @property
    def description(self) -> dict[str, str]:
        """Of all of them."""
        return {name: value for member in self._members.values() for name, value in member.description.items()}

    def arch(self, assignment: Mapping[str, Scalar]) -> Arch:
        """Return the arch that a full assignment stands for."""
        return self._leader.arch(assignment)

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the cheap quantities of `arch`."""
        return self._leader.price(arch)

    def try_out(self, students: Mapping[str, Arch]) -> None:
        """Try the losses of the recipe that all of them share."""
        self._leader.try_out(students)

    def calibrate(self, calibrations: Mapping[str, Calibration]) -> None:
        """Measure and price by `calibrations` from now on."""
        super().calibrate(calibrations)
        for member in self._members.values():
            member.calibrate(calibrations)

    def facts(self) -> Findings:
        """Return what the leader finds out."""
        facts = self._leader.facts()
        self.calibrate(facts.calibrations)
        return facts

    def prepare(self) -> SupernetRecord | None:
        """Do the long work of each once: what one has done the next finds there."""
        for member in self._members.values():
            member.supernet = self.supernet
            self.supernet = member.prepare() or self.supernet
        return self.supernet

    def measure(self, arch: Arch) -> dict[str, Measurement]:
        """Return the measured quantities of `arch`."""
        return self._leader.measure(arch)

    def __call__(self, job: Job) -> Result:
        """Return the answer of the evaluator that the job names."""
        return self._member(job.evaluator)(job)

    def together(self, jobs: Sequence[Job]) -> list[Result | TrialError]:
        """Return the answers, in the order of `jobs`: those of one evaluator at once where it can."""
        answers: dict[int, Result | TrialError] = {}
        for name in dict.fromkeys(job.evaluator for job in jobs):
            places = [place for place, job in enumerate(jobs) if job.evaluator == name]
            answers |= zip(places, self._member(name).together([jobs[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(jobs))]

    def at_once(self) -> Packing:
        """Return how many jobs one worker should answer at once, as whoever trains the finalists measures it."""
        return self._leader.at_once()

    def check(self, trial: TrialRecord) -> None:
        """Raise RunError where the record of a finalist contradicts the student itself."""
        self._leader.check(trial)

    def teacher_test_accuracy(self) -> float | None:
        """Return the teacher's accuracy on the test split."""
        return self._leader.teacher_test_accuracy()
