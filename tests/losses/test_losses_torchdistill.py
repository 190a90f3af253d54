"""Losses and their gradients beside those of torchdistill (Matsubara 2021), an implementation by others.

It is no dependency: `pip install --no-deps torchdistill` has this run.
"""

from __future__ import annotations

import pytest
import torch

from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

theirs = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")
B, V, D = 12, 7, 9
LOGITS = ("student_module_path", "student_module_io", "teacher_module_path", "teacher_module_io")
OF_LOGITS = dict(zip(LOGITS, (".", "output") * 2, strict=True))
OF_OUTPUTS = {"student_output_path": ".", "teacher_output_path": "."}
PAIR = {"teacher": {"io": "output", "path": "."}, "student": {"io": "output", "path": "."}}

CASES = {
    "kd": ({"temperature": 3.0}, "KDLoss", {**OF_LOGITS, "temperature": 3.0, "alpha": 0}, 9.0, "logits"),
    "standardised": (
        {"temperature": 2.0, "standardise": True},
        "LogitStdKDLoss",
        {**OF_LOGITS, "temperature": 2.0, "alpha": 0},
        4.0,
        "logits",
    ),
    "dist": ({"temperature": 4.0}, "DISTLoss", {**OF_LOGITS, "tau": 4.0}, 1.0, "logits"),
    "pkt": ({}, "PKTLoss", OF_LOGITS, 1.0, "embedding"),
    "rkd": (
        {},
        "RKDLoss",
        {**OF_OUTPUTS, "dist_factor": 25.0, "angle_factor": 50.0, "reduction": "mean"},
        1.0,
        "embedding",
    ),
    "attention": ({}, "ATLoss", {"at_pairs": {"one": PAIR}}, 1.0, "stages"),
}
"""Our options, its class and its options, by what its loss is multiplied, and what both read.

Its similarity-preserving loss is not among them: it divides rows by the sum of their absolute values, where the paper
has their length.
"""


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_torchdistills(name: str) -> None:
    options, kind, stated, factor, read = CASES[name]
    generator = torch.Generator().manual_seed(0)
    shape = {"logits": (B, V), "embedding": (B, D), "stages": (B, D, 4, 4)}[read]
    student = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    teacher = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = torch.zeros(B, V)

    def outputs(values: torch.Tensor) -> Outputs:
        return {
            "logits": Outputs(values),
            "embedding": Outputs(logits, embedding=values),
            "stages": Outputs(logits, stages=(values,)),
        }[read]

    shapes = OutputShapes(V, ((D, 4, 4),), D)
    ours = LOSSES.build("kd" if name == "standardised" else name, shapes, shapes, **options).double()
    value = type(ours).forward.__wrapped__(ours, outputs(student), outputs(teacher), Rows(logits, torch.arange(B) % V))
    told = factor * getattr(theirs, kind)(**stated)({".": {"output": student}}, {".": {"output": teacher}})
    torch.testing.assert_close(value, told, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(each, student)[0] for each in (value, told)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)
