"""The training loss of a recipe: the task's own loss plus the weighted distillation losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.seeds import derive_seed
from kdnas.core.task import Head
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
        for name, needs in needs_by_teacher(recipe, teachers).items():
            if "logits" in needs:
                _check_outputs(student, teachers[name])
        self._shapes = shapes_by_source(student, teachers)
        self._ensemble = recipe.ensemble or Ensemble()
        of_ensemble = any(term.weight > 0 and recipe.whose(term, teachers) == ENSEMBLE for term in recipe.losses)
        learns = self._ensemble.weights == "learned" and of_ensemble
        self.mixture = nn.Parameter(torch.zeros(len(teachers))) if learns else None
        asked = [
            (term, Comparison(recipe.whose(term, teachers), head))
            for term in recipe.losses
            if term.weight > 0
            for head in heads_compared(LOSSES.get(term.type), student, self._shapes[recipe.whose(term, teachers)])
        ]
        terms = [term for term, _ in asked]
        self._comparisons = [comparison for _, comparison in asked]
        self.learns_of = frozenset(comparison.whose for comparison in self._comparisons) & frozenset(LEARNING)
        self.weights = [term.weight for term in terms]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "adapters"))
            built = [
                LOSSES.build(term.type, *comparison.shapes(student, self._shapes), **term.options)
                for term, comparison in asked
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
        ensembles: dict[Head | None, Outputs] = {}
        if self.mixture is not None and of_teachers is not None:
            loss = loss + self._of_mixture(of_teachers, rows)
        for index, (weight, term) in enumerate(zip(self.weights, self.terms, strict=True)):
            comparison = self._comparisons[index]
            head, whose = comparison.head, comparison.whose
            if whose == ENSEMBLE and of_teachers is not None and head not in ensembles:
                mixture = None if self.mixture is None else self.mixture.detach()
                ensembles[head] = together(of_teachers, self._shapes, head, self._ensemble, rows, mixture)
            if whose == ENSEMBLE:
                theirs: Sequence[Outputs] = [ensembles[head]]
            else:
                said = (learning or {})[whose] if whose in LEARNING or of_teachers is None else [of_teachers.by[whose]]
                theirs = [comparison.part(self._shapes[whose], outputs) for outputs in said]
            mine, compared = comparison.of_student(ours), comparison.rows(taught)
            compared = compared.known if term.of_labels else compared
            values = [term(mine, other, compared) for other in theirs]
            value = weight / len(values) * sum(values[1:], values[0])
            loss = loss + (value * self.warmth[index] if index in self._changing else value)
        return loss

    def _of_mixture(self, of_teachers: OutputsByTeacher, rows: Rows) -> Tensor:
        """Return the cross entropy of the ensembles, from which the teachers' weights learn and nothing else."""
        heads = {comparison.head for comparison in self._comparisons if comparison.whose == ENSEMBLE}
        loss = rows.logits.new_zeros((), dtype=torch.float32)
        for head in sorted(heads, key=lambda each: -1 if each is None else each.start):
            said = together(of_teachers, self._shapes, head, self._ensemble, rows, self.mixture)
            of_head = rows if head is None else rows.of(head)
            loss = loss + task_loss(replace(of_head, logits=said.logits), 0.0)
        return loss


@dataclass(frozen=True)
class Comparison:
    """Whose outputs a loss compares with the student's: all of them, or those of the task `head` of several."""

    whose: str
    head: Head | None

    def shapes(self, student: OutputShapes, by_source: Mapping[str, OutputShapes]) -> tuple[OutputShapes, OutputShapes]:
        """Return those of the student and of whom it learns of."""
        theirs = by_source[self.whose]
        if self.head is None:
            return student, theirs
        own = theirs.head(self.head.name)
        return student.at(self.head), theirs if own is None else theirs.at(own)

    def of_student(self, outputs: Outputs) -> Outputs:
        """Return the student's outputs that are compared."""
        return outputs if self.head is None else outputs.at(self.head.places)

    def part(self, shapes: OutputShapes, outputs: Outputs) -> Outputs:
        """Return the `outputs` that are compared of somebody whose `shapes` these are."""
        own = None if self.head is None else shapes.head(self.head.name)
        return outputs if own is None else outputs.at(own.places)

    def rows(self, rows: Rows) -> Rows:
        """Return the student's rows that are compared."""
        return rows if self.head is None else rows.of(self.head)


def shapes_by_source(student: OutputShapes, teachers: Mapping[str, OutputShapes]) -> dict[str, OutputShapes]:
    """Return the shapes of all that a loss may learn of, by name: logits alone of an ensemble, of all tasks answered.

    Peers, moving average and the student itself are of the student's.
    """
    answered = {head.name for shapes in teachers.values() for head in shapes.heads}
    heads = tuple(head for head in student.heads if head.name in answered)
    ensemble = OutputShapes(student.outputs, heads=heads)
    return {ENSEMBLE: ensemble, **dict.fromkeys(LEARNING, student), **teachers}


def heads_compared(
    loss: type[DistillationLoss], student: OutputShapes, theirs: OutputShapes
) -> tuple[Head | None, ...]:
    """Return the student's tasks that a loss compares one by one; (None,) where there is one comparison of all.

    Logits are compared task by task, and whatever a specialist says within its own.
    """
    if not student.heads or ("logits" not in loss.needs and len(theirs.heads) != 1):
        return (None,)
    return tuple(head for head in student.heads if theirs.head(head.name) is not None)


def together(
    of_teachers: OutputsByTeacher,
    shapes: Mapping[str, OutputShapes],
    head: Head | None,
    how: Ensemble,
    rows: Rows,
    mixture: Tensor | None = None,
) -> Outputs:
    """Return the logits of the ensemble of the teachers; with a `head` that of those who answer this task, for it.

    `mixture` are the logarithms of learned weights, of all teachers in the order of `of_teachers`.
    """
    if head is None:
        return of_teachers.together(how, rows, mixture)
    comparison = Comparison(ENSEMBLE, head)
    answering = {
        name: comparison.part(shapes[name], outputs)
        for name, outputs in of_teachers.by.items()
        if shapes[name].head(head.name) is not None
    }
    if mixture is not None:
        mixture = mixture[[place for place, name in enumerate(of_teachers.by) if name in answering]]
    return OutputsByTeacher(answering).together(how, rows.of(head), mixture)


def _check_outputs(student: OutputShapes, teacher: OutputShapes) -> None:
    """Raise ConfigError where the logits of the two cannot be compared."""
    pairs = [(student.outputs, teacher.outputs)]
    if student.heads:
        own = ((student.head(head.name), head) for head in teacher.heads)
        pairs = [(0 if mine is None else mine.outputs, theirs.outputs) for mine, theirs in own]
    for mine, theirs in pairs:
        if mine != theirs:
            raise ConfigError(
                f"the student has {mine} outputs and the teacher {theirs}: their logits cannot be compared"
            )


def task_loss(rows: Rows, label_smoothing: float) -> Tensor:
    """Return the mean cross entropy in float32, or the mean squared error of numbers; of several tasks the sum."""
    if rows.heads:
        losses = [task_loss(rows.of(head), label_smoothing) for head in rows.heads]
        return sum(losses[1:], losses[0])
    rows = rows.known
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
