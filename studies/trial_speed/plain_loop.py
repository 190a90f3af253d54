"""Opponent A, as tutorials write it: float32, NCHW, a DataLoader with workers, the teacher run on every batch."""

from __future__ import annotations

import math
import time

import setting
import torch
from setting import Images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """One image at a time: padded, cropped at random, mirrored half of the time, normalised."""

    def __init__(self, images: Images):
        self.data = images

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = (self.data.images[index].float() - self.data.mean) / self.data.std
        image = F.pad(image, [setting.PADDING] * 4)
        top, left = torch.randint(0, 2 * setting.PADDING + 1, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return image, int(self.data.labels[index])


def train(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
    seed: int,
    warmup_steps: int = 0,
) -> float:
    """Train `student` for one pass; return the images a second after `warmup_steps`. `teacher` takes 0..255."""
    torch.manual_seed(seed)
    loader = DataLoader(
        AugmentedImages(images),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    student.to(device).train()
    mean, std = images.mean.to(device), images.std.to(device)
    optimizer, scheduler = optimizer_of(student, len(loader))
    begun, seen = time.perf_counter(), 0
    for step, (inputs, labels) in enumerate(loader):
        if step == warmup_steps:
            _finish(device)
            begun, seen = time.perf_counter(), 0
        inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.no_grad():
            theirs = teacher(inputs * std + mean)
        loss = kd_loss(student(inputs), theirs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        seen += len(labels)
    _finish(device)
    return seen / (time.perf_counter() - begun)


def kd_loss(ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    """Return Hinton's loss with the setting's weights."""
    temperature = setting.TEMPERATURE
    kd = F.kl_div(
        F.log_softmax(ours / temperature, dim=1),
        F.log_softmax(theirs / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return setting.TASK_WEIGHT * F.cross_entropy(ours, labels) + setting.KD_WEIGHT * temperature**2 * kd


def optimizer_of(
    student: nn.Module, steps: int, *, fused: bool | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return SGD with Nesterov momentum, no weight decay on norms and biases, and a cosine after a linear warm-up."""
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": setting.WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=setting.LEARNING_RATE, momentum=setting.MOMENTUM, nesterov=True, fused=fused)
    warmup = round(setting.WARMUP * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
