"""A model card: what the student is, how good and how costly it was measured to be, how it was made, and its limits.

The sections follow Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import TaskSpec
from kdnas.core.words import capitalised, counted, printable
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.nn.tracing import parameter_count
from kdnas.plugins import short_name


def card_text(student: TrainedStudent) -> str:
    """Return the card. Raises ExportError where the record is of another network."""
    params = parameter_count(student.network)
    recorded = student.card.get("quantities", {}).get("params", {}).get("value")
    if recorded is not None and int(recorded) != params:
        raise ExportError(f"the record says {int(recorded)} parameters, the network has {params}")
    sections = [
        _title(student),
        _scores(student.card, student.spec.score.name),
        _costs(student.card, params),
        _teacher(student.card, student.spec.score.name),
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
        f"{_inputs(student.spec)} in, "
        f"{student.spec.outputs:,} {'classes' if student.spec.rows == 1 else 'scores a token'} out.\n\n"
        f"Architecture: `{student.arch.canonical_json}`\n"
    )


def _inputs(spec: TaskSpec) -> str:
    taken = spec.inputs[0]
    if taken.kind == "floats":
        return f"{' x '.join(map(str, taken.shape))} numbers"
    if taken.kind != "pixels":
        return f"{taken.shape[0]} {taken.name}"
    channels, height, width = spec.image_shape
    colour = {1: "greyscale", 3: "RGB"}.get(channels, f"{channels}-channel")
    return f"{height} x {width} {colour} images"


def _scores(card: Mapping[str, Any], score: str) -> str:
    rows = []
    for split, what in (("validation", "held-out validation split"), ("test", "test split")):
        entry = card.get("accuracy", {}).get(split)
        if entry is not None and entry.get("mean") is not None:
            interval = f"± {entry['ci95']:.4f}" if entry.get("ci95") is not None else "not known (one training)"
            rows.append(f"| {what} | {entry['mean']:.4f} | {interval} | {entry['trainings']} |")
    if not rows:
        return f"## {score.capitalize()}\n\nNot measured.\n"
    table = f"| on | mean {score} | 95 % interval | trainings |\n|---|---|---|---|\n" + "\n".join(rows)
    weights = card.get("weights", {})
    these = f"\n\nThe weights in this folder are those of the training with seed {weights['seed']}" if weights else ""
    if weights.get("accuracy") is not None:
        these += f" (validation {score} {weights['accuracy']:.4f}"
        these += f", test {score} {weights['test_accuracy']:.4f}" if weights.get("test_accuracy") is not None else ""
        these += ")"
    if weights.get("chosen_by"):
        these += f", {weights['chosen_by']}"
    control = card.get("control")
    alone = ""
    if control is not None:
        numbers = [f"{split} {score} {value:.4f}" for split, value in control.items() if value is not None]
        alone = f"\n\nTrained once without its teacher, by cross entropy alone and as long: {', '.join(numbers)}."
    return f"## {score.capitalize()}\n\n{table}{these}{'.' if these else ''}{alone}\n{_further(card)}"


def _further(card: Mapping[str, Any]) -> str:
    """Return a table of what else is known on the test split; empty where nothing is."""
    rows = []
    for name, entry in card.get("further", {}).items():
        interval = f"± {entry['ci95']:.4f}" if entry.get("ci95") is not None else "not known (one training)"
        teacher = "-" if entry.get("teacher") is None else f"{entry['teacher']:.4f}"
        rows.append(f"| {name} | {entry['mean']:.4f} | {interval} | {teacher} |")
    if not rows:
        return ""
    head = "| on the test split | mean | 95 % interval | the teacher |\n|---|---|---|---|\n"
    return f"\n{head}" + "\n".join(rows) + "\n"


def _costs(card: Mapping[str, Any], params: int) -> str:
    quantities = dict(card.get("quantities", {}))
    lines = ["| quantity | value | unit | spread (interquartile) | how it was measured |", "|---|---|---|---|---|"]
    macs = quantities.pop("macs", None)
    if macs is not None:
        counted = "closed form: convolutions, linear layers and matrix products, batch 1"
        lines.append(f"| MACs | {macs['value']:,.0f} | multiply-accumulates | - | {counted} |")
        lines.append(f"| FLOPs = 2 x MACs | {2 * macs['value']:,.0f} | operations | - | from the MACs |")
    quantities.pop("params", None)
    lines.append(f"| params | {params:,} | parameters | - | counted on the network |")
    for name, entry in quantities.items():
        spread = f"{entry['spread']:.4g}" if entry.get("spread") is not None else "-"
        context = entry.get("context") or "-"
        repeats = f"median of {entry['repeats']}; " if entry.get("repeats") else ""
        lines.append(f"| {name} | {entry['value']:,.6g} | {entry.get('unit', '')} | {spread} | {repeats}{context} |")
    return "## Cost\n\n" + "\n".join(lines) + "\n"


def _teacher(card: Mapping[str, Any], score: str) -> str:
    teacher = card.get("teacher")
    if not teacher:
        return "## Teacher\n\nNone recorded.\n"
    accuracies = [
        f"{split} {score} {teacher[key]:.4f}"
        for key, split in (("accuracy", "validation"), ("test_accuracy", "test"))
        if teacher.get(key) is not None
    ]
    units = {name: entry.get("unit", "") for name, entry in card.get("quantities", {}).items()}
    costs = [
        f"{name} {value:,.0f}" if float(value).is_integer() else f"{name} {value:,.6g} {units.get(name, '')}".rstrip()
        for name, value in teacher.get("values", {}).items()
        if name != "accuracy"
    ]
    notes = "".join(f"\n- {_plain(note)}" for note in teacher.get("notes", ()))
    numbers = ", ".join([*accuracies, *costs])
    return f"## Teacher\n\n{_plain(teacher['name'])}{': ' if numbers else ''}{numbers}.{notes}\n"


def _data(student: TrainedStudent) -> str:
    data = student.card.get("data", {})
    lines = [f"Data set: {_plain(data['name'])} (content hash `{data['fingerprint']}`)."] if data else []
    if data.get("split"):
        lines.append(data["split"])
    if data.get("notes"):
        lines.append("\n".join(f"- {_plain(note)}" for note in data["notes"]))
    given = student.preprocessing
    if isinstance(given, Preprocessing):
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (given.channel_mean, given.channel_std)
        )
        lines.append(f"Pictures are {given.words}.")
        lines.append(f"Input: (pixel - mean) / deviation, pixels 0..255, mean [{mean}], deviation [{std}].")
    else:
        lines.append(f"{capitalised(student.spec.samples)} are {given.words}.")
    if given.class_names:
        lines.append(f"Classes: {', '.join(map(_plain, given.class_names))}.")
    return "## Data\n\n" + "\n\n".join(lines) + "\n"


_BEGUN = {
    "random": "from random weights",
    "inherited": "from weights inherited from the teacher",
    "supernet": "from the supernet's weights",
    "nested": "from the weights of the next larger student",
    "plan": "by the steps of plan.yaml",
}


def _making(student: TrainedStudent) -> str:
    training, distillation = student.recipe.get("training", {}), student.recipe.get("distillation", {})
    weights = student.card.get("weights", {})
    lines = []
    if student.card.get("study"):
        lines.append(
            f"Found by the search `{student.card['study']}`"
            + (f", trial {student.card['trial']}" if student.card.get("trial") is not None else "")
            + (f", with {student.card['made_by']}." if student.card.get("made_by") else ".")
        )
    epochs = weights.get("epochs", training.get("epochs"))
    if epochs is not None:
        fraction = weights.get("data_fraction", training.get("data_fraction", 1.0))
        lines.append(
            f"Trained {_BEGUN[weights.get('start', 'random')]} for {counted(epochs, 'epoch')} "
            f"on {100 * fraction:g} % of the training part with {training.get('optimizer', 'sgd')}, "
            f"learning rate {training.get('learning_rate', 0):g}, "
            f"batch size {training.get('batch_size', 0)}, computing in {training.get('precision', 'float32')}"
            + (f"; the weights are a moving average of decay {training['ema']:g}." if training.get("ema") else ".")
        )
    terms = [f"{distillation['task_weight']:g} x cross entropy"] if "task_weight" in distillation else []
    terms += [f"{term.get('weight', 1.0):g} x {term['type']}" for term in distillation.get("losses", ())]
    if terms:
        lines.append(
            f"Loss: {' + '.join(terms)}. The whole recipe, with its seeds, is what the format train_yaml writes."
        )
    return "## How it was made\n\n" + ("\n\n".join(lines) or "Not recorded.") + "\n"


def _narrow(spec: TaskSpec) -> str:
    """Return in words what it means to have learnt from one data set."""
    only = f"It has only ever seen {spec.samples} like those of its data set"
    if spec.rows > 1:
        return f"{only}."
    return f"{only}; it answers one of its {spec.outputs} classes for any of them, also for one that is of no class."


def _limits(student: TrainedStudent) -> str:
    limits = [
        _narrow(student.spec),
        "Its probabilities were not calibrated.",
        "Latency and memory hold for the machine and settings named beside them, and for no others.",
        f"The validation split chose the architecture, so {student.spec.score.name} on it is optimistic; the test "
        "split was not used to choose anything.",
        *student.card.get("limits", ()),
    ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) + "\n"
