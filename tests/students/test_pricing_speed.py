"""Pricing a candidate is cheap: 10^5 of them in seconds. Bounds are ratios to work measured in the same run."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdnas.core.task import image_classification
from kdnas.students import family_for
from kdnas.study.spaces import arch_of, load_space
from kdnas.workshop.latency_table import designed_sample, fitted

TASK = image_classification((3, 32, 32), 10)
COUNT = 2000


def seconds_each(work: Callable[[dict], object], items: list[dict]) -> float:
    """The processor time of one item: the best of five, once everything has been seen."""
    times = []
    for _ in range(6):
        start = time.thread_time()
        for item in items:
            work(item)
        times.append((time.thread_time() - start) / len(items))
    return min(times[1:])


@pytest.mark.parametrize("name", ["cifar_resnet", "cifar_mobilenet"])
def test_a_candidate_is_priced_in_the_time_of_writing_it_down_a_few_times(name):
    space = load_space(name, Path())
    family, rng = family_for(space.family, TASK), np.random.default_rng(0)
    assignments = [space.random(rng) for _ in range(COUNT)]
    everyone = [family.operators(arch_of(space, a, family)) for a in assignments[:300]]
    chosen = designed_sample(everyone, 50)
    table = fitted([everyone[i] for i in chosen], np.array([1.0 + len(everyone[i]) for i in chosen]))

    def price(assignment: dict) -> float:
        arch = arch_of(space, assignment, family)
        family.price(arch)
        return table.price_groups(family.groups(arch))

    # Writing the same assignment as JSON takes 10 to 20 microseconds; pricing it takes two to three times as long.
    assert seconds_each(price, assignments) < 8 * seconds_each(lambda a: json.dumps(a, sort_keys=True), assignments)
