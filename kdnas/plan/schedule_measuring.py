"""Every route to a student tried with a part of the budget: the best validation accuracy decides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from kdnas.core.route import ROUTES, Route
from kdnas.core.words import counted, printable
from kdnas.errors import ConfigError, RunError, TrialError
from kdnas.plan.full_training import identity
from kdnas.plan.schedules import MeasuredRoute, TrainingSchedule
from kdnas.plan.scheduling import Plan, cut_from_run, schedule_by
from kdnas.plan.training_folder import GUARD_FILE, claim
from kdnas.plan.training_ground import open_ground
from kdnas.plan.training_steps import Progress, follow
from kdnas.record.outcome import most_often
from kdnas.record.run_folder import exclusively
from kdnas.training.numerics import computing
from kdnas.workshop.opening import resolve_device


def measured_schedule(
    plan: Plan,
    share: float,
    out: Path,
    *,
    data_root: Path,
    cache: Path,
    device: str | None = None,
    on_progress: Callable[[Route, Progress], None] = lambda route, progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainingSchedule:
    """Return the schedule of the plan's student by the route that was best with `share` in (0, 1] of the budget.

    Each route's training has a folder in `out`, where a later call finds what is finished and continues the rest; of
    equals the first of `ROUTES` wins. The test split is not touched. Raises InputError where data, teacher or a folder
    are not what they should be, RunError where every route's training fails; one that fails is noted with its reason.
    """
    brief = plan.with_epochs(max(1, round(share * plan.facts.epochs)))
    hardware = resolve_device(device or brief.file.device)
    brief = dataclasses.replace(brief, file=brief.file.settled(hardware, {}))
    with computing(brief.file.training, hardware):
        return _best_schedule(plan, brief, out, data_root, cache, device, on_progress, say)


def _best_schedule(
    plan: Plan,
    brief: Plan,
    out: Path,
    data_root: Path,
    cache: Path,
    device: str | None,
    on_progress: Callable[[Route, Progress], None],
    say: Callable[[str], None],
) -> TrainingSchedule:
    """Return the schedule of `plan` by the route that did best in trainings as long as `brief`."""
    ground = open_ground(brief.file, data_root=data_root, cache=cache, device=device, say=say)
    measured: list[MeasuredRoute] = []
    for route in ROUTES:
        epochs = brief.facts.epochs
        try:
            schedule_by(plan, route, "")  # a route that the whole budget cannot take is not worth trying
            schedule = schedule_by(brief, route, "measured")
        except ConfigError as error:
            measured.append(MeasuredRoute(route=route, epochs=epochs, note=str(error)))
            continue
        folder = out / f"{epochs}-epochs" / route
        claim(folder, identity(brief.file, schedule))
        tell = functools.partial(on_progress, route)
        try:
            with exclusively(folder / GUARD_FILE, "kdnas schedule"):
                result = follow(
                    brief.file,
                    schedule.steps,
                    ground,
                    folder,
                    budget_macs=schedule.budget.macs,
                    shared=None if schedule.supernet is None else cut_from_run(plan.run, plan.file.student, ground),
                    on_progress=tell,
                )
        except TrialError as error:
            failed = f"failed: {printable(str(error))}"
            say(f"{route}: {failed}")
            measured.append(MeasuredRoute(route=route, epochs=epochs, note=failed))
            continue
        say(f"{route}: validation accuracy {100 * result.accuracy:.2f} % with {counted(epochs, 'epoch')}")
        measured.append(
            MeasuredRoute(
                route=route, epochs=epochs, accuracy=result.accuracy, train_seconds=round(result.train_seconds, 3)
            )
        )
    if all(item.accuracy is None for item in measured):
        raise RunError(f"no route could be measured{most_often([item.note for item in measured])}")
    best = max((item for item in measured if item.accuracy is not None), key=lambda item: item.accuracy or 0.0)
    told = ", ".join(f"{item.route} {100 * item.accuracy:.2f} %" for item in measured if item.accuracy is not None)
    why = (
        f"best on the {len(ground.validation)} validation images with {brief.facts.epochs} of {plan.facts.epochs} "
        f"epochs, one seed each: {told}"
    )
    return schedule_by(plan, best.route, why).model_copy(update={"measured": tuple(measured)})
