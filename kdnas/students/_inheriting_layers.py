"""Weights inherited by a transformer from a teacher of its own family: the teacher is cut, and laid into the student.

What the student keeps ranks first among the teacher's layers, heads, neurons and channels (`kdnas.nn.importance`), in
the teacher's order. What the teacher has no counterpart for (more layers, more heads, more channels) stays as it was.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import Anatomy
from kdnas.nn.importance import rank, ranked

_BATCH = 64
_DEPTH = "stages.depth"
State = dict[str, Tensor]


def ranked_anatomy(teacher: nn.Module, samples: Tensor) -> Anatomy:
    """Return what can be cut of a kdnas transformer, ranked by what matters on `samples`, its inputs."""
    anatomy = read_anatomy(teacher, samples[:2])
    nothing = torch.zeros(len(samples), dtype=torch.int64)
    return ranked(anatomy, rank(teacher, anatomy, zip(samples.split(_BATCH), nothing.split(_BATCH), strict=True)))


@torch.no_grad()
def inherit_layers(
    student: Any, teacher: Any, anatomy: Anatomy, fitted: Callable[[State], State] = lambda state: state
) -> float:
    """Copy into `student` what `teacher` has for it, and return the share of its parameters that were set.

    Args:
        student: A kdnas transformer, on the teacher's device.
        teacher: Another one of the same family; stays as it is.
        anatomy: The teacher's, ranked.
        fitted: Makes of the cut teacher's state what the student calls and shapes alike: its embedding.
    """
    part = anatomy.cut(teacher, anatomy.prefix(_sizes(student, teacher, anatomy)))
    mine, copied = dict(student.named_parameters()), 0
    same_heads = student.stages[0].attention.head_dim == teacher.stages[0].attention.head_dim
    for name, value in fitted(dict(part.named_parameters())).items():
        if name not in mine or (".attention." in name and not same_heads):
            continue
        corner = tuple(slice(min(pair)) for pair in zip(value.shape, mine[name].shape, strict=True))
        mine[name][corner] = value[corner]
        copied += value[corner].numel()
    return copied / sum(parameter.numel() for parameter in mine.values())


def _sizes(student: Any, teacher: Any, anatomy: Anatomy) -> dict[str, int]:
    """Return the sizes at which the teacher is cut: the student's, as far as the teacher reaches."""
    depth = min(len(student.stages), len(teacher.stages))
    width = min(student.classifier.in_features, teacher.classifier.in_features)
    sizes = {_DEPTH: depth, "width": width}
    for layer, index in zip(student.stages, anatomy.prefix({_DEPTH: depth})[_DEPTH], strict=False):
        wanted = {"heads": layer.attention.num_attention_heads, "inner": layer.mlp.fc1.out_features}
        sizes |= {f"stages.{index}.{role}": size for role, size in wanted.items()}
    whole = anatomy.sizes
    return {name: min(size, whole[name]) for name, size in sizes.items() if name in whole}


def resized_kernel(kernel: Tensor, side: int) -> Tensor:
    """Return a patch's weights [C, channels, side, side] for patches of another `side` with the same outputs."""
    if kernel.shape[-1] == side:
        return kernel
    resized = nn.functional.interpolate(kernel, (side, side), mode="bilinear", antialias=True)
    return resized * (kernel.shape[-1] / side) ** 2
