"""What every target keeps, where this machine has it."""

from __future__ import annotations

import inspect
from typing import ClassVar

import pytest
import torch

from kdnas.core.measurement import Measurement
from kdnas.errors import ConfigError
from kdnas.nn.timing import interleaved, reference_network
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target, noise
from kdnas.testing._member import MemberConformance
from kdnas.testing.costs import small_student

SHAPE = (3, 16, 16)
IMAGES = (noise((2, *SHAPE)),)


class TargetConformance(MemberConformance):
    """The suite of targets; it takes `batch_size` as an option."""

    registry = TARGETS
    needs_gpu: ClassVar[bool] = False
    """Skips the suite where there is no CUDA device; there both networks of a comparison are launches."""

    @pytest.fixture
    def target(self) -> Target:
        """The target at two images a pass."""
        if self.needs_gpu and not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        target: Target = self.build(batch_size=2)
        return target

    def test_a_run_is_a_whole_pass_and_leaves_the_network_and_torch_as_they_were(self, target: Target) -> None:
        module = small_student().train()
        before = {key: value.clone() for key, value in module.state_dict().items()}
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        with target.ready():
            run = target.run(module, IMAGES)
            run()
            run()
        assert module.training
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
        assert all(p.grad is None and p.device.type == "cpu" for p in module.parameters())
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_larger_student_takes_longer_and_more_memory(self, target: Target) -> None:
        students = [small_student(4), small_student(96)]
        reference, images = reference_network()
        with target.ready():
            runs = [target.run(module, IMAGES) for module in students]
            ours = target.run(reference, (images,))
            timing = interleaved(runs, ours, rounds=15, warmup=2, clock=target.clock)
            small, large = (target.peak_memory_bytes(module, IMAGES) for module in students)
        medians = [sorted(timing.ratios(index))[7] for index in (0, 1)]
        if not self.needs_gpu:
            assert medians[1] > 2 * medians[0] > 0
        assert isinstance(small, Measurement)
        assert isinstance(large, Measurement)
        assert large.value > small.value > 0
        assert "batch 2" in small.context

    def test_it_says_where_it_ran(self, target: Target) -> None:
        assert "batch 2" in target.where
        assert "float32" in target.where

    def test_energy_is_a_reading_or_a_reason(self, target: Target) -> None:
        counter = target.energy_counter()
        if isinstance(counter, Missing):
            assert counter.reason
            return
        assert isinstance(counter, EnergyCounter)
        start = counter.read()
        assert counter.spent_mj(start, counter.read()) >= 0

    def test_a_batch_of_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="batch_size"):
            self.build(batch_size=0)

    def test_its_variants_are_made_of_its_options(self) -> None:
        member = TARGETS.get(self._member)
        for variant in member.variants:
            assert not TARGETS.problems(self._member, {**self.options, **variant})
        assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(member).parameters.values())
