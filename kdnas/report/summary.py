"""A run in plain words: what was searched, what came of it, how far to trust it, what it cost, what failed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdnas.core.fidelity import ROUTE_WORDS, Fidelity
from kdnas.core.interval import holds_next
from kdnas.core.objective import MRR, breaches
from kdnas.core.pick import FEWEST_FOR_A_KNEE, SHORTEST_PREFIX
from kdnas.core.text import BYTES_PER_TOKEN, bits_per_byte
from kdnas.core.words import capitalised, counted
from kdnas.plugins import is_plugin, short_name
from kdnas.record.front import (
    SIGNIFICANCE,
    best_of,
    doublings,
    doubts,
    front,
    hypervolume,
    indistinguishable,
    is_flat,
    is_near_worst,
    knee_of,
    recommended,
    rise,
)
from kdnas.record.lock import SupernetRecord, TeacherReport
from kdnas.record.records import FrontMember, RunRecord
from kdnas.report.architecture import families_in_words
from kdnas.report.searched import stuck_at_bounds, tuned_in_words
from kdnas.report.wording import (
    bound_in_words,
    duration,
    fraction_of,
    label,
    reason_in_words,
    reference_in_words,
    shown,
    shown_interval,
    volume_in_words,
)
from kdnas.study.losses import loss_name
from kdnas.study.updates import updates_in_words
from kdnas.tasks import TASKS
from kdnas.training.recipe import FRONT

_NAMED_PAIRS = 6
_MEASURED = re.compile(r" \([a-z_0-9]+ is -?[0-9][-+.0-9e]*\)")
"""What a student that breaks a constraint has: it differs from trial to trial, the reason does not."""


def what_was_searched(run: RunRecord) -> str:
    """Return one sentence on the study: data, teacher, space, objectives and constraints."""
    config = run.config
    names = [label(objective.name) for objective in run.objectives]
    objectives = f"{', '.join(names[:-1])} and {names[-1]}"
    limits = " and ".join(bound_in_words(bound, run.score) for bound in run.constraints)
    bounds = f", with {limits}" if limits else ""
    classes = f" ({len(run.class_names)} classes)" if run.class_names else ""
    task, costs = run.lock.data.task, ""
    if task is not None and task.candidates:
        classes = f" (lists of {task.candidates} candidates)"
        costs = " Costs are those of scoring one candidate of a list."
    source = f"scored by the evaluator {short_name(config.evaluator.type)}"
    if run.trains and config.data is not None:
        stated = [short_name(teacher.type) for teacher in config.teachers.values()]
        names = [report.name for report in run.teachers.values()] or stated
        alone = "the teacher" if names[:1] == ["teacher"] else f"the teacher {', '.join(names)}"
        teachers = alone if len(names) == 1 else f"the teachers {', '.join(names)}"
        how = f"distilled from {teachers}" if names else "trained without a teacher"
        source = f"for the data set {run.lock.data.name or short_name(config.data.type)}{classes}, {how}"
    searched = f"{_students_of(run)} {source}, for the best trade-off of {objectives}{bounds}.{costs}"
    if (final := config.final.distillation) is None or final == config.distillation:
        return searched
    together = ", which are the other finalists" if final.peers == FRONT else ""
    return f"{searched} Scores are by {loss_name(config.distillation)}, retrainings by {loss_name(final)}{together}."


def _students_of(run: RunRecord) -> str:
    """Return which students were searched: a carried space by its name, a file of the study's own as such."""
    families = list(dict.fromkeys(trial.arch.family for trial in run.trials))
    recorded = run.lock.space.family
    kind = families_in_words(recorded or families[0]) if recorded or families else "students"
    name = run.config.space
    if not isinstance(name, str):
        return "Students cut out of their teacher"
    where = f"the space in {Path(name).name}" if name.endswith((".yaml", ".yml")) else f"the space {name}"
    return f"{capitalised(kind)} of {where}"


def progress(run: RunRecord) -> str:
    """Return how far the run has come, by trial states."""
    if not run.trials:
        return "No trial has been made yet."
    states = Counter(trial.state for trial in run.trials)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    end = f"The search has ended: {run.finished}." if run.finished else "The search has not ended."
    shared = f" Before the first trial: {supernet_in_words(run.supernet)}." if run.supernet else ""
    return f"{counted(len(run.trials), 'trial')}: {counts}.{shared}{_rungs(run)} {end}"


def _rungs(run: RunRecord) -> str:
    """Return how many students were scored at each rung, where there are rungs; nothing else."""
    if not run.config.rungs:
        return ""
    scored = Counter(trial.fidelity for trial in run.trials if trial.state == "complete")
    counts = ", ".join(f"{scored[fidelity]} {fidelity.reached}" for fidelity in run.config.fidelities)
    highest = max((fidelity for fidelity in scored), key=lambda fidelity: fidelity.amount, default=None)
    shown = f" The front is drawn from the scores {highest.reached}." if highest is not None else ""
    return f" Students were scored: {counts}.{shown}"


def unreached_rung(run: RunRecord) -> str:
    """Return that no student was scored at the highest rung, where there are rungs and that is so; else empty."""
    top = run.config.fidelities[-1]
    if not run.config.rungs or any(trial.state == "complete" and trial.fidelity == top for trial in run.trials):
        return ""
    return (
        f"No student was scored {top.reached}, the highest rung. A larger budget or a smaller promotion.eta gets there."
    )


def supernet_in_words(supernet: SupernetRecord) -> str:
    """Return what a run's supernet cost and where it began."""
    inherited = supernet.inherited
    began = "" if inherited is None else f", {100 * inherited:.0f} % of its largest student’s weights from the teacher"
    budget = Fidelity(supernet.epochs, supernet.data_fraction).words
    took = duration(supernet.train_seconds)
    return f"supernet trained in {took} (the work of {budget} of its largest student){began}"


def teacher_numbers(run: RunRecord, teacher: TeacherReport) -> list[tuple[str, str]]:
    """Return a teacher's numbers as (name, value) pairs; FLOPs stand next to MACs."""
    pairs = [(f"validation {label(run.score.name)}", run.score.shown(teacher.score))]
    if teacher.test_score is not None:
        pairs.append((f"test {label(run.score.name)}", run.score.shown(teacher.test_score)))
    return pairs + cost_pairs(run, teacher.values)


def cost_pairs(run: RunRecord, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the costs among `values` as (name, value) pairs, FLOPs = 2 x MACs next to MACs."""
    pairs = []
    for name, value in values.items():
        if name == run.score.name:
            continue
        pairs.append((label(name), shown(name, value, run.score)))
        if name == "macs":
            pairs.append(("FLOPs (2 × MACs)", shown("macs", 2 * value)))
    return pairs


def highlights(run: RunRecord) -> list[tuple[str, FrontMember, str]]:
    """Return (title, student, sentence) for the recommended student, the one with the best score, and the knee.

    The knee only where there is one that nothing speaks against; the sentence compares with the teacher.
    """
    members, chosen = front(run), recommended(run)
    if chosen is None:
        return []
    best, against = best_of(run, members), doubts(run, chosen.member)
    name = "No student to recommend yet; the best one" if against else f"Recommended: {chosen.words}"
    recommends_best = chosen.member.trial.number == best.trial.number
    if not against and recommends_best:
        name = f"Recommended: the student with the best {label(run.score.name)}"
    cards = [(best if against else chosen.member, name)]
    if not against and not recommends_best:
        cards.append((best, f"Best {label(run.score.name)}"))
    if len(members) >= FEWEST_FOR_A_KNEE:
        knee = knee_of(run, members)
        if not doubts(run, knee) and knee.trial.number not in [member.trial.number for member, _ in cards]:
            cards.append((knee, "Knee: the most for the least"))
    return [
        (name, member, " ".join(filter(None, [against_teacher(run, member), in_doubt(run, member)])))
        for member, name in cards
    ]


def in_doubt(run: RunRecord, member: FrontMember) -> str:
    """Return why `member` is no student to recommend, as a sentence; empty where nothing speaks against it."""
    reasons = doubts(run, member)
    return f"Not to be recommended as it is: {'; '.join(reasons)}." if reasons else ""


def control_in_words(run: RunRecord) -> str:
    """Return what distillation, and a route, add to a student that was trained without too; empty where none was."""
    return " ".join(filter(None, (_control_in_words(run, direct=direct) for direct in (False, True))))


def _control_in_words(run: RunRecord, *, direct: bool) -> str:
    members = {member.trial.number: member for member in front(run)}
    asked = [control for control in run.controls if control.direct == direct]
    known = [control for control in asked if control.number in members and control.score is not None]
    if not known:
        return ""
    control, score = known[-1], run.score
    member = members[control.number]
    assert control.score is not None
    distilled = shown_interval(score, member.values[score.name], member.score_ci95)
    went = "direct" if any(repeat.direct for repeat in member.trial.repeats) else run.config.final.route
    if direct and went == "direct":
        return ""  # both are the same training
    route, routed = went.replace("_", " "), went != "direct"
    how, otherwise = (
        ("directly, on the same budget,", ROUTE_WORDS[went])
        if direct
        else ("on labels alone", f"distilled {ROUTE_WORDS[went]}" if routed else "distilled")
    )
    what = f"the route {route}" if direct else f"distillation and the route {route}" if routed else "distillation"
    gain = score.gain(member.values[score.name], control.score)
    alike = holds_next([repeat.score for repeat in member.trial.repeats], control.score)
    adds = f"{what} {'improves' if gain > 0 else 'worsens'} it by {score.shown_points(abs(gain))}"
    if score.shown(control.score) == score.shown(member.values[score.name]):
        adds = f"{what} makes no difference"
    elif alike is not False:
        why = "two single trainings tell little" if alike is None else "which is within noise"
        adds = f"{score.shown_points(abs(gain))} {'more' if gain > 0 else 'less'} by {what}, {why}"
    on_test = ""
    if control.test_score is not None and member.test_score is not None:
        tested = shown_interval(score, member.test_score, member.test_score_ci95)
        on_test = f"; on the test split {score.shown(control.test_score)} and {tested}"
    long = "" if direct else " and as long,"
    return (
        f"Control: student {member.trial.arch.arch_id}, trained once {how}{long} has "
        f"{label(score.name)} {score.shown(control.score)}, {otherwise} {distilled} ({adds}){on_test}."
    )


def bits_in_words(run: RunRecord) -> str:
    """Return the front's perplexities as bits per byte, which other tokenizers do not change; empty without such."""
    per_token, name = run.lock.data.statistics.get(BYTES_PER_TOKEN, ()), run.score.name
    if len(per_token) != 2 or not run.trains:
        return ""

    def row(whose: str, validation: float | None, test: float | None) -> str:
        known = [
            f"{bits_per_byte(score, each):.3f}{where}"
            for score, each, where in zip((validation, test), per_token, ("", " on test"), strict=True)
            if score is not None and score > 0
        ]
        return f"{whose} {', '.join(known)}"

    rows = [row(member.trial.arch.arch_id, member.values.get(name), member.test_score) for member in front(run)]
    rows += [] if run.teacher is None else [row("the teacher", run.teacher.score, run.teacher.test_score)]
    return f"In bits per byte (a token stands for {per_token[0]:.2f} bytes): {'; '.join(rows)}."


def how_split(run: RunRecord) -> str:
    """Return how the task draws validation samples: "drawn class by class"."""
    task = run.lock.data.task
    if task is None:
        return "drawn"
    # A page asks no code of the user's own: it may be somebody else's run.
    return f"drawn by {short_name(task.kind)}" if is_plugin(task.kind) else TASKS.get(task.kind).split_in_words


def updates(run: RunRecord) -> str:
    """Return how many optimiser updates a score and a final training are, and whether those are too few."""
    samples = run.lock.data.training_samples
    return updates_in_words(run.config, samples) if run.trains and samples is not None else ""


def still_rising(run: RunRecord) -> str:
    """Return how far from flat the curves of the front's students are; empty where that is not known.

    Of a perplexity by how much a doubling of the training divides it, since its unit means little far from its end.
    """
    members = front(run)
    rises = {member.trial.number: gain for member in members if (gain := rise(run, member)) is not None}
    if not rises:
        return ""
    rising = [member for member in members if member.trial.number in rises]
    named = [
        f"{_brief_id(member, members)} {_by_doubling(run, member, rises[member.trial.number])}" for member in rising
    ]
    by = "improved {} by (points)" if run.score.is_bounded else "divided {} by"
    rose = f"each doubling of the training {by.format(label(run.score.name))}"
    text = f"From the search’s score to the final one, {rose}: {', '.join(named)}"
    if is_flat(run, max(min(rises[member.trial.number], _room(run, member)) for member in rising)):
        return f"{text}. Their curves are about flat."
    flat = run.config.final.until == "flat"
    what = "final.max_epochs" if flat else "final.epochs, or have kdnas choose them (final.until: flat)"
    return f"{text}. Far from flat: raise {what}."


def _room(run: RunRecord, member: FrontMember) -> float:
    """Return by how much the score of `member` can still rise; infinite without an end."""
    low, high = run.score.range
    end = high if run.score.direction == "maximize" else low
    return run.score.gain(end, member.values[run.score.name])


def _by_doubling(run: RunRecord, member: FrontMember, gain: float) -> str:
    score, doubled = run.score, doublings(member)
    if score.is_bounded or doubled is None:
        return f"{gain / score.point:+.1f}"
    return f"{math.exp(score.lead(member.values[score.name], member.trial.values[score.name]) / doubled):.3g}"


def goals(run: RunRecord) -> str:
    """Return whether students of the front reach the study's goals for the score; empty where it has none."""
    members, wanted = front(run), " and ".join(bound_in_words(goal, run.score) for goal in run.goals)
    if not run.goals or not members:
        return ""
    best = best_of(run, members)
    if not breaches(best.values, run.goals):
        return f"Every student of the front reaches {wanted}."
    brief = "" if best.trial.repeats else ", by a brief score"
    return f"No student reaches {wanted}: the best has {run.score.shown(best.values[run.score.name])}{brief}."


def against_teacher(run: RunRecord, member: FrontMember) -> str:
    """Return "98.1 % of the teacher's accuracy (test split) at 1/12 of its MACs"; empty without a teacher.

    Of a score that is to be small: "1.31 times the teacher's perplexity"; of one that is not above 0, as a correlation
    may be, how far it is from the teacher's.
    """
    teacher = run.teacher
    if teacher is None:
        return ""
    on_test = member.test_score is not None and teacher.test_score is not None
    student = member.test_score if on_test else member.values.get(run.score.name)
    whole = teacher.test_score if on_test else teacher.score
    if student is None or whole is None or (not whole and not run.score.is_bounded):
        return ""
    split = "test" if on_test else "validation"
    high = run.score.direction == "maximize"
    if min(student, whole) <= 0:
        gain = run.score.gain(student, whole)
        times = f"{run.score.shown_points(abs(gain))} {'above' if gain >= 0 else 'below'}"
    else:
        times = f"{100 * student / whole:.1f} % of" if high else f"{student / whole:.2f} times"
    text = f"{times} the teacher’s {label(run.score.name)} ({split} split)"
    costs = [name for name in ("macs", "latency_ms") if name in member.values and teacher.values.get(name)]
    shares = [f"{fraction_of(member.values[name], teacher.values[name])} of its {label(name)}" for name in costs]
    return f"{text} at {' and '.join(shares)}." if shares else f"{text}."


def near_chance(run: RunRecord) -> str:
    """Return which members of the front are hardly better than guessing (`is_near_worst`); else empty."""
    members = front(run)
    poor = [member for member in members if is_near_worst(run, member.values[run.score.name])]
    if not poor:
        return ""
    named = ", ".join(_brief_id(member, members) for member in poor)
    return (
        f"Hardly better than guessing, which has {shown(run.score, run.worst)}: {named}. "
        "Train longer, at another learning rate, or allow larger students."
    )


def distinguishing(run: RunRecord) -> str:
    """Return which members of the front do not differ in score, and by which test; empty below two members."""
    members = front(run)
    if len(members) < 2:
        return ""
    score = label(run.score.name)
    alike = indistinguishable(members)
    if all(others is None for others in alike.values()):
        return f"No member was trained twice, so which of them differ in {score} cannot be tested."
    order = {member.trial.number: place for place, member in enumerate(members)}
    pairs = [
        (member, other)
        for member in members
        for other in alike[member.trial.number] or ()
        if order[member.trial.number] < order[other.trial.number]
    ]
    test = f"Welch’s t-test over the retrainings, {100 * SIGNIFICANCE:g} %, each pair by itself"
    if not pairs:
        return f"Every pair of the front differs in {score} ({test})."
    named = ", ".join(f"{_brief_id(a, members)} and {_brief_id(b, members)}" for a, b in pairs[:_NAMED_PAIRS])
    more = f" and {len(pairs) - _NAMED_PAIRS} pairs more" if len(pairs) > _NAMED_PAIRS else ""
    return f"Not distinguishable in {score}: {named}{more} ({test})."


def _brief_id(member: FrontMember, members: Sequence[FrontMember]) -> str:
    """Return the shortest beginning of a member's arch_id that `--pick` takes and no other member shares."""
    own = member.trial.arch.arch_id
    others = [other.trial.arch.arch_id for other in members if other is not member]
    return next(
        (own[:n] for n in range(SHORTEST_PREFIX, len(own)) if not any(o.startswith(own[:n]) for o in others)), own
    )


def trust(run: RunRecord) -> list[str]:
    """Return what the numbers rest on, one sentence each."""
    members = front(run)
    retrained = [member for member in members if member.trial.repeats]
    sentences = [_validation_sentence(run), *filter(None, [unreached_rung(run)])]
    sentences += [f"The data: {note}." for note in run.data_notes]
    if retrained:
        seeds = sorted({len(member.trial.repeats) for member in retrained})
        asked = run.config.final.seeds
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        again = f"retrained {run.config.final_fidelity.origin}" if run.trains else "scored again"
        sentences.append(
            f"The front’s students were {again} with {count} "
            + (
                "seed, which gives no interval. "
                if seeds == [1]
                else "seeds; scores are means with Student’s t intervals of 95 %. "
            )
            + "The front was recomputed from them."
        )
        if directly := [m.trial.arch.arch_id for m in retrained if any(repeat.direct for repeat in m.trial.repeats)]:
            whose, were = ("student", "was") if len(directly) == 1 else ("students", "were")
            way = f"could not be trained {ROUTE_WORDS[run.config.final.route]} and {were} trained directly"
            sentences.append(f"The {whose} {', '.join(directly)} {way}.")
        if seeds[0] < asked:
            sentences.append(f"Retraining is not finished: {asked} seeds a student were asked for.")
        if seeds[0] == 1 and len(seeds) > 1:
            sentences.append("A single seed gives no interval.")
        whose = "these retrained students" if run.teacher is None else "these retrained students and the teacher"
        split = f"The test split was used for {whose} alone; it chose nothing."
        varied = f"Intervals cover the variation between trainings, not the sampling of {run.samples}."
        kept = [*([split] if run.trains else []), *([varied] if seeds != [1] else [])]
        sentences += [" ".join(kept)] if kept else []
    elif members:
        sentences.append(
            "Nothing is retrained yet: the front rests on brief scores of one seed each, of which the best are "
            "optimistic." + (" The test split has not been used for any student." if run.trains else "")
        )
    sentences += filter(None, [bits_in_words(run), control_in_words(run), still_rising(run)])
    volume = hypervolume(run)
    if volume is not None and members:
        point = reference_in_words(run)
        sentences.append(f"Hypervolume of the front: {volume_in_words(volume)}, below the reference point {point}.")
    return [*sentences, *tuned_in_words(run), *stuck_at_bounds(run), *_measurement_sentences(run)]


def costs(run: RunRecord) -> list[tuple[str, str]]:
    """Return where the time went, as (what, how much) pairs."""
    training = sum(trial.train_seconds for trial in run.trials)
    teaching = sum(trial.teacher_seconds for trial in run.trials)
    lost = sum(trial.train_seconds for trial in run.trials if trial.state in ("failed", "interrupted"))
    retraining = sum(repeat.train_seconds for trial in run.trials for repeat in trial.repeats)
    repeats = sum(len(trial.repeats) for trial in run.trials)
    begun = [trial.started for trial in run.trials if trial.started is not None]
    ended = [trial.ended for trial in run.trials if trial.ended is not None]
    pairs = []
    if run.supernet is not None:
        pairs.append(("training the supernet, before the first trial", duration(run.supernet.train_seconds)))
    if begun and ended:
        pairs.append(
            ("from the first trial to the end of the last", duration((max(ended) - min(begun)).total_seconds()))
        )
    share = (
        f", {100 * teaching / training:.0f} % of it the teacher’s" if training > 0 and run.teacher is not None else ""
    )
    pairs.append((f"training in {counted(len(run.trials), 'trial')}", duration(training) + share))
    if lost > 0:
        pairs.append(("of that, lost to failed and interrupted trials", duration(lost)))
    if repeats:
        pairs.append((f"retraining the finalists, {counted(repeats, 'training')}", duration(retraining)))
    return pairs


def failures(run: RunRecord) -> list[tuple[str, str, list[int]]]:
    """Return (state, reason, trial numbers) of every trial that gave no score of the search, most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in run.trials:
        if trial.state in ("failed", "infeasible", "interrupted"):
            reason = _MEASURED.sub("", reason_in_words(trial.reason, run.score)) or "no reason recorded"
            groups.setdefault((trial.state, reason), []).append(trial.number)
    for other in run.others:
        groups.setdefault(("left out", other.reason), []).append(other.number)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0]))
    return [(state, reason, numbers) for (state, reason), numbers in ordered]


def _validation_sentence(run: RunRecord) -> str:
    if not run.trains or run.config.data is None:
        return f"Search scores are those that the evaluator {short_name(run.config.evaluator.type)} returned."
    count = run.lock.data.validation_samples
    size = run.samples if count is None else f"{count} {run.samples}"
    fraction = run.config.data.validation_fraction
    origin = f"carved from the training data ({100 * fraction:g} % of it, {how_split(run)})"
    if run.lock.data.validation_stated:
        origin = "of the data’s own validation split"
    text = (
        f"Search scores are brief (one training, one seed, {run.config.fidelities[-1].words}) and are made on "
        f"{size} {origin}."
    )
    if count and run.score.is_fraction:
        # Half the 95 % interval of a binomial at 0.9, the usual neighbourhood of a useful student. Numbers in 0 to 1
        # that are not all 0 or 1, as reciprocal ranks are, vary less.
        error = f"{'at most ' if run.score == MRR else ''}± {196 * (0.09 / count) ** 0.5:.1f} points"
        text += f" At 90 %, {label(run.score.name)} on so many {run.samples} has a sampling error of {error} (95 %)."
    return text


def _measurement_sentences(run: RunRecord) -> list[str]:
    contexts: dict[str, set[str]] = {}
    for trial in run.trials:
        for name, taken in trial.measurements.items():
            contexts.setdefault(name, set()).add(taken.context)
    return [
        f"{label(name).capitalize()} is measured: {'; '.join(sorted(found))}."
        for name, found in contexts.items()
        if len(found) <= 3
    ]
