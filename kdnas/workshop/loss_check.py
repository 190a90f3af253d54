"""Every loss of a study, tried on its teacher and its students before the first of them is trained.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdnas.core.arch import Scalar
from kdnas.core.data import Data
from kdnas.core.task import Head
from kdnas.core.text import CorpusData
from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.rows import Batch, Rows
from kdnas.nn.taps import EVERYTHING, Output, Outputs, OutputShapes, Taps, output_shapes, stage_names
from kdnas.nn.teacher import Teacher, Teaching, by_name
from kdnas.plugins import short_name
from kdnas.tasks import task_of
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.loss import Comparison, heads_compared, needs_by_teacher, shapes_by_source, together
from kdnas.training.recipe import ENSEMBLE, LEARNING, RESERVED, Distillation, Ensemble, LossTerm, Recipe
from kdnas.user_code import blamed
from kdnas.workshop.opening import Workshop

_SAMPLES = 4
_READ: Mapping[Output, str] = {
    "stages": "maps [B, C, H, W] of several stages, or the tokens [B, N, C] of layers",
    "attention": "what layers attend with",
    "embedding": "the embedding, which is what a linear classifier at the end takes",
    "classifier": "what the linear layer at the end, from which the logits come as they are, makes of features",
    "logits": "logits",
}
_NAMED_BY: Mapping[Output, str] = {
    "stages": "`stages`",
    "embedding": "`classifier`",
    "classifier": "`classifier`",
}


@dataclass(frozen=True)
class _Side:
    """A teacher or a student: what it is called, and what it gives for a few samples."""

    name: str
    shapes: OutputShapes
    outputs: Outputs

    def lacks(self, need: Output) -> bool:
        """Whether losses cannot read `need` of it."""
        return need != "logits" and not getattr(self.shapes, need)


def check_losses(
    recipe: Recipe, teaching: Teaching, students: Mapping[str, nn.Module], data: Data, *, device: torch.device
) -> None:
    """Try each loss of `recipe` on the outputs of its teacher and of each of the `students`, by name.

    Students are without their entrance. Raises ConfigError with one problem for each loss that cannot be computed: what
    it reads, who does not have that, and which losses can be.
    """
    terms = [(index, term) for index, term in enumerate(recipe.distillation.losses) if term.weight > 0]
    if not terms:
        return
    _check_on_policy(recipe.distillation, data, by_name(teaching))
    few = np.linspace(0, len(data.train) - 1, min(_SAMPLES, len(data.train))).astype(np.int64)

    def given(seen: Data) -> Batch:
        (only,) = Batches(seen, few, device=device).ordered(batch_size=len(few))
        return only

    batch = given(data)
    task, size = task_of(data.task), data.task.at_share(recipe.training.resolution_fraction).size
    with exact_arithmetic():
        teachers = by_name(teaching)
        read_of = needs_by_teacher(recipe.distillation, teachers)
        whose = {
            name: _asked(
                f"the teacher {each.name}",
                each.module,
                each.stages,
                each.classifier,
                given(each.given(data)),
                each.heads(data),
            )
            for name, each in teachers.items()
            if name in read_of
        }
        sides = []
        for name, network in students.items():
            module = task.entrance(network, data, size).to(device).eval()
            stages, classifier = stage_names(network)
            inside = tuple(f"network.{stage}" for stage in stages)
            at_the_end = classifier and f"network.{classifier}"
            sides.append(_asked(name, module, inside, at_the_end, batch, data.task.heads))
        problems = []
        for index, term in terms:
            for ours in sides:
                rows = task.rows(ours.outputs.logits, batch.inputs, batch.targets)
                where, name = f"distillation.losses.{index}", recipe.distillation.whose(term, teachers)
                if name == ENSEMBLE and any(each.outputs == "rules" for each in teachers.values()):
                    what = "an ensemble takes probabilities, and one of the teachers is rules"
                    problems.append(Problem(f"{where}.of", what, ", ".join(teachers)))
                    break
                pairs = _pairs(recipe.distillation, term, ours, whose, list(teachers), rows)
                if found := next((one for pair in pairs if (one := _problem(where, term, *pair))), None):
                    problems.append(found)
                    break
    if problems:
        raise ConfigError(problems)


def check_recipes(
    recipes: Mapping[tuple[str, Scalar], Recipe], workshop: Workshop, students: Mapping[str, nn.Module]
) -> None:
    """Try each loss of each of the `recipes`, by the study's key for its losses and their value.

    Raises ConfigError as `check_losses`; of losses that are a value of a key the problem stands at that key.
    """
    problems: list[Problem] = []
    for (key, value), recipe in recipes.items():
        try:
            check_losses(recipe, workshop.teachers, students, workshop.data, device=workshop.device)
        except ConfigError as error:
            for each in error.problems:
                where = key if value else f"{key}.{each.where}".removeprefix(".")
                problems.append(Problem(where, each.what, each.allowed))
    if problems:
        raise ConfigError(problems)


def _check_on_policy(distillation: Distillation, data: Data, teachers: Mapping[str, Teacher]) -> None:
    """Raise ConfigError where a student is to write, and cannot, or its teachers cannot read it."""
    settings, where = distillation.on_policy, "distillation.on_policy"
    if settings is None:
        return
    if not isinstance(data, CorpusData):
        what = f"students write texts, and these name the classes of {data.task.samples}"
        raise ConfigError(Problem(where, what, "language modelling"))
    if settings.prompt_of(data.length) >= data.length:
        what = f"takes {settings.prompt} tokens, and blocks have {data.length}: nothing is left to write"
        raise ConfigError(Problem(f"{where}.prompt", what, f"1 to {data.length - 1}"))
    if others := [name for name, teacher in teachers.items() if teacher.data is not None]:
        what = f"{', '.join(others)} reads samples of its own, and of what a student writes there are none"
        raise ConfigError(Problem(where, what))


def _asked(
    name: str,
    module: nn.Module,
    stages: Sequence[str],
    classifier: str | None,
    batch: Batch,
    heads: tuple[Head, ...],
) -> _Side:
    shapes = output_shapes(module, stages, classifier, *batch.inputs, heads=heads)
    with torch.no_grad(), Taps(module, stages, classifier, needs=EVERYTHING) as tapped:
        return _Side(name, shapes, tapped(*batch.inputs).float())


def _pairs(
    distillation: Distillation,
    term: LossTerm,
    ours: _Side,
    sides: Mapping[str, _Side],
    teachers: Sequence[str],
    rows: Rows,
) -> Iterator[tuple[_Side, _Side, Rows]]:
    """Yield what the term compares: the student's part, that of whom it learns of, and the rows; one pair a task."""
    whose, loss = distillation.whose(term, teachers), LOSSES.get(term.type)
    by_source = shapes_by_source(ours.shapes, {name: side.shapes for name, side in sides.items()})
    of_teachers = OutputsByTeacher({name: side.outputs for name, side in sides.items()})
    for head in heads_compared(loss, ours.shapes, by_source[whose]):
        comparison = Comparison(whose, head)
        own_shapes, their_shapes = comparison.shapes(ours.shapes, by_source)
        if whose in LEARNING:
            name, outputs = f"{RESERVED[whose]} ({ours.name})", ours.outputs.learning.detach()
            outputs = comparison.part(by_source[whose], outputs)
        elif whose in sides:
            name, outputs = sides[whose].name, comparison.part(by_source[whose], sides[whose].outputs)
        else:
            name = "the ensemble of teachers"
            outputs = together(of_teachers, by_source, head, distillation.ensemble or Ensemble(), rows)
        mine, compared = _Side(ours.name, own_shapes, comparison.of_student(ours.outputs)), comparison.rows(rows)
        yield mine, _Side(name, their_shapes, outputs), compared.known if loss.of_labels else compared


def _problem(where: str, term: LossTerm, ours: _Side, theirs: _Side, rows: Rows) -> Problem | None:
    """Return why the loss cannot be computed for this student, None where it can."""
    loss_name, needs = short_name(term.type), LOSSES.get(term.type).needs
    for need in sorted(needs):
        asked = (
            (theirs,) if need == "classifier" else (theirs, ours)
        )  # a loss that uses the student's states that itself
        lacking = [side.name for side in asked if side.lacks(need)]
        if lacking:
            what = f"{loss_name} compares {_READ[need]}; {' and '.join(lacking)} has none that can be read"
            hint = ""
            if theirs.lacks(need) and need in _NAMED_BY:
                hint = f"; a teacher of your own (type: module) may name them as {_NAMED_BY[need]}"
            return Problem(where, what, f"losses that both sides can serve: {_served(ours, theirs)}{hint}")
    try:
        with torch.random.fork_rng(devices=[]):
            loss = LOSSES.build(term.type, ours.shapes, theirs.shapes, **term.options).to(rows.logits.device)
        value = float(loss.train()(ours.outputs, theirs.outputs, rows).detach())
    except ConfigError as error:
        what = "; ".join(str(problem) for problem in error.problems)
        return Problem(where, f"{loss_name} cannot compare {theirs.name} with {ours.name}: {what}")
    except (Exception, SystemExit) as error:  # a loss may be the user's
        reason = blamed(error) or f"{type(error).__name__}: {(str(error) or 'without a message').splitlines()[0][:300]}"
        return Problem(where, f"{loss_name} fails on {theirs.name} and {ours.name}: {reason}")
    if not np.isfinite(value):
        return Problem(where, f"{loss_name} of {theirs.name} and {ours.name} is {value} on the first samples")
    return None


def _served(ours: _Side, theirs: _Side) -> str:
    """Return the losses that read only what both sides have."""
    members = {name: LOSSES.get(name).needs for name in LOSSES.names()}
    served = [name for name, needs in members.items() if not any(s.lacks(n) for n in needs for s in (ours, theirs))]
    return ", ".join(served)
