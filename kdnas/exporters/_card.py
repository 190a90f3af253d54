"""A model card: what the student is, how good and how costly it was measured to be, how it was made, and its limits.

The sections follow Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kdnas.core.card import Begun, StudentCard, TeacherCard
from kdnas.core.objective import Quantity
from kdnas.core.preprocessing import Preprocessing
from kdnas.core.route import Route
from kdnas.core.task import TaskSpec
from kdnas.core.words import capitalised, counted, label, printable
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.nn.tracing import parameter_count
from kdnas.plugins import short_name


def card_text(student: TrainedStudent) -> str:
    """Return the card. Raises ExportError where the record is of another network."""
    params = parameter_count(student.network)
    recorded = student.card.quantities.get("params")
    if recorded is not None and int(recorded.value) != params:
        raise ExportError(f"the record has {int(recorded.value)} parameters, the network has {params}")
    sections = [
        _title(student),
        _scores(student.card, student.spec.score),
        _costs(student.card, params, student.spec),
        _teacher(student.card, student.spec.score),
        _data(student),
        _making(student),
        _limits(student),
    ]
    return "\n".join(sections)


def _plain(text: str) -> str:
    """Return `text` of a user's files as Markdown that shows it as it is: no link, no picture, no tag of its own."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~$])", r"\\\1", printable(text))


def _title(student: TrainedStudent) -> str:
    return (
        f"# Student {student.arch.arch_id}\n\n"
        f"A `{short_name(student.arch.family)}` network for {short_name(student.spec.kind).replace('_', ' ')}: "
        f"{_inputs(student.spec)} in, {_answers(student.spec)} out.\n\n"
        f"Architecture: `{student.arch.canonical_json}`\n"
    )


def _answers(spec: TaskSpec) -> str:
    if spec.candidates:
        return "the score of the candidate"
    if spec.outputs == 1:
        return "one number"
    return f"{spec.outputs:,} {'classes' if spec.rows == 1 else 'scores a token'}"


def _inputs(spec: TaskSpec) -> str:
    taken = spec.inputs[0]
    if spec.candidates:
        return f"a query with one candidate, {taken.shape[0]} {taken.name},"
    if taken.kind == "floats":
        return f"{' x '.join(map(str, taken.shape))} numbers"
    if taken.kind != "pixels":
        return f"{taken.shape[0]} {taken.name}"
    channels, height, width = spec.image_shape
    colour = {1: "greyscale", 3: "RGB"}.get(channels, f"{channels}-channel")
    return f"{height} x {width} {colour} images"


def _scores(card: StudentCard, score: Quantity) -> str:
    name, rows = label(score.name), []
    for entry, what in ((card.validation, "held-out validation split"), (card.test, "test split")):
        if entry is not None:
            rows.append(f"| {what} | {_number(score, entry.mean)} | {_interval(entry.ci95)} | {entry.trainings} |")
    if not rows:
        return f"## {capitalised(name)}\n\nNot measured.\n"
    table = f"| on | mean {name} | 95 % interval | trainings |\n|---|---|---|---|\n" + "\n".join(rows)
    weights, these, alone = card.weights, "", ""
    if weights is not None:
        these = f"\n\nThe weights in this folder are those of the training with seed {weights.seed}"
        numbers = _of_splits(score, weights.score, weights.test_score)
        these += f" ({numbers})" if numbers else ""
        these += f", {weights.chosen_by}." if weights.chosen_by else "."
    if card.control is not None:
        numbers = _of_splits(score, card.control.validation, card.control.test)
        alone = f"\n\nTrained once on labels alone and as long: {numbers}."
    return f"## {capitalised(name)}\n\n{table}{these}{alone}\n{_further(card)}"


def _number(score: Quantity, value: float) -> str:
    """Return a score as a bare number: a fraction or a correlation to four places."""
    return f"{value:.4f}" if score.is_bounded else score.shown(value)


def _interval(ci95: float | None) -> str:
    if ci95 is None:
        return "unknown (one training)"
    return f"± {ci95:.4g}" if ci95 >= 1 else f"± {ci95:.4f}"


def _further(card: StudentCard) -> str:
    """Return a table of what else is known on the test split; empty where nothing is."""
    rows = []
    for name, entry in card.further.items():
        teacher = "-" if entry.teacher is None else f"{entry.teacher:.4f}"
        rows.append(f"| {label(name)} | {entry.mean:.4f} | {_interval(entry.ci95)} | {teacher} |")
    if not rows:
        return ""
    head = "| on the test split | mean | 95 % interval | the teacher |\n|---|---|---|---|\n"
    return f"\n{head}" + "\n".join(rows) + "\n"


def _of_splits(score: Quantity, validation: float | None, test: float | None) -> str:
    known = {"validation": validation, "test": test}
    name = label(score.name)
    return ", ".join(f"{split} {name} {_number(score, value)}" for split, value in known.items() if value is not None)


def _costs(card: StudentCard, params: int, spec: TaskSpec) -> str:
    lines = ["| quantity | value | unit | spread (interquartile) | how it was measured |", "|---|---|---|---|---|"]
    macs = card.quantities.get("macs")
    if macs is not None:
        given = "one candidate with its query" if spec.candidates else "batch 1"
        counted = f"closed form: convolutions, linear layers and matrix products, {given}"
        lines.append(f"| MACs | {macs.value:,.0f} | multiply-accumulates | - | {counted} |")
        lines.append(f"| FLOPs = 2 x MACs | {2 * macs.value:,.0f} | operations | - | from the MACs |")
    lines.append(f"| params | {params:,} | parameters | - | counted on the network |")
    for name, cost in card.quantities.items():
        if name not in ("macs", "params"):
            spread = f"{cost.spread:.4g}" if cost.spread is not None else "-"
            repeats = f"median of {cost.repeats}; " if cost.repeats else ""
            lines.append(f"| {name} | {cost.value:,.4g} | {cost.unit} | {spread} | {repeats}{cost.context or '-'} |")
    return "## Cost\n\n" + "\n".join(lines) + "\n"


def _teacher(card: StudentCard, score: Quantity) -> str:
    if card.teacher is None:
        return "## Teacher\n\nNone recorded.\n"
    if not card.further_teachers:
        return f"## Teacher\n\n{_one_teacher(card.teacher, card, score)}"
    others = [f"\n`{name}`: {_one_teacher(each, card, score)}" for name, each in card.further_teachers.items()]
    return f"## Teachers\n\n{_one_teacher(card.teacher, card, score)}{''.join(others)}"


def _one_teacher(teacher: TeacherCard, card: StudentCard, score: Quantity) -> str:
    scores = _of_splits(score, teacher.score, teacher.test_score)
    units = {name: cost.unit for name, cost in card.quantities.items()}
    costs = [
        f"{label(name)} "
        + (f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g} {units.get(name, '')}".rstrip())
        for name, value in teacher.values.items()
        if name != score.name
    ]
    notes = "".join(f"\n- {_plain(note)}" for note in teacher.notes)
    numbers = ", ".join(filter(None, [scores, *costs]))
    return f"{_plain(teacher.name)}{': ' if numbers else ''}{numbers}.{notes}\n"


def _data(student: TrainedStudent) -> str:
    data, lines = student.card.data, []
    if data is not None:
        lines = [f"Data set: {_plain(data.name)} (content hash `{data.fingerprint}`).", data.split]
        lines += ["\n".join(f"- {_plain(note)}" for note in data.notes)] if data.notes else []
    given = student.preprocessing
    if isinstance(given, Preprocessing):
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (given.channel_mean, given.channel_std)
        )
        lines.append(f"Pictures are {given.words}.")
        lines.append(f"Input: (pixel - mean) / deviation, pixels 0..255, mean [{mean}], deviation [{std}].")
    elif student.spec.rows > 1:
        lines.append(f"It reads {student.spec.samples} of {student.spec.size} tokens.")
    elif student.spec.candidates:
        read = f"Each of the {student.spec.candidates} candidates of a list is read with its query"
        lines.append(f"{read}, together {given.words}.")
    else:
        lines.append(f"{capitalised(student.spec.samples)} are {given.words}.")
    if given.class_names:
        lines.append(f"Classes: {', '.join(map(_plain, given.class_names))}.")
    return "## Data\n\n" + "\n\n".join(lines) + "\n"


_BEGUN: Mapping[Begun, str] = {
    "random": "from random weights",
    "inherited": "from weights inherited from the teacher",
    "supernet": "from the supernet's weights",
    "nested": "from the weights of the next larger student",
    "plan": "by the steps of plan.yaml",
}


_BEFORE: Mapping[Route, str] = {
    "shrink": "It was cut out of a supernet of larger students",
    "grow": "It grew in a supernet of smaller students",
    "assistants": "Its teacher was a larger student of the front, taught by a larger one or by the study's teacher",
    "born_again": "Its teacher was an earlier generation of itself, taught by the study's teacher",
}


def _making(student: TrainedStudent) -> str:
    training, distillation = student.recipe.get("training", {}), student.recipe.get("distillation", {})
    card, weights, lines = student.card, student.card.weights, []
    if card.study:
        trial = f", trial {card.trial}" if card.trial is not None else ""
        lines.append(f"Found by the search `{card.study}`{trial}{f', with {card.made_by}' if card.made_by else ''}.")
    if weights is not None:
        lines.append(
            f"Trained {_BEGUN[weights.start]} for {counted(weights.epochs, 'epoch')} "
            f"on {100 * weights.data_fraction:g} % of the training part with {training.get('optimizer', 'sgd')}, "
            f"learning rate {training.get('learning_rate', 0):g}, "
            f"batch size {training.get('batch_size', 0)}, computing in {training.get('precision', 'float32')}"
            + (f"; the weights are a moving average of decay {training['ema']:g}." if training.get("ema") else ".")
        )
    if weights is not None and weights.route in _BEFORE:
        before = _BEFORE[weights.route]
        lines.append(f"{before}, trained in these epochs too; train_yaml is of the direct training.")
    terms = [f"{distillation['task_weight']:g} x cross entropy"] if "task_weight" in distillation else []
    terms += [
        f"{term.get('weight', 1.0):g} x {term['type']}" + (f" of {term['of']}" if term.get("of") else "")
        for term in distillation.get("losses", ())
    ]
    if terms:
        lines.append(
            f"Loss: {' + '.join(terms)}. The export format train_yaml writes the whole recipe, with its seeds."
        )
    return "## How it was made\n\n" + ("\n\n".join(lines) or "Not recorded.") + "\n"


def _narrow(spec: TaskSpec) -> str:
    """Return in words what it means to have learnt from one data set."""
    of, others = ("text", "other text") if spec.rows > 1 else (spec.samples, "others")
    only = f"It was trained on the {of} of its data set alone; on {others} it may be much worse."
    if spec.rows > 1 or spec.outputs == 1:
        return only
    return f"{only} It returns one of its {spec.outputs} classes for any input, also for one that belongs to none."


_MEASURED = "Latency and memory hold for the machine and settings named next to them, and for no others."


def _limits(student: TrainedStudent) -> str:
    limits = [
        _narrow(student.spec),
        "Its scores rank candidates and are no probabilities."
        if student.spec.candidates
        else "Its probabilities were not calibrated.",
        *([_MEASURED] if any(cost.repeats for cost in student.card.quantities.values()) else []),
        f"The validation split chose the architecture, so {student.spec.score.name} on it is optimistic; the test "
        "split was not used to choose anything.",
        *student.card.limits,
    ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) + "\n"
