"""What every tracker keeps, while it follows a small search whose numbers are invented."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kdnas.controller.events import (
    Advanced,
    Event,
    Note,
    Ready,
    RepeatEnded,
    RepeatStarted,
    SearchEnded,
    StudyEnded,
    TrialEnded,
    TrialStarted,
)
from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import SearchSpace
from kdnas.core.task import image_classification
from kdnas.record.lock import DataDescription, Lock
from kdnas.record.records import Repeat, RunRecord, TrialRecord
from kdnas.study.config import StudyConfig
from kdnas.testing._member import MemberConformance
from kdnas.trackers import TRACKERS, Tracker

_BRIEF, _FULL = Fidelity(2), Fidelity(8)
_MACS = Quantity("macs", "MACs", "minimize", "cheap")


def empty_run(folder: Path) -> RunRecord:
    """Return a run of accuracy against MACs in `folder` that has no trials yet."""
    plain = {"name": "followed", "data": "digits", "teacher": "student", "space": "digits_resnet"}
    config = StudyConfig.model_validate(plain)
    data = DataDescription("digits", ("0", "1"), image_classification((1, 8, 8), 2), 1150, 287, 360)
    lock = Lock(
        config, SearchSpace("digits_resnet", "resnet", ()), {}, (ACCURACY, _MACS), {"accuracy": 0.1, "macs": 1e6},
        None, data,
    )  # fmt: skip
    quantities = {quantity.name: quantity for quantity in lock.quantities}
    return RunRecord(
        folder, config, lock, (ACCURACY, _MACS), (), quantities, (), None, lock.reference_point, data.class_names
    )


def search_events(run: RunRecord, count: int = 3) -> list[Event]:
    """Return the events of a search that goes on in `run`: `count` trials, the second failing, and a retraining."""
    before = len(run.trials)
    events: list[Event] = [Note("opening the data"), Ready(run, bool(before), 1)]
    for number in range(before, before + count):
        arch = Arch.of("resnet", {"stem_width": 8 * (number + 1), "stage1.skip": "none"})
        failed = number == before + 1
        values: Mapping[str, float] = {} if failed else {"accuracy": 0.5 + 0.1 * number, "macs": 2e5 * (number + 1)}
        trial = TrialRecord(
            number, arch, "failed" if failed else "complete", _BRIEF, {"training.learning_rate": 0.1}, arch.choices,
            values, reason="the loss became nan" if failed else "", train_seconds=1.5,
        )  # fmt: skip
        run = replace(run, trials=(*run.trials, trial))
        events += [TrialStarted(number, arch, _BRIEF), Advanced(str(number), 0.5), TrialEnded(run, trial)]
    first = run.trials[before]
    repeat = Repeat(0, 0.75, 0.74, _FULL, 6.0, "x-seed0.safetensors")
    events += [
        SearchEnded(run, f"all {count} trials are done", 1, 2),
        RepeatStarted(first.number, 0, first.arch, _FULL),
        RepeatEnded(first.number, repeat, seed=0),
        RepeatEnded(first.number, None, "out of memory", 1),
        RepeatEnded(first.number, replace(repeat, seed=2, test_score=None, train_seconds=math.nan)),
    ]
    trials = [replace(trial, repeats=(repeat,)) if trial is first else trial for trial in run.trials]
    return [*events, StudyEnded(replace(run, trials=tuple(trials)), count, 1)]


class TrackerConformance(MemberConformance):
    """The suite of trackers. `followed` is overridden to look at what the member wrote, where that can be read."""

    registry = TRACKERS

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunRecord:
        """The run that is followed, in a folder of its own."""
        folder = tmp_path / "a run"
        folder.mkdir()
        return empty_run(folder)

    def followed(self, run: RunRecord, events: list[Event]) -> None:
        """Assert, where a suite can, that what was written of `events` is what happened."""

    def _follow(self, run: RunRecord, events: list[Event]) -> None:
        tracker = self.build(run)
        assert isinstance(tracker, Tracker)
        try:
            for event in events:
                tracker.take(event)
        finally:
            tracker.close()

    def test_it_follows_a_search_to_its_end(self, run: RunRecord) -> None:
        events = search_events(run)
        self._follow(run, events)
        self.followed(run, events)

    def test_it_follows_a_search_that_is_interrupted_and_goes_on(self, run: RunRecord) -> None:
        first = search_events(run)[:5]
        self._follow(run, first)
        ended = [event.run for event in first if isinstance(event, TrialEnded)]
        second = search_events(ended[-1])
        self._follow(ended[-1], second)
        self.followed(run, [*first, *second])

    def test_it_leaves_the_record_alone(self, run: RunRecord) -> None:
        kept = run.folder / "study.lock.yaml"
        kept.write_text("of the run")
        self._follow(run, search_events(run))
        assert kept.read_text() == "of the run"
