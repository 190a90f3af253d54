import statistics

import pytest
import torch
from torch import nn

from kdnas.core.task import ImageTask
from kdnas.costs import COSTS, latency_ms
from kdnas.errors import ConfigError

CPU = torch.device("cpu")
TASK = ImageTask((3, 8, 8), 4)


class Machine:
    """A clock under the test's control: every run takes its cost times the machine's present slowness."""

    def __init__(self, monkeypatch, cost_of_student_s: float, slowness):
        self.rounds = 0
        self.reference_s = 0.002
        monkeypatch.setattr(latency_ms, "_seconds", self.seconds)
        self.student_s, self.slowness = cost_of_student_s, slowness
        self.turn = 0
        self.alone = True

    def seconds(self, run):
        run()
        if self.alone:
            return self.reference_s
        self.turn += 1
        is_student = self.turn % 2 == 1
        return (self.student_s if is_student else self.reference_s) * self.slowness((self.turn - 1) // 2)


def measured(monkeypatch, slowness, **options):
    machine = Machine(monkeypatch, 0.010, slowness)
    cost = COSTS.build("latency_ms", CPU, **options)
    calibration = cost.calibrate(TASK)
    assert calibration == {"reference_ms": pytest.approx(2.0)}
    machine.alone = False
    return cost.measure(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), TASK, calibration)


@pytest.mark.parametrize("slowness", [1.0, 2.7, 0.5])
def test_a_machine_slowed_as_a_whole_changes_nothing(monkeypatch, slowness):
    measurement = measured(monkeypatch, lambda _: slowness)
    assert measurement.value == pytest.approx(10.0)
    assert measurement.spread == pytest.approx(0.0, abs=1e-9)
    assert measurement.repeats == 30
    assert measurement.context == "cpu, 1 thread, batch 1, float32"


def test_drift_during_the_measurement_cancels_and_is_told(monkeypatch):
    measurement = measured(monkeypatch, lambda index: 1.0 + index % 30)
    assert measurement.value == pytest.approx(10.0)
    assert "unsteady: the reference varied by" in measurement.context
    assert "times as long as at calibration" in measurement.context


def test_an_unsteady_attempt_is_repeated(monkeypatch):
    measurement = measured(monkeypatch, lambda index: 1.0 + 5 * (index % 2) if index < 10 else 1.0, repeats=10)
    assert measurement.value == pytest.approx(10.0)
    assert "unsteady" not in measurement.context


def test_context_and_repeats_follow_the_options():
    cost = COSTS.build("latency_ms", CPU, threads=2, batch_size=3, repeats=7, warmup=1)
    measurement = cost.measure(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), TASK, {})
    assert measurement.repeats == 7
    assert measurement.context.startswith("cpu, 2 threads, batch 3, float32")


def test_threads_are_set_inside_and_restored_even_after_an_error():
    seen = []

    class Failing(nn.Module):
        def forward(self, x):
            seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), tuple(x.shape), self.training))
            raise RuntimeError("no")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        COSTS.build("latency_ms", CPU, threads=2, batch_size=5).measure(Failing(), TASK, {"reference_ms": 1.0})
    assert seen == [(2, True, (5, 3, 8, 8), False)]
    assert torch.get_num_threads() == before


def test_real_times_agree_with_a_plain_stopwatch():
    import time

    module = nn.Conv2d(3, 256, 7, padding=3).eval()
    task, x = ImageTask((3, 64, 64), 2), torch.zeros(1, 3, 64, 64)
    cost = COSTS.build("latency_ms", CPU)
    calibration = cost.calibrate(task)
    value = cost.measure(module, task, calibration).value
    times = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            module(x)
            times.append((time.perf_counter() - start) * 1e3)
    assert 0.1 < value / statistics.median(times) < 10  # the same unit; the machine may be busy


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch_size": 0}, {"repeats": 1}, {"repeats": "many"}])
def test_bad_options_are_refused(options):
    (key,) = options
    with pytest.raises(ConfigError, match=key):
        COSTS.build("latency_ms", CPU, **options)
