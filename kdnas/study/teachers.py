"""What must hold between the teachers of a study and the losses that name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kdnas.core.objective import score_named
from kdnas.core.pick import parse_pick
from kdnas.core.route import GENERATIONS, PROGRESSIVE
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import is_plugin, short_name
from kdnas.study.config import DISTIL, DerivedSpace, StudyConfig
from kdnas.training.recipe import ENSEMBLE, FRONT, LEARNING, MOST_PEERS, PEERS, RESERVED, SELF


def teacher_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with whom the losses of `config`, and of its finalists, learn of; by the dotted key."""
    problems, finalists = _teacher_problems(config), config.final.distillation
    if finalists is not None:
        known = {problem.what for problem in problems}
        final = _teacher_problems(config.model_copy(update={"distillation": finalists}))
        theirs = [
            problem for problem in final if problem.where.startswith("distillation") and problem.what not in known
        ]
        problems += [replace(problem, where=f"final.{problem.where}") for problem in theirs]
    return problems


def _teacher_problems(config: StudyConfig) -> list[Problem]:
    distillation, names = config.distillation, list(config.teachers)
    if not names and config.evaluator.type == DISTIL:
        return [*_problems_without(config), *_unread(config), *_route_problems(config)]
    terms = [term for term in distillation.losses if term.weight > 0]
    problems = [*_weight_problems(config), *_specialist_problems(config), *_unread(config), *_route_problems(config)]
    if len(names) < 2 and distillation.ensemble is None and all(term.of is None for term in terms):
        return problems
    from kdnas.training.loss import needs_by_teacher  # here, because it brings torch

    try:
        asked = needs_by_teacher(distillation, names)
    except ConfigError as error:
        return [*problems, *error.problems]
    # A student that learns of what is no teacher is still compared with the one of the study.
    compared = isinstance(config.space, DerivedSpace) or any(term.of in LEARNING for term in terms)
    kept = {config.teacher_name} if compared else set()
    problems += [
        Problem(
            "teacher" if name == config.teacher_name else f"further_teachers.{name}",
            f"no loss learns of the teacher {name}",
            f"a loss with `of: {name}` or `of: {ENSEMBLE}`, or the study without it",
        )
        for name in names
        if name not in asked and name not in kept
    ]
    how = distillation.ensemble
    if how is not None and not any(distillation.whose(term, names) == ENSEMBLE for term in terms):
        problems.append(Problem("distillation.ensemble", f"no loss learns of it: none has `of: {ENSEMBLE}`"))
    if how is not None and isinstance(how.weights, Mapping):
        where = "distillation.ensemble.weights"
        allowed = ", ".join(names)
        problems += [
            Problem(f"{where}.{name}", f"no teacher is called {name!r}", allowed)
            for name in how.weights
            if name not in names
        ]
        if not any(how.weights.get(name, 0.0) > 0 for name in names):
            problems.append(Problem(where, "all of them are 0: nobody is listened to", f"one above 0 of {allowed}"))
    return problems + _learning_problems(config)


def _problems_without(config: StudyConfig) -> list[Problem]:
    """Return what in a study that has no teacher asks for one."""
    terms = list(enumerate(config.distillation.losses))
    names, others = "peers, ema or self", "or `distillation: {losses: []}`, the labels alone"
    if isinstance(config.space, DerivedSpace):
        return [Problem("teacher", "is what students are cut out of, and it is not stated")]
    if "losses" not in config.distillation.model_fields_set:
        what = "is what students learn of unless losses say otherwise, and it is not stated"
        return [Problem("teacher", what, f"a teacher; losses `of:` {names}; {others}")]
    problems = [
        Problem(
            f"distillation.losses.{index}",
            f"{short_name(term.type)} learns of a teacher, and the study has none",
            f"a teacher; `of:` {names}; {others}",
        )
        for index, term in terms
        if term.weight > 0 and term.of not in LEARNING
    ]
    if config.shares_weights:
        what = "the networks of a supernet learn of a teacher, and the study has none"
        problems.append(Problem("supernet", what, "a teacher, or rungs without `start: supernet`"))
    proxy = config.training.proxy
    if proxy is not None and proxy.type != "random" and not is_plugin(proxy.type):
        what = f"{proxy.called} chooses samples by the features of a teacher, and the study has none"
        problems.append(Problem("training.proxy", what, "random"))
    pick = parse_pick(config.export.pick, config.score)
    if (pick.near is not None and pick.near.to == "teacher") or any(bound.percent for bound in pick.bounds):
        what = f"{config.export.pick} speaks of the teacher, and the study has none"
        problems.append(Problem("export.pick", what, "best, near-best, knee, or bounds in numbers"))
    return problems + _learning_problems(config)


def _unread(config: StudyConfig) -> list[Problem]:
    """Return the settings of who teaches that are stated and that no loss reads."""
    from kdnas.losses import LOSSES  # here, because it brings torch

    how, taught = config.distillation, False
    for term in how.losses:
        try:
            reads = "logits" in LOSSES.get(term.type).needs
        except (ConfigError, ImportError):
            return []  # reported elsewhere
        taught |= term.weight > 0 and term.of not in LEARNING and reads
    unread = [] if taught and config.teachers else ["teacher_top_k", "teacher_draws"]
    unread += [] if config.teachers else ["ensemble"]
    what = "is stated, and no loss reads what it is about: the logits of a teacher"
    return [Problem(f"distillation.{name}", what) for name in unread if getattr(how, name) is not None]


def _route_problems(config: StudyConfig) -> list[Problem]:
    """Return why finalists cannot take the route that the study wants."""
    route, terms = config.final.route, (config.final.distillation or config.distillation).losses
    if route == "direct":
        return []
    if config.evaluator.type != DISTIL:
        return [Problem("final.route", f"{config.evaluator.called} trains no students here", "direct")]
    sources = {term.of for term in terms if term.weight > 0 and term.of not in LEARNING}
    if not config.teachers or not sources:
        what = f"no loss learns of a teacher, which the route {route} is for"
        return [Problem("final.route", what, "direct")]
    if route in PROGRESSIVE:
        return _supernet_problems(config)
    if len(sources) > 1 or any(teacher.data or teacher.task for teacher in config.teachers.values()):
        what = f"the route {route} puts one network in all teachers' place, and they teach different things"
        return [Problem("final.route", what, "direct")]
    if route == "born_again" and config.final_fidelity.epochs < GENERATIONS:
        return [Problem("final.epochs", f"each of {GENERATIONS} generations takes one", f"{GENERATIONS} or more")]
    return []


def _supernet_problems(config: StudyConfig) -> list[Problem]:
    """Return why no supernet of finalists' larger or smaller kin can be trained."""
    where, how = "final.route", config.final.distillation or config.distillation
    if config.final_fidelity.epochs < 2:
        return [Problem("final.epochs", "the supernet takes one of them, the student another", "2 or more")]
    if config.final_fidelity.start == "supernet":
        return [Problem(where, "students begin with the weights of the run's supernet already", "direct")]
    if wrong := next((term.of for term in how.losses if term.weight > 0 and term.of in LEARNING), None):
        return [Problem(where, f"a supernet's networks learn of teachers, and {wrong} is {RESERVED[wrong]}", "direct")]
    if how.on_policy is not None:
        return [Problem(where, "a supernet's networks learn of the data alone, and on_policy is stated", "direct")]
    if any(teacher.task for teacher in config.teachers.values()):
        what = "a supernet's networks learn of each other what all tasks ask, and a specialist answers one"
        return [Problem(where, what, "direct")]
    return []


def _weight_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with cutting students out of a teacher which is given other samples than they."""
    if config.teacher is None or config.teacher.data is None or not isinstance(config.space, DerivedSpace):
        return []
    what = "a network of other samples has no weights for students of the study's"
    return [Problem("teacher.data", what, "a first teacher without `data`, or a space of a student family")]


def _specialist_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with teachers that answer one of several tasks, and with scores of one."""
    of_tasks = [name for name in config.objectives if "." in name and score_named(name) is not None]
    problems = []
    if of_tasks and config.shares_weights:
        what = f"a supernet's students are scored on all tasks together, and {of_tasks[0]} is of one"
        problems.append(Problem("objectives", what, config.score.name))
    for name, teacher in config.teachers.items():
        where = "teacher.task" if name == config.teacher_name else f"further_teachers.{name}.task"
        if teacher.task is not None and teacher.data is not None:
            problems.append(Problem(where, "is one of the study's own tasks, and this teacher is given other samples"))
        elif teacher.task is not None and config.shares_weights:
            what = "a supernet's networks learn of each other what all tasks ask, and a specialist answers one"
            problems.append(Problem(where, what, "rungs without `start: supernet`, or a teacher of all tasks"))
        elif teacher.task is not None and name == config.teacher_name and isinstance(config.space, DerivedSpace):
            what = "students are cut out of the first teacher, and a specialist answers one task of theirs"
            problems.append(Problem(where, what, "a first teacher of all tasks, or a space of a student family"))
    return problems


def _learning_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with losses whose source learns too."""
    from kdnas.losses import LOSSES  # here, because it brings torch
    from kdnas.students import stated_arch

    problems, others = [], config.distillation.peers if isinstance(config.distillation.peers, tuple) else ()
    for place, peer in enumerate(others):
        try:
            stated_arch(peer.family, peer.choices)
        except ConfigError as error:
            problems += [replace(each, where=f"distillation.peers.{place}.{each.where}") for each in error.problems]
    own = config.distillation.peers
    if own == FRONT and config.distillation is not config.final.distillation:
        what = "only finalists have a front whose students learn together"
        problems.append(Problem("distillation.peers", what, "final.distillation.peers, or a number, or their choices"))
    elif own == FRONT and config.final.max_students > MOST_PEERS:
        what = f"at most {MOST_PEERS} students learn together, and {config.final.max_students} may be finalists"
        problems.append(Problem("distillation.peers", what, f"final.max_students: {MOST_PEERS}, or less"))
    for index, term in enumerate(config.distillation.losses):
        where = f"distillation.losses.{index}.of"
        if term.weight <= 0 or term.of not in LEARNING:
            continue
        if config.shares_weights:
            what = f"a supernet's networks learn of teachers, and {term.of} is {RESERVED[term.of]}"
            problems.append(Problem(where, what, "a teacher, or rungs without `start: supernet`"))
        elif term.of == PEERS and (others or own == FRONT) and LOSSES.get(term.type).needs != {"logits"}:
            what = f"{short_name(term.type)} reads more than logits, and students of other kinds share nothing else"
            problems.append(Problem(where, what, "a loss on logits, or `peers: 2`: students of its kind"))
        elif term.of == PEERS and config.starts != {"random"} and not others and own != FRONT:
            begun = ", ".join(sorted(config.starts - {"random"}))
            what = f"peers that begin {begun} are equal and stay so: there is nothing to learn of each other"
            problems.append(Problem(where, what, "`start: random`, or of: ema"))
        elif term.of == SELF and not LOSSES.get(term.type).of_itself:
            what = f"{short_name(term.type)} of what the student itself gives is at its least already"
            allowed = ", ".join(name for name in LOSSES.names() if LOSSES.get(name).of_itself)
            problems.append(Problem(where, what, allowed))
    return problems
