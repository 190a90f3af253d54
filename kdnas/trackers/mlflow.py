"""A run of MLflow's for the search and one within it for each student; needs its package, `kdnas[mlflow]`.

Only `MlflowClient` is used, which has no current run: what else the process tracks with MLflow is left alone.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from typing import Any

from kdnas.controller.events import Event, RepeatEnded, SearchEnded, StudyEnded, TrialEnded
from kdnas.core.words import printable
from kdnas.errors import ConfigError, Problem
from kdnas.record.front import front, hypervolume, measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.trackers import TRACKERS, Tracker

_LONGEST = 500
"""Characters of a parameter or a tag that MLflow takes of old."""
_FOLDER = "kdnas.run"
"""The tag by which a search that continues finds its run again."""


@TRACKERS.register
class MLflow(Tracker):
    """One run of MLflow's for the search, and within it one for each student: its choices, scores and costs.

    A search that continues goes on in its run, which it finds by the tag `kdnas.run`, the run folder. The server is
    asked as the search goes: one that is away holds the search up for as long as MLflow tries again
    (MLFLOW_HTTP_REQUEST_MAX_RETRIES).

    Args:
        tracking_uri: Of the server, or a database or folder of MLflow's; None: as in MLFLOW_TRACKING_URI.
        experiment: Its name; None: the study's.
    """

    def __init__(self, run: RunRecord, *, tracking_uri: str | None = None, experiment: str | None = None):
        super().__init__(run)
        if importlib.util.find_spec("mlflow") is None:
            what = "needs the package mlflow, which is not installed"
            raise ConfigError(Problem("tracker mlflow", what, 'pip install "kdnas[mlflow]"'))
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            self._client = MlflowClient(tracking_uri)
            self._experiment = self._experiment_called(experiment or run.config.name)
            self._run_id = self._own_run()
        except MlflowException as error:
            raise ConfigError(Problem("tracker mlflow", f"cannot begin: {str(error).splitlines()[0]}")) from error
        self._students: dict[int, str] = {}
        """Of the students of this call: their runs."""
        self._state = "KILLED"

    def take(self, event: Event) -> None:
        """Write what a closed trial, a retraining or the whole study has given."""
        if isinstance(event, TrialEnded):
            self._trial(event.run, event.trial)
        elif isinstance(event, RepeatEnded) and event.repeat is not None and event.number in self._students:
            name, repeat = self.run.score.name, event.repeat
            tested = {} if repeat.test_score is None else {f"test_{name}": repeat.test_score}
            self._log(self._students[event.number], {f"retrained_{name}": repeat.score, **tested}, repeat.seed)
        elif isinstance(event, SearchEnded):
            self._client.set_tag(self._run_id, "kdnas.ended", event.reason[:_LONGEST])
        elif isinstance(event, StudyEnded):
            self._state = "FINISHED"
            for step, member in enumerate(front(event.run)):
                self._log(self._run_id, {f"front_{name}": value for name, value in member.values.items()}, step)

    def close(self) -> None:
        """End the run: as finished where the study is, else as killed."""
        self._client.set_terminated(self._run_id, self._state)

    def _experiment_called(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _own_run(self) -> str:
        """Return the id of the run of this run folder: the one that it has had, or a new one."""
        folder = str(self.run.folder)
        found = self._client.search_runs([self._experiment], f"tags.`{_FOLDER}` = '{folder}'", max_results=1)
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        made = self._client.create_run(self._experiment, tags={_FOLDER: folder}, run_name=self.run.config.name)
        for name in ("objectives", "constraints", "seed"):
            self._client.log_param(made.info.run_id, name, _text(getattr(self.run.config, name)))
        return str(made.info.run_id)

    def _trial(self, run: RunRecord, trial: TrialRecord) -> None:
        from mlflow.entities import Param

        made = self._client.create_run(
            self._experiment,
            tags={"mlflow.parentRunId": self._run_id, "kdnas.trial": str(trial.number), "kdnas.state": trial.state},
            run_name=f"trial {trial.number} ({trial.arch.arch_id})",
        )
        student = str(made.info.run_id)
        self._students[trial.number] = student
        stated = {**trial.arch.choices, **trial.tuned, "fidelity": trial.fidelity.words}
        self._client.log_batch(student, params=[Param(name, _text(value)) for name, value in stated.items()])
        if trial.state == "complete":
            self._log(student, measured_values(trial), trial.number)
            if (volume := hypervolume(run)) is not None:
                self._log(self._run_id, {"hypervolume": volume}, trial.number)
        else:
            self._client.set_tag(student, "kdnas.reason", printable(trial.reason)[:_LONGEST])
        self._client.set_terminated(student, "FINISHED" if trial.state == "complete" else "FAILED")

    def _log(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


def _text(value: Any) -> str:
    return str(value)[:_LONGEST]
