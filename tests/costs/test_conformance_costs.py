"""Every cost of the registry keeps its family's contract; and what is said of those of kdnas alone."""

from __future__ import annotations

import pytest
import torch

from kdnas.core.task import image_classification
from kdnas.costs import COSTS, MeasuredCost
from kdnas.testing import CostConformance, suites
from kdnas.testing.costs import small_student

globals().update(suites(CostConformance))


MEASURED = [name for name in COSTS.names() if issubclass(COSTS.get(name), MeasuredCost)]


@pytest.mark.parametrize("name", MEASURED)
def test_a_measurement_says_where_and_at_what_batch_it_was_made(name: str) -> None:
    cost, task = COSTS.build(name, torch.device("cpu")), image_classification((3, 16, 16), 5)
    measurement = cost.measure(small_student(), task, cost.calibrate(task))
    assert "cpu" in measurement.context
    assert "batch 1" in measurement.context


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEASURED)
def test_measured_costs_on_cuda(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    cost, task = COSTS.build(name, torch.device("cuda")), image_classification((3, 16, 16), 5)
    calibration = cost.calibrate(task)
    first, second = (cost.measure(small_student(), task, calibration) for _ in range(2))
    assert first.value > 0
    assert torch.cuda.get_device_name() in first.context
    assert first.value == pytest.approx(second.value, rel=0.5)
