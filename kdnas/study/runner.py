"""The loop: ask, gate, evaluate, tell; then the front is earned by retraining.

One controller asks and tells; workers only evaluate. Whatever stops the controller, the record holds every trial that
ended; on the next start those that were running are closed as interrupted and run again.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from kdnas.core.arch import Arch, Scalar
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.errors import RunError, RunFolderError, TrialError
from kdnas.executors import EXECUTORS, Executor, Finished
from kdnas.machine import usable_cores
from kdnas.nn.tracing import traced_macs
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.study.config import StudyConfig
from kdnas.study.evaluator import Bench, Job, Workplan, final_job, refuse_unmeasurable, search_job, violations
from kdnas.study.events import Note, Observer, RepeatEnded, SearchEnded, StudyEnded, TrialEnded, TrialStarted
from kdnas.study.feasibility import relative_excess
from kdnas.study.finalists import finalists
from kdnas.study.proposals import ValidProposals
from kdnas.study.records import Repeat, RunRecord, TrialRecord
from kdnas.study.spaces import arch_of
from kdnas.study.storage import Record, distributions, refreshed
from kdnas.study.teacher_check import teacher_test_accuracy

_POLL_S = 0.5
_SCORED = ("complete", "failed", "infeasible")
"""States that count against the budget: an interrupted trial is run again."""


@dataclass(frozen=True)
class Opened:
    """A study that is ready to run: what it is, its bench, its record, and the run as it was when it was opened."""

    config: StudyConfig
    space: SearchSpace
    bench: Bench
    record: Record
    workplan: Workplan
    run: RunRecord

    def snapshot(self) -> RunRecord:
        """Return the run as it stands."""
        return refreshed(self.run, self.record)

    @property
    def workers(self) -> int:
        """Workers that will run: as configured, else one a core or device."""
        return self.config.executor.workers or default_workers(self.bench.device)


class Search:
    """One study being run by this controller."""

    def __init__(self, opened: Opened, observe: Observer):
        self._opened = opened
        self._observe = observe
        self._config = opened.config
        self._record = opened.record
        self._domain = distributions(opened.space, opened.config.tune)
        self._seen: set[str] = set()
        self._retry: deque[dict[str, Scalar]] = deque()
        self._running: dict[str, tuple[optuna.Trial, Job]] = {}
        self._scored = 0
        self._new_trials = 0
        self._new_repeats = 0
        self._recover()

    @property
    def did_nothing(self) -> bool:
        """Whether everything was done before this call."""
        return self._new_trials == 0 and self._new_repeats == 0

    def run(self) -> RunRecord:
        """Search, earn the front, measure it; return the run. KeyboardInterrupt closes what runs and propagates."""
        executor: Executor | None = None
        try:
            if self._open_trials() > 0:
                executor = self._start_executor()
                self._search(executor)
            chosen = self._measured_finalists()
            pending = self._pending_repeats(chosen)
            run = self._opened.snapshot()
            self._observe(SearchEnded(run, run.finished, len(chosen), len(pending)))
            if pending:
                executor = executor or self._start_executor()
                self._retrain(executor, pending)
        except BaseException as error:
            with contextlib.suppress(RunFolderError):  # a record that cannot be written is what `error` tells
                self._drop(f"interrupted: {type(error).__name__}")
            raise
        finally:
            if executor is not None:
                executor.close()
        self._finish()
        run = self._opened.snapshot()
        self._observe(StudyEnded(run, self._new_trials, self._new_repeats))
        return run

    # -- searching ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Close what a dead controller left running, and learn what is scored."""
        for number in self._record.unfinished():
            self._record.close_without_score(number, "interrupted", "the controller stopped while it ran")
        lost = []
        for trial in self._record.trials():
            if trial.state in _SCORED:
                self._seen.add(_key(trial.arch, trial.tuned))
                self._scored += 1
            else:
                lost.append(trial)
        for key, number in {_key(trial.arch, trial.tuned): trial.number for trial in lost}.items():
            if key not in self._seen:
                self._retry.append(self._record.proposal(number))

    def _open_trials(self) -> int:
        """Return how many trials of the budget are not scored yet, running ones counted."""
        unscored = max(self._config.budget.trials - self._scored, 0)
        if self._record.notes().get("exhausted"):  # then only what was interrupted is left
            return min(unscored, len(self._running) + len(self._retry))
        return unscored

    def _start_executor(self) -> Executor:
        kind, options = self._config.executor.type, self._config.executor.options
        workers = self._opened.workers
        offered = {
            "workers": workers,
            "threads": max(usable_cores() // workers, 1),
            "time_limit_s": self._config.budget.trial_time_limit_s,
            "devices": torch.cuda.device_count() if self._opened.bench.device.type == "cuda" else 0,
        }
        taken = {name: value for name, value in offered.items() if name in EXECUTORS.options(kind).model_fields}
        built: Executor = EXECUTORS.build(kind, self._opened.workplan, **{**taken, **options})
        return built

    def _search(self, executor: Executor) -> None:
        if self._record.notes().get("finished"):
            self._record.set_note("finished", "")  # a larger budget goes on
        while True:
            while executor.free and len(self._running) < self._open_trials():
                if not self._propose(executor):
                    break
            if not self._running:
                break
            for finished in executor.wait(_POLL_S):
                self._tell(finished)
        spent = f"the budget of {self._config.budget.trials} trials is spent"
        self._record.set_note("finished", self._record.notes().get("exhausted") or spent)

    def _propose(self, executor: Executor) -> bool:
        """Start one trial. Returns False when there is nothing left to propose."""
        number = self._record.next_number
        context = SamplerContext(
            self._opened.space,
            self._opened.run.objectives,
            self._config.budget.trials,
            derive_seed(self._config.seed, "sampler", number) % 2**32,
        )
        sampler = ValidProposals(
            SAMPLERS.build(self._config.sampler.type, context, **self._config.sampler.options),
            self._domain,
            self._acceptable,
            seed=derive_seed(self._config.seed, "proposals", number),
            preset=self._retry.popleft() if self._retry else None,
            excess=lambda params: relative_excess(self._opened.bench.price(self._read(params)[0]), self._config.bounds),
        )
        trial, params = self._record.ask(sampler, self._domain)
        arch, tuned = self._read(params)
        exhausted = sampler.exhausted
        if _key(arch, tuned) in self._seen:  # Optuna asks no sampler where every choice has one value
            exhausted = exhausted or "every student of the space has been scored"
        if exhausted:
            self._record.close_without_score(trial, "interrupted", "no further student could be proposed")
            self._record.set_note("exhausted", exhausted)
            return False
        job = search_job(self._config, arch, tuned)
        self._record.describe(trial, arch, tuned, job.fidelity)
        self._seen.add(_key(arch, tuned))
        self._running[str(trial.number)] = (trial, job)
        executor.submit(str(trial.number), job.as_dict())
        self._observe(TrialStarted(trial.number, arch))
        return True

    def _read(self, params: Mapping[str, Scalar]) -> tuple[Arch, dict[str, float]]:
        tuned = {name: float(params[name]) for name in self._config.tune}
        assignment = {name: value for name, value in params.items() if name not in tuned}
        return arch_of(self._opened.space, assignment, self._opened.bench.family), tuned

    def _acceptable(self, params: Mapping[str, Scalar]) -> bool:
        """A student not yet seen that meets every cheap constraint."""
        arch, tuned = self._read(params)
        if _key(arch, tuned) in self._seen:
            return False
        return not violations(self._opened.bench.price(arch), self._config.bounds)

    def _tell(self, finished: Finished) -> None:
        trial, _ = self._running.pop(finished.key)
        result = finished.result
        if result is None:
            self._record.close_without_score(trial, "failed", finished.failure or "no reason was given")
        else:
            values = result["values"]
            self._record.set_constraints(
                trial, {str(b): b.violation(values[b.name]) for b in self._config.bounds if b.name in values}
            )
            if "infeasible" in result:
                self._record.close_without_score(trial, "infeasible", result["infeasible"], result)
            else:
                self._record.complete(trial, result, self._opened.run.objectives)
        self._scored += 1
        self._new_trials += 1
        run = self._opened.snapshot()
        ended = next(record for record in run.trials if record.number == trial.number)
        self._observe(TrialEnded(run, ended))

    def _drop(self, reason: str) -> None:
        for trial, _ in self._running.values():
            self._record.close_without_score(trial, "interrupted", reason)
        self._running.clear()

    # -- earning the front ----------------------------------------------------------------------------------------

    def _measured_finalists(self) -> tuple[TrialRecord, ...]:
        """Return the finalists, each measured while nothing else runs.

        A quiet measurement replaces the one taken beside other workers and may move a student, or past a bound; others
        then take its place, until every finalist has been measured.
        """
        while True:
            chosen = finalists(self._opened.snapshot())
            unmeasured = [trial for trial in chosen if not self._record.has_final_measurements(trial.number)]
            if not unmeasured or not self._opened.bench.measured_costs:
                return chosen
            self._observe(Note(f"measuring {len(unmeasured)} students on the quiet machine"))
            for trial in unmeasured:
                self._measure(trial)

    def _measure(self, trial: TrialRecord) -> None:
        bench = self._opened.bench
        module = bench.family.build(trial.arch, bench.data.task).to(bench.device)
        measured = bench.measure(module, self._opened.workplan.calibrations)
        with contextlib.suppress(TrialError):  # not measurable now: the value from its trial stands
            refuse_unmeasurable(measured)
            self._record.add_final_measurements(trial.number, measured)
            return
        self._record.add_final_measurements(trial.number, {})

    def _pending_repeats(self, chosen: tuple[TrialRecord, ...]) -> list[tuple[TrialRecord, int]]:
        return [
            (trial, seed)
            for seed in range(self._config.final.seeds)
            for trial in chosen
            if seed not in {repeat.seed for repeat in trial.repeats}
        ]

    def _retrain(self, executor: Executor, pending: list[tuple[TrialRecord, int]]) -> None:
        search, final = self._config.training, self._config.final_fidelity
        longer = final.epochs * final.data_fraction / (search.epochs * search.data_fraction)
        limit_s = self._config.budget.trial_time_limit_s * max(longer, 1.0)
        waiting = deque(pending)
        jobs: dict[str, tuple[TrialRecord, int, Job]] = {}
        while waiting or jobs:
            while waiting and executor.free:
                trial, seed = waiting.popleft()
                job = final_job(self._config, trial.number, trial.arch, trial.tuned, seed)
                jobs[f"{trial.number}:{seed}"] = (trial, seed, job)
                executor.submit(f"{trial.number}:{seed}", job.as_dict(), time_limit_s=limit_s)
            for finished in executor.wait(_POLL_S):
                self._keep_repeat(*jobs.pop(finished.key), finished)

    def _keep_repeat(self, trial: TrialRecord, seed: int, job: Job, finished: Finished) -> None:
        if finished.result is None:
            failure = finished.failure or "no reason was given"
            self._record.set_note(f"retraining {seed} of trial {trial.number} failed", failure)
            self._observe(RepeatEnded(trial.number, None, failure))
            return
        result: Mapping[str, Any] = finished.result
        repeat = Repeat(
            seed,
            result["values"]["accuracy"],
            result["test_accuracy"],
            Fidelity(**job.fidelity.as_dict()),  # type: ignore[arg-type]
            result["train_seconds"],
            Path(job.checkpoint or "").name,
        )
        self._record.add_repeat(trial.number, repeat)
        self._new_repeats += 1
        self._observe(RepeatEnded(trial.number, repeat))

    def _finish(self) -> None:
        """Check the finalists' MACs by tracing, and score the teacher on the test split, as the front has been."""
        bench = self._opened.bench
        earned = [trial for trial in self._opened.snapshot().trials if trial.repeats]
        for trial in earned:
            module = bench.family.build(trial.arch, bench.data.task)
            traced = traced_macs(module, bench.data.task.input_shape, torch.device("cpu"))
            if traced != trial.values["macs"]:
                raise RunError(f"trial {trial.number}: {traced} MACs traced, {trial.values['macs']:g} in closed form")
        if earned and "teacher_test_accuracy" not in self._record.notes():
            self._observe(Note("scoring the teacher on the test split"))
            self._record.set_note(
                "teacher_test_accuracy", teacher_test_accuracy(bench.teacher, bench.data, device=bench.device)
            )


def default_workers(device: torch.device) -> int:
    """Return one worker a CUDA device, or one a CPU core that this process may use."""
    return max(torch.cuda.device_count(), 1) if device.type == "cuda" else usable_cores()


def _key(arch: Arch, tuned: Mapping[str, float]) -> str:
    """What makes two trials the same training."""
    return f"{arch.arch_id} {json.dumps(dict(tuned), sort_keys=True)}"
