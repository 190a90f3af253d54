"""What every distillation loss must keep, whoever wrote it: run over the registry."""

import pytest
import torch

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

BATCH, CLASSES = 6, 5
# Widths, sizes and the number of stages all differ.
STUDENT = OutputShapes(CLASSES, ((4, 8, 8), (6, 4, 4)), 6)
TEACHER = OutputShapes(CLASSES, ((8, 16, 16), (12, 8, 8), (16, 4, 4)), 10)
CASES = {
    "differing": (STUDENT, TEACHER),
    "equal": (TEACHER, TEACHER),
    "student deeper": (TEACHER, STUDENT),
}


def outputs(shapes: OutputShapes, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    stages = tuple(leaf(BATCH, *shape) for shape in shapes.stages)
    return Outputs(3 * leaf(BATCH, shapes.outputs), stages, leaf(BATCH, shapes.embedding))


def leaves(given: Outputs) -> list[torch.Tensor]:
    found = [given.logits, *given.stages, given.embedding]
    for tensor in found:
        tensor.retain_grad()
    return found


LABELS = {
    "classes": torch.tensor([0, 1, 2, 3, 4, 0]),
    "mixed": 0.3 * torch.eye(CLASSES)[[0, 1, 2, 3, 4, 0]] + 0.7 * torch.eye(CLASSES)[[1, 1, 0, 4, 2, 3]],
}


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("labels", LABELS)
def test_gives_a_scalar_whose_gradient_reaches_the_student_alone(name: str, case: str, labels: str) -> None:
    student_shapes, teacher_shapes = CASES[case]
    torch.manual_seed(0)
    loss = LOSSES.build(name, student_shapes, teacher_shapes)
    student, teacher = outputs(student_shapes, 1), outputs(teacher_shapes, 2)
    inputs, sources = leaves(student), leaves(teacher)
    value = loss(student, teacher, Rows(student.logits, LABELS[labels]))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert 0 < float(value.detach()) < float("inf")
    value.backward()
    assert any(x.grad is not None and float(x.grad.abs().sum()) > 0 for x in inputs)
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in inputs)
    assert all(x.grad is None for x in sources)
    for parameter in loss.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", LOSSES.names())
def test_adapters_appear_where_the_widths_differ_and_only_there(name: str) -> None:
    adapted = list(LOSSES.build(name, STUDENT, TEACHER).parameters())
    if name == "hint":  # its regressor is part of the method, whatever the widths
        assert adapted
    elif name == "cosine":
        assert [tuple(p.shape) for p in adapted] == [(10, 6)]
        assert not list(LOSSES.build(name, TEACHER, TEACHER).parameters())
    assert all(parameter.requires_grad for parameter in adapted)


@pytest.mark.parametrize("name", LOSSES.names())
def test_bfloat16_networks_get_a_float32_loss(name: str) -> None:
    torch.manual_seed(0)
    loss = LOSSES.build(name, STUDENT, TEACHER)
    student, teacher = outputs(STUDENT, 1, torch.bfloat16), outputs(TEACHER, 2, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, teacher, Rows(student.logits, LABELS["classes"]))
    outside = loss(student.float(), teacher.float(), Rows(student.logits, LABELS["classes"]))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if name not in ("hint",)])
def test_identical_outputs_cost_nothing(name: str) -> None:
    loss = LOSSES.build(name, TEACHER, TEACHER)
    given = outputs(TEACHER, 3)
    assert loss(given, given, Rows(given.logits, LABELS["classes"])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES.names())
def test_what_cannot_be_matched_is_refused(name: str) -> None:
    bare = OutputShapes(CLASSES)
    needs = LOSSES.get(name).needs
    if needs <= {"logits"}:
        LOSSES.build(name, bare, TEACHER)
        return
    with pytest.raises(ConfigError, match=name):
        LOSSES.build(name, STUDENT, bare)
    with pytest.raises(ConfigError, match=name):
        LOSSES.build(name, bare, TEACHER)


@pytest.mark.parametrize("name", LOSSES.names())
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="temperatur"):
        LOSSES.build(name, STUDENT, TEACHER, temperatur=4.0)
