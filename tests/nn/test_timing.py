import statistics

import pytest
import torch

from kdnas.nn.timing import calmest, interleaved, median_and_spread, middle_mean, reference_network


class Machine:
    """A clock that runs advance: each costs its seconds times the machine's slowness at that moment."""

    def __init__(self, slowness=lambda now: 1.0):
        self.now, self.slowness, self.log = 0.0, slowness, []

    def run(self, name: str, seconds: float):
        def run():
            self.log.append(name)
            self.now += seconds * self.slowness(self.now)

        return run

    def clock(self) -> float:
        return self.now


def test_the_reference_stands_before_and_after_every_run_and_warmup_is_not_timed():
    machine = Machine()
    runs = [machine.run("a", 1.0), machine.run("b", 3.0)]
    timing = interleaved(runs, machine.run("r", 2.0), rounds=3, warmup=1, clock=machine.clock)
    assert "".join(machine.log) == "rab" + 3 * "rarbr"
    assert timing.runs == ((1.0, 3.0),) * 3
    assert timing.reference == ((2.0, 2.0, 2.0),) * 3
    assert timing.ratios(0) == [0.5] * 3
    assert timing.ratios(1) == [1.5] * 3
    assert timing.reference_ms == 2000.0
    assert timing.unrest == timing.drift == 0.0


@pytest.mark.parametrize("slope", [-0.002, 0.004, 0.05])
def test_a_steady_drift_cancels_in_the_ratios_and_is_told(slope):
    machine = Machine(lambda now: 1.0 + slope * now)
    runs = [machine.run("a", 0.10), machine.run("b", 0.03)]
    timing = interleaved(runs, machine.run("r", 0.02), rounds=60, warmup=0, clock=machine.clock)
    # A linear change of speed: the mean of the neighbours is the speed in the middle, up to the step inside a pass.
    assert statistics.median(timing.ratios(0)) == pytest.approx(5.0, rel=0.02)
    assert statistics.median(timing.ratios(1)) == pytest.approx(1.5, rel=0.02)
    fifths = sorted([machine.slowness(0.1 * machine.now), machine.slowness(0.9 * machine.now)])
    assert timing.drift == pytest.approx(fifths[1] / fifths[0] - 1, rel=0.25)


def test_single_hiccups_do_not_move_the_median():
    hits = iter(range(10**6))
    machine = Machine(lambda now: 40.0 if next(hits) % 7 == 3 else 1.0)
    timing = interleaved([machine.run("a", 0.2)], machine.run("r", 0.1), rounds=50, warmup=0, clock=machine.clock)
    assert statistics.median(timing.ratios(0)) == pytest.approx(2.0)


def test_the_first_calm_attempt_is_taken_else_the_calmest():
    rough = Machine(lambda now: 1.0 if now > 20 else 1.0 + 3 * (int(now * 10) % 2))
    timing = calmest([rough.run("a", 0.3)], rough.run("r", 0.1), rounds=20, warmup=0, clock=rough.clock)
    assert timing.unrest < 0.01
    spells = iter(range(10**6))
    never = Machine(lambda now: 1.0 + next(spells) % 5)
    timing = calmest([never.run("a", 0.3)], never.run("r", 0.1), rounds=20, warmup=0, clock=never.clock)
    assert timing.unrest > 0.25
    assert len(never.log) == 3 * 20 * 3


def test_median_and_spread_are_numpys_quartiles():
    values = torch.rand(31, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, median, third = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert median_and_spread(values.tolist()) == pytest.approx((median, third - first))


def test_the_reference_is_the_same_everywhere():
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network, images = reference_network()
        outputs.append(network(images))
    assert torch.equal(*outputs)


def test_the_middle_mean_is_scipys_trimmed_mean():
    from scipy.stats import trim_mean

    values = torch.rand(37, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    assert middle_mean(values) == pytest.approx(trim_mean(values, 0.25))
    assert middle_mean([3.0, 1.0, 2.0, 1e9]) == 2.5
    assert middle_mean([7.0]) == 7.0
