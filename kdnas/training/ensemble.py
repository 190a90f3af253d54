"""What several teachers output for a batch, each by its name, and their ensemble.

The weights by confidence are those of Zhang, Chen and Wang, "Confidence-aware multi-teacher knowledge distillation"
(CA-MKD, ICASSP 2022).

Shapes: B batch, M rows, V outputs, K teachers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs
from kdnas.training.recipe import Ensemble


@dataclass(frozen=True)
class OutputsByTeacher:
    """The outputs of each teacher for one batch, by its name."""

    by: Mapping[str, Outputs]

    @property
    def tensors(self) -> list[Tensor]:
        """All that there are, in an order of their own."""
        return [tensor for outputs in self.by.values() for tensor in outputs.tensors]

    def of(self, tensors: Sequence[Tensor]) -> OutputsByTeacher:
        """Return the same that holds `tensors`, in the order of `tensors`."""
        made, place = {}, 0
        for name, outputs in self.by.items():
            count = len(outputs.tensors)
            made[name] = outputs.of(tensors[place : place + count])
            place += count
        return OutputsByTeacher(made)

    def map(self, change: Callable[[Outputs], Outputs]) -> OutputsByTeacher:
        """Return the same with the outputs of each changed."""
        return OutputsByTeacher({name: change(outputs) for name, outputs in self.by.items()})

    def together(self, how: Ensemble, rows: Rows, learned: Tensor | None = None) -> Outputs:
        """Return the logits [M, V] of the ensemble; `rows` have the labels that confidence is measured by.

        `learned` [K] are the logarithms of weights that are learned, up to their sum; None: equal ones, as they begin.
        Probabilities are averaged at the ensemble's temperature: softened by it, its logits give their very mean.
        """
        logits = torch.stack([outputs.logits.float() for outputs in self.by.values()])
        if learned is not None:
            weights = learned.softmax(dim=0).unsqueeze(1).expand(logits.shape[:2])
        else:
            weights = self._weights(how, logits, rows)
        if how.mean == "logits":
            return Outputs((weights.unsqueeze(-1) * logits).sum(dim=0))
        shares = F.log_softmax(logits / how.temperature, dim=-1) + weights.log().unsqueeze(-1)
        return Outputs(how.temperature * shares.logsumexp(dim=0))

    def _weights(self, how: Ensemble, logits: Tensor, rows: Rows) -> Tensor:
        """Return the teachers' weights [K, M], which add up to 1."""
        count = len(logits)
        if how.weights == "confidence" and count > 1:
            known = rows.known
            losses = torch.stack([F.cross_entropy(each, known.targets, reduction="none") for each in logits])
            if rows.labelled is not None:
                losses = losses * rows.labelled  # nobody is known to be right: all count the same
            return (1 - losses.softmax(dim=0)) / (count - 1)
        stated = how.weights if isinstance(how.weights, Mapping) else {}
        fixed = [float(stated.get(name, 0.0)) if stated else 1.0 for name in self.by]
        whole = math.fsum(fixed)
        return logits.new_tensor([each / whole for each in fixed]).unsqueeze(1).expand(count, logits.shape[1])
