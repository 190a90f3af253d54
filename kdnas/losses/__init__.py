"""Knowledge-distillation losses. Each is one `nn.Module`; its adapters are parameters trained with the student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.registry import Registry

Need = Literal["logits", "stages", "embedding"]


class DistillationLoss(nn.Module, ABC):
    """One term of the training loss. `needs` says which outputs of student and teacher it reads.

    A member's constructor is `__init__(self, student: OutputShapes, teacher: OutputShapes, *, options)`; the weight of
    the term is the recipe's, not the loss's. Raises ConfigError where the shapes cannot be matched.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__()

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar. `labels` is int64 [B], or probabilities [B, K] where images are mixed."""


LOSSES: Registry[type[DistillationLoss]] = Registry("loss", __name__)
