"""A recorded shrinking followed again."""

from __future__ import annotations

from collections.abc import Sequence

from kdnas.core.shrinking import Check, FinishedStage, Ladders, ShrinkingRecord, Stage, Unlock
from kdnas.errors import ConfigError, Problem
from kdnas.training.supernet.policies import Policy, ShrinkingSettings, Situation


class Recorded(Policy):
    """Follows a record: the same stages, each for as many steps as it took.

    What was measured is measured again, and spent, but decides nothing. Raises ConfigError where the record is of
    another space.
    """

    def __init__(self, ladders: Ladders, settings: ShrinkingSettings, record: ShrinkingRecord):
        super().__init__(ladders, settings)
        self._record = record
        problems = [problem for finished in record.stages for problem in _misfits(finished.stage, ladders)]
        if problems:
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        """That of the policy that was recorded."""
        return self._record.policy

    def _stage(self, number: int) -> FinishedStage | None:
        return self._record.stages[number] if number < len(self._record.stages) else None

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return what is recorded."""
        recorded = self._stage(len(history))
        return recorded is not None and recorded.stage.sort_channels

    def unlocks_to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return what was measured."""
        recorded = self._stage(len(history))
        return () if recorded is None else tuple(Unlock(probe.dimension, probe.adds) for probe in recorded.stage.probes)

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return what is recorded."""
        recorded = self._stage(len(situation.history))
        return None if recorded is None else recorded.stage

    def ends_because(
        self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float
    ) -> str | None:
        """Return the recorded reason after the recorded number of steps."""
        recorded = next(item for item in self._record.stages if item.stage == stage)
        return recorded.ended if steps >= recorded.steps else None


def _misfits(stage: Stage, ladders: Ladders) -> list[Problem]:
    """Return what in a recorded stage is not of the space that `ladders` are of."""
    where = f"stage {stage.name}: allowed"
    if stage.allowed.keys() != ladders.values.keys():
        return [Problem(where, f"are the choices {', '.join(stage.allowed)}", ", ".join(ladders.values))]
    return [
        Problem(f"{where}.{name}", f"{value!r} is no value of the space", ", ".join(map(str, ladders.values[name])))
        for name, values in stage.allowed.items()
        for value in values
        if value not in ladders.values[name]
    ]
