"""One student to score or to measure: a record that an executor carries to a worker. What comes of it is a `Result`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdnas.core.arch import Arch, Scalar
from kdnas.core.fidelity import Fidelity, Start
from kdnas.core.route import PROGRESSIVE, Route
from kdnas.core.seeds import derive_seed
from kdnas.study.config import StudyConfig
from kdnas.study.tuning import final_recipe, tuned_recipe
from kdnas.training.recipe import Recipe, labels_alone

RUNG_FOLDER = "checkpoints/rungs"
"""Where the students wait that may be promoted, relative to the run folder."""


@dataclass(frozen=True)
class Leg:
    """A part of a training: a whole learning-rate schedule of its own, from the weights that the leg before it left."""

    epochs: int
    checkpoint: str
    """Where its state is kept, relative to the run folder."""


@dataclass(frozen=True)
class LargerStudent:
    """A trained student that another one is cut out of: of which trial, and where its weights are, as in `Job`."""

    number: int
    arch: Arch
    checkpoint: str


@dataclass(frozen=True)
class Before:
    """A network that is trained before the student, on a part of its budget, and teaches the next."""

    arch: Arch
    epochs: int


@dataclass(frozen=True)
class Way:
    """The route of a final training: who is trained `before` the student, and the `epochs` that are left to it."""

    route: Route
    before: tuple[Before, ...]
    epochs: int
    choices: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """shrink, grow: what was proposed for the student, which tells where its space ends."""

    @property
    def is_progressive(self) -> bool:
        """Whether the student changes its size while it learns."""
        return self.route in PROGRESSIVE


@dataclass(frozen=True)
class Job:
    """One student to score, or to measure alone.

    Seeds are absolute; `checkpoint` is where the weights go, relative to the run folder.
    """

    arch: Arch
    recipe: Recipe
    init_seed: int
    view_seed: int
    kind: Literal["score", "measure"] = "score"
    """To be measured it is built anew, on a worker that does nothing else; nothing is trained."""
    start: Start = "random"
    """Where its weights come from."""
    trains: bool = True
    """Whether it is trained, else scored with the weights that it begins with."""
    repeat: int | None = None
    """None for a trial of the search, else the number of the retraining."""
    measure: bool = True
    """Measure costs first, and do not train a student that breaks a constraint."""
    test: bool = False
    """Also score on the test split: only the final evaluation of the front does."""
    checkpoint: str | None = None
    looks: tuple[int, ...] = ()
    """Epochs after which the validation score is looked at on the way: the result's `curve`."""
    legs: tuple[Leg, ...] = ()
    """The rungs that the training goes through; those whose checkpoint is there are not trained again. None: it is one
    training, by the recipe."""
    larger: LargerStudent | None = None
    """What it is cut out of where its start is nested; None: its teacher."""
    way: Way | None = None
    """What is trained before it, where it takes another route than the direct one."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        legs = [dataclasses.asdict(leg) for leg in self.legs]
        larger = self.larger and {**dataclasses.asdict(self.larger), "arch": self.larger.arch.canonical_json}
        before = () if self.way is None else self.way.before
        named = [{"arch": each.arch.canonical_json, "epochs": each.epochs} for each in before]
        way = self.way and {**dataclasses.asdict(self.way), "before": named}
        recipe = self.recipe.model_dump(mode="json")
        return {**plain, "arch": self.arch.canonical_json, "recipe": recipe, "legs": legs} | {
            "larger": larger,
            "way": way,
        }

    @property
    def fidelity(self) -> Fidelity:
        """How much training the score will have seen."""
        trained = self.recipe.training.fidelity if self.trains else Fidelity(0)
        return dataclasses.replace(trained, start=self.start, route="direct" if self.way is None else self.way.route)


def search_job(config: StudyConfig, arch: Arch, tuned: Mapping[str, Scalar], rung: int = -1) -> Job:
    """Return the training that scores `arch` at a rung, the highest by default.

    The initialisation depends on the arch alone and the views are shared by all trials (common random numbers), so a
    score does not depend on when the arch was proposed. Costs are measured at the lowest rung only.
    """
    rung %= len(config.fidelities)
    fidelity, recipe = config.fidelities[rung], tuned_recipe(config.recipe, tuned)
    trains = fidelity.epochs > 0
    if trains:
        training = recipe.training.model_copy(update=fidelity.training)
        recipe = recipe.model_copy(update={"training": training})
    return Job(
        arch,
        recipe,
        init_seed=derive_seed(config.seed, "init", arch.arch_id),
        view_seed=derive_seed(config.seed, "views"),
        start=fidelity.start,
        trains=trains,
        measure=rung == 0,
        legs=_legs(config, arch, tuned, rung) if config.rungs and trains else (),
    )


def _legs(config: StudyConfig, arch: Arch, tuned: Mapping[str, Scalar], rung: int) -> tuple[Leg, ...]:
    """Return the legs to `rung`: each rung's further epochs. Where one `continues` not, they begin anew."""
    rungs = [rung]
    while rungs[0] > 0 and continues(config, rungs[0]):
        rungs.insert(0, rungs[0] - 1)
    epochs = [0, *(config.fidelities[index].epochs for index in rungs)]
    return tuple(
        Leg(after - before, rung_checkpoint(arch, tuned, index))
        for index, before, after in zip(rungs, epochs, epochs[1:], strict=False)
    )


def continues(config: StudyConfig, rung: int) -> bool:
    """Whether a student promoted to `rung` may go on from its weights: the rung below differs in epochs alone.

    A training on another share of the data, at another resolution or from another start is begun anew, so that a
    fidelity counts all that the student has been trained on.
    """
    if rung == 0:
        return False
    below, here = config.fidelities[rung - 1 : rung + 1]
    return below.epochs > 0 and dataclasses.replace(below, epochs=here.epochs) == here


def rung_checkpoint(arch: Arch, tuned: Mapping[str, Scalar], rung: int) -> str:
    """Return where a student's state at the end of `rung` is kept, relative to the run folder."""
    settings = derive_seed(0, *(f"{name} {value!r}" for name, value in sorted(tuned.items())))
    student = f"{arch.arch_id}-{settings:016x}" if tuned else arch.arch_id
    return f"{RUNG_FOLDER}/{student}-rung{rung}.safetensors"


def measure_job(config: StudyConfig, arch: Arch, tuned: Mapping[str, Scalar]) -> Job:
    """Return the measuring of the student `arch`: on a worker's device, which may be none of the controller's."""
    return dataclasses.replace(search_job(config, arch, tuned), kind="measure", trains=False, legs=())


def control_job(
    config: StudyConfig,
    number: int,
    arch: Arch,
    tuned: Mapping[str, Scalar],
    repeat: int,
    larger: LargerStudent | None = None,
) -> Job:
    """Return retraining `repeat` of finalist `number` without its teacher: cross entropy alone, at weight 1."""
    job = final_job(config, number, arch, tuned, repeat, larger)
    task = labels_alone(config.distillation)
    return dataclasses.replace(job, recipe=job.recipe.model_copy(update={"distillation": task}))


def final_job(
    config: StudyConfig,
    number: int,
    arch: Arch,
    tuned: Mapping[str, Scalar],
    repeat: int,
    larger: LargerStudent | None = None,
    way: Way | None = None,
    others: Iterable[Arch] = (),
) -> Job:
    """Return retraining `repeat` of finalist `number`: another initialisation and other views each time.

    Where finalists are nested it is cut out of `larger`; None of `way`: it is taught by its teacher. `others` learn
    with it where the whole front learns together.
    """
    return Job(
        arch,
        final_recipe(config, tuned, others),
        init_seed=derive_seed(config.seed, "final", repeat, arch.arch_id),
        view_seed=derive_seed(config.seed, "final views", repeat),
        start=config.final_fidelity.start,
        repeat=repeat,
        measure=False,
        test=True,
        checkpoint=f"checkpoints/trial{number:04d}-{arch.arch_id}-seed{repeat}.safetensors",
        larger=larger,
        way=way,
    )
