"""The training loss of a recipe: the task's own loss plus the weighted distillation losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Output, Outputs, OutputShapes
from kdnas.plugins import short_name
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.recipe import ENSEMBLE, LEARNING, Distillation, Ensemble


class TrainingLoss(nn.Module):
    """task_weight * task loss + the sum of weight * distillation loss; its parameters are the losses' adapters.

    Terms of weight 0 are not built. The adapters are initialised from `seed` alone. Weights that warm up, or count
    during a part of the training, are those of the place in it that `at` was given last, full ones before. `teachers`
    are by name. Peers, moving average and the student itself are of the student's shapes.

    Raises ConfigError where a loss cannot be built for these shapes, or has no teacher to learn from.
    """

    warmth: Tensor

    def __init__(self, recipe: Distillation, student: OutputShapes, teachers: Mapping[str, OutputShapes], *, seed: int):
        super().__init__()
        self.task_weight = recipe.task_weight
        self.label_smoothing = recipe.label_smoothing
        if recipe.task_weight <= 0 and not any(term.weight > 0 for term in recipe.losses):
            raise ConfigError("distillation: task_weight and every loss's weight are 0: there is nothing to learn")
        terms = [term for term in recipe.losses if term.weight > 0]
        for name, needs in needs_by_teacher(recipe, teachers).items():
            if student.outputs != teachers[name].outputs and "logits" in needs:
                raise ConfigError(
                    f"the student has {student.outputs} outputs and the teacher {teachers[name].outputs}: "
                    "their logits cannot be compared"
                )
        self._whose = [recipe.whose(term, teachers) for term in terms]
        self.learns_of = frozenset(self._whose) & frozenset(LEARNING)
        self._ensemble = recipe.ensemble or Ensemble()
        shapes = {ENSEMBLE: OutputShapes(student.outputs), **dict.fromkeys(LEARNING, student), **teachers}
        self.weights = [term.weight for term in terms]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "adapters"))
            built = [
                LOSSES.build(term.type, student, shapes[whose], **term.options)
                for term, whose in zip(terms, self._whose, strict=True)
            ]
        self.terms = nn.ModuleList(built)
        self._changing = {index: term for index, term in enumerate(terms) if term.changes}
        # On the device and changed in its place: a captured step reads it anew each time.
        self.register_buffer("warmth", torch.ones(len(terms)), persistent=False)

    def at(self, progress: float) -> None:
        """Set the weights that change for a step that ends at the share `progress` of the training, in (0, 1]."""
        for index, term in self._changing.items():
            self.warmth[index].fill_(term.share_at(progress))

    def forward(
        self,
        student: Outputs,
        of_teachers: OutputsByTeacher | None,
        rows: Rows,
        learning: Mapping[str, Sequence[Outputs]] | None = None,
        *,
        labelled: bool = True,
    ) -> Tensor:
        """Return the loss, a scalar in float32; `rows` are the student's logits with their targets and weights.

        `of_teachers` holds their outputs; it may be None where no distillation loss asks them. `learning` is what those
        of `LEARNING` put out that losses use, detached: of several peers, the mean of the losses is learnt. Not
        `labelled`: the targets are nothing to learn.
        """
        loss = student.logits.new_zeros((), dtype=torch.float32)
        if self.task_weight > 0 and labelled:
            loss = loss + self.task_weight * task_loss(rows, self.label_smoothing)
        ours = student.learning
        taught = rows if student.taught is None else replace(rows, logits=ours.logits)
        theirs: dict[str, Sequence[Outputs]] = dict(learning or {})
        if of_teachers is not None:
            theirs |= {name: [outputs] for name, outputs in of_teachers.by.items()}
        if of_teachers is not None and ENSEMBLE in self._whose:
            theirs[ENSEMBLE] = [of_teachers.together(self._ensemble, rows)]
        for index, (weight, term) in enumerate(zip(self.weights, self.terms, strict=True)):
            values = [term(ours, other, taught) for other in theirs[self._whose[index]]]
            value = weight / len(values) * sum(values[1:], values[0])
            loss = loss + (value * self.warmth[index] if index in self._changing else value)
        return loss


def task_loss(rows: Rows, label_smoothing: float) -> Tensor:
    """Return the mean cross entropy in float32, or the mean squared error of numbers."""
    logits, targets = rows.logits.float(), rows.targets
    if rows.are_values:
        return rows.mean((logits[:, 0] - targets) ** 2)
    if rows.weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return rows.mean(F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none"))


def needs_of(recipe: Distillation, whose: str | None = None) -> frozenset[Output]:
    """Return the outputs of student and teacher that the recipe's losses read. Raises ConfigError on unknown losses.

    `whose`: those alone that are `of` it by name.
    """
    terms = [term for term in recipe.losses if term.weight > 0 and (whose is None or term.of == whose)]
    members: list[type[DistillationLoss]] = [LOSSES.get(term.type) for term in terms]
    return frozenset(need for member in members for need in member.needs)


def needs_by_teacher(recipe: Distillation, teachers: Collection[str]) -> dict[str, frozenset[Output]]:
    """Return what the recipe's losses read of each of the `teachers` that they learn of, in their order.

    Raises ConfigError on unknown losses, and where a term learns of somebody who is none of them or gives less.
    """
    needs: dict[str, frozenset[Output]] = {}
    for index, term in enumerate(recipe.losses):
        if term.weight <= 0:
            continue
        where, read = f"distillation.losses.{index}", LOSSES.get(term.type).needs
        if term.of in LEARNING:
            if "classifier" in read:
                what = f"{short_name(term.type)} reads the classifier of a network that stays as it is"
                raise ConfigError(Problem(f"{where}.of", what, ", ".join([*teachers, ENSEMBLE])))
            continue
        if not teachers:
            what = f"there is no teacher that {short_name(term.type)} could learn from"
            raise ConfigError(Problem(where, what, "a teacher, or no losses: `losses: []`"))
        whose = recipe.whose(term, teachers)
        if whose == ENSEMBLE:
            if len(teachers) < 2:
                what = "an ensemble takes several teachers, and there is one"
                raise ConfigError(Problem(f"{where}.of", what, ", ".join(teachers)))
            if read != {"logits"}:
                what = f"{short_name(term.type)} reads more than logits, and an ensemble has no more"
                raise ConfigError(Problem(f"{where}.of", what, ", ".join(teachers)))
            needs |= {name: needs.get(name, frozenset()) | read for name in teachers}
        elif whose in teachers:
            needs[whose] = needs.get(whose, frozenset()) | read
        else:
            allowed = ", ".join([*teachers, *([ENSEMBLE] if len(teachers) > 1 else []), *LEARNING])
            raise ConfigError(Problem(f"{where}.of", f"no teacher is called {whose!r}", allowed))
    return {name: needs[name] for name in teachers if name in needs}


def asked_of(recipe: Distillation, name: str, teachers: Collection[str]) -> Distillation:
    """Return the recipe with those losses alone that ask the teacher called `name`, by itself or among all."""
    terms = [term for term in recipe.losses if term.weight > 0 and recipe.whose(term, teachers) in (name, ENSEMBLE)]
    return recipe.model_copy(update={"losses": tuple(terms)})
