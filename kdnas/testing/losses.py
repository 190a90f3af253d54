"""What every distillation loss keeps.

Shapes: B images, K classes, stages [B, C, H, W] or [B, N, C], embeddings [B, E].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import nn

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.nn.attention import AttentionShape, Projections
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Classifier, Output, Outputs, OutputShapes
from kdnas.testing._member import MemberConformance

BATCH, CLASSES = 6, 5
# Widths, sizes and the number of stages all differ.
_HEADS = [Classifier(layer.weight, layer.bias) for layer in (nn.Linear(6, CLASSES), nn.Linear(16, CLASSES))]
STUDENT = OutputShapes(CLASSES, ((4, 8, 8), (6, 4, 4)), 6, 2 * (AttentionShape(7, 2, 8, 8, 8),), _HEADS[0], pooled=True)
TEACHER = OutputShapes(
    CLASSES,
    ((8, 16, 16), (12, 8, 8), (16, 4, 4)),
    16,
    3 * (AttentionShape(7, 4, 16, 8, 8, causal=True),),
    _HEADS[1],
    pooled=True,
)
_LAYERS_S = replace(STUDENT, stages=2 * ((17, 8),), pooled=False)
_LAYERS_T = replace(TEACHER, stages=3 * ((17, 16),), pooled=False)
PAIRS = {
    "equal": (TEACHER, TEACHER),
    "student deeper": (TEACHER, STUDENT),
    "layers": (_LAYERS_S, _LAYERS_T),
    "layers from maps": (_LAYERS_S, TEACHER),
}
LABELS = {
    "classes": torch.tensor([0, 1, 2, 3, 4, 0]),
    "mixed": 0.3 * torch.eye(CLASSES)[[0, 1, 2, 3, 4, 0]] + 0.7 * torch.eye(CLASSES)[[1, 1, 0, 4, 2, 3]],
}


def outputs(shapes: OutputShapes, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    """Return random outputs of `shapes` that gradients are taken by."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    stages = tuple(leaf(BATCH, *shape) for shape in shapes.stages)
    attention = []
    for layer in shapes.attention:
        queries, keys, values = (leaf(BATCH, layer.tokens, w) for w in (layer.queries, layer.keys, layer.values))
        attention.append(Projections(queries, keys, values, layer.heads, layer.causal))
    return Outputs(3 * leaf(BATCH, shapes.outputs), stages, leaf(BATCH, shapes.embedding or 1), tuple(attention))


def _moved(part: Any, by: float, seed: int) -> Any:
    """Return tensors, or projections, with noise times `by` added."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() + by * torch.randn(tensor.shape, generator=generator)

    if isinstance(part, torch.Tensor):
        return moved(part)
    if isinstance(part, Projections):
        return replace(part, queries=moved(part.queries), keys=moved(part.keys), values=moved(part.values))
    return tuple(_moved(each, by, seed) for each in part)


def _tensors(given: Outputs) -> list[torch.Tensor]:
    found = given.tensors
    for tensor in found:
        tensor.retain_grad()
    return found


class LossConformance(MemberConformance):
    """The suite of losses."""

    registry = LOSSES
    zero_when_equal: ClassVar[bool] = True
    """Whether a student that gives what its teacher gives costs nothing; not where a random adapter stands between."""
    refused: ClassVar[frozenset[str]] = frozenset()
    """The PAIRS that it cannot compare, with an error: layers of tokens, of a loss on maps alone."""
    student: ClassVar[OutputShapes] = STUDENT
    """A student other than its teacher, both of which it can compare."""

    @pytest.mark.parametrize("pair", ["differing", *PAIRS])
    @pytest.mark.parametrize("labels", LABELS)
    def test_it_is_a_scalar_whose_gradient_reaches_the_student_alone(self, pair: str, labels: str) -> None:
        student_shapes, teacher_shapes = PAIRS.get(pair, (self.student, TEACHER))
        if pair in self.refused:
            with pytest.raises(ConfigError):
                self.build(student_shapes, teacher_shapes)
            return
        torch.manual_seed(0)
        loss = self.build(student_shapes, teacher_shapes)
        student, teacher = outputs(student_shapes, 1), outputs(teacher_shapes, 2)
        inputs, sources = _tensors(student), _tensors(teacher)
        value = loss(student, teacher, Rows(student.logits, LABELS[labels]))
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert 0 < float(value.detach()) < float("inf")
        value.backward()
        assert any(x.grad is not None and float(x.grad.abs().sum()) > 0 for x in inputs)
        assert all(x.grad is None or torch.isfinite(x.grad).all() for x in inputs)
        assert all(x.grad is None for x in sources), "the teacher is fixed: detach its outputs"
        for parameter in loss.parameters():
            assert parameter.requires_grad
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()

    def test_bfloat16_networks_get_a_float32_loss(self) -> None:
        student, teacher = outputs(self.student, 1, torch.bfloat16), outputs(TEACHER, 2, torch.bfloat16)
        losses = []
        for _ in range(2):
            torch.manual_seed(0)
            losses.append(self.build(self.student, TEACHER))  # anew: one may keep what it has seen
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = losses[0](student, teacher, Rows(student.logits, LABELS["classes"]))
        outside = losses[1](student.float(), teacher.float(), Rows(student.logits, LABELS["classes"]))
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)

    def test_identical_outputs_cost_nothing(self) -> None:
        if not self.zero_when_equal:
            return
        given = outputs(TEACHER, 3)
        value = self.build(TEACHER, TEACHER)(given, given, Rows(given.logits, LABELS["classes"]))
        assert value.item() == pytest.approx(0.0, abs=1e-6)

    def test_it_reads_what_it_says_and_nothing_else(self) -> None:
        """Every output of `needs` changes the value, of one side at least; what is not among them may be anything."""
        needs = LOSSES.get(self._member).needs

        def value(changed: str = "", by: float = 0.0) -> float:
            sides = (self.student, TEACHER)
            if changed == "classifier":
                heads = [Classifier(head.weight + by * torch.randn_like(head.weight), head.bias) for head in _HEADS]
                sides = (replace(self.student, classifier=heads[0]), replace(TEACHER, classifier=heads[1]))
            torch.manual_seed(0)
            loss = self.build(*sides)
            given = [outputs(side, seed) for side, seed in zip(sides, (1, 2), strict=True)]
            if changed not in ("", "classifier"):
                moved = [_moved(getattr(each, changed), by, seed) for seed, each in enumerate(given)]
                given = [replace(each, **{changed: part}) for each, part in zip(given, moved, strict=True)]
            rows = Rows(given[0].logits, LABELS["classes"])
            return float(loss(given[0], given[1], rows).detach())

        before = value()
        for each in get_args(Output):
            if each == "classifier" in needs and self.student.classifier is TEACHER.classifier:
                with pytest.raises(ConfigError):  # it is for students who have their teacher's
                    value(each, 1.0)
            elif each in needs:
                assert value(each, 1.0) != before, f"{each} stands in needs, and is not read"
            else:
                assert value(each, float("nan")) == before, f"{each} is read, and does not stand in needs"

    def test_what_cannot_be_matched_is_refused(self) -> None:
        bare = OutputShapes(CLASSES)
        if LOSSES.get(self._member).needs <= {"logits"}:
            self.build(bare, TEACHER)
            return
        for student, teacher in ((self.student, bare), (bare, TEACHER)):
            with pytest.raises(ConfigError):
                self.build(student, teacher)
