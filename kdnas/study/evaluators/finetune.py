"""A brief distillation that begins from the weights of the run's supernet."""

from __future__ import annotations

from torch import nn

from kdnas.study.evaluators import EVALUATORS
from kdnas.study.evaluators._distilling import DistillingEvaluator
from kdnas.study.evaluators._shared_weights import SharingEvaluator
from kdnas.study.jobs import Job


@EVALUATORS.register
class Finetune(SharingEvaluator, DistillingEvaluator):
    """Cuts each student out of the run's supernet and trains it on briefly, beside the teacher."""

    def build(self, job: Job) -> nn.Module:
        """Return the student with the supernet's weights."""
        module = super().build(job)
        module.load_state_dict(self.shared.cut(job.arch).state_dict())
        return module
