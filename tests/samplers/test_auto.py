"""What `auto` chooses."""

from __future__ import annotations

import optuna
import pytest

from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import Choice, SearchSpace
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.samplers.hvi import HypervolumeImprovement

COSTS = tuple(Quantity(f"cost{i}", "", "minimize", "cheap") for i in range(5))


@pytest.mark.parametrize(
    ("trials", "objectives", "expected"),
    [
        (5, 2, HypervolumeImprovement),
        (500, 4, HypervolumeImprovement),
        (500, 5, optuna.samplers.NSGAIIISampler),
        (5000, 2, optuna.samplers.NSGAIISampler),
        (5000, 3, optuna.samplers.NSGAIIISampler),
    ],
)
def test_auto_picks_by_budget_and_objectives(trials, objectives, expected):
    chosen = (ACCURACY, *COSTS)[:objectives]
    context = SamplerContext(
        SearchSpace("auto", "resnet", (Choice("depth", (1, 2)),)),
        chosen,
        trials,
        0,
        price=lambda params: {},
        acceptable=lambda params: True,
        reference_point={objective.name: 0.0 for objective in chosen},
    )
    assert type(SAMPLERS.build("auto", context)) is expected


def test_auto_reads_rungs_as_the_sampler_that_it_chose_does():
    context = SamplerContext(
        SearchSpace("auto", "resnet", (Choice("depth", (1, 2)),)),
        (ACCURACY, COSTS[0]),
        20,
        0,
        price=lambda params: {},
        acceptable=lambda params: True,
        reference_point={"accuracy": 0.0, "cost0": 1.0},
    )
    assert getattr(SAMPLERS.build("auto", context), "reads_fidelities", False)
