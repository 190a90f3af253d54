"""Plans for plans of small students on the digits, made without a run's record: real data, invented scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trained_run import TASK, trained_run
from workshops import workshop_of

from kdnas.core.arch import Arch, Scalar
from kdnas.core.data import ImageData
from kdnas.core.route import Progressive, RouteInputs, Scored, space_down_to, space_up_to
from kdnas.core.space import Choice, SearchSpace
from kdnas.plan.making import PlanBasis
from kdnas.plan.train_file import train_file_for, with_epochs
from kdnas.plan.training import Progress
from kdnas.students import family_for, stated_arch
from kdnas.training.supernet.subnets import ElasticSpace

SPACES = {
    "resnet": SearchSpace(
        "tiny_resnet",
        "resnet",
        (
            Choice("stage1.depth", (1, 2)),
            Choice("stage1.width", (4, 8, 16)),
            Choice("stage1.skip", ("identity", "none")),
        ),
        fixed={"stem_width": 8, "stage1.bottleneck": "plain"},
    ),
    "mobilenet": SearchSpace(
        "tiny_mobilenet",
        "mobilenet",
        (Choice("stage1.depth", (1, 2)), Choice("stage1.kernel", (3, 5)), Choice("stage1.expand", (1, 2))),
        fixed={"stem_width": 8, "stage1.width": 8, "stage1.squeeze_excite": False, "stage1.skip": "identity"},
    ),
}
STUDENTS_OF: dict[str, dict[str, Scalar]] = {
    "resnet": {"stage1.depth": 1, "stage1.width": 4, "stage1.skip": "identity"},
    "mobilenet": {"stage1.depth": 1, "stage1.kernel": 3, "stage1.expand": 1},
}
BETWEEN: dict[str, dict[str, Scalar]] = {
    "resnet": {"stage1.depth": 1, "stage1.width": 8, "stage1.skip": "identity"},
    "mobilenet": {"stage1.depth": 2, "stage1.kernel": 3, "stage1.expand": 1},
}
"""A network between each student and the teacher."""


def arch_of(family: str, assignment: dict[str, Scalar]) -> Arch:
    """The arch of `assignment` in the family's space."""
    return stated_arch(family, SPACES[family].active(assignment))


def basis_of(family: str, data: ImageData, folder: Path, *, epochs: int = 5, grows: bool = False) -> PlanBasis:
    """A basis for the smallest student of the family's space; one network of the front stands between.

    Where it `grows` that network is the student.
    """
    run = trained_run(folder, data, teacher_fingerprint="")
    own = (BETWEEN if grows else STUDENTS_OF)[family]
    arch, between = arch_of(family, own), arch_of(family, BETWEEN[family])
    trial = replace(run.trials[0], arch=arch, tuned={"training.learning_rate": 0.05})
    file = with_epochs(train_file_for(run, trial, data), epochs)
    opened = workshop_of(data, validation_fraction=file.data.validation_fraction, seed=file.seed)
    students = family_for(family, TASK)
    macs = {network: students.price(network).macs for network in (arch, between)}
    ladders = ElasticSpace(SPACES[family], students).ladders
    spaces: dict[Progressive, SearchSpace] = {"shrink": space_down_to(SPACES[family], ladders, own)}
    if grows:
        spaces["grow"] = space_up_to(SPACES[family], ladders, own)
    refusals: dict[Progressive, str] = {} if grows else {"grow": "the student is the smallest network of the space"}
    elastic = ElasticSpace(spaces["shrink"], students)
    inputs = RouteInputs(
        epochs=epochs,
        student=Scored(arch.arch_id, 0.5, macs[arch]),
        teacher_score=0.97,
        teacher_macs=macs[between] ** 2 / macs[arch],
        largest_macs=elastic.macs(elastic.largest),
        front=(Scored(between.arch_id, 0.74, macs[between]),),
    )
    archs = {network.arch_id: network for network in macs}
    samples = len(opened.share(file.training.data_fraction))
    return PlanBasis(run, file, opened, students, samples, inputs, archs, spaces, refusals)


def stop_at(count: int) -> Callable[[Progress], None]:
    """Something to call with news that interrupts at the one of that number."""
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == count:
            raise KeyboardInterrupt

    return on_progress
