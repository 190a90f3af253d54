"""What a teacher says to the validation images, and what in it should be looked at before it teaches.

Shapes: N images, B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluation_batch

_SOFT_AT = 4.0
"""The temperature at which an over-confident teacher is looked at: kd's usual one."""
_ONE_HOT = 0.99
"""Answers are one-hot when so many of them are."""
_NOTHING_LEFT = 1e-4
"""Mass that all but the first class share."""
_TIMID = 0.2
"""A teacher is timid whose confidence above chance is no more than this share of its accuracy above chance."""


@dataclass(frozen=True)
class Answers:
    """A teacher's answers to N validation images, reduced to a few numbers an image, each array [N].

    `predicted` and `least` are the classes of the largest and the smallest output. `low`, `high` and `total` are the
    least and largest of an image's values and their sum, `hard` whether all of them are 0 or 1: of the probabilities
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
        """The share of images, in [0, 1], that are right."""
        return float((self.predicted == self.labels).mean())

    @property
    def constant(self) -> int | None:
        """The class that it answers for every image; None where it answers several."""
        return int(self.predicted[0]) if (self.predicted == self.predicted[0]).all() else None

    @property
    def contradicts_probabilities(self) -> bool:
        """Whether some images' values do not sum to 1, though those that were looked at first did."""
        return self.outputs == "probabilities" and bool((self.total > 1.02).any())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a student would not learn from these answers, in words."""
        if self.hard.mean() >= _ONE_HOT:
            return ("outputs: one-hot: they name a class and say nothing of the others, no more than labels do",)
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
    """Return what the teacher `module` says to the images of `batches`, raw, in eval mode."""
    rows: list[torch.Tensor] = []
    module.eval()
    with torch.inference_mode():
        for batch in batches.ordered(batch_size=evaluation_batch(batches.task.spec, batches.device)):
            with torch.autocast(batches.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                said = module(*batch.laid_out)
            logits = said.float()
            values = logits.exp() if outputs == "probabilities" else logits
            columns = [
                batch.targets,
                said.argmax(dim=1),
                said.argmin(dim=1),
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
        classes=int(said.shape[1]),
    )
