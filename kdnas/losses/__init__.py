"""Knowledge-distillation losses. Each is one `nn.Module`; its adapters are parameters trained with the student.

Each states how its authors weigh it against cross entropy: of dkd the paper's own numbers, of cosine DistilBERT's, of
the others those of Tian et al., "Contrastive representation distillation" (ICLR 2020), for CIFAR-100, who set cross
entropy's own weight (`task_weight`) to 1 with losses that read features, and use no kd with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kdnas.errors import ConfigError, Problem
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Output, Outputs, OutputShapes
from kdnas.registry import Registry


class DistillationLoss(nn.Module, ABC):
    """One term of the training loss. `needs` names which outputs of student and teacher it reads.

    A member's constructor is `__init__(self, student: OutputShapes, teacher: OutputShapes, *, options)`; the weight of
    the term is the recipe's, not the loss's. Raises ConfigError where student or teacher lack what it reads.
    """

    needs: ClassVar[frozenset[Output]] = frozenset({"logits"})
    usual_weight: ClassVar[float] = 1.0
    """The weight of a term that states none: its authors', which belongs to the reduction of `forward`."""
    of_values: ClassVar[bool] = False
    """Whether logits may be the one number of a regression: others compare probabilities of classes."""
    of_itself: ClassVar[bool] = False
    """Whether a student has anything to learn by it of its own outputs as they are (`of: self`)."""
    of_labels: ClassVar[bool] = False
    """Whether it reads the rows' targets: samples without a label then weigh nothing. Else their target is -1."""

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__()
        name = type(self).__module__.rpartition(".")[2]
        if "logits" in self.needs and not self.of_values and student.outputs == 1:
            raise ConfigError(
                Problem(
                    "", f"{name} compares probabilities, and of one number there are none", "mse, or layers' losses"
                )
            )
        if "stages" in self.needs and not (student.stages and teacher.stages):
            raise ConfigError(f"the loss {name} needs a student and a teacher with stages: maps, or layers of tokens")
        if "attention" in self.needs and not (student.attention and teacher.attention):
            raise ConfigError(
                f"the loss {name} reads attention: student and teacher need to be transformers that kdnas supports"
            )
        if "embedding" in self.needs and not (student.embedding and teacher.embedding):
            raise ConfigError(f"the loss {name} reads the embedding: student and teacher need a linear classifier")
        if "classifier" in self.needs and not teacher.classifier:
            raise ConfigError(f"the loss {name} uses the teacher's classifier: it needs to end in a linear one")

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the loss, a float32 scalar. `rows` are the student's logits with their targets and weights.

        A loss on logits is the mean over the rows by their weights (`Rows.mean`). No gradient may reach the teacher's
        outputs and the networks may run in bfloat16: `kdnas.nn.precision.in_float32` around it ensures both.
        """


LOSSES: Registry[type[DistillationLoss]] = Registry("loss", __name__, DistillationLoss)
