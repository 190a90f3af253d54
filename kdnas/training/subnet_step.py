"""How the subnets of one step learn from one batch.

The largest subnet learns from the labels and the fixed teacher by every loss of the recipe, taps included. The others
learn from the labels and the teacher by those losses that read logits alone; where the recipe has only other losses, by
`kd` at weight 1. With in-place distillation the step's largest subnet takes the teacher's place for the others. Feature
losses are for the largest alone because their adapters are made for one width.

Shapes: B batch, C channels, H and W height and width, K classes.

Sources: sandwich rule and in-place distillation, Yu and Huang (ICCV 2019) and Yu et al., "BigNAS" (ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.losses import LOSSES
from kdnas.nn.elastic import Subnet, Supernet
from kdnas.nn.normalise import resized
from kdnas.nn.taps import Outputs, OutputShapes, Taps, output_shapes
from kdnas.training.fused_norm import fused_norms
from kdnas.training.loss import TrainingLoss, needs_of, task_loss
from kdnas.training.recipe import Distillation, LossTerm
from kdnas.training.subnets import SubnetSpec


class SubnetStep:
    """Losses and gradients of a step's subnets. Taps stay hooked into the largest subnet until `stack` closes.

    Args:
        stack: Keeps the taps.
        supernet: The shared weights.
        largest: The supernet's largest subnet, which feature losses read.
        teacher: The shapes of the teacher's outputs.
        distillation: The recipe's losses.
        data: The data set, for its task and channel statistics.
        in_place: Whether the step's largest subnet teaches the others.
        bfloat16: The precision of the forward passes.
        device: Where all of it is.
        seed: Starts the adapters.
        pixels: Of all images that the training sees at least: whether fused norms pay.
    """

    def __init__(
        self,
        stack: ExitStack,
        supernet: Supernet,
        largest: SubnetSpec,
        teacher: OutputShapes,
        distillation: Distillation,
        *,
        data: ImageData,
        in_place: bool,
        bfloat16: bool,
        device: torch.device,
        seed: int,
        pixels: float = 0.0,
    ):
        self._pixels = pixels
        self._supernet, self._largest, self._distillation = supernet, largest, distillation
        self._task, self._in_place, self._bfloat16, self.device = data.task, in_place, bfloat16, device
        self._mean = torch.tensor(data.channel_mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(data.channel_std, device=device).view(1, -1, 1, 1)
        view = supernet.running(largest.arch)
        names = [f"student.stages.{index}" for index in range(_stages(view))], "student.classifier"
        shapes = output_shapes(view, *names, torch.zeros(2, *data.task.image_shape, device=device))
        self._tapped = stack.enter_context(Taps(view, *names, needs=needs_of(distillation)))
        self._tapped_view = view
        self.criteria = nn.ModuleDict()
        terms = [term for term in distillation.losses if term.weight > 0]
        if terms:
            logits_only = [term for term in terms if LOSSES.get(term.type).needs == {"logits"}]
            for name, chosen in (("largest", terms), ("others", logits_only or [LossTerm(type="kd")])):
                losses = Distillation(task_weight=0.0, losses=tuple(chosen))
                self.criteria[name] = TrainingLoss(losses, shapes, teacher, seed=seed)
        self.criteria.to(device)

    def at(self, progress: float) -> None:
        """Set the weights of losses that warm up for a step that ends at the share `progress` of the training."""
        for criterion in self.criteria.values():
            criterion.at(progress)  # type: ignore[operator]

    def backward(
        self, subnets: Sequence[SubnetSpec], images: Tensor, labels: Tensor, theirs: Outputs | None, kd_weight: float
    ) -> Tensor:
        """Add the gradients of each of `subnets` on raw `images` and return their losses [len(subnets)], detached.

        Args:
            subnets: The largest first, where it is among them.
            images: Raw images [B, C, H, W].
            labels: int64 [B], or probabilities [B, K].
            theirs: The teacher's outputs, None where the recipe has no distillation loss.
            kd_weight: Factor of all distillation losses.
        """
        losses, guide = [], theirs
        for position, spec in enumerate(subnets):
            largest = position == 0 and spec == self._largest  # drawn again it learns as the others do
            ours = self._outputs(spec, images, tapped=largest)
            loss = ours.logits.new_zeros((), dtype=torch.float32)
            if self._distillation.task_weight > 0:
                weight, smoothing = self._distillation.task_weight, self._distillation.label_smoothing
                loss = loss + weight * task_loss(ours.logits, labels, smoothing)
            if self.criteria and guide is not None:
                loss = loss + kd_weight * self.criteria["largest" if largest else "others"](ours, guide, labels)
            loss.backward()
            losses.append(loss.detach())
            if largest and self._in_place and guide is not None:
                guide = Outputs(ours.logits.detach())
        return torch.stack(losses)

    def _outputs(self, spec: SubnetSpec, images: Tensor, *, tapped: bool) -> Outputs:
        size = self._task.at(spec.side).image_size
        pixels = (resized(images, size) - self._mean) / self._std
        view = self._tapped_view if tapped else self._supernet.running(spec.arch)
        view.train(self._supernet.training)
        with (
            fused_norms(view.student, self.device, pixels=self._pixels),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16),
        ):
            return self._tapped(pixels) if tapped else Outputs(view(pixels))


def _stages(view: Subnet) -> int:
    stages = view.student.stages
    assert isinstance(stages, nn.ModuleList)
    return len(stages)
