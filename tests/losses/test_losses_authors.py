"""Whole objectives as the papers and their authors' code weigh them: every loss again, in float64 and plain numpy.

Source of the weights: Tian et al., "Contrastive representation distillation" (ICLR 2020), and of dkd Zhao et al. (CVPR
2022): cross entropy + weight * loss, the loss reduced as written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.loss import TrainingLoss
from kdnas.training.recipe import Distillation, LossTerm

Array = np.ndarray
B, K = 6, 5
STUDENT = OutputShapes(K, ((4, 8, 8), (6, 4, 4), (8, 2, 2)), 6)
TEACHER = OutputShapes(K, ((8, 8, 8), (12, 4, 4), (16, 2, 2)), 10)
LABELS = np.array([0, 1, 2, 3, 4, 0])


def outputs(shapes: OutputShapes, seed: int, scale: float = 1.0) -> Outputs:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(scale * rng.normal(size=shape))

    return Outputs(3 * draw(B, K), tuple(draw(B, *shape) for shape in shapes.stages), draw(B, shapes.embedding))


def log_softmax(z: Array) -> Array:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def kl(p: Array, log_q: Array) -> float:
    """The mean over the batch of KL(p || q)."""
    return float((p * (np.log(p) - log_q)).sum() / len(p))


def unit(rows: Array) -> Array:
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def kd(s: Outputs, t: Outputs) -> float:
    p, log_q = np.exp(log_softmax(t.logits.numpy() / 4)), log_softmax(s.logits.numpy() / 4)
    return 16 * kl(p, log_q)


def dkd(s: Outputs, t: Outputs, beta: float = 2.0) -> float:
    p, q = (np.exp(log_softmax(given.logits.numpy() / 4)) for given in (t, s))
    total = 0.0
    for n, y in enumerate(LABELS):
        rest = [k for k in range(K) if k != y]
        for a, b in ((p[n, y], q[n, y]), (1 - p[n, y], 1 - q[n, y])):
            total += a * math.log(a / b)
        for k in rest:
            a, b = p[n, k] / p[n, rest].sum(), q[n, k] / q[n, rest].sum()
            total += beta * a * math.log(a / b)
    return 16 * total / B


def attention(s: Outputs, t: Outputs) -> float:
    total = 0.0
    for a, b in zip(s.stages, t.stages, strict=True):
        maps = [unit((x.numpy() ** 2).mean(axis=1).reshape(B, -1)) for x in (a, b)]
        total += ((maps[0] - maps[1]) ** 2).mean()
    return float(total)


def similarity(s: Outputs, t: Outputs) -> float:
    flat = [x.stages[-1].numpy().reshape(B, -1) for x in (s, t)]
    grams = [unit(x @ x.T) for x in flat]
    return float(((grams[0] - grams[1]) ** 2).sum() / B**2)


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd(s: Outputs, t: Outputs) -> float:
    relations: list[tuple[list[float], list[float]]] = []
    for given in (s, t):
        points = given.embedding.numpy()
        distances = [math.dist(a, b) for a in points for b in points]
        mean = sum(distances) / sum(d > 0 for d in distances)
        angles = []
        for at in points:
            ways = [[0.0] * len(at) if (way := math.dist(x, at)) == 0 else (x - at) / way for x in points]
            angles += [float(np.dot(a, b)) for a in ways for b in ways]
        relations.append(([d / mean for d in distances], angles))
    (d_s, a_s), (d_t, a_t) = relations
    distance = np.mean([smooth_l1(x - y) for x, y in zip(d_s, d_t, strict=True)])
    return float(25 * distance + 50 * np.mean([smooth_l1(x - y) for x, y in zip(a_s, a_t, strict=True)]))


AUTHORS: dict[str, tuple[float, float, Callable[[Outputs, Outputs], float]]] = {
    "kd": (0.1, 0.9, kd),
    "dkd": (1.0, 1.0, dkd),
    "attention": (1.0, 1000.0, attention),
    "similarity": (1.0, 3000.0, similarity),
    "rkd": (1.0, 1.0, rkd),
}
"""The weight of cross entropy, that of the loss, and the loss."""


def whole(name: str, task_weight: float, term: LossTerm, s: Outputs, t: Outputs) -> float:
    criterion = TrainingLoss(
        Distillation(task_weight=task_weight, losses=(term,)), STUDENT, {"teacher": TEACHER}, seed=0
    )
    return float(criterion(s, OutputsByTeacher({"teacher": t}), Rows(s.logits, torch.from_numpy(LABELS))))


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_a_whole_objective_is_its_authors(name: str, scale: float) -> None:
    task_weight, weight, loss = AUTHORS[name]
    s, t = outputs(STUDENT, 1, scale), outputs(TEACHER, 2, scale)
    if "logits" in LOSSES.get(name).needs:
        s, t = (Outputs(given.logits / scale, given.stages, given.embedding) for given in (s, t))
    cross_entropy = -log_softmax(s.logits.numpy())[np.arange(B), LABELS].mean()
    expected = task_weight * cross_entropy + weight * loss(s, t)
    stated = LossTerm(type=name) if name != "kd" else LossTerm(type=name, weight=0.9)
    assert whole(name, task_weight, stated, s, t) == pytest.approx(expected, rel=2e-5)


def test_hint_is_a_mean_over_batch_channels_and_positions_of_the_middle_stage() -> None:
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    criterion = TrainingLoss(
        Distillation(task_weight=0, losses=(LossTerm(type="hint"),)), STUDENT, {"teacher": TEACHER}, seed=0
    )
    weights = criterion.terms[0].adapter[0].weight.detach().double().numpy()[:, :, 0, 0]
    mapped = np.einsum("oc,bchw->bohw", weights, s.stages[1].numpy())
    mean, var = (f(mapped, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    regressed = np.maximum((mapped - mean) / np.sqrt(var + 1e-5), 0)
    expected = 100 * ((regressed - t.stages[1].numpy()) ** 2).mean()
    assert float(
        criterion(s, OutputsByTeacher({"teacher": t}), Rows(s.logits, torch.from_numpy(LABELS))).detach()
    ) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_attention_at_its_usual_weight_counts_every_stage_whole(stages: int) -> None:
    """With equal stages it grows with their number."""
    shape = ((4, 4, 4),)
    one = [outputs(OutputShapes(K, shape, 3), seed) for seed in (1, 2)]
    many = [Outputs(given.logits, given.stages * stages) for given in one]
    found = []
    for s, t in (one, many):
        count = len(s.stages)
        shapes = OutputShapes(K, shape * count)
        found.append(float(LOSSES.build("attention", shapes, shapes)(s, t, torch.from_numpy(LABELS))))
    assert found[1] == pytest.approx(stages * found[0], rel=1e-5)


def test_a_term_that_states_no_weight_has_its_authors() -> None:
    given = Distillation.model_validate({"losses": [{"type": name} for name in LOSSES.names()]})
    expected = {"attention": 1000.0, "hint": 100.0, "similarity": 3000.0, "patient": 500.0, "hard": 0.5}
    expected |= {"pkt": 30000.0, "nst": 50.0, "factor": 200.0, "sem_ckd": 400.0, "crd": 0.8, "correlation": 0.02}
    expected["wsld"] = 2.5
    assert {term.type: term.weight for term in given.losses} == {
        name: expected.get(name, 1.0) for name in LOSSES.names()
    }
    assert LossTerm(type="attention", weight=1.0).weight == 1.0
    assert LossTerm(type="no such loss").weight == 1.0


def warmed(progresses: Sequence[float], during: tuple[float, float] | None = None) -> list[float]:
    term = LossTerm(type="dkd", weight=2.0, warmup_fraction=0.25, during=during)
    criterion = TrainingLoss(Distillation(task_weight=0, losses=(term,)), STUDENT, {"teacher": TEACHER}, seed=0)
    s, t, found = outputs(STUDENT, 1), outputs(TEACHER, 2), []
    for progress in progresses:
        criterion.at(progress)
        found.append(float(criterion(s, OutputsByTeacher({"teacher": t}), Rows(s.logits, torch.from_numpy(LABELS)))))
    return found


def test_a_weight_warms_up_in_its_share_of_the_steps() -> None:
    full = 2 * dkd(outputs(STUDENT, 1), outputs(TEACHER, 2))
    found = warmed([0.05, 0.125, 0.25, 0.5, 1.0])
    assert found == pytest.approx([0.2 * full, 0.5 * full, full, full, full], rel=1e-5)


def test_a_loss_counts_during_its_stretch_of_the_steps_and_warms_up_from_its_beginning() -> None:
    full = 2 * dkd(outputs(STUDENT, 1), outputs(TEACHER, 2))
    found = warmed([0.25, 0.5, 0.625, 0.75, 0.9, 1.0], during=(0.5, 0.9))
    assert found == pytest.approx([0, 0, 0.5 * full, full, full, 0], rel=1e-5)


def test_a_stretch_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="is no stretch"):
        LossTerm(type="kd", during=(0.5, 0.5))
    term = LossTerm(type="kd", during=(0.0, 0.5))
    assert [term.share_at(progress) for progress in (0.0, 0.5, 0.51)] == [1.0, 1.0, 0.0]
    assert LossTerm.model_validate_json(term.model_dump_json()) == term


def test_no_warmup_is_left_unsaid() -> None:
    """Records from before there was a choice stay what they are."""
    assert LossTerm(type="kd", weight=0.9, temperature=4).model_dump() == {
        "type": "kd",
        "weight": 0.9,
        "temperature": 4,
    }
    term = LossTerm(type="dkd", warmup_fraction=0.1)
    assert LossTerm.model_validate_json(term.model_dump_json()) == term
    assert term.options == {}
