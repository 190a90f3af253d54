"""Losses where numbers run out: nothing, all the same, very small, very large, one sample, two classes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from kdnas.losses import LOSSES
from kdnas.nn.attention import AttentionShape, Projections
from kdnas.nn.directions import bounded, directions
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_ATTENDING = (AttentionShape(3, 2, 4, 4, 4), AttentionShape(3, 4, 8, 4, 4))
SHAPES = OutputShapes(4, ((3, 4, 4), (5, 2, 2), (6, 1, 1)), 6, 3 * _ATTENDING[:1], nn.Linear(6, 4), pooled=True)
TWO = dataclasses.replace(SHAPES, outputs=2, classifier=nn.Linear(6, 2))
OTHER = OutputShapes(4, ((4, 4, 4), (7, 2, 2), (9, 1, 1)), 9, 4 * _ATTENDING[1:], nn.Linear(9, 4), pooled=True)
REUSING = dataclasses.replace(OTHER, stages=((3, 4, 4), (9, 1, 1)))

KINDS = {
    "random": lambda x: x,
    "zero": torch.zeros_like,
    "one": torch.ones_like,
    "tiny": lambda x: 1e-20 * x,
    "denormal": lambda x: 1e-42 * x,
    "huge": lambda x: 1e18 * x,
    "one row of nothing": lambda x: x * (torch.arange(len(x)) > 0).view(-1, *[1] * (x.ndim - 1)),
    "equal rows": lambda x: x[:1].expand_as(x).clone(),
    "far from the origin": lambda x: 1e6 + x,
    "rectified to nothing": lambda x: (x - 100).relu(),
}


def draw(shapes: OutputShapes, batch: int, kind: str, seed: int, dtype: torch.dtype) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return KINDS[kind](torch.randn(batch, *shape, generator=generator)).to(dtype).requires_grad_()

    stages = tuple(leaf(*shape) for shape in shapes.stages)
    attention = tuple(
        Projections(*(leaf(layer.tokens, width) for width in (layer.queries, layer.keys, layer.values)), layer.heads)
        for layer in shapes.attention
    )
    return Outputs(leaf(shapes.outputs), stages, leaf(shapes.embedding), attention)


def check(name: str, ours: OutputShapes, theirs: OutputShapes, s: Outputs, t: Outputs, **options: object) -> None:
    torch.manual_seed(0)
    loss = LOSSES.build(name, ours, theirs, **options)
    labels = torch.arange(len(s.logits)) % ours.outputs
    mixed = torch.nn.functional.one_hot(labels, ours.outputs).float().lerp(torch.tensor(1 / ours.outputs), 0.5)
    for target in (labels, mixed):
        value = loss(s, t, Rows(s.logits, target))
        assert torch.isfinite(value)
        assert value >= -1e-5
        if value.requires_grad:
            value.backward()
    for tensor in (*s.tensors, *loss.parameters()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
        if tensor.grad is not None:
            tensor.grad = None


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_value_and_gradient_is_finite(name: str, batch: int) -> None:
    pairs = [pair for kind in KINDS for pair in ((kind, "random"), ("random", kind), (kind, kind))]
    kinds = itertools.cycle(
        (
            (REUSING if name == "sim_kd" else SHAPES, OTHER, torch.float32),
            (SHAPES, SHAPES, torch.bfloat16),
            (TWO, TWO, torch.float32),
        )
    )
    for (ours, theirs), (shapes, others, dtype) in zip((*pairs, *pairs[1:]), kinds, strict=False):
        check(name, shapes, others, draw(shapes, batch, ours, 1, dtype), draw(others, batch, theirs, 2, dtype))


@pytest.mark.parametrize("name", ["attention", "rkd", "similarity", "cosine"])
@pytest.mark.parametrize("kind", ["zero", "rectified to nothing", "denormal"])
def test_features_of_no_length_take_no_gradient(name: str, kind: str) -> None:
    """Not one over a small number, which would end a training."""
    s, t = draw(SHAPES, 5, kind, 1, torch.float32), draw(SHAPES, 5, "random", 2, torch.float32)
    LOSSES.build(name, SHAPES, SHAPES)(s, t, Rows(s.logits, torch.zeros(5, dtype=torch.int64))).backward()
    assert all(float(x.grad.abs().max()) < 10 for x in (*s.stages, s.embedding) if x.grad is not None)


@pytest.mark.parametrize("name", ["attention", "rkd", "similarity", "cosine"])
@pytest.mark.parametrize("scale", [1e-10, 1e-7, 1e-4, 1e6, 1e15])
def test_losses_by_direction_do_not_know_the_scale_of_features(name: str, scale: float) -> None:
    s, t = (draw(SHAPES, 5, "random", seed, torch.float32) for seed in (1, 2))
    loss, labels = LOSSES.build(name, SHAPES, SHAPES), torch.zeros(5, dtype=torch.int64)

    def scaled(given: Outputs, factor: float) -> Outputs:
        detached = given.detach()
        stages = tuple((factor * x).requires_grad_() for x in detached.stages)
        return Outputs(detached.logits, stages, (factor * detached.embedding).requires_grad_())

    values, gradients = [], []
    for factor in (1.0, scale):
        ours = scaled(s, factor)
        value = loss(ours, scaled(t, factor), Rows(ours.logits, labels))
        value.backward()
        values.append(float(value.detach()))
        gradients.append([factor * x.grad for x in (*ours.stages, ours.embedding) if x.grad is not None])
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_rkd_does_not_know_where_the_embeddings_lie() -> None:
    s, t = (draw(SHAPES, 6, "random", seed, torch.float32).embedding.detach() for seed in (1, 2))
    loss = LOSSES.build("rkd", SHAPES, SHAPES)
    logits, labels = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)
    plain = float(loss(Outputs(logits, (), s), Outputs(logits, (), t), Rows(logits, labels)))
    moved = float(loss(Outputs(logits, (), 100 + s), Outputs(logits, (), t - 50), Rows(logits, labels)))
    assert moved == pytest.approx(plain, rel=1e-3)


def test_hint_takes_one_sample_of_one_pixel() -> None:
    shapes = OutputShapes(4, ((6, 1, 1),), 6)
    torch.manual_seed(0)
    loss = LOSSES.build("hint", shapes, shapes)
    labels = torch.zeros(5, dtype=torch.int64)
    many, one = ([draw(shapes, count, "random", seed, torch.float32) for seed in (1, 2)] for count in (5, 1))
    for _ in range(200):
        loss(*many, Rows(many[0].logits, labels))
    norm = loss.adapter[1]
    before = norm.running_mean.clone()
    value = loss(*one, Rows(one[0].logits, labels[:1]))
    # The statistics of the batches before it, and the next batch has its own again.
    mapped = loss.adapter[0](one[0].stages[0])[0, :, 0, 0]
    expected = ((mapped - before) / (norm.running_var + norm.eps).sqrt()).relu() - one[1].stages[0][0, :, 0, 0]
    assert float(value.detach()) == pytest.approx(float(expected.square().mean().detach()), rel=1e-4)
    assert torch.equal(norm.running_mean, before)
    loss(*many, Rows(many[0].logits, labels))
    assert norm.training
    assert not torch.equal(norm.running_mean, before + 1)
    assert not loss.eval().adapter[1].training
    loss(*many, Rows(many[0].logits, labels))
    assert not norm.training


def test_directions_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-9, -4e-9], [3e25, 4e25], [1e-13, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, -0.8], [0.6, 0.8], [0.0, 0.0]])
    assert torch.allclose(directions(rows), expected)
    assert torch.allclose(bounded(rows, dim=1)[:4], torch.tensor([[0.75, 1.0], [0.0, 0.0], [0.75, -1.0], [0.75, 1.0]]))
    torch.autograd.gradcheck(directions, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))
