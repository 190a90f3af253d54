"""From a student of a run to the plan of its full training: by a route that is named, ruled or measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.route import (
    PROGRESSIVE,
    ROUTES,
    Chained,
    Progressive,
    Route,
    RouteInputs,
    Scored,
    chain_before,
    tuning_epochs,
)
from kdnas.core.space import SearchSpace
from kdnas.core.words import counted, printable
from kdnas.errors import ConfigError, Problem, RunError, RunFolderError, TrialError
from kdnas.plan.plan_file import (
    RUN_SUPERNET,
    TEACHER,
    Budget,
    DataSection,
    DistilStep,
    MeasuredRoute,
    SpaceSection,
    Step,
    StudentSection,
    SupernetSection,
    SupernetStep,
    TeacherSection,
    TrainingPlan,
)
from kdnas.plan.train_file import ArchSection, TrainFile, locked_fingerprint, train_file_for, with_epochs
from kdnas.plan.training import Progress, follow, identity
from kdnas.plan.training_folder import GUARD_FILE, claim
from kdnas.plan.training_ground import open_training
from kdnas.record.front import front, most_often
from kdnas.record.lock import space_record
from kdnas.record.records import FrontMember, RunRecord
from kdnas.record.run_folder import exclusively
from kdnas.students import StudentFamily
from kdnas.training.numerics import computing
from kdnas.training.supernet.shrinking_file import read_shrinking
from kdnas.training.supernet.subnets import ElasticSpace
from kdnas.workshop.afterwards import open_run
from kdnas.workshop.opening import Workshop, resolve_device
from kdnas.workshop.run_files import SUPERNET_FOLDER
from kdnas.workshop.shrinking import SUPERNET_OF, space_around
from kdnas.workshop.supernets import load_supernet

_STUDENT = "student"
_SUPERNET = "supernet"


@dataclass(frozen=True)
class PlanBasis:
    """What plans of one student's training are made from; `file.training.epochs` is the budget.

    `spaces` are those of the supernets in which the student shrinks or grows, by route; where there is none,
    `no_supernet` says why. `supernet` is the run's own where it has one, from which route shrink begins then. `archs`
    are those of the networks in `inputs`, by arch_id.
    """

    run: RunRecord
    file: TrainFile
    workshop: Workshop
    """The run's."""
    family: StudentFamily
    samples: int
    inputs: RouteInputs
    archs: dict[str, Arch]
    spaces: Mapping[Progressive, SearchSpace] = field(default_factory=dict)
    no_supernet: Mapping[Progressive, str] = field(default_factory=dict)
    supernet: SupernetSection | None = None

    @property
    def budget(self) -> Budget:
        """What the steps of a plan may spend together."""
        return Budget.of(self.inputs.epochs, self.samples, self.inputs.student.macs)

    def with_epochs(self, epochs: int) -> PlanBasis:
        """Return the basis with a budget of `epochs` of the student."""
        inputs = dataclasses.replace(self.inputs, epochs=epochs)
        return dataclasses.replace(self, file=with_epochs(self.file, epochs), inputs=inputs)


def open_basis(run: RunRecord, member: FrontMember, epochs: int | None, *, data_root: Path, cache: Path) -> PlanBasis:
    """Return what the plans of `member` are made from; `epochs` None: those of the study's final trainings.

    Raises ConfigError or DataError where the run's data or the student's recipe cannot be had.
    """
    workshop = open_run(run, data_root=data_root, cache=cache)
    data, family = workshop.data, workshop.family
    file = train_file_for(run, member.trial, data)
    file = file if epochs is None else with_epochs(file, epochs)
    if run.teacher is None:
        raise ConfigError(Problem(str(run.folder), "has no teacher on record, which a plan is measured by"))
    samples = len(workshop.share(file.training.data_fraction, file.training.proxy))
    student = member.trial.arch
    supernet = _supernet_of(run)
    spaces, refusals = _spaces_around(run, member, family, {"grow"} if supernet else set(PROGRESSIVE))
    elastic = ElasticSpace(spaces["shrink"], family) if "shrink" in spaces else None
    others = [other for other in front(run) if other.trial.arch != student]
    inputs = RouteInputs(
        epochs=file.training.epochs,
        student=_scored(run, member, family),
        teacher_score=run.teacher.score,
        teacher_macs=run.teacher.values.get("macs"),
        largest_macs=None if elastic is None else elastic.macs(elastic.largest),
        shared_weights=supernet is not None,
        score=run.score,
        front=tuple(_scored(run, other, family) for other in others),
    )
    archs = {other.trial.arch.arch_id: other.trial.arch for other in (member, *others)}
    return PlanBasis(run, file, workshop, family, samples, inputs, archs, spaces, refusals, supernet)


def cut_from_run(run: RunRecord, student: Arch, workshop: Workshop) -> nn.Module:
    """Return `student` cut out of the run's own supernet. Raises RunFolderError where that is not there any more."""
    if run.supernet is None:
        raise RunFolderError(f"{run.folder} has no supernet")
    space = run.lock.space
    shared = load_supernet(
        run.folder,
        run.config.supernet,
        space,
        workshop,
        workshop.train,
        fingerprint=run.supernet.fingerprint,
    )
    return shared.cut(student)


def make_plan(basis: PlanBasis, route: Route, why: str) -> TrainingPlan:
    """Return the plan of the basis's student by `route`, chosen because of `why`.

    Raises ConfigError, with the reason, where the student cannot be trained that way.
    """
    if route == "assistants" or route == "born_again":
        steps = _chain(route, basis)
    else:
        steps = _direct(basis) if route == "direct" else _progressive(route, basis)
    file, teacher = basis.file, basis.run.teacher
    assert teacher is not None  # open_basis refuses a run without
    return TrainingPlan(
        study=basis.run.config.name,
        student=StudentSection(arch_id=file.arch_id, family=file.arch.family, choices=file.arch.choices),
        teacher=TeacherSection(
            name=teacher.name,
            fingerprint=file.teacher_fingerprint,
            score=teacher.score,
            macs=teacher.values.get("macs"),
        ),
        data=DataSection(name=basis.workshop.data.name, fingerprint=basis.workshop.data.fingerprint),
        space=locked_fingerprint(basis.run, "space"),
        supernet=basis.supernet if route == "shrink" else None,
        budget=basis.budget,
        route=route,
        why=why,
        steps=steps,
    )


def _direct(basis: PlanBasis) -> tuple[Step, ...]:
    return (_distil(basis, _STUDENT, basis.file.student, basis.inputs.epochs),)


def _progressive(route: Progressive, basis: PlanBasis) -> tuple[Step, ...]:
    epochs = basis.inputs.epochs
    if route == "shrink" and basis.supernet is not None:
        return (_distil(basis, _STUDENT, basis.file.student, epochs, init=RUN_SUPERNET),)
    if route not in basis.spaces:
        raise ConfigError(Problem(f"route {route}", basis.no_supernet[route]))
    if epochs < 2:
        raise ConfigError(Problem(f"route {route}", "the budget is one epoch", "2 epochs or more"))
    tuning = tuning_epochs(epochs)
    supernet = SupernetStep(
        name=_SUPERNET,
        share=round(1.0 - tuning / epochs, 6),
        # the file's family has the options
        space=SpaceSection(**space_record(dataclasses.replace(basis.spaces[route], options={}))),
        init=basis.file.start,
        settings=SUPERNET_OF[route],
        cut="largest" if route == "grow" else None,
    )
    return (
        supernet,
        _distil(basis, _STUDENT, basis.file.student, tuning, init=_SUPERNET),
    )


def _chain(route: Chained, basis: PlanBasis) -> tuple[Step, ...]:
    chain, left = chain_before(route, basis.inputs)
    called = "assistant" if route == "assistants" else "generation"
    steps: list[Step] = []
    teacher = TEACHER
    for index, before in enumerate(chain, 1):
        arch = basis.archs[before.network.arch_id]
        steps.append(_distil(basis, f"{called}{index}", arch, before.epochs, teacher=teacher))
        teacher = steps[-1].name
    return (*steps, _distil(basis, _STUDENT, basis.file.student, left, teacher=teacher))


def _distil(
    basis: PlanBasis,
    name: str,
    arch: Arch,
    epochs: int,
    *,
    teacher: str = TEACHER,
    init: str = "",
) -> DistilStep:
    macs = basis.family.price(arch).macs
    return DistilStep(
        name=name,
        share=round(basis.budget.share(epochs, macs), 6),
        arch=ArchSection(family=arch.family, choices=arch.choices),
        teacher=teacher,
        init=init or basis.file.start,
        epochs=epochs,
    )


def _supernet_of(run: RunRecord) -> SupernetSection | None:
    if run.supernet is None:
        return None
    recorded = read_shrinking(run.folder / SUPERNET_FOLDER)
    return SupernetSection(fingerprint=run.supernet.fingerprint, macs=recorded.budget_macs)


def _scored(run: RunRecord, member: FrontMember, family: StudentFamily) -> Scored:
    arch = member.trial.arch
    return Scored(arch.arch_id, member.values[run.score.name], family.price(arch).macs)


def _spaces_around(
    run: RunRecord, member: FrontMember, family: StudentFamily, routes: Collection[Progressive]
) -> tuple[dict[Progressive, SearchSpace], dict[Progressive, str]]:
    """Return the part of the run's space through which the student goes by each of `routes`, or why there is none."""
    proposed, spaces, refusals = member.trial.proposed or member.trial.arch.choices, {}, {}
    for route in routes:
        try:
            spaces[route] = space_around(run.lock.space, family, member.trial.arch, proposed, route)
        except ConfigError as error:
            refusals[route] = "; ".join(problem.what for problem in error.problems)
    return spaces, refusals


def make_measured_plan(
    basis: PlanBasis,
    share: float,
    out: Path,
    *,
    data_root: Path,
    cache: Path,
    device: str | None = None,
    on_progress: Callable[[Route, Progress], None] = lambda route, progress: None,
    notify: Callable[[str], None] = lambda line: None,
) -> TrainingPlan:
    """Return the plan of the basis's student by the route that was best with `share` in (0, 1] of the budget.

    Each route's training has a folder in `out`, where a later call finds what is finished and continues the rest; of
    equals the first of `ROUTES` wins. The test split is not touched. Raises InputError where data, teacher or a folder
    are not what they should be, RunError where every route's training fails; one that fails is noted with its reason.
    """
    brief = basis.with_epochs(max(1, round(share * basis.inputs.epochs)))
    hardware = resolve_device(device or brief.file.device)
    brief = dataclasses.replace(brief, file=brief.file.settled(hardware, {}))
    with computing(brief.file.training, hardware):
        workshop = open_training(
            brief.file, data_root=data_root, cache=cache, device=device, run=basis.workshop, notify=notify
        )
        measured = [
            _measure_route(route, basis, brief, workshop, out, functools.partial(on_progress, route), notify)
            for route in ROUTES
        ]
    scores = {item.route: item.score for item in measured if item.score is not None}
    if not scores:
        raise RunError(f"no route could be measured{most_often([item.note for item in measured])}")
    best = min(scores, key=lambda route: basis.inputs.score.minimised(scores[route]))
    why = (
        f"best on the {len(workshop.validation)} validation samples with {brief.inputs.epochs} of "
        f"{basis.inputs.epochs} epochs, one seed each: "
        + ", ".join(f"{route} {basis.inputs.score.shown(score)}" for route, score in scores.items())
    )
    return make_plan(basis, best, why).model_copy(update={"measured": tuple(measured)})


def _measure_route(
    route: Route,
    basis: PlanBasis,
    brief: PlanBasis,
    workshop: Workshop,
    out: Path,
    on_progress: Callable[[Progress], None],
    notify: Callable[[str], None],
) -> MeasuredRoute:
    """Return what came of `route` with the budget of `brief`, or why it was not tried; it is taken by `basis`."""
    epochs, score = brief.inputs.epochs, basis.inputs.score
    try:
        make_plan(basis, route, "")  # a route that the whole budget cannot take is not worth trying
        plan = make_plan(brief, route, "measured")
    except ConfigError as error:
        return MeasuredRoute(route=route, epochs=epochs, note=str(error))
    folder = out / f"{epochs}-epochs" / route
    claim(folder, identity(brief.file, plan))
    shared = None if plan.supernet is None else cut_from_run(basis.run, basis.file.student, workshop)
    budget = plan.budget.macs
    try:
        with exclusively(folder / GUARD_FILE, "kdnas schedule"):
            result = follow(
                brief.file, plan.steps, workshop, folder, budget_macs=budget, shared=shared, on_progress=on_progress
            )
    except TrialError as error:
        failed = f"failed: {printable(str(error))}"
        notify(f"{route}: {failed}")
        return MeasuredRoute(route=route, epochs=epochs, note=failed)
    notify(f"{route}: validation {score.name} {score.shown(result.score)} with {counted(epochs, 'epoch')}")
    seconds = round(result.train_seconds, 3)
    return MeasuredRoute(route=route, epochs=epochs, score=result.score, train_seconds=seconds)
