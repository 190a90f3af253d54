"""What every cost keeps."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from kdnas.core.measurement import Measurement, Price
from kdnas.core.task import image_classification
from kdnas.costs import COSTS, CheapCost
from kdnas.nn.blocks import ResidualBlock, ResidualPlan, Student, StudentPlan
from kdnas.testing._member import MemberConformance

TASK = image_classification((3, 16, 16), 5)


def small_student(width: int = 8) -> Student:
    """Return a network of one residual block of `width` channels, for images [3, 16, 16] of 5 classes."""
    stages = ((ResidualPlan(width, width, 0, 1, "identity"),),)
    return Student(StudentPlan(3, width, 1, stages, 0, 5), ResidualBlock)


class CostConformance(MemberConformance):
    """The suite of costs, cheap and measured ones."""

    registry = COSTS
    rises_with_width: ClassVar[bool] = True
    """Whether a student of much wider layers costs more than twice as much; what counts layers does not."""

    @property
    def _cheap(self) -> bool:
        return issubclass(COSTS.get(self._member), CheapCost)

    def _built(self, device: str = "cpu") -> object:
        return self.build() if self._cheap else self.build(torch.device(device))

    def test_its_quantity_says_what_it_is(self) -> None:
        quantity = COSTS.get(self._member).quantity
        assert quantity.name
        assert quantity.unit
        assert quantity.direction == "minimize"
        assert quantity.kind == ("cheap" if self._cheap else "measured")
        if isinstance(self._member, str):
            assert quantity.name == self._member, "studies name it by its quantity"

    def test_a_cheap_cost_rises_with_the_price(self) -> None:
        if self._cheap:
            cost = self.build()
            assert 0 < cost.value(Price(macs=100, params=10)) < cost.value(Price(macs=1000, params=100))

    @pytest.mark.parametrize("training", [True, False])
    def test_a_measured_cost_leaves_the_module_as_it_was(self, training: bool) -> None:
        if self._cheap:
            return
        cost = self.build(torch.device("cpu"))
        adapter = TypeAdapter(cost.calibration)  # it is stored as YAML
        calibration = adapter.validate_python(adapter.dump_python(cost.calibrate(TASK), mode="json"))
        module = small_student().train(training)
        before = {key: value.clone() for key, value in module.state_dict().items()}
        threads = torch.get_num_threads()
        measurement = cost.measure(module, TASK, calibration)
        assert isinstance(measurement, Measurement)
        assert measurement.value > 0
        assert measurement.spread >= 0
        assert measurement.repeats >= 1
        assert measurement.context
        assert module.training is training
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
        assert torch.get_num_threads() == threads

    def test_a_measured_cost_tells_a_large_student_from_a_small_one(self) -> None:
        if self._cheap or not self.rises_with_width:
            return
        cost = self.build(torch.device("cpu"))
        calibration = cost.calibrate(TASK)
        small, large = (cost.measure(small_student(width), TASK, calibration).value for width in (4, 96))
        assert large > 2 * small
