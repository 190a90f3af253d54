"""The shape of a kind of work: what students, teachers, losses and costs need of samples and predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from kdnas.core.objective import ACCURACY, Quantity

IMAGE_CLASSIFICATION = "image_classification"
MULTITASK_IMAGE_CLASSIFICATION = "multitask_image_classification"
UNLABELLED = -1
"""The target of a sample that has no label."""
InputKind = Literal["pixels", "tokens", "mask", "floats"]
_LEAST_SIZE = 4


@dataclass(frozen=True)
class Input:
    """One of the tensors a network takes.

    `shape` is that of one sample: (channels, height, width) of pixels, (length,) of tokens and of the mask that marks
    which of them are text. `levels` is the number of values an element can have: 256, or the size of the vocabulary.
    """

    name: str
    shape: tuple[int, ...]
    kind: InputKind
    levels: int = 256

    @property
    def size(self) -> int:
        """Height in pixels, or length in tokens: what a reduced size reduces."""
        return self.shape[1] if self.kind == "pixels" else self.shape[0]

    def at(self, size: int) -> Input:
        """Return this input of samples brought to `size`: pixels keep their proportions, plain floats their shape."""
        if self.kind == "pixels":
            channels, height, width = self.shape
            return replace(self, shape=(channels, size, max(1, round(width * size / height))))
        return self if self.kind == "floats" else replace(self, shape=(size, *self.shape[1:]))


@dataclass(frozen=True)
class Head:
    """One of several questions that a network answers of each sample, and where its outputs stand among all."""

    name: str
    outputs: int
    start: int = 0

    @property
    def places(self) -> slice:
        """Where its outputs stand."""
        return slice(self.start, self.start + self.outputs)


@dataclass(frozen=True)
class TaskSpec:
    """What a network is given, in the order it is called with, what it answers, and how that is scored.

    `outputs` is K classes or V tokens. `rows` is the number of predictions a sample: 1 (logits [B, K]), or one a
    position of a sequence of T (logits [B, T, V]).
    """

    kind: str
    inputs: tuple[Input, ...]
    outputs: int
    rows: int
    score: Quantity
    samples: str = "samples"
    """What samples are called, in the plural."""
    heads: tuple[Head, ...] = ()
    """Of several tasks on one sample: what each asks, whose targets [N, P] stand in this order; empty: of one task."""
    partly: bool = False
    """Whether some samples have no label: their target is `UNLABELLED`."""
    candidates: int = 0
    """K where a sample is a list [K, ...]: a network takes and scores one candidate, and its K scores are the sample's
    logits [B, K]. 0: a sample is what a network takes."""

    @property
    def listed(self) -> tuple[int, ...]:
        """What stands before the shape of an input in that of a sample: (K,) of lists."""
        return (self.candidates,) if self.candidates else ()

    @property
    def runs(self) -> int:
        """How often a network runs for a sample: once, or for each candidate of a list."""
        return self.candidates or 1

    @property
    def logits(self) -> int:
        """Logits of a prediction: as many as a network's outputs, or the scores of a list."""
        return self.candidates or self.outputs

    @property
    def scores(self) -> tuple[Quantity, ...]:
        """What students are scored by: the score, and where there are several tasks that of each."""
        return self.score, *(replace(self.score, name=score_of(head.name, self.score.name)) for head in self.heads)

    @property
    def sample(self) -> str:
        """What one of them is called."""
        return self.samples.removesuffix("s")

    @property
    def size(self) -> int:
        """Height in pixels, or length in tokens, of the samples."""
        return self.inputs[0].size

    @property
    def numbers(self) -> int:
        """How many numbers a sample's inputs have."""
        return self.runs * sum(math.prod(taken.shape) for taken in self.inputs)

    @property
    def positions(self) -> int:
        """How many places of a sample a network works on: pixels of an image, tokens of a sequence or of a list."""
        first = self.inputs[0]
        return self.runs * math.prod(first.shape[1:] if first.kind == "pixels" else first.shape)

    def at(self, size: int) -> TaskSpec:
        """Return the task of the same samples brought to `size` pixels high, or tokens long."""
        rows = size if self.rows > 1 else 1
        return replace(self, inputs=tuple(taken.at(size) for taken in self.inputs), rows=rows)

    def at_share(self, share: float) -> TaskSpec:
        """Return the task at this share, in (0, 1], of its size: a whole number, at least 4 where it was."""
        return self.at(min(self.size, max(_LEAST_SIZE, round(share * self.size))))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pixels. Raises ValueError where samples are not images alone."""
        if [taken.kind for taken in self.inputs] != ["pixels"]:
            raise ValueError(f"the samples of {self.kind} are not images: {', '.join(t.name for t in self.inputs)}")
        channels, height, width = self.inputs[0].shape
        return channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels. Raises ValueError where samples are not images alone."""
        return self.image_shape[1:]


def image_classification(shape: tuple[int, int, int], classes: int) -> TaskSpec:
    """Return the task of naming the class of an image of `shape` (channels, height, width), scored by accuracy."""
    return TaskSpec(IMAGE_CLASSIFICATION, (Input("pixels", tuple(shape), "pixels"),), classes, 1, ACCURACY, "images")


def multitask_image_classification(shape: tuple[int, int, int], heads: tuple[Head, ...]) -> TaskSpec:
    """Return the task of naming a class of an image for each of `heads`, scored by the mean of their accuracies."""
    outputs = sum(head.outputs for head in heads)
    return replace(image_classification(shape, outputs), kind=MULTITASK_IMAGE_CLASSIFICATION, heads=heads)


def score_of(task: str, score: str) -> str:
    """Return what the score of one of several tasks is called, such as `digit.accuracy`."""
    return f"{task}.{score}"
