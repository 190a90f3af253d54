"""A network made a `Teacher`: fed raw images at the data's own size, and checked to answer for the data's classes.

Shapes: B batch, K classes, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from kdnas.core.answers import sketch
from kdnas.core.data import Data
from kdnas.errors import Problem, TeacherError
from kdnas.nn.attention import attention_layers
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.origin import Entrance, Origin
from kdnas.nn.taps import find_stages, stage_names
from kdnas.tasks import Described, task_of
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import Teacher, TeacherContext
from kdnas.teachers._class_names import Naming, class_order
from kdnas.teachers._fitted import Fitted, NoLogitsError, settle

Pixels = Annotated[int, Field(ge=1, le=4096)]
InputSize = Pixels | tuple[Pixels, Pixels] | None
"""An option: the side, or the height and width, that the network takes; None is the source's default."""
Statistics = tuple[float, ...] | None
"""An option: one number a channel on the 0-255 scale; None is the source's default."""


def _of_bytes(std: Statistics) -> Statistics:
    """Return `std`. Raises ValueError where its numbers are of images in 0..1, as most model cards state them."""
    if std and all(0 < value < 1 for value in std):
        raise ValueError(
            "must be on the 0-255 scale, and these are of images in 0..1: multiply mean and std by 255, which makes "
            f"std [{', '.join(f'{255 * value:.6g}' for value in std)}]"
        )
    return std


Deviations = Annotated[Statistics, AfterValidator(_of_bytes)]
"""Statistics by which pixels are divided."""

_PROBED = 8
"""Fixed samples for a sketch of a network's outputs."""


@dataclass(frozen=True)
class Expected:
    """What a network expects: images `(x - mean) / std` on the 0-255 scale, of `size`; None means the data's own."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: InputSize = None


def fit_teacher(
    name: str,
    network: nn.Module,
    context: TeacherContext,
    expected: Expected,
    *,
    facts: Mapping[str, Any],
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
    naming: Naming | None = None,
    notes: Sequence[str] = (),
    origin: Origin | None = None,
) -> Teacher:
    """Return `network` as the teacher of the context's data: adapted where that is safe, refused where it is not.

    Grey images are repeated for a network of three channels, images are resized where it takes another size, its
    classes are put in the data's order by their names (`naming`), the log of probabilities is taken, and one that fails
    on channels-last images is given others; each adaptation is noted. `stages` and `classifier` are names inside
    `network`, found by looking where None. `facts` are what else decides the outputs. Raises TeacherError: another
    number of classes or channels, no logits, unknown names. `origin` describes how the network is made without kdnas.
    """
    channels, height, width = image_shape(context)
    mean, std, adapted = _statistics(expected, context)
    size = (expected.size, expected.size) if isinstance(expected.size, int) else expected.size
    if size is not None and tuple(size) != (height, width):
        coarse = "; such enlargement may cost accuracy: try a data.size nearer to its own"
        adapted.append(
            f"images of {height}x{width} are resized to {size[0]}x{size[1]} pixels (height x width)"
            f"{coarse if size[0] > height or size[1] > width else ''}"
        )
    else:
        size = None
    network, low = in_float32(network)
    classes = len(naming.spellings) if naming is not None else context.data.task.outputs
    probe = _probe(context)

    def fitted(repeat: int) -> Fitted:
        wide = mean * (repeat if len(mean) == 1 else 1), std * (repeat if len(std) == 1 else 1)
        module = Fitted(network, *wide, repeat=repeat, size=size, classes=classes)
        return module.eval().requires_grad_(False).to(context.device)

    module = fitted(3 if channels == 1 and len(mean) == 3 else 1)
    with exact_arithmetic(), torch.no_grad():
        failure = settle(module, probe)
        if failure is not None and channels == 1 and module.repeat == 1:
            wider = fitted(3)
            if settle(wider, probe) is None:
                module, failure = wider, None
        if failure is not None:
            raise _refusal(failure, network, probe)
        if module.repeat > 1:
            adapted.append("grey images are repeated to three channels")
        found = _tapped(module, network, probe[:2], stages, classifier)
        adapted += module.adapted
        own_classes = module(probe[:2]).shape[1]
        order, named = class_order(naming, context.data, own_classes)
        module.put_in_order(order)
        answers = module(probe)
    check_finite(answers, context.data)
    identity = {**facts, "mean": mean, "std": std, "size": size, "repeat": module.repeat, "order": order}
    layers = {layer.path for layer in attention_layers(module)}  # known before they were tapped: no part of what it is
    identity["taps"] = tuple(name for name in found[0] if name not in layers), found[1]
    if module.default_format or module.total is not None:
        identity |= {"default_format": module.default_format, "total": module.total}
    return Teacher(
        name,
        module,
        *found,
        fingerprint(network, identity),
        (*notes, *low, *adapted, *named),
        answers=sketch(answers.cpu().numpy()),
        outputs="logits" if module.total is None else "probabilities",
        origin=origin and _entered(origin, module, Expected(mean, std, size), order, own_classes),
    )


def enter_teacher(
    name: str, network: nn.Module, context: TeacherContext, learnt: Described, facts: Mapping[str, Any]
) -> Teacher:
    """Return `network`, built by a student family for the data's own task, as a teacher of samples that are no images.

    `learnt` describes the data that it learnt from. Raises TeacherError where it does not answer in numbers.
    """
    data = context.data
    stages, classifier = stage_names(network)
    module = task_of(data.task).entrance(network, learnt).eval().requires_grad_(False).to(context.device)
    with exact_arithmetic(), torch.no_grad():
        answers = module(*(part.to(context.device) for part in probed(data)))
    check_finite(answers, data)
    few = answers.flatten(0, -2)[:: answers.shape[1] if answers.ndim > 2 else 1]
    return Teacher(
        name,
        module,
        tuple(f"network.{stage}" for stage in stages),
        classifier and f"network.{classifier}",
        fingerprint(network, facts),
        answers=sketch(few.cpu().numpy()),
    )


def probed(data: Data) -> list[Tensor]:
    """Return a few fixed training samples of the data, a tensor [n, ...] for each of its inputs."""
    places = spread(len(data.train))
    parts = [torch.from_numpy(np.array(data.train.inputs[part.name][places])) for part in data.task.inputs]
    return [part if part.is_floating_point() else part.long() for part in parts]


def image_shape(context: TeacherContext) -> tuple[int, int, int]:
    """Return channels, height and width of the data's images. Raises TeacherError where the data are no images."""
    task = context.data.task
    try:
        return task.image_shape
    except ValueError:
        what = f"it takes images, and the data {context.data.name} are {task.samples}"
        raise TeacherError(Problem("teacher", what, f"a teacher for {task.kind}")) from None


def _entered(origin: Origin, module: Fitted, expected: Expected, order: Sequence[int] | None, classes: int) -> Origin:
    """Return `origin` with what was found to stand between raw images and a network of so many `classes`."""
    mean, std = tuple(expected.mean or ()), tuple(expected.std or ())
    wide = module.repeat if len(mean) == 1 else 1
    reordered = () if order is None or list(order) == list(range(classes)) else tuple(order)
    return dataclasses.replace(
        origin,
        entrance=Entrance(mean * wide, std * wide, module.repeat, module.size, reordered, module.total, classes),
    )


def _probe(context: TeacherContext) -> Tensor:
    """Return a few fixed images of the data [B, C, H, W], spread over its training images."""
    images = context.data.train.inputs["pixels"]
    return torch.from_numpy(np.array(images[spread(len(images))], copy=True)).float().to(context.device)


def spread(count: int) -> np.ndarray:
    """Return the places of a few of `count` samples, for a sketch of a network's outputs."""
    return np.linspace(0, count - 1, min(_PROBED, count)).astype(np.int64)


def check_finite(answers: Tensor, data: Data) -> None:
    """Raise TeacherError where `answers` to samples of the data are not all numbers."""
    if not torch.isfinite(answers).all():
        what = f"the network gives NaN or infinite logits on the data's first {data.task.samples}"
        raise TeacherError(Problem("teacher", what))


def _statistics(expected: Expected, context: TeacherContext) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    """Return (mean, std, notes) on the 0-255 scale. Raises TeacherError where they cannot be the data's."""
    if (expected.mean is None) != (expected.std is None):
        raise TeacherError(Problem("mean, std", "give both or neither"))
    if expected.mean is None or expected.std is None:
        mean, std = (tuple(context.data.statistics[name]) for name in (MEAN, DEVIATION))
        shown = f"mean {_numbers(mean)}, std {_numbers(std)}"
        return mean, std, [f"no normalisation was stated: images are normalised with the data's own {shown}"]
    mean, std = tuple(expected.mean), tuple(expected.std)
    channels = image_shape(context)[0]
    if len(mean) != len(std) or not (len(mean) == channels or (channels == 1 and len(mean) == 3)):
        what = f"{len(mean)} and {len(std)} numbers for images of {channels} channels"
        allowed = "one number a channel, on the 0-255 scale; data.grayscale: true makes it one"
        raise TeacherError(Problem("mean, std", what, allowed))
    if not all(value > 0 for value in std):
        raise TeacherError(Problem("std", f"{_numbers(std)} has a value that is not positive"))
    return mean, std, []


def _refusal(failure: Exception, network: nn.Module, probe: Tensor) -> TeacherError:
    """Return the error of a network that gave no logits for the data's images."""
    if isinstance(failure, NoLogitsError):
        what = f"{failure} for {len(probe)} images"
        return TeacherError(Problem("teacher", what, "logits: one score a class for every image"))
    if asked := _further_inputs(network):
        what = f"the network's forward asks for {', '.join(asked)} and the images, and the data have images alone"
        return TeacherError(Problem("teacher", what, "a factory whose network takes images alone"))
    shape = "x".join(str(side) for side in probe.shape[1:])
    reason = (str(failure) or type(failure).__name__).splitlines()[0]
    what = f"the network fails on the data's images of {shape}: {type(failure).__name__}: {reason[:300]}"
    allowed = "set input_size, mean and std, data.grayscale, or the factory's arguments"
    return TeacherError(Problem("teacher", what, allowed))


def in_float32(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return `network` in float32 and eval mode, with a note on what was changed."""
    low = sorted({str(value.dtype)[6:] for value in network.parameters()} & {"float16", "bfloat16"})
    return network.float().eval(), [f"its weights are {' and '.join(low)}: it computes in float32"] if low else []


def _further_inputs(network: nn.Module) -> list[str]:
    """Return what the forward of `network` must be given in addition to its first input."""
    try:
        taken = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript and other compiled code has no signature
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    must = [one for one in taken if one.default is one.empty and one.kind in (*positional, one.KEYWORD_ONLY)]
    return [one.name for one in must[1:]]


def _tapped(
    module: nn.Module, network: nn.Module, example: Tensor, stages: Sequence[str] | None, classifier: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Return the stages' and the classifier's names inside `module`: those given inside `network`, else those found."""
    prefix = next(name for name, part in module.named_modules() if part is network) + "."
    parts = parts_with(network, stages, classifier)
    if classifier and not isinstance(parts[classifier], nn.Linear):
        what = f"{classifier} is a {type(parts[classifier]).__name__}"
        raise TeacherError(Problem("classifier", what, "a Linear layer, whose input is the embedding"))
    found, found_classifier = find_stages(module, example) if stages is None or classifier is None else ((), None)
    if stages is not None:
        _check_maps(module, example, {name: parts[name] for name in stages})
        found = tuple(prefix + name for name in stages)
    return tuple(found), prefix + classifier if classifier else found_classifier


def parts_with(network: nn.Module, stages: Sequence[str] | None, classifier: str | None) -> dict[str, nn.Module]:
    """Return the network's parts by name. Raises TeacherError where `stages` or `classifier` name one that it lacks."""
    parts = dict(network.named_modules())
    missing = [name for name in (*(stages or ()), *([classifier] if classifier else ())) if name not in parts]
    if missing:
        allowed = ", ".join(name for name in parts if name and name.count(".") < 2)[:600]
        raise TeacherError(Problem("stages, classifier", f"the network has no {', '.join(missing)}", allowed))
    return parts


def _check_maps(module: nn.Module, example: Tensor, stages: Mapping[str, nn.Module]) -> None:
    """Raise TeacherError unless each of `stages` gives a map [B, C, H, W] or tokens [B, N, C]."""
    wrong = dict.fromkeys(stages, "nothing: it is never called")

    def watch(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.ndim in (3, 4)
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
    problems = [
        Problem("stages", f"{name} gives {what}", "[B, C, H, W] or [B, N, C]") for name, what in wrong.items() if what
    ]
    if problems:
        raise TeacherError(problems)


def fingerprint(network: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return a hash of the network's structure and weights and of `facts` (plain values)."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    # Where a part shows a function, its address differs in every process.
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
