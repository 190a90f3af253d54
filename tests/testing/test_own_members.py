"""The suites on members of a user's own: those of a kind of work that kdnas has not, and small ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optuna
import own_signals

from kdnas.controller.events import TrialEnded
from kdnas.core.measurement import Price
from kdnas.core.objective import Quantity
from kdnas.core.shrinking import Stage
from kdnas.costs import CheapCost
from kdnas.exporters import Written
from kdnas.testing import (
    CostConformance,
    DatasetConformance,
    ExporterConformance,
    PolicyConformance,
    ProxyConformance,
    SamplerConformance,
    StudentConformance,
    TaskConformance,
    TeacherConformance,
    TrackerConformance,
)
from kdnas.trackers import Tracker
from kdnas.training.supernet.policies import FixedPolicy


class TestSignals(TaskConformance):
    member = own_signals.Signals

    def data(self, kind):
        return dataclasses.replace(own_signals.waves(None, None, count=24), kind=kind)


class TestPerceptrons(StudentConformance):
    member = own_signals.Perceptrons
    choices: ClassVar = {"width": (4, 8, 16), "depth": (1, 2)}
    tasks = (own_signals.waves(None, None, count=3).task,)
    redundant = False


class TestWaves(DatasetConformance):
    member = own_signals.waves
    options: ClassVar = {"count": 30}


class TestFitted(TeacherConformance):
    member = own_signals.teacher

    def data(self):
        return own_signals.waves(None, None)


def each_first(pool):
    """The first of every class."""
    return pool.chosen(lambda features, count: range(count))


class TestEachFirst(ProxyConformance):
    member = each_first


def eager(context, *, start: int = 4):
    """TPE after a few random proposals."""
    return optuna.samplers.TPESampler(seed=context.seed, n_startup_trials=start)


class TestEager(SamplerConformance):
    member = eager
    options: ClassVar = {"start": 2}


class Follow(Tracker):
    """Prints each score."""

    def take(self, event):
        if isinstance(event, TrialEnded):
            print(event.trial.number, dict(event.trial.values))


class TestFollow(TrackerConformance):
    member = Follow


class Joules(CheapCost):
    """Energy by a rule of thumb."""

    quantity = Quantity("joules", "J", "minimize", "cheap")

    def value(self, price: Price) -> float:
        return 1e-9 * price.macs + 1e-8 * price.params


class TestJoules(CostConformance):
    member = Joules


def write(student, folder):
    """The weights' names, a line each."""
    (folder / "names.txt").write_text("\n".join(student.network.state_dict()))
    return Written(("names.txt",))


class TestWrite(ExporterConformance):
    member = write


class AtOnce(FixedPolicy):
    """Everything from the start, the largest first."""

    @property
    def stages(self):
        alone = Stage("largest", self.ladders.only_largest, 0.3, reason="as it is written")
        return alone, Stage("everything", self.ladders.values, 0.7, reason="as it is written")


class TestAtOnce(PolicyConformance):
    member = AtOnce
