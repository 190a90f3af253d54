"""Texts, or pairs of texts, and the one class of each."""

from __future__ import annotations

from kdnas.tasks import TASKS
from kdnas.tasks._classification import Classification
from kdnas.tasks._texts import Texts


@TASKS.register
class TextClassification(Texts, Classification):
    """Texts as tokens [B, T] with a mask [B, T], of pairs also the segments [B, T]; the score is the share right."""
