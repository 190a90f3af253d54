"""What every cost keeps."""

import pytest
import torch
from pydantic import TypeAdapter

from kdnas.core.measurement import Measurement, Price
from kdnas.core.task import image_classification
from kdnas.costs import COSTS, CheapCost
from kdnas.errors import ConfigError
from kdnas.nn.blocks import ResidualBlock, ResidualPlan, Student, StudentPlan

TASK = image_classification((3, 16, 16), 5)


def student(width: int = 8) -> Student:
    stages = ((ResidualPlan(width, width, 0, 1, "identity"),),)
    return Student(StudentPlan(3, width, 1, stages, 0, 5), ResidualBlock)


@pytest.fixture(params=COSTS.names())
def name(request) -> str:
    return request.param


CHEAP = [name for name in COSTS.names() if issubclass(COSTS.get(name), CheapCost)]
MEASURED = [name for name in COSTS.names() if name not in CHEAP]


def test_the_quantity_carries_the_registered_name(name):
    quantity = COSTS.get(name).quantity
    assert quantity.name == name
    assert quantity.unit
    assert quantity.direction == "minimize"
    assert quantity.kind == ("cheap" if name in CHEAP else "measured")
    assert COSTS.summary(name)


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_costs_are_built_with_nothing_and_rise_with_the_price(name):
    cost = COSTS.build(name)
    assert 0 < cost.value(Price(macs=100, params=10)) < cost.value(Price(macs=1000, params=100))


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("training", [True, False])
def test_measured_costs_leave_the_module_as_it_was(name, training):
    cost = COSTS.build(name, torch.device("cpu"))
    adapter = TypeAdapter(cost.calibration)  # it is stored as YAML
    calibration = adapter.validate_python(adapter.dump_python(cost.calibrate(TASK), mode="json"))
    module = student().train(training)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    threads = torch.get_num_threads()
    measurement = cost.measure(module, TASK, calibration)
    assert isinstance(measurement, Measurement)
    assert measurement.value > 0
    assert measurement.spread >= 0
    assert measurement.repeats >= 1
    assert "cpu" in measurement.context
    assert "batch 1" in measurement.context
    assert module.training is training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", MEASURED)
def test_measured_costs_tell_a_large_student_from_a_small_one(name):
    cost = COSTS.build(name, torch.device("cpu"))
    calibration = cost.calibrate(TASK)
    small, large = (cost.measure(student(width), TASK, calibration).value for width in (4, 96))
    assert large > 2 * small


def test_unknown_options_are_refused(name):
    objects = () if name in CHEAP else (torch.device("cpu"),)
    with pytest.raises(ConfigError, match="wings: unknown key"):
        COSTS.build(name, *objects, wings=2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEASURED)
def test_measured_costs_on_cuda(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    cost = COSTS.build(name, torch.device("cuda"))
    calibration = cost.calibrate(TASK)
    first, second = (cost.measure(student(), TASK, calibration) for _ in range(2))
    assert first.value > 0
    assert torch.cuda.get_device_name() in first.context
    assert first.value == pytest.approx(second.value, rel=0.5)
