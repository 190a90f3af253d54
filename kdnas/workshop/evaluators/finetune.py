"""A brief distillation that begins from the weights of the run's supernet."""

from __future__ import annotations

from torch import nn

from kdnas.workshop.evaluators import EVALUATORS
from kdnas.workshop.evaluators._distilling import DistillingEvaluator
from kdnas.workshop.evaluators._shared_weights import SharingEvaluator
from kdnas.workshop.jobs import Job


@EVALUATORS.register
class Finetune(SharingEvaluator, DistillingEvaluator):
    """Cuts each student out of the run's supernet and trains it on briefly, beside the teacher."""

    def build(self, job: Job) -> nn.Module:
        """Return the student with the supernet's weights."""
        module = super().build(job)
        module.load_state_dict(self.shared.cut(job.arch).state_dict())
        return module
