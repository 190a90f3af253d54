"""Scores, costs and the front's hypervolume as TensorBoard shows them; needs its package, `kdnas[tensorboard]`."""

from __future__ import annotations

import contextlib
import importlib.util

from kdnas.controller.events import Event, RepeatEnded, StudyEnded, TrialEnded
from kdnas.core.arch import Arch
from kdnas.errors import ConfigError, Problem
from kdnas.record.front import front, hypervolume, measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.trackers import TRACKERS, Tracker


@TRACKERS.register
class TensorBoard(Tracker):
    """Scores and costs by trial, the hypervolume, and the students' choices, for `tensorboard --logdir RUN`.

    The steps are the numbers of the trials. `trial/<quantity>` is what each was measured at, `front/hypervolume` what
    the search has reached, `front/<quantity>` the front at the end; under HPARAMS stand the choices of each student.

    Args:
        folder: Where the event files go, relative to the run folder.
    """

    def __init__(self, run: RunRecord, *, folder: str = "tensorboard"):
        super().__init__(run)
        if importlib.util.find_spec("tensorboard") is None:
            what = "needs the package tensorboard, which is not installed"
            raise ConfigError(Problem("tracker tensorboard", what, 'pip install "kdnas[tensorboard]"'))
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / folder))

    def take(self, event: Event) -> None:
        """Write what a closed trial, a retraining or the whole study has given."""
        if isinstance(event, TrialEnded):
            self._trial(event.run, event.trial)
        elif isinstance(event, RepeatEnded) and event.repeat is not None:
            self._scalar(f"retraining/{self.run.score.name}/seed {event.repeat.seed}", event.repeat.score, event.number)
        elif isinstance(event, StudyEnded):
            for member in front(event.run):
                for name, value in member.values.items():
                    self._scalar(f"front/{name}", value, member.trial.number)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _trial(self, run: RunRecord, trial: TrialRecord) -> None:
        if trial.state != "complete":
            self._writer.add_text("trial/not scored", f"{trial.state}: {trial.reason}", trial.number)
            return
        values = measured_values(trial)
        for name, value in values.items():
            self._scalar(f"trial/{name}", value, trial.number)
        with contextlib.suppress(ValueError):  # of objectives that are not all known yet
            if (volume := hypervolume(run)) is not None:
                self._scalar("front/hypervolume", volume, trial.number)
        self._writer.add_hparams(
            {**_choices(trial.arch), **trial.tuned, "epochs": trial.fidelity.epochs},
            {f"student/{name}": value for name, value in values.items()},
            run_name=f"trial-{trial.number}",
            global_step=trial.number,
        )

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


def _choices(arch: Arch) -> dict[str, str | float | bool]:
    return dict(arch.choices)
