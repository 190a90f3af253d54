"""What must hold between the rungs of a study, the starts of its students and what else it asks for."""

from __future__ import annotations

import itertools

from kdnas.core.space import SearchSpace
from kdnas.errors import Problem
from kdnas.study.config import BLOCKS, DISTIL, StudyConfig
from kdnas.study.members import registry_of

_AMOUNT = "epochs x data_fraction x resolution_fraction^2"


def rung_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the rungs of `config` and with their starts; `where` is the dotted key."""
    problems = _each(config)
    if not problems and config.rungs:
        problems += _ladder(config)
    if config.tune and any(fidelity.epochs == 0 and fidelity.start != "random" for fidelity in config.fidelities):
        what = "a score without training does not depend on how a student is trained, so nothing can be tuned by it"
        problems.append(Problem("tune", what))
    if config.evaluator.type != DISTIL and config.starts != {"random"}:
        what = f"the evaluator {config.evaluator.called} begins from no weights of kdnas's"
        problems.append(Problem(_where(config, config.starts - {"random"}), what, f"the evaluator {DISTIL}"))
    return problems


def start_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return why students of `space` cannot begin as in `config`, as far as the names alone decide it."""
    problems = []
    starts = config.starts - {"random"}
    if starts and (why := registry_of("students").get(space.family).only_random(space)):
        problems.append(Problem(_where(config, starts), why, "random"))
    if config.shares_weights and not _shares(space.family):
        what = f"students of {space.family} cannot share weights in a supernet, which the start supernet needs"
        problems.append(Problem("space", what))
    if "nested" in config.starts and not _nests(space.family):
        what = f"students of {space.family} are not cut out of one another"
        problems.append(Problem("final.start", what, "students cut out of their teacher (`space: {derive: teacher}`)"))
    if "inherited" in config.starts and (what := _no_ancestor(config, space)):
        allowed = f"random, or a teacher `type: student, family: {space.family}`"
        problems.append(Problem(_where(config, {"inherited"}), what, allowed))
    inherits = config.shares_weights and config.supernet is not None and config.supernet.inherit_teacher
    if inherits and (what := _no_ancestor(config, space)):
        allowed = f"false, or a teacher `type: student, family: {space.family}`"
        problems.append(Problem("supernet.inherit_teacher", what, allowed))
    return problems


def table_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return the costs that a table is to price, where it cannot price students of `space`."""
    if not registry_of("students").get(space.family).derived:
        return []
    what = "a latency table adds up operators, and those of students cut out of a teacher are that one's own"
    priced = [name for name, options in config.costs.items() if options.get("table") is not None]
    return [Problem(f"costs.{name}.table", what, "left out: every student is measured") for name in priced]


def library_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return why there can be no block library for the sampler that solves one, as far as the names alone decide it."""
    if config.sampler.type != BLOCKS:
        return []
    if config.evaluator.type != DISTIL:
        what = f"{BLOCKS} solves a library of the teacher's blocks, which the evaluator {config.evaluator.called} lacks"
        return [Problem("sampler", what, f"the evaluator {DISTIL}")]
    if registry_of("students").get(space.family).derived:
        return []
    what = f"{BLOCKS} solves a library of the teacher's blocks, and students of {space.family} are not made of those"
    return [Problem("sampler", what, "students cut out of their teacher (`space: {derive: teacher}`)")]


def _shares(family: str) -> bool:
    from kdnas.students import StudentFamily

    return registry_of("students").get(family).supernet is not StudentFamily.supernet


def _nests(family: str) -> bool:
    from kdnas.students import StudentFamily

    return registry_of("students").get(family).cut_on is not StudentFamily.cut_on


def _no_ancestor(config: StudyConfig, space: SearchSpace) -> str:
    """Return why the teacher has no weights for students of `space`; empty where it may have some."""
    teacher = config.teacher
    if config.evaluator.type != DISTIL or registry_of("students").get(space.family).derived:
        return ""  # reported elsewhere, or of the teacher's own kind
    if teacher is None:
        return "the study has no teacher: no weights can be inherited"
    of = teacher.options.get("family") if teacher.type == "student" else None
    if of == space.family or teacher.type == "run":  # of which family its student is, is seen when it is opened
        return ""
    is_what = f"a {of}" if of else f"not of a student family (its source is {teacher.called})"
    return f"the teacher is {is_what}, the students are {space.family}: no weights can be inherited"


def _where(config: StudyConfig, starts: set[str] | frozenset[str]) -> str:
    """Return the key where one of `starts` is asked for first."""
    rungs = {f"rungs.{index}.start": rung.start for index, rung in enumerate(config.rungs)}
    stated = {"start": config.start, **rungs, "final.start": config.final.start}
    return next((key for key, start in stated.items() if start in starts), "start")


def _each(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with single rungs."""
    problems = []
    for index, (rung, fidelity) in enumerate(zip(config.rungs, config.fidelities, strict=False)):
        where = f"rungs.{index}"
        if fidelity.start == "random" and not rung.epochs:
            what = "is required" if rung.epochs is None else "random weights are no student: they need training"
            problems.append(Problem(f"{where}.epochs", what, "" if rung.epochs is None else "1 or more"))
        elif fidelity.epochs == 0:
            stated = [name for name in ("data_fraction", "resolution_fraction") if getattr(rung, name) is not None]
            what = "a score of weights as they are cut out trains no student"
            problems += [Problem(f"{where}.{name}", what) for name in stated]
            if index > 0:
                what = "scores without training can only be the lowest rung: no training is less than theirs"
                problems.append(Problem(where, what))
    return problems


def _ladder(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the rungs together."""
    problems = []
    fidelities = config.fidelities
    if config.promotion_rule == "model" and not config.has_model:
        what = f"the sampler {config.sampler.type} has no model of what short scores tell"
        problems.append(Problem("promotion.rule", what, "rank, moasha, halving; or sampler: hvi"))
    for index, (low, high) in enumerate(itertools.pairwise(fidelities), 1):
        if low.amount >= high.amount:
            what = f"{high.words} after {low.words}: each needs more {_AMOUNT} than the one before"
            problems.append(Problem(f"rungs.{index}", what))
    full = config.training.fidelity
    if fidelities[-1].amount and fidelities[-1].training != full.training:
        what = f"the last one is the search's full score ({fidelities[-1].words}), but training states {full.words}"
        problems.append(Problem("rungs", what))
    return problems
