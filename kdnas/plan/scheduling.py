"""From a student of a run to the schedule of its training, by any route."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData
from kdnas.core.route import (
    Route,
    RouteFacts,
    Scored,
    choose_assistants,
    space_down_to,
    student_epochs,
    tuning_epochs,
)
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.nn.elastic import Unfilled
from kdnas.plan.schedules import (
    RANDOM,
    RUN_SUPERNET,
    TEACHER,
    Budget,
    DataSection,
    DistilStep,
    SpaceSection,
    Step,
    StudentSection,
    SupernetSection,
    SupernetStep,
    TeacherSection,
    TrainingSchedule,
    ladders_of,
)
from kdnas.plan.train_file import ArchSection, TrainFile, locked_fingerprint, train_file_for, with_epochs
from kdnas.plan.training_ground import Ground
from kdnas.record.front import front
from kdnas.record.records import FrontMember, RunRecord
from kdnas.record.run_folder import recorded_space, space_record
from kdnas.record.storage import Record
from kdnas.students import STUDENTS, StudentFamily
from kdnas.training.schedule_file import SCHEDULE_FILE, read_schedule
from kdnas.training.supernet_settings import SupernetSettings
from kdnas.workshop.opening import split, training_indices
from kdnas.workshop.run_data import open_run_data
from kdnas.workshop.supernets import SUPERNET_FOLDER, load_supernet

_STUDENT = "student"
_SUPERNET = "supernet"


@dataclass(frozen=True)
class Plan:
    """What schedules of one student's training are made from; `file.training.epochs` is the budget.

    `space` is that of the supernet to shrink, None where there is none, for the reason `no_supernet`; `supernet` is the
    run's own where it has one, from which route shrink begins then. `archs` are those of the networks in `facts`, by
    arch_id.
    """

    run: RunRecord
    file: TrainFile
    data: ImageData
    images: int
    facts: RouteFacts
    archs: dict[str, Arch]
    space: SearchSpace | None
    no_supernet: str = ""
    supernet: SupernetSection | None = None

    def with_epochs(self, epochs: int) -> Plan:
        """Return the plan with a budget of `epochs` of the student."""
        facts = dataclasses.replace(self.facts, epochs=epochs)
        return dataclasses.replace(self, file=with_epochs(self.file, epochs), facts=facts)


def open_plan(run: RunRecord, member: FrontMember, epochs: int | None, *, data_root: Path, cache: Path) -> Plan:
    """Return what the schedules of `member` are made from; `epochs` None: those of the study's final trainings.

    Raises ConfigError or DataError where the run's data or the student's recipe cannot be had.
    """
    data = open_run_data(run.sources()[0], data_root, cache, locked_fingerprint(run, "data"))
    file = train_file_for(run, member.trial, data)
    file = file if epochs is None else with_epochs(file, epochs)
    if run.teacher is None:
        raise ConfigError(Problem(str(run.folder), "has no teacher on record, which a schedule is measured by"))
    train, _ = split(data, file.data, file.seed)
    images = len(training_indices(data, train, file.training.data_fraction, file.seed))
    student = member.trial.arch
    supernet = _supernet_of(run)
    space, why = _space_to_shrink(run, member, data) if supernet is None else (None, "")
    largest = None
    if space is not None:
        elastic, ladders = ladders_of(space, data.task)
        largest = elastic.price(ladders.largest)
    others = [other for other in front(run) if other.trial.arch != student]
    facts = RouteFacts(
        epochs=file.training.epochs,
        student=_scored(member, data),
        teacher_accuracy=run.teacher.score,
        teacher_macs=run.teacher.values.get("macs"),
        largest_macs=largest,
        shared_weights=supernet is not None,
        front=tuple(_scored(other, data) for other in others),
    )
    archs = {other.trial.arch.arch_id: other.trial.arch for other in (member, *others)}
    return Plan(run, file, data, images, facts, archs, space, why, supernet)


def cut_from_run(run: RunRecord, student: Arch, ground: Ground) -> nn.Module:
    """Return `student` cut out of the run's own supernet. Raises RunFolderError where that is not there any more."""
    if run.supernet is None:
        raise RunFolderError(f"{run.folder} has no supernet")
    space = recorded_space(Path(run.config.space).stem, run.lock["identity"]["space"])
    shared = load_supernet(
        run.folder,
        run.config,
        space,
        ground.data,
        ground.train,
        ground.validation,
        fingerprint=run.supernet.fingerprint,
    )
    return shared.cut(student)


def schedule_by(plan: Plan, route: Route, why: str) -> TrainingSchedule:
    """Return the schedule of the plan's student by `route`, chosen because of `why`.

    Raises ConfigError, saying why, where the student cannot be trained that way.
    """
    steps = {"direct": _direct, "shrink": _shrink, "assistants": _assistants}[route](plan)
    file, facts, teacher = plan.file, plan.facts, plan.run.teacher
    assert teacher is not None  # open_plan refuses a run without
    return TrainingSchedule(
        study=plan.run.config.name,
        student=StudentSection(arch_id=file.arch_id, family=file.arch.family, choices=file.arch.choices),
        teacher=TeacherSection(
            name=teacher.name,
            fingerprint=file.teacher_fingerprint,
            accuracy=teacher.score,
            macs=teacher.values.get("macs"),
        ),
        data=DataSection(name=plan.data.name, fingerprint=plan.data.fingerprint),
        space=locked_fingerprint(plan.run, "space"),
        supernet=plan.supernet if route == "shrink" else None,
        budget=Budget(
            epochs=facts.epochs,
            images=plan.images,
            student_macs=facts.student.macs,
            macs=3 * facts.student.macs * plan.images * facts.epochs,
        ),
        route=route,
        why=why,
        steps=steps,
    )


def _direct(plan: Plan) -> tuple[Step, ...]:
    return (_distil(plan, _STUDENT, plan.file.student, plan.facts.epochs),)


def _shrink(plan: Plan) -> tuple[Step, ...]:
    epochs = plan.facts.epochs
    if plan.supernet is not None:
        return (_distil(plan, _STUDENT, plan.file.student, epochs, init=RUN_SUPERNET),)
    if plan.space is None:
        raise ConfigError(Problem("route shrink", plan.no_supernet))
    if epochs < 2:
        raise ConfigError(Problem("route shrink", "the budget is one epoch", "2 epochs or more"))
    tuning = tuning_epochs(epochs)
    supernet = SupernetStep(
        name=_SUPERNET,
        share=round(1.0 - tuning / epochs, 6),
        space=SpaceSection(**space_record(plan.space)),
        settings=SupernetSettings(),
    )
    return (
        supernet,
        _distil(plan, _STUDENT, plan.file.student, tuning, init=_SUPERNET),
    )


def _assistants(plan: Plan) -> tuple[Step, ...]:
    chain = choose_assistants(plan.facts)
    if not chain:
        what = "the front has no student between this one and the teacher that the budget could train for an epoch"
        raise ConfigError(Problem("route assistants", what))
    steps: list[Step] = []
    teacher = TEACHER
    for index, assistant in enumerate(chain, 1):
        arch = plan.archs[assistant.network.arch_id]
        steps.append(_distil(plan, f"assistant{index}", arch, assistant.epochs, teacher=teacher))
        teacher = steps[-1].name
    left = student_epochs(plan.facts, chain)
    return (*steps, _distil(plan, _STUDENT, plan.file.student, left, teacher=teacher))


def _distil(
    plan: Plan,
    name: str,
    arch: Arch,
    epochs: int,
    *,
    teacher: str = TEACHER,
    init: str = RANDOM,
) -> DistilStep:
    macs = STUDENTS.build(arch.family).price(arch, plan.data.task).macs
    return DistilStep(
        name=name,
        share=round(epochs * macs / (plan.facts.epochs * plan.facts.student.macs), 6),
        arch=ArchSection(family=arch.family, choices=arch.choices),
        teacher=teacher,
        init=init,
        epochs=epochs,
    )


def _supernet_of(run: RunRecord) -> SupernetSection | None:
    if run.supernet is None:
        return None
    recorded = read_schedule(run.folder / SUPERNET_FOLDER / SCHEDULE_FILE)
    return SupernetSection(fingerprint=run.supernet.fingerprint, macs=recorded.budget_macs)


def _scored(member: FrontMember, data: ImageData) -> Scored:
    arch = member.trial.arch
    macs = STUDENTS.build(arch.family).price(arch, data.task).macs
    return Scored(arch.arch_id, member.values["accuracy"], macs)


def _space_to_shrink(run: RunRecord, member: FrontMember, data: ImageData) -> tuple[SearchSpace | None, str]:
    """Return the part of the run's space from its largest network down to the student, or why there is none."""
    record = run.lock.get("identity", {}).get("space")
    if record is None:
        return None, "the run records no search space"
    space = recorded_space(Path(run.config.space).stem, record)
    if not space.family:
        return None, f"the space {space.name} names no student family"
    proposed = Record.open(run.folder, run.config.name, run.objectives).proposal(member.trial.number)
    own = {choice.name: proposed.get(choice.name, choice.values[0]) for choice in space.choices}
    family: StudentFamily = STUDENTS.build(space.family)
    try:
        with Unfilled():
            family.supernet(space, data.task)
        down = space_down_to(space, ladders_of(space, data.task)[1], own)
        elastic, ladders = ladders_of(down, data.task)
        smallest, largest = (elastic.spec(a).arch for a in (ladders.smallest(ladders.values), ladders.largest))
    except ConfigError as error:
        return None, str(error)
    if smallest != member.trial.arch:
        return None, f"student {member.trial.arch.arch_id} is not the smallest network of what lies above it"
    if elastic.price(ladders.largest) <= elastic.price(ladders.smallest(ladders.values)) or smallest == largest:
        return None, "the student is the largest network of the space"
    return down, ""
