"""A brief distillation from a random initialisation."""

from __future__ import annotations

from kdnas.workshop.evaluators import EVALUATORS
from kdnas.workshop.evaluators._distilling import DistillingEvaluator


@EVALUATORS.register
class Scratch(DistillingEvaluator):
    """Trains each student briefly from a random initialisation, beside the teacher."""
