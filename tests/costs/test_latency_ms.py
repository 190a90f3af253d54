import statistics

import pytest
import torch
from torch import nn

from kdnas.core.measurement import Calibration
from kdnas.core.task import image_classification
from kdnas.costs import COSTS
from kdnas.costs.latency_ms import LatencyCalibration
from kdnas.errors import ConfigError, TrialError
from kdnas.machine import processor_name

CPU = torch.device("cpu")
TASK = image_classification((3, 8, 8), 4)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


class FakeTarget:
    """A target whose clock is under the test's control: a run takes its cost times the machine's present slowness."""

    where, device_name, batch_size = "a machine", "a machine", 1

    def __init__(self, slowness):
        self.now, self.passes, self.slowness = 0.0, 0, slowness

    def ready(self):
        return torch.inference_mode()

    def run(self, network, inputs):
        seconds = 0.002 if inputs[0].shape[1] == 16 else 0.010  # the reference takes images of 16 channels

        def run():
            self.now += seconds * self.slowness(self.passes)
            self.passes += 1

        return run

    def clock(self):
        return self.now


def measured(slowness, **options):
    cost = COSTS.build("latency_ms", CPU, **options)
    cost.target = FakeTarget(lambda passes: 1.0)
    calibration = cost.calibrate(TASK)
    assert calibration.reference_ms == pytest.approx(2.0)
    cost.target = FakeTarget(slowness)
    return cost.measure(NETWORK, TASK, calibration)


@pytest.mark.parametrize("slowness", [1.0, 2.7, 0.5])
def test_a_machine_slowed_as_a_whole_changes_nothing(slowness):
    measurement = measured(lambda _: slowness)
    assert measurement.value == pytest.approx(10.0)
    assert measurement.spread == pytest.approx(0.0, abs=1e-9)
    assert measurement.repeats == 30
    assert measurement.context == "a machine"


def test_drift_during_the_measurement_cancels_and_is_told():
    measurement = measured(lambda passes: 1.05**passes)
    assert measurement.value == pytest.approx(10.0, rel=0.01)
    assert "unsteady: the reference varied by" in measurement.context
    assert "times as long as at calibration" in measurement.context


def test_an_unsteady_attempt_is_repeated():
    measurement = measured(lambda passes: 1.0 + 5 * (passes % 4 // 2) if passes < 40 else 1.0, repeats=10)
    assert measurement.value == pytest.approx(10.0)
    assert "unsteady" not in measurement.context


def test_context_and_repeats_follow_the_options():
    cost = COSTS.build("latency_ms", CPU, threads=2, batch_size=3, repeats=7, warmup=1)
    measurement = cost.measure(NETWORK, TASK, Calibration())
    assert measurement.repeats == 7
    assert measurement.context.startswith(f"cpu, 2 threads, batch 3, float32, on {processor_name()}")


def test_the_target_is_the_studys_device_or_another():
    assert COSTS.build("latency_ms", CPU).target.where.startswith("cpu")
    other = COSTS.build("latency_ms", CPU, target="onnxruntime", threads=2, batch_size=4)
    assert other.target.where == "onnxruntime, CPU provider, 2 threads, batch 4, float32"


def test_threads_are_set_inside_and_restored_even_after_an_error():
    seen = []

    class Failing(nn.Module):
        def forward(self, x):
            seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), tuple(x.shape), self.training))
            raise RuntimeError("no")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        COSTS.build("latency_ms", CPU, threads=2, batch_size=5).measure(Failing(), TASK, LatencyCalibration(1.0))
    assert seen == [(2, True, (5, 3, 8, 8), False)]
    assert torch.get_num_threads() == before


def test_real_times_agree_with_a_plain_stopwatch():
    import time

    module = nn.Conv2d(3, 256, 7, padding=3).eval()
    task, x = image_classification((3, 64, 64), 2), torch.zeros(1, 3, 64, 64)
    cost = COSTS.build("latency_ms", CPU)
    calibration = cost.calibrate(task)
    value = cost.measure(module, task, calibration).value
    times = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.thread_time()
            module(x)
            times.append((time.thread_time() - start) * 1e3)
    assert 0.2 < value / statistics.median(times) < 5  # the same unit; the machine may be busy


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"batch_size": 0}, {"repeats": 1}, {"repeats": "many"}, {"target": "toaster"}, {"table": "mine"}],
)
def test_bad_options_are_refused(options):
    (key,) = options
    with pytest.raises(ConfigError, match=key):
        COSTS.build("latency_ms", CPU, **options)


def test_unlike_devices_are_never_compared():
    cost = COSTS.build("latency_ms", CPU)
    cost.target = FakeTarget(lambda passes: 1.0)
    assert cost.calibrate(TASK).device == "a machine"
    for known in ("", "a machine"):
        assert cost.measure(NETWORK, TASK, LatencyCalibration(2.0, device=known)).value > 0
    with pytest.raises(TrialError, match="the run measures on another machine, and this is a machine"):
        cost.measure(NETWORK, TASK, LatencyCalibration(2.0, device="another machine"))
    for known, words in (("", ""), ("a machine", ""), ("b", "the run measures on b, and this is a machine")):
        assert cost.unlike(LatencyCalibration(2.0, device=known)) == words
