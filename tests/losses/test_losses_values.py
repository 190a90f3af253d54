"""Each loss against numbers worked out by hand or by plain loops, and its invariances and limits."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

NONE = torch.zeros(1, dtype=torch.int64)


def logits(*rows: list[float]) -> Outputs:
    return Outputs(torch.tensor(rows, dtype=torch.float32))


def embedded(embedding: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(embedding), 2), embedding=embedding)


def staged(*stages: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(stages[0]), 2), stages=stages)


def build(name: str, student: Outputs, teacher: Outputs, **options: object) -> torch.nn.Module:
    def shapes(given: Outputs) -> OutputShapes:
        width = 0 if given.embedding is None else given.embedding.shape[1]
        return OutputShapes(given.logits.shape[1], tuple(tuple(s.shape[1:]) for s in given.stages), width)

    return LOSSES.build(name, shapes(student), shapes(teacher), **options)


def value(name: str, student: Outputs, teacher: Outputs, labels: Tensor = NONE, **options: object) -> float:
    return float(build(name, student, teacher, **options)(student, teacher, Rows(student.logits, labels)))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=9))[0]


# ---------------------------------------------------------------------------------------------------------------- kd


def test_kd_by_hand() -> None:
    # T = 2. Teacher logits (2 ln 3, 0): exp(z/2) = (3, 1), probabilities (3/4, 1/4). Student (0, 0): (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812; times T^2 = 4: 0.523248.
    got = value("kd", logits([0.0, 0.0]), logits([2 * math.log(3.0), 0.0]), temperature=2.0)
    assert got == pytest.approx(0.523248, abs=1e-5)


def kd_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    loss = LOSSES.build("kd", OutputShapes(5), OutputShapes(5), temperature=temperature)
    loss(Outputs(student), Outputs(teacher), Rows(student, NONE)).backward()
    return student.grad


def test_kd_at_high_temperature_is_half_the_squared_error_of_centred_logits() -> None:
    # Hinton et al., section 2.1: the gradient goes to (z_s - z_t) / K for each sample, logits centred.
    student, teacher = random(3, 5, seed=1), random(3, 5, seed=2)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert torch.allclose(kd_gradient(student, teacher, 100.0), difference / 5 / 3, rtol=0.05, atol=1e-3)
    half_squares = float((difference**2).sum(1).mean() / (2 * 5))
    assert value("kd", Outputs(student), Outputs(teacher), temperature=100.0) == pytest.approx(half_squares, rel=0.05)


def test_kd_gradients_keep_their_scale_over_temperature() -> None:
    student, teacher = 2 * random(64, 5, seed=1), 2 * random(64, 5, seed=2)
    norms = [float(kd_gradient(student, teacher, t).norm()) for t in (2.0, 4.0, 8.0, 16.0)]
    assert max(norms) / min(norms) < 2.0  # without T^2 the ratio would be about 64 / 2


# --------------------------------------------------------------------------------------------------------------- dkd


def test_dkd_by_hand() -> None:
    # T = 1, target 0. Teacher exp(z) = (2, 1, 1): target pair (1/2, 1/2), others (1/2, 1/2).
    # Student exp(z) = (1, 3, 1): target pair (1/5, 4/5), others (3/4, 1/4).
    # target KL = 1/2 ln(5/2) + 1/2 ln(5/8) = 0.458145 - 0.235002 = 0.223144
    # others KL = 1/2 ln(2/3) + 1/2 ln 2   = -0.202733 + 0.346574 = 0.143841
    # 1 * 0.223144 + 8 * 0.143841 = 1.373872
    student, teacher = logits([0.0, math.log(3.0), 0.0]), logits([math.log(2.0), 0.0, 0.0])
    options = {"temperature": 1.0, "target_weight": 1.0, "non_target_weight": 8.0}
    assert value("dkd", student, teacher, torch.tensor([0]), **options) == pytest.approx(1.373872, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_hintons_kd_when_the_others_weigh_what_the_teacher_gives_them(temperature: float) -> None:
    # KL(p_t || p_s) = target KL + (1 - p_t(target)) * others KL (Zhao et al., equation 6).
    student, teacher = random(1, 6, seed=3), random(1, 6, seed=4)
    others = 1 - float(torch.softmax(teacher / temperature, 1)[0, 2])
    options = {"temperature": temperature, "target_weight": 1.0, "non_target_weight": others}
    got = value("dkd", Outputs(student), Outputs(teacher), torch.tensor([2]), **options)
    assert got == pytest.approx(value("kd", Outputs(student), Outputs(teacher), temperature=temperature), rel=1e-4)


def test_dkd_under_mixed_labels_is_the_expectation_over_the_two_classes() -> None:
    student, teacher = Outputs(random(1, 4, seed=5)), Outputs(random(1, 4, seed=6))
    first, second = (value("dkd", student, teacher, torch.tensor([k])) for k in (3, 1))
    mixed = value("dkd", student, teacher, torch.tensor([[0.0, 0.25, 0.0, 0.75]]))
    assert mixed == pytest.approx(0.75 * first + 0.25 * second, rel=1e-5)
    pure = value("dkd", student, teacher, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert pure == pytest.approx(first, rel=1e-5)


def test_dkd_of_two_classes_has_no_others() -> None:
    student, teacher = logits([0.0, 0.0]), logits([math.log(3.0), 0.0])
    # target KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812
    got = value("dkd", student, teacher, torch.tensor([0]), temperature=1.0, non_target_weight=1e6)
    assert got == pytest.approx(0.130812, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ cosine


def test_cosine_by_hand() -> None:
    # Angles of 45 degrees, 90 and 180: 1 - cos = 1 - 0.707107, 1, 2; the mean is 1.097631.
    student = torch.tensor([[1.0, 1.0], [0.0, 2.0], [-3.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert value("cosine", embedded(student), embedded(teacher)) == pytest.approx(1.097631, abs=1e-5)


def test_cosine_is_blind_to_scale() -> None:
    student, teacher = random(4, 3, seed=1), random(4, 3, seed=2)
    plain = value("cosine", embedded(student), embedded(teacher))
    assert value("cosine", embedded(7 * student), embedded(0.1 * teacher)) == pytest.approx(plain, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- hint


def test_hint_by_hand() -> None:
    # One channel, values (1, 3) over the batch: batch norm gives (-1, 1), ReLU (0, 1), or (-1, 1) without.
    # Against the teacher's (2, 2): ((2-0)^2 + (2-1)^2) / 2 = 2.5, and (9 + 1) / 2 = 5.
    student = staged(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    teacher = staged(torch.full((2, 1, 1, 1), 2.0))
    for relu, expected in ((True, 2.5), (False, 5.0)):
        loss = build("hint", student, teacher, relu=relu)
        torch.nn.init.ones_(loss.adapter[0].weight)
        assert loss(student, teacher, Rows(student.logits, NONE)).item() == pytest.approx(expected, abs=1e-4)


def test_hint_pools_the_larger_map() -> None:
    # The teacher's 2x2 map (0, 2, 4, 6) averages to 3, the student's batch norm gives (-1, 1), ReLU (0, 1).
    # ((3-0)^2 + (3-1)^2) / 2 = 6.5
    student = staged(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    teacher = staged(torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2))
    loss = build("hint", student, teacher)
    torch.nn.init.ones_(loss.adapter[0].weight)
    assert loss(student, teacher, Rows(student.logits, NONE)).item() == pytest.approx(6.5, abs=1e-4)


def test_hint_takes_the_middle_stage_unless_told() -> None:
    shapes = OutputShapes(2, ((4, 8, 8), (8, 4, 4), (16, 2, 2)))
    assert LOSSES.build("hint", shapes, shapes).student_stage == 1
    assert LOSSES.build("hint", shapes, shapes, stage=-1).student_stage == 2
    with pytest.raises(ConfigError, match=r"no matched stage 3 .*-3\.\.2"):
        LOSSES.build("hint", shapes, shapes, stage=3)


def test_hint_can_be_learnt_to_nothing() -> None:
    student = staged(random(16, 3, 4, 4, seed=1))
    target = torch.relu(random(16, 3, 4, 4, seed=1).mean(1, keepdim=True))
    teacher = staged(target)
    loss = build("hint", student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    before = loss(student, teacher, Rows(student.logits, NONE)).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss(student, teacher, Rows(student.logits, NONE)).backward()
        optimizer.step()
    assert loss(student, teacher, Rows(student.logits, NONE)).item() < 0.02 * before


# --------------------------------------------------------------------------------------------------------- attention


def test_attention_by_hand() -> None:
    # Student 1x2 map, one channel (3, 2): squares (9, 4), length sqrt(97) = 9.848858: (0.913812, 0.406138).
    # Teacher, two channels (1, 0) and (1, 2): mean squares (1, 2), length sqrt(5): (0.447214, 0.894427).
    # Squared differences 0.217714 and 0.238426; their mean 0.228070.
    student = staged(torch.tensor([3.0, 2.0]).view(1, 1, 1, 2))
    teacher = staged(torch.tensor([[1.0, 0.0], [1.0, 2.0]]).view(1, 2, 1, 2))
    assert value("attention", student, teacher) == pytest.approx(0.228070, abs=1e-5)


def test_attention_adds_up_the_stages_and_is_blind_to_scale_and_channel_order() -> None:
    student = [random(2, 3, 4, 4, seed=1), random(2, 5, 2, 2, seed=2)]
    teacher = [random(2, 6, 4, 4, seed=3), random(2, 4, 2, 2, seed=4)]
    each = [value("attention", staged(s), staged(t)) for s, t in zip(student, teacher, strict=True)]
    both = value("attention", staged(*student), staged(*teacher))
    assert both == pytest.approx(sum(each), rel=1e-5)
    changed = value("attention", staged(5 * student[0].flip(1), student[1]), staged(*teacher))
    assert changed == pytest.approx(both, rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- rkd


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_by_loops(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """The distance and the angle term, from the paper's equations, one pair and one triplet at a time."""
    n = len(student)

    def distances(points: np.ndarray) -> dict[tuple[int, int], float]:
        d = {(i, j): math.dist(points[i], points[j]) for i in range(n) for j in range(n)}
        mean = sum(d.values()) / (n * n - n)
        return {pair: distance / mean for pair, distance in d.items()}

    def angle(points: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = points[j] - points[i], points[k] - points[i]
        if i in (j, k):
            return 0.0
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    ours, theirs = distances(student), distances(teacher)
    distance = sum(smooth_l1(ours[pair] - theirs[pair]) for pair in ours) / n**2
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    angles = sum(smooth_l1(angle(student, *t) - angle(teacher, *t)) for t in triplets) / n**3
    return distance, angles


def test_rkd_by_hand() -> None:
    # On a line: student 0, 1, 2 and teacher 0, 1, 4. Distances 1, 1, 2 (mean 4/3): 0.75, 0.75, 1.5;
    # 1, 3, 4 (mean 8/3): 0.375, 1.125, 1.5. Differences 0.375, -0.375, 0, each twice among nine pairs:
    # 4 * 0.5 * 0.140625 / 9 = 0.03125. All angles are 0 or 180 degrees in both, so their term is 0.
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [4.0]])
    assert value("rkd", embedded(student), embedded(teacher)) == pytest.approx(25 * 0.03125, abs=1e-5)


def test_rkd_against_plain_loops() -> None:
    student, teacher = random(5, 3, seed=1), random(5, 7, seed=2)
    distance, angle = rkd_by_loops(student.double().numpy(), teacher.double().numpy())
    got = value("rkd", embedded(student), embedded(teacher))
    assert got == pytest.approx(25 * distance + 50 * angle, rel=1e-4)
    angles_alone = value("rkd", embedded(student), embedded(teacher), distance_weight=0.0)
    assert angles_alone == pytest.approx(50 * angle, rel=1e-4)


def test_rkd_is_blind_to_rotation_scale_and_shift() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    moved = 3 * student @ rotation(4) + 2
    plain = value("rkd", embedded(student), embedded(teacher))
    assert value("rkd", embedded(moved), embedded(teacher)) == pytest.approx(plain, rel=1e-3)
    assert value("rkd", embedded(student), embedded(3 * student @ rotation(4) + 2)) == pytest.approx(0.0, abs=1e-4)


def test_rkd_stays_finite_where_samples_coincide() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    teacher = random(4, 3, seed=2)
    loss = build("rkd", embedded(student), embedded(teacher))
    loss(embedded(student), embedded(teacher), Rows(embedded(student).logits, NONE)).backward()
    assert torch.isfinite(student.grad).all()


def test_rkd_takes_angles_of_so_many_samples() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    few = value("rkd", embedded(student), embedded(teacher), distance_weight=0.0, angle_samples=3)
    assert few == pytest.approx(value("rkd", embedded(student[:3]), embedded(teacher[:3]), distance_weight=0.0))


# -------------------------------------------------------------------------------------------------------- similarity


def test_similarity_by_hand() -> None:
    # Student features (1, 0), (1, 1): F F^T = ((1, 1), (1, 2)); the rows scaled to length 1 are
    # (0.707107, 0.707107), (0.447214, 0.894427).
    # Teacher (1, 0), (0, 1): the identity. Squared differences 0.085786, 0.5, 0.2, 0.011146; mean 0.199233.
    student = staged(torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1))
    teacher = staged(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
    assert value("similarity", student, teacher) == pytest.approx(0.199233, abs=1e-5)


def test_similarity_is_blind_to_rotation_and_scale_and_uses_the_last_stage() -> None:
    student, teacher = random(5, 4, 1, 1, seed=1), random(5, 6, 2, 2, seed=2)
    plain = value("similarity", staged(student), staged(teacher))
    rotated = 2 * (student.flatten(1) @ rotation(4)).view(5, 4, 1, 1)
    assert value("similarity", staged(rotated), staged(teacher)) == pytest.approx(plain, rel=1e-4)
    early = random(5, 3, 4, 4, seed=3)
    assert value("similarity", staged(early, student), staged(early, teacher)) == pytest.approx(plain, rel=1e-6)


def _with_padding(given: Outputs, tokens: Tensor, rows: Tensor) -> Outputs:
    """Return outputs whose padded tokens and rows hold anything."""
    stages = tuple(torch.where(tokens[..., None] > 0, stage, 1e3 * torch.randn_like(stage)) for stage in given.stages)
    embedding = torch.where(rows[:, None] > 0, given.embedding, 1e3 * torch.randn_like(given.embedding))
    return dataclasses.replace(given, stages=stages, embedding=embedding, mask=tokens)


@pytest.mark.parametrize("name", ["cosine", "rkd", "similarity", "attention", "hint"])
def test_what_is_padding_does_not_count(name: str) -> None:
    shapes = OutputShapes(3, ((5, 8), (5, 8)), 6)
    torch.manual_seed(0)
    tokens, weights = torch.ones(4, 5), torch.tensor([1.0, 1.0, 0.0, 1.0])
    tokens[1, 3:] = tokens[3, 2:] = 0
    student, teacher = (
        Outputs(torch.randn(4, 3), (torch.randn(4, 5, 8), torch.randn(4, 5, 8)), torch.randn(4, 6)) for _ in range(2)
    )
    loss = LOSSES.build(name, shapes, shapes).train()
    rows = Rows(student.logits, torch.zeros(4, dtype=torch.int64), weights)

    def value(ours: Outputs, theirs: Outputs) -> float:
        return float(loss(*(_with_padding(side, tokens, weights) for side in (ours, theirs)), rows).detach())

    once = value(student, teacher)
    assert value(student, teacher) == pytest.approx(once, rel=1e-5)
    other = Outputs(student.logits, tuple(s**2 for s in student.stages), -(student.embedding**2))
    assert value(other, teacher) != pytest.approx(once, rel=1e-3)
