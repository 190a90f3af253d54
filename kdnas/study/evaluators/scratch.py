"""A brief distillation from a random initialisation."""

from __future__ import annotations

from kdnas.study.evaluators import EVALUATORS
from kdnas.study.evaluators._distilling import DistillingEvaluator


@EVALUATORS.register
class Scratch(DistillingEvaluator):
    """Trains each student briefly from a random initialisation, beside the teacher."""
