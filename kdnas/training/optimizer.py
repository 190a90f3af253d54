"""The optimizer of a recipe and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdnas.training.recipe import Training


def build_optimizer(modules: Iterable[nn.Module], training: Training) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum or AdamW over the trainable parameters of `modules`.

    Biases and norm parameters (one dimension or none) get no weight decay. `momentum` 0 gives plain SGD.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One fused kernel for all parameters instead of several launches for each.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    # On a GPU the rate is a tensor there, which a captured step reads anew each time.
    on_cuda = bool(parameters) and all(p.device.type == "cuda" for p in parameters)
    rate: float | Tensor = training.learning_rate
    if on_cuda:
        rate = torch.tensor(training.learning_rate, dtype=torch.float32, device=parameters[0].device)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused, capturable=on_cuda)
    return torch.optim.SGD(
        groups,
        lr=rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        fused=fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group of `optimizer`, where it is a tensor in its place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(step: int, total_steps: int, training: Training) -> float:
    """Return the learning rate of `step` in 0..total_steps-1: a linear warm-up, then a cosine to zero.

    The warm-up takes `warmup_fraction` of the steps and ends at the full rate; the cosine starts there and would reach
    zero one step after the last.
    """
    warmup = round(training.warmup_fraction * total_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
