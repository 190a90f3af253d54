"""The teacher, checked before it teaches: what it answers, in which order, how well, and what it costs.

It must be a function of each sample alone. Dropout that stays active, batch statistics and heads that lose a batch of
one make answers that no student can learn, and that no cache can keep.

Shapes: N samples, B batch, K classes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.data import Data
from kdnas.core.task import UNLABELLED, TaskSpec
from kdnas.errors import Problem, TeacherError
from kdnas.nn.exact import ROUNDING, apart, exact_arithmetic
from kdnas.nn.normalise import Normalised
from kdnas.nn.rows import Batch, Rows
from kdnas.nn.ruling import allowed_by
from kdnas.nn.taps import example_inputs
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.record.lock import TeacherReport
from kdnas.tasks import Task
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate, evaluation_batch
from kdnas.training.numerics import in_bfloat16
from kdnas.training.recipe import Training
from kdnas.workshop.class_order import Renaming, find_renaming

# The share of what is left above the largest class's share that a teacher must have gained.
_ROOM = 0.05
# Other normalisations are tried on so many validation samples, while that costs fewer multiply-accumulates than this.
_PROBED = 256
_PROBE_MACS = 1e12
_ASKED_TWICE = 16
"""Validation samples that the teacher is asked about in several ways."""
_LOST = 0.02
"""Share of right answers that bfloat16 may cost without a word."""
_NAMED = 60
"""Class names that a message spells out."""
_USUAL: dict[str, tuple[float | tuple[float, ...], float | tuple[float, ...]]] = {
    "pixels in 0..1": (0.0, 255.0),
    "pixels in -1..1": (127.5, 127.5),
    "raw pixels in 0..255": (0.0, 1.0),
    "ImageNet's normalisation": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
_SOFT_AT = 4.0
"""The temperature at which an over-confident teacher is looked at: kd's usual one."""
_ONE_HOT = 0.99
"""Answers are one-hot when so many of them are."""
_NOTHING_LEFT = 1e-4
"""Mass that all but the first class share."""
_TIMID = 0.2
"""A teacher is timid whose confidence above chance is no more than this share of its accuracy above chance."""
_TRAIN_LONGER = "train it longer (teacher.training.epochs), at another learning rate, or choose a larger network"
_PARTS = 5
_WITHIN = "normalised.network."
_ACTIVE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def report_teacher(
    teacher: Teacher,
    data: Data,
    validation_indices: np.ndarray,
    training: Training,
    *,
    device: torch.device,
    notify: Callable[[str], None] = lambda line: None,
) -> TeacherReport:
    """Return the teacher's score on the validation split, its MACs and its parameters.

    Where it is given samples of its own in the place of `data`, it is scored on those. It computes in the precision of
    the students' `training`, as it does when it teaches. The test split is not touched.

    What a user should know before it teaches is reported and noted. Raises TeacherError for a teacher that should not
    teach: one whose answers depend on more than the sample, whose classes stand in another order than the data's, near
    chance (not above `least_accuracy`), or that a usual normalisation other than the stated clearly makes better.
    """
    data = teacher.given(data)
    if data.task.partly:  # nothing is known of the others
        known = data.train.targets[validation_indices].reshape(len(validation_indices), -1) != UNLABELLED
        validation_indices = validation_indices[known.any(axis=1)]
    task, where, labels = data.task, f"teacher {teacher.name}", np.asarray(data.train.targets[validation_indices])
    if teacher.outputs == "rules":
        return _report_rules(teacher, Batches(data, validation_indices, device=device), notify)
    few = _spread(validation_indices, _ASKED_TWICE)
    (asked,) = Batches(data, few, device=device).ordered(batch_size=len(few))
    noticed = check_conduct(teacher.name, teacher.module, asked, task)
    batches, bfloat16 = Batches(data, validation_indices, device=device), in_bfloat16(training, device)
    if task.rows > 1 or task.outputs == 1 or task.heads:
        return _report_unnamed(teacher, batches, training, noticed, notify)
    answers = _sound_answers(teacher, batches, bfloat16)
    noticed += answers.doubts
    macs = traced_macs(teacher.module, *example_inputs(task, device, 1))
    share, least = least_accuracy(labels)
    accuracy, renaming = answers.accuracy, find_renaming(answers.predicted, labels, data.class_names)
    if renaming is not None and renaming.renamed <= least:
        renaming = None  # no order makes answers of a network that learned nothing
    near_chance = accuracy <= least
    measured = f"its accuracy on the {len(labels)} validation {task.samples} is {accuracy:.4f}"
    by_least = float((answers.least == labels).mean())
    if near_chance and answers.classes > 2 and by_least > max(least, 0.0 if renaming is None else renaming.renamed):
        what = f"{measured}, but {by_least:.4f} by its smallest output: it gives distances or losses"
        raise TeacherError(Problem(where, what, "logits, the larger the likelier: -1 times these"))
    affordable = macs * min(_PROBED, len(labels)) * (len(_USUAL) + 3) <= _PROBE_MACS
    doubted = near_chance or renaming is not None or affordable
    normalised = _normalisation(teacher, data)
    if near_chance and normalised is not None:
        right = f"{accuracy:.1%} of the validation {task.samples} right"
        notify(f"{where}: {right} is near chance; trying the usual normalisations")
    hint = ""
    if doubted and normalised is not None:
        hint = _better_normalisation(teacher, normalised, data, validation_indices, training, device)
    if bfloat16 and affordable:
        noticed += _coarse(teacher, data, _spread(validation_indices, _PROBED), device)
    if renaming is not None and not hint:
        raise TeacherError(_other_order(where, measured, renaming, data))
    if near_chance:
        chance = f"which is chance (always answering the largest class scores {share:.4f})"
        doubts = hint or _doubts(teacher, answers, data)
        raise TeacherError(Problem(where, f"{measured}, {chance}; {doubts}", f"above {least:.4f}"))
    if hint:
        raise TeacherError(Problem(where, f"{measured}, but {hint}"))
    maybe = find_renaming(answers.predicted, labels, data.class_names, proven=False)
    if maybe is not None:
        noticed += (
            f"perhaps {maybe.words}: then {maybe.renamed:.2f} would be right; too few {task.samples} to decide",
        )
    for line in noticed:
        notify(f"{where}: {line}")
    values = {"macs": float(macs), "params": float(parameter_count(teacher.module))}
    score = batches.task.score(answers.tally(batches.task))
    return TeacherReport(teacher.name, score, None, values, (*teacher.notes, *noticed), teacher.outputs)


def _sound_answers(teacher: Teacher, batches: Batches, bfloat16: bool) -> Answers:
    """Return the teacher's outputs for the validation samples. Raises TeacherError where it fails, or is not finite."""
    task, where = batches.task.spec, f"teacher {teacher.name}"
    try:
        answers = answers_to(teacher.module, batches, teacher.outputs, bfloat16=bfloat16)
    except Exception as error:  # the network is the user's: anything may come
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        coarsely = " in bfloat16" if bfloat16 else ""
        what = f"fails on the validation {task.samples}{coarsely}: {type(error).__name__}: {reason}"
        raise TeacherError(Problem(where, what, "training.precision: float32" if bfloat16 else "")) from error
    if not answers.finite.all():
        lost = f"{int((~answers.finite).sum())} of {len(batches)} validation {task.samples}"
        what = f"gives NaN or infinite logits for {lost}"
        raise TeacherError(Problem(where, what))
    if answers.contradicts_probabilities:
        what = f"gives probabilities, numbers of one sum, for the first {task.samples}, and other numbers for others"
        raise TeacherError(Problem(where, what, "logits"))
    return answers


def _report_rules(teacher: Teacher, batches: Batches, notify: Callable[[str], None]) -> TeacherReport:
    """Return the share of the validation labels that rules allow, as their score."""
    kept = [
        allowed_by(teacher.module(*batch.laid_out)).gather(1, batch.targets[:, None])
        for batch in batches.grouped(batch_size=evaluation_batch(batches.task.spec, batches.device))
    ]
    notes = (*teacher.notes, "its score is the share of the validation labels that its rules allow")
    for line in notes:
        notify(f"teacher {teacher.name}: {line}")
    values = {"macs": 0.0, "params": 0.0}
    return TeacherReport(teacher.name, float(torch.cat(kept).float().mean()), None, values, notes, teacher.outputs)


def _report_unnamed(
    teacher: Teacher, batches: Batches, training: Training, noticed: tuple[str, ...], notify: Callable[[str], None]
) -> TeacherReport:
    """Return what `report_teacher` does of a teacher whose answers are no named classes. Raises TeacherError."""
    task, where = batches.task, f"teacher {teacher.name}"
    quantity, samples = task.spec.score, f"{len(batches)} validation {task.spec.samples}"
    score, worst = evaluate(teacher.module, batches, training), task.worst(batches.targets.cpu().numpy())
    measured = f"its {quantity.name} on the {samples} is {quantity.shown(score)}"
    if not math.isfinite(score):
        raise TeacherError(Problem(where, measured))
    if quantity.lead(score, worst) < _ROOM:
        how = "by the token frequencies alone" if task.spec.rows > 1 else "by one constant output"
        remedy = _TRAIN_LONGER if _is_trained_here(teacher) else "check its weights and its tokenizer"
        what = f"{measured}, and {quantity.shown(worst)} is reached {how}: {remedy}"
        raise TeacherError(Problem(where, what, f"clearly better than {quantity.shown(worst)}"))
    for line in noticed:
        notify(f"{where}: {line}")
    macs = traced_macs(teacher.module, *example_inputs(task.spec, batches.device, 1))
    values = {"macs": float(macs), "params": float(parameter_count(teacher.module))}
    return TeacherReport(teacher.name, score, None, values, (*teacher.notes, *noticed), teacher.outputs)


def _coarse(teacher: Teacher, data: Data, probe: np.ndarray, device: torch.device) -> tuple[str, ...]:
    """Return a note where the teacher names other classes in bfloat16, in which it teaches, than in float32."""
    batches = Batches(data, probe, device=device)
    coarse, exact = (
        answers_to(teacher.module, batches, teacher.outputs, bfloat16=bfloat16) for bfloat16 in (True, False)
    )
    error = math.sqrt(2 * max(exact.accuracy * (1 - exact.accuracy), 1 / len(probe)) / len(probe))
    if exact.accuracy - coarse.accuracy <= max(_LOST, 3 * error):
        return ()
    return (
        f"in bfloat16, in which it teaches, {coarse.accuracy:.1%} of {len(probe)} validation {data.task.samples} are "
        f"right, in float32 {exact.accuracy:.1%}: set training.precision: float32",
    )


def _other_order(where: str, measured: str, renaming: Renaming, data: Data) -> Problem:
    names = renaming.names(data.class_names)
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:_NAMED])
    more = ", ..." if len(names) > _NAMED else ""
    what = f"{measured}, but {renaming.renamed:.4f} when its classes are read in another order: {renaming.words}"
    return Problem(where, what, f"its classes named in its own order, teacher.class_names: [{shown}{more}]")


def least_accuracy(labels: np.ndarray) -> tuple[float, float]:
    """Return (the largest class's share of `labels` [N], the accuracy in [0, 1] that a teacher must exceed on them).

    The bound lies above the share by three standard errors of it and by a twentieth of what is left, whichever is more,
    but never by more than half of what is left: few samples must not refuse a perfect teacher.
    """
    share = float(np.bincount(labels).max() / len(labels))
    significant = 3 * math.sqrt(share * (1 - share) / len(labels))
    return share, share + min(max(significant, _ROOM * (1 - share)), (1 - share) / 2)


def _doubts(teacher: Teacher, answers: Answers, data: Data) -> str:
    adapted = f"; what was adapted: {'; '.join(teacher.notes)}" if teacher.notes else ""
    if answers.constant is not None:
        name = data.class_names[answers.constant]
        if _is_trained_here(teacher):
            return f"it answers {name!r} for every {data.task.sample}: {_TRAIN_LONGER}"
        check = "check its weights and what its images are divided by" if _has_pixels(data) else "check its weights"
        return f"it answers {name!r} for every {data.task.sample}: {check}{adapted}"
    if _is_trained_here(teacher):
        return _TRAIN_LONGER
    if not _has_pixels(data):
        return f"check its weights, its tokenizer and the order of its classes{adapted}"
    return f"no usual normalisation helps: check its weights, its input size and the order of its classes{adapted}"


def _is_trained_here(teacher: Teacher) -> bool:
    """Return whether kdnas trained the teacher itself, on this data."""
    return teacher.arch is not None


def _has_pixels(data: Data) -> bool:
    return data.task.inputs[0].kind == "pixels"


def _normalisation(teacher: Teacher, data: Data) -> Normalised | None:
    """Return what normalises the images that the teacher is given; None where its samples are no images."""
    if not _has_pixels(data):
        return None
    return next((part for part in teacher.module.modules() if isinstance(part, Normalised)), None)


def _better_normalisation(
    teacher: Teacher,
    normalised: Normalised,
    data: Data,
    indices: np.ndarray,
    training: Training,
    device: torch.device,
) -> str:
    """Return a hint naming a usual normalisation, or channel order, that is clearly better than the stated; else ""."""
    probe = Batches(data, _spread(indices, _PROBED), device=device)

    def measured() -> float:
        return evaluate(teacher.module, probe, training)

    stated = measured()
    tried: dict[str, float] = {}
    candidates = {**_USUAL, "the data's own statistics": (data.statistics[MEAN], data.statistics[DEVIATION])}
    for name, (mean, std) in candidates.items():
        if isinstance(mean, tuple) and len(mean) != data.task.image_shape[0]:
            continue
        with _fed(normalised, mean, std):
            shown = f"with {name} (mean {_shown(mean)}, std {_shown(std)})"
            tried[f"{shown} in place of the stated one"] = measured()
    if data.task.image_shape[0] == 3:
        with _reversed(normalised):
            tried["with its channels in the order BGR"] = measured()
    best = max(tried, key=lambda name: tried[name])
    error = math.sqrt(2 * max(tried[best] * (1 - tried[best]), stated * (1 - stated)) / len(probe))
    if tried[best] - stated <= max(0.05, 3 * error):
        return ""
    remedy = "convert its first convolution to RGB" if best.endswith("BGR") else "set mean and std in the study"
    seen = f"{len(probe)} validation {data.task.samples}"
    return f"{best} it reaches {tried[best]:.2f} on {seen}, not {stated:.2f}: {remedy}"


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of `indices`, evenly spread."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(np.int64)]


def _shown(values: float | tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in (values if isinstance(values, tuple) else (values,)))


@contextlib.contextmanager
def _fed(normalised: Normalised, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> Iterator[None]:
    """Within it, the network gets `(raw - mean) / std` instead of what `normalised` makes of the raw images."""
    raw: list[Tensor] = []

    def before(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raw[:] = inputs

    def instead(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shift, scale = (torch.tensor(values, device=raw[0].device).reshape(-1, 1, 1) for values in (mean, std))
        return ((raw[0] - shift) / scale,)

    handles = [
        normalised.register_forward_pre_hook(before),
        normalised.network.register_forward_pre_hook(instead),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _reversed(normalised: Normalised) -> Iterator[None]:
    """Within it, the network gets its channels in the opposite order."""
    handle = normalised.register_forward_pre_hook(lambda part, inputs: (inputs[0].flip(1),))
    try:
        yield
    finally:
        handle.remove()


def check_conduct(name: str, module: nn.Module, batch: Batch, spec: TaskSpec) -> tuple[str, ...]:
    """Return notes on the teacher `module`, which answers the samples of `batch`, plain, alike however they are asked.

    Raises TeacherError where two forwards, another order, a part of the batch or a sample alone give other answers.
    """
    module.eval()
    with exact_arithmetic(), torch.no_grad():
        whole = module(*batch.laid_out)
        if not bool(torch.isfinite(whole).all()):
            what = f"gives NaN or infinite logits on the validation {spec.samples}"
            raise TeacherError(Problem(f"teacher {name}", what))
        for words, places in _ways(len(batch), spec):
            try:
                answers = module(*batch[torch.tensor(places, device=batch.samples.device)].laid_out)
            except Exception as error:  # the network is the user's: anything may come
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                what = f"fails on {words}: {type(error).__name__}: {reason}{_about_squeeze(len(places))}"
                raise TeacherError(
                    Problem(f"teacher {name}", what, f"one row of logits for each {spec.sample}")
                ) from error
            expected = whole[places]
            if answers.shape != expected.shape:
                what = f"gives {tuple(answers.shape)} for {words}{_about_squeeze(len(places))}"
                raise TeacherError(Problem(f"teacher {name}", what, str(tuple(expected.shape))))
            share = apart(answers, expected)
            if not share <= ROUNDING:
                raise TeacherError(_dependence(name, module, words, share, spec))
    still = [part_name for part_name, part in _parts(module) if part.training]
    if not still:
        return ()
    return (f"these parts are in training mode even after eval(), though its answers do not show it: {_first(still)}",)


def _ways(count: int, spec: TaskSpec) -> list[tuple[str, list[int]]]:
    everything = list(range(count))
    ways = [(f"the same {spec.samples} a second time", everything)]
    if count > 1:
        ways += [
            (f"the same {spec.samples} in another order", everything[::-1]),
            (f"half of the same {spec.samples}", everything[: max(count // 2, 1)]),
            (f"one {spec.sample} alone", [count - 1]),
        ]
    return ways


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a teacher under the names that they have in its own network."""
    return [(name.removeprefix(_WITHIN), part) for name, part in module.named_modules() if name]


def _dependence(name: str, module: nn.Module, words: str, share: float, spec: TaskSpec) -> Problem:
    """Return the problem of a teacher whose answers depend on more than the sample, with what may be the reason."""
    reasons = []
    training = [(part, one) for part, one in _parts(module) if one.training]
    deciding = [(part, one) for part, one in training if isinstance(one, _ACTIVE)]
    active = [f"{part} ({type(one).__name__})" for part, one in deciding or training]
    if active:
        reasons.append(f"these parts train even in eval mode: {_first(active)}")
    norms = [
        f"{part} ({type(one).__name__})"
        for part, one in _parts(module)
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is None
    ]
    if norms:
        reasons.append(f"these keep no running statistics and normalise by the batch: {_first(norms)}")
    if not reasons and words.endswith("second time"):
        reasons.append("something in its forward draws at random, as functional dropout without training=self.training")
    if not reasons:
        reasons.append(f"something in its forward reads other {spec.samples} of the batch, as a mean over dimension 0")
    what = f"its answers for {words} differ by {100 * share:.2g} % of its largest logit: {'; '.join(reasons)}"
    return Problem(f"teacher {name}", what, f"answers that each {spec.sample} alone decides")


def _about_squeeze(count: int) -> str:
    return "; a squeeze() without a dimension loses a batch of one: use flatten(1)" if count == 1 else ""


def _first(names: list[str]) -> str:
    return ", ".join(names[:_PARTS]) + (f", ... ({len(names)})" if len(names) > _PARTS else "")


@dataclass(frozen=True)
class Answers:
    """A teacher's answers to N validation samples, reduced to a few numbers a sample, each array [N].

    `predicted` and `least` are the classes of the largest and the smallest output. `low`, `high` and `total` are the
    least and largest of a sample's values and their sum, `hard` whether all of them are 0 or 1: of the probabilities
    where the network gives such, else of the logits. `confidence` is the softmax's largest value at temperature 1,
    `rest` what it leaves to the others at temperature 4.
    """

    outputs: str
    labels: np.ndarray
    predicted: np.ndarray
    least: np.ndarray
    finite: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    hard: np.ndarray
    confidence: np.ndarray
    rest: np.ndarray
    classes: int

    @property
    def accuracy(self) -> float:
        """The share of samples, in [0, 1], that are right."""
        return float((self.predicted == self.labels).mean())

    def tally(self, task: Task) -> Tensor:
        """Return the tally of the answers, by which a task that names classes scores."""
        predicted, true = torch.from_numpy(self.predicted), torch.from_numpy(self.labels)
        one_hot = torch.nn.functional.one_hot(predicted, task.spec.outputs).float()
        return task.tally(Rows(one_hot, true))

    @property
    def constant(self) -> int | None:
        """The class that it answers for every sample; None where it answers several."""
        return int(self.predicted[0]) if (self.predicted == self.predicted[0]).all() else None

    @property
    def contradicts_probabilities(self) -> bool:
        """Whether some samples' values do not sum to 1, though those that were looked at first did."""
        return self.outputs == "probabilities" and bool((self.total > 1.02).any())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a student would not learn from these answers, in words."""
        if self.hard.mean() >= _ONE_HOT:
            return (
                "outputs: one-hot: they name a class and give no information on the others, no more than labels do",
            )
        if self.outputs == "logits" and self.low.min() >= 0 and self.high.max() <= 1:
            return (
                "outputs: all within 0..1, as scores of a sigmoid are: taken for logits they are almost equal for all "
                "classes, and students learn little from them; leave the last layer out of the teacher",
            )
        chance = 1 / self.classes
        if self.confidence.mean() - chance <= _TIMID * (self.accuracy - chance):
            return (
                f"its answers are almost equal for all classes (the first has {self.confidence.mean():.1%} on average, "
                f"{self.accuracy:.1%} are right): are these its logits, or were they divided by something?",
            )
        if self.rest.mean() <= _NOTHING_LEFT:
            return (
                f"it leaves {self.rest.mean():.1g} to all classes but the first even at temperature {_SOFT_AT:g}: "
                "students learn from it little more than from labels",
            )
        return ()


def answers_to(module: nn.Module, batches: Batches, outputs: str, *, bfloat16: bool) -> Answers:
    """Return the outputs of the teacher `module` for the plain samples of `batches`, in eval mode."""
    rows: list[torch.Tensor] = []
    module.eval()
    with torch.inference_mode():
        for batch in batches.grouped(batch_size=evaluation_batch(batches.task.spec, batches.device)):
            with torch.autocast(batches.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                raw = module(*batch.laid_out)
            logits = raw.float()
            values = logits.exp() if outputs == "probabilities" else logits
            columns = [
                batch.targets,
                raw.argmax(dim=1),
                raw.argmin(dim=1),
                torch.isfinite(logits).all(dim=1),
                values.amin(dim=1),
                values.amax(dim=1),
                values.sum(dim=1),
                ((values.abs() < 1e-30) | ((values - 1).abs() < 1e-7)).all(dim=1),
                logits.softmax(dim=1).amax(dim=1),
                1 - (logits / _SOFT_AT).double().softmax(dim=1).amax(dim=1),
            ]
            rows.append(torch.stack([column.double() for column in columns]))
    labels, predicted, least, finite, low, high, total, hard, confidence, rest = torch.cat(rows, dim=1).cpu().numpy()
    return Answers(
        outputs=outputs,
        labels=labels.astype(np.int64),
        predicted=predicted.astype(np.int64),
        least=least.astype(np.int64),
        finite=finite.astype(bool),
        low=low,
        high=high,
        total=total,
        hard=hard.astype(bool),
        confidence=confidence,
        rest=rest,
        classes=int(raw.shape[1]),
    )
