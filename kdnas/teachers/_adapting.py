"""A network made a `Teacher`: fed raw images at the data's own size, and checked to answer for the data's classes.

Shapes: B batch, K classes, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdnas.errors import Problem, TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import find_stages
from kdnas.teachers import Teacher, TeacherContext

Pixels = Annotated[int, Field(ge=1, le=4096)]
InputSize = Pixels | tuple[Pixels, Pixels] | None
"""An option: the side, or the height and width, that the network takes; None is the source's default."""
Statistics = tuple[float, ...] | None
"""An option: one number a channel on the 0-255 scale; None is the source's default."""


@dataclass(frozen=True)
class Expected:
    """What a network expects: images `(x - mean) / std` on the 0-255 scale, of `size`; None means the data's own."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: InputSize = None


class Fitted(nn.Module):
    """A network behind what it expects: raw [B, C, H, W] in 0..255 to logits [B, K] in the data's class order."""

    order: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        repeat: int = 1,
        size: tuple[int, int] | None = None,
        order: Sequence[int] | None = None,
    ):
        super().__init__()
        self.normalised = Normalised(network, mean, std)
        self.repeat = repeat
        self.size = size
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for raw `images` [B, C, H, W] in 0..255."""
        if self.repeat > 1:
            images = images.repeat(1, self.repeat, 1, 1)
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        logits = self.normalised(images)
        return logits if self.order is None else logits[:, self.order]


def fit_teacher(
    name: str,
    network: nn.Module,
    context: TeacherContext,
    expected: Expected,
    *,
    facts: Mapping[str, Any],
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
    order: Sequence[int] | None = None,
    notes: Sequence[str] = (),
) -> Teacher:
    """Return `network` as the teacher of the context's data: adapted where that is safe, refused where it is not.

    Grey images are repeated for a network of three channels and images are resized where it takes another size; each
    adaptation is noted. `stages` and `classifier` are names inside `network`, found by looking where None. `facts` are
    what else decides the outputs. Raises TeacherError: another number of classes or channels, no logits, unknown names.
    """
    channels, height, width = context.data.task.input_shape
    mean, std, adapted = _statistics(expected, context)
    size = (expected.size, expected.size) if isinstance(expected.size, int) else expected.size
    if size is not None and tuple(size) != (height, width):
        adapted.append(f"images of {height}x{width} are resized to {size[0]}x{size[1]} pixels (height x width)")
    else:
        size = None
    network = network.float().eval().requires_grad_(False)
    example = torch.from_numpy(np.array(context.data.train.images[:2], copy=True)).float().to(context.device)

    def fitted(repeat: int) -> Fitted:
        wide = mean * (repeat if len(mean) == 1 else 1), std * (repeat if len(std) == 1 else 1)
        return Fitted(network, *wide, repeat=repeat, size=size, order=order).eval().to(context.device)

    module = fitted(3 if channels == 1 and len(mean) == 3 else 1)
    failure = _check_logits(module, example, context)
    if failure is not None and channels == 1 and module.repeat == 1:
        module = fitted(3)
        if _check_logits(module, example, context) is not None:
            raise failure
    elif failure is not None:
        raise failure
    if module.repeat > 1:
        adapted.append("grey images are repeated to three channels")
    module.requires_grad_(False)
    found = _tapped(module, network, example, stages, classifier)
    identity = {**facts, "mean": mean, "std": std, "size": size, "repeat": module.repeat, "order": order, "taps": found}
    return Teacher(name, module, *found, fingerprint(network, identity), (*notes, *adapted))


def _statistics(expected: Expected, context: TeacherContext) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Return (mean, std, notes) on the 0-255 scale. Raises TeacherError where they cannot be the data's."""
    if (expected.mean is None) != (expected.std is None):
        raise TeacherError(Problem("mean, std", "give both or neither"))
    if expected.mean is None or expected.std is None:
        mean, std = tuple(context.data.channel_mean), tuple(context.data.channel_std)
        shown = f"mean {_numbers(mean)}, std {_numbers(std)}"
        return mean, std, [f"no normalisation was stated: images are normalised with the data's own {shown}"]
    mean, std = tuple(expected.mean), tuple(expected.std)
    channels = context.data.task.input_shape[0]
    if len(mean) != len(std) or not (len(mean) == channels or (channels == 1 and len(mean) == 3)):
        what = f"{len(mean)} and {len(std)} numbers for images of {channels} channels"
        raise TeacherError(Problem("mean, std", what, "one number a channel, on the 0-255 scale"))
    if not all(value > 0 for value in std):
        raise TeacherError(Problem("std", f"{_numbers(std)} has a value that is not positive"))
    return mean, std, []


def _check_logits(module: nn.Module, example: Tensor, context: TeacherContext) -> TeacherError | None:
    """Return why `module` does not classify the data's images, None when it does."""
    shape = "x".join(str(side) for side in example.shape[1:])
    try:
        with torch.no_grad():
            logits = module(example)
    except Exception as error:  # the network is the user's: anything may come
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"the network fails on the data's images of {shape}: {type(error).__name__}: {reason[:300]}"
        return TeacherError(Problem("teacher", what, "set input_size, mean and std, or the factory's arguments"))
    classes = context.data.task.num_classes
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return TeacherError(Problem("teacher", f"the network gives {given} for 2 images", "logits [2, classes]"))
    if logits.shape[1] != classes:
        return TeacherError(other_classes(logits.shape[1], context))
    if not torch.isfinite(logits).all():
        return TeacherError(Problem("teacher", "the network gives NaN or infinite logits on the data's first images"))
    return None


def other_classes(given: int, context: TeacherContext) -> Problem:
    """Return the problem of a teacher of `given` classes that the data does not have."""
    data = context.data
    what = f"has {given} classes, the data {data.name} has {data.task.num_classes}"
    return Problem("teacher", what, "a teacher trained for this data's classes")


def _tapped(
    module: nn.Module, network: nn.Module, example: Tensor, stages: Sequence[str] | None, classifier: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Return the stages' and the classifier's names inside `module`: those given inside `network`, else those found."""
    prefix = next(name for name, part in module.named_modules() if part is network) + "."
    parts = dict(network.named_modules())
    named = [name for name in (*(stages or ()), *([classifier] if classifier else ())) if name not in parts]
    if named:
        allowed = ", ".join(name for name in parts if name and name.count(".") < 2)[:600]
        raise TeacherError(Problem("stages, classifier", f"the network has no {', '.join(named)}", allowed))
    if classifier and not isinstance(parts[classifier], nn.Linear):
        what = f"{classifier} is a {type(parts[classifier]).__name__}"
        raise TeacherError(Problem("classifier", what, "a Linear layer, whose input is the embedding"))
    found, found_classifier = find_stages(module, example) if stages is None or classifier is None else ((), None)
    if stages is not None:
        _check_maps(module, example, {name: parts[name] for name in stages})
        found = tuple(prefix + name for name in stages)
    return tuple(found), prefix + classifier if classifier else found_classifier


def _check_maps(module: nn.Module, example: Tensor, stages: Mapping[str, nn.Module]) -> None:
    """Raise TeacherError unless each of `stages` gives a map [B, C, H, W]."""
    wrong = dict.fromkeys(stages, "nothing: it is never called")

    def watch(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.ndim == 4
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            wrong[name] = "" if is_map else str(shape)

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in stages.items()]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    problems = [Problem("stages", f"{name} gives {what}", "[B, C, H, W]") for name, what in wrong.items() if what]
    if problems:
        raise TeacherError(problems)


def fingerprint(network: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return a hash of the network's structure and weights and of `facts` (plain values)."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(repr(network).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
