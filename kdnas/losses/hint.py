"""Hint, or feature regression: FitNets (Romero et al., ICLR 2015)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import set_norm, token_mask
from kdnas.nn.matching import channels, match_stages, to_common_size
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Hint(DistillationLoss):
    """FitNet hint (Romero 2015): mean squared error between a stage of the teacher and the adapted student's.

    `stage` counts the matched stages from 0, or from the last with negative numbers; None is the middle one, as in the
    paper. The adapter is a 1x1 convolution with batch norm and, unless `relu` is false (for teachers whose stages
    end without one), a ReLU. Of two maps the larger is average-pooled. Usual weight: 100, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 100.0

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, stage: int | None = None, relu: bool = True):
        super().__init__(student, teacher)
        pairs = match_stages(student.stages, teacher.stages)
        position = len(pairs) // 2 if stage is None else stage
        if not -len(pairs) <= position < len(pairs):
            allowed = f"{-len(pairs)}..{len(pairs) - 1}"
            raise ConfigError(Problem("stage", f"there is no matched stage {stage}", allowed))
        self.student_stage, self.teacher_stage = pairs[position]
        channels_s = channels(student.stages[self.student_stage])
        channels_t = channels(teacher.stages[self.teacher_stage])
        layers: list[nn.Module] = [nn.Conv2d(channels_s, channels_t, 1, bias=False), nn.BatchNorm2d(channels_t)]
        self.adapter = nn.Sequential(*layers, *([nn.ReLU()] if relu else []))

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the batch and the map."""
        ours, theirs = student.stages[self.student_stage], teacher.stages[self.teacher_stage]
        if (mask := token_mask(student, ours)) is not None:  # what is padding enters no statistics
            ours, theirs = (features[mask > 0].unsqueeze(1) for features in (ours, theirs))
        ours, theirs = to_common_size(ours, theirs)
        set_norm(self.adapter[1], ours, training=self.training)
        return F.mse_loss(self.adapter(ours), theirs)
