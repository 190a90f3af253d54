"""A score without training: the student cut out of the run's supernet, its batch norms estimated anew.

Source: Guo et al., "Single path one-shot neural architecture search with uniform sampling" (ECCV 2020).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from kdnas.training.loop import EpochRecord, Trained
from kdnas.workshop.evaluators import EVALUATORS
from kdnas.workshop.evaluators._shared_weights import SharingEvaluator
from kdnas.workshop.jobs import Job


@EVALUATORS.register
class SupernetScore(SharingEvaluator):
    """Cuts each student out of the run's supernet and scores it as it is: no training, hundreds in minutes.

    The study's section `supernet` says how that is trained.
    """

    def train(self, module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None]) -> Trained:
        """Return the student that was cut out, and its score."""
        shared, began = self.shared, time.perf_counter()
        score = shared.score(job.arch)
        seconds = time.perf_counter() - began
        network = shared.cut(job.arch) if job.test or job.checkpoint else module
        return Trained(network, score, (), seconds, 0.0, job.fidelity, phases={"evaluation": seconds})
