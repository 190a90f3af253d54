import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from scipy.optimize import lsq_linear
from scipy.stats import kendalltau, spearmanr
from torch import nn

from kdnas.core.latency_table import LatencyTable, sort_of
from kdnas.core.measurement import Calibration
from kdnas.core.operator import Operator
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import image_classification
from kdnas.costs import COSTS
from kdnas.costs.latency_ms import LatencyCalibration
from kdnas.errors import RunError
from kdnas.students import StudentFamily, family_for
from kdnas.study.spaces import arch_of, load_space
from kdnas.workshop import latency_table
from kdnas.workshop.latency_table import (
    TablePrices,
    designed_sample,
    fitted,
    learn_latency_table,
    learn_tables,
)

TASK = image_classification((3, 32, 32), 10)
SPACES = ("cifar_resnet", "cifar_mobilenet")


def students(name: str, count: int, seed: int = 0) -> list[tuple[Operator, ...]]:
    space, rng = load_space(name, Path()), np.random.default_rng(seed)
    family = family_for(space.family, TASK)
    return [family.operators(arch_of(space, space.random(rng), family)) for _ in range(count)]


def additive_ms(operator: Operator) -> float:
    """A machine that is exactly what the table assumes: a launch, arithmetic, and memory, by sort of operator."""
    slow = 3.0 if operator.groups > 1 else 1.0
    written = operator.out_channels * operator.out_height * operator.out_width
    return 0.02 + slow * 0.03 * operator.macs / 1e6 + 0.004 * written / 1e4


def roofline_ms(operator: Operator) -> float:
    """A machine that the table can only approach: arithmetic or memory, whichever is slower, and small ones waste."""
    written = operator.out_channels * operator.out_height * operator.out_width
    read = operator.in_channels * operator.height * operator.width
    efficiency = min(1.0, 0.25 + operator.in_channels / operator.groups / 40)
    return 0.015 + max(operator.macs / (30e6 * efficiency), 4e-9 * (written + read) * 1e3)


@pytest.mark.parametrize("name", SPACES)
def test_an_additive_machine_is_learned_from_fifty_students(name):
    everyone = students(name, 400)
    chosen = designed_sample(everyone, 50)
    latency = np.array([0.3 + sum(map(additive_ms, operators)) for operators in everyone])
    table = fitted([everyone[index] for index in chosen], latency[chosen])
    errors = [abs(table.price(operators) / ms - 1) for operators, ms in zip(everyone, latency, strict=True)]
    assert float(np.median(errors)) < 0.01
    assert max(errors) < 0.03


@pytest.mark.parametrize("name", SPACES)
def test_a_roofline_with_noise_is_approached(name):
    everyone = students(name, 300, seed=1)
    rng = np.random.default_rng(0)
    latency = np.array([0.2 + sum(map(roofline_ms, operators)) for operators in everyone])
    chosen = designed_sample(everyone, 50)
    table = fitted([everyone[i] for i in chosen], latency[chosen] * rng.normal(1.0, 0.02, 50))
    predicted = [table.price(operators) for operators in everyone]
    assert np.median(np.abs(predicted / latency - 1)) < 0.05
    assert spearmanr(predicted, latency).statistic > 0.97


def test_the_fit_is_the_minimum_that_another_solver_finds():
    everyone = students("cifar_resnet", 50, seed=2)
    latency = np.array([sum(map(roofline_ms, operators)) for operators in everyone])
    table = fitted(everyone, latency)
    rows, _ = latency_table._design(everyone)
    relative = rows / latency[:, None]
    scale = np.where(rows.any(axis=0), relative.mean(axis=0), 1.0)
    penalty = latency_table._RIDGE * math.sqrt(len(rows)) * np.eye(rows.shape[1])
    stacked = np.vstack([relative / scale, penalty])
    wanted = np.r_[np.ones(len(rows)), np.zeros(rows.shape[1])]
    other = lsq_linear(stacked, wanted, bounds=(0, np.inf), tol=1e-12).x / scale
    assert [table.price(operators) for operators in everyone] == pytest.approx(list(rows @ other), rel=1e-3)
    assert table.constant_ms >= 0
    assert all(weight >= 0 for weights in table.weights_ms.values() for weight in weights)


def test_the_sample_is_designed():
    everyone = students("cifar_mobilenet", 600, seed=3)
    chosen = designed_sample(everyone, 50)
    assert len(set(chosen)) == 50
    sorts = {sort_of(operator) for operators in everyone for operator in operators}
    assert {sort_of(operator) for index in chosen for operator in everyone[index]} == sorts

    rows, _ = latency_table._design(everyone)
    rows = rows[:, rows.any(axis=0)]
    rows = rows / rows.max(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def information(indices) -> float:
        return float(np.linalg.slogdet(rows[indices].T @ rows[indices] + 1e-4 * np.eye(rows.shape[1]))[1])

    rng = np.random.default_rng(0)
    assert information(chosen) > max(information(rng.choice(600, 50, replace=False)) for _ in range(20))


def test_a_table_survives_yaml_and_prices_alike():
    everyone = students("cifar_resnet", 60, seed=4)
    table = fitted(everyone, np.array([sum(map(roofline_ms, operators)) for operators in everyone]))
    adapter = TypeAdapter(LatencyTable)
    again = adapter.validate_python(yaml.safe_load(yaml.safe_dump(adapter.dump_python(table, mode="json"))))
    assert [again.price(o) for o in everyone] == [table.price(o) for o in everyone]


def test_a_sort_that_was_never_seen_costs_what_its_likest_does():
    table = LatencyTable(1.0, {"conv dense 3x3 stride1": (2.0, *[0.0] * 6), "add dense 1x1 stride1": (5.0, *[0.0] * 6)})
    assert table.price([Operator("conv", 8, 8, 4, 4, kernel=3)]) == 3.0
    assert table.price([Operator("conv", 8, 8, 4, 4, kernel=3, stride=2)]) == 3.0
    assert table.price([]) == 1.0


class CountingTarget:
    """A target on which a pass takes 0.1 ms a convolution and 0.5 ms for all else, and the reference network 1 ms."""

    where, batch_size = "a machine", 1

    def __init__(self):
        self.now, self.passes = 0.0, 0

    def ready(self):
        return torch.inference_mode()

    def run(self, network, inputs):
        count = sum(isinstance(module, nn.Conv2d) for module in network.modules())
        seconds = 1e-3 if inputs[0].shape[1] == 16 else 5e-4 + 1e-4 * count

        def run():
            self.passes += 1
            self.now += seconds * (1.0 + 0.3 * math.sin(self.passes / 50))  # the machine's speed wanders

        return run

    def clock(self):
        return self.now


def counting_cost(**options):
    cost = COSTS.build("latency_ms", torch.device("cpu"), **options)
    cost.target = CountingTarget()
    return cost


def opened(name: str) -> tuple[SearchSpace, StudentFamily]:
    space = load_space(name, Path())
    return space, family_for(space.family, TASK)


def test_learning_measures_a_sample_and_judges_on_others():
    learned = learn_latency_table(
        *opened("cifar_resnet"), counting_cost(), reference_ms=1.0, rounds=5, samples=40, held_out=12
    )
    assert len({student.arch for student in learned.students}) == 52
    assert [student.held_out for student in learned.students] == [False] * 40 + [True] * 12
    for student in learned.students:
        depth = sum(v for k, v in student.arch.items if k.endswith(".depth"))
        assert 0.5 + 0.1 * depth < student.latency_ms < 0.5 + 0.1 * (1 + 4 * depth) + 0.1
    fit = learned.fit()
    measured = [student.latency_ms for student in learned.held_out]
    predicted = [student.predicted_ms for student in learned.held_out]
    assert fit.median_error == pytest.approx(float(np.median(np.abs(np.array(predicted) / np.array(measured) - 1))))
    assert fit.median_error < 0.03
    assert fit.spearman == pytest.approx(spearmanr(measured, predicted).statistic)
    assert fit.kendall == pytest.approx(kendalltau(measured, predicted).statistic)
    assert "12 students held out" in fit.words


def test_learning_is_a_function_of_the_seed():
    def archs(seed):
        learned = learn_latency_table(
            *opened("digits_resnet"), counting_cost(), rounds=2, samples=10, held_out=5, seed=seed
        )
        return [student.arch for student in learned.students]

    assert archs(1) == archs(1) != archs(2)


def test_a_space_of_too_few_students_is_refused():
    space = SearchSpace(
        "narrow",
        "resnet",
        (Choice("stem_width", (4, 8)), Choice("stage1.width", (4, 8, 16))),
        fixed={"stage1.depth": 1, "stage1.bottleneck": "plain", "stage1.skip": "none"},
    )
    with pytest.raises(RunError, match=r"needs 80 students to measure; space 'narrow' gave 6"):
        learn_latency_table(space, family_for(space.family, TASK), counting_cost(), rounds=2)


def test_a_study_that_asks_for_a_table_gets_it_with_its_calibration(monkeypatch):
    monkeypatch.setattr(latency_table, "SAMPLES", 10)
    space, printed = load_space("digits_resnet", Path()), []
    calibrations = {"latency_ms": LatencyCalibration(1.0), "peak_memory_bytes": Calibration()}
    memory = COSTS.build("peak_memory_bytes", torch.device("cpu"))
    for table in (None, "auto"):
        costs = {"latency_ms": counting_cost(table=table), "peak_memory_bytes": memory}
        family = family_for("resnet", TASK)
        learned = learn_tables(costs, space, family, calibrations, seed=3, notify=printed.append)
        prices = TablePrices(learned, family)
        arch = arch_of(space, space.random(np.random.default_rng(0)), family)
        if table is None:
            assert learned == calibrations
            assert prices(arch) == {}
            assert not prices.names
        else:
            assert prices.names == {"latency_ms"}
            table = learned["latency_ms"].table
            assert prices(arch) == {"latency_ms": pytest.approx(table.price(family.operators(arch)))}
            assert learned["latency_ms"].reference_ms == 1.0
            assert 0.5 < prices(arch)["latency_ms"] < 5
            assert any("rank correlation" in line for line in printed)
