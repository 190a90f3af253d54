"""What must hold between the rungs of a study, its supernet and what else it asks for."""

from __future__ import annotations

import itertools

from kdnas.core.space import SearchSpace
from kdnas.errors import Problem
from kdnas.study.config import FINETUNE, SCRATCH, SUPERNET, StudyConfig
from kdnas.study.members import registry_of

_LENGTHS = ("epochs", "data_fraction", "resolution_fraction")
_AMOUNT = "epochs x data_fraction x resolution_fraction^2"


def rung_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the rungs of `config` and with who scores at them; `where` is the dotted key."""
    problems = _each(config)
    if not problems and config.rungs:
        problems += _ladder(config)
    if config.final_evaluator == SUPERNET:
        problems.append(Problem("final.evaluator", "supernet trains nothing", f"{SCRATCH}, {FINETUNE}"))
    if config.tune and SUPERNET in config.rung_evaluators:
        what = "a score of shared weights does not depend on how a student is trained, so nothing can be tuned by it"
        problems.append(Problem("tune", what))
    return problems


def supernet_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return why `config` cannot have the supernet that it needs, as far as the names alone tell."""
    if not config.shares_weights or config.supernet is None:
        return []
    from kdnas.students import StudentFamily

    problems = []
    if registry_of("students").get(space.family).supernet is StudentFamily.supernet:
        needed = next(name for name in config.evaluators if name in (SUPERNET, FINETUNE))
        what = f"students of {space.family} cannot share weights in a supernet, which the evaluator {needed} needs"
        problems.append(Problem("space", what))
    teacher = config.teacher
    if config.supernet.inherit_teacher and teacher is not None:
        of = teacher.options.get("family") if teacher.type == "student" else None
        if of != space.family:
            is_what = f"a {of}" if of else f"not of a student family (its source is {teacher.type})"
            what = f"the teacher is {is_what}, the students are {space.family}: no weights can be inherited"
            allowed = f"false, or a teacher `type: student, family: {space.family}`"
            problems.append(Problem("supernet.inherit_teacher", what, allowed))
    return problems


def _each(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with single rungs."""
    problems = []
    for index, (rung, evaluator) in enumerate(zip(config.rungs, config.rung_evaluators, strict=False)):
        where = f"rungs.{index}"
        if evaluator == SUPERNET:
            stated = [name for name in _LENGTHS if getattr(rung, name) is not None]
            problems += [Problem(f"{where}.{name}", "a score of shared weights trains no student") for name in stated]
            if index > 0:
                what = "scores of shared weights can only be the lowest rung: no training is less than theirs"
                problems.append(Problem(f"{where}.evaluator", what))
        elif rung.epochs is None:
            problems.append(Problem(f"{where}.epochs", "is required"))
    return problems


def _ladder(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the rungs beside each other."""
    problems = []
    fidelities = config.fidelities
    for index, (low, high) in enumerate(itertools.pairwise(fidelities), 1):
        if low.amount >= high.amount:
            what = f"{high.words} after {low.words}: each needs more {_AMOUNT} than the one before"
            problems.append(Problem(f"rungs.{index}", what))
    full = config.training.fidelity
    if fidelities[-1].amount and fidelities[-1].training != full.training:
        what = f"the last one is the search's full score ({fidelities[-1].words}), but training says {full.words}"
        problems.append(Problem("rungs", what))
    return problems
