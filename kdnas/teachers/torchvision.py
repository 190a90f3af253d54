"""Any image classifier of torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnas.errors import Problem, TeacherError
from kdnas.nn.origin import Origin
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Deviations, Expected, InputSize, Statistics, fit_teacher
from kdnas.teachers._class_names import ClassNames, names_near, naming_of, other_classes
from kdnas.teachers._loading import MAYBE_SEEN, Checkpoint, find_file, read_weights, require
from kdnas.teachers._state_dict import find_weights, load_found, load_weights

# What every classifier of torchvision is trained with, on the 0-255 scale.
_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@TEACHERS.register
def torchvision(
    context: TeacherContext,
    *,
    model: str,
    weights: str,
    weights_key: str | None = None,
    arguments: dict[str, Any] | None = None,
    mean: Statistics = None,
    std: Deviations = None,
    input_size: InputSize = None,
    class_names: ClassNames = None,
) -> Teacher:
    """A torchvision classifier by name, with weights by their enum's name (`IMAGENET1K_V1`, `DEFAULT`) or from a file.

    A file is relative to the data root; its suffix distinguishes it from a name. With named weights, normalisation and
    input size are those of their transforms; with a file, ImageNet's and the data's size. Both can be stated. Raises
    TeacherError.

    Args:
        context: What the study hands over.
        model: Its name in the library.
        weights: A name of the model's weights enum, or a file under the data root.
        weights_key: Where in the file the weights stand, as `state_dict_ema`, where several places fit; `.` is the top.
        arguments: What the function that builds the network is called with.
        mean: One number a channel on the 0-255 scale, subtracted from the pixels.
        std: One number a channel on the 0-255 scale, by which pixels are then divided.
        input_size: Height and width in pixels, or one number for both, that images are resized to.
        class_names: The names of the network's classes, in its own order; matched with the data's by name.
    """
    library = require("torchvision", "vision")
    allowed = library.models.list_models(module=library.models)
    if model not in allowed:
        raise TeacherError(Problem("model", f"torchvision has no classifier {model!r}", ", ".join(allowed)[:2000]))
    options = dict(arguments or {})
    notes = [MAYBE_SEEN]
    if Path(weights).suffix:
        path = find_file(weights, context.data_root)
        known = names_near(path)
        network, left_out = _from_file(
            library,
            model,
            options,
            path,
            weights_key,
            context,
            named=lambda count: naming_of(class_names, *known, count=count) is not None,
        )
        notes += left_out
        normalisation: Sequence[Sequence[float]] = _IMAGENET
        if mean is None and std is None:
            notes.append("no normalisation was stated: images are normalised with ImageNet's mean and std")
    else:
        network, chosen = _from_enum(library, model, options, weights)
        transforms = chosen.transforms()
        known = [(tuple(chosen.meta["categories"]), f"{weights}'s categories")]
        normalisation = [tuple(255.0 * value for value in part) for part in (transforms.mean, transforms.std)]
        input_size = input_size or transforms.crop_size[0]
    if mean is None and std is None:
        mean, std = (tuple(part) for part in normalisation)
    classes = _classes(network)
    return fit_teacher(
        f"torchvision {model}",
        network,
        context,
        Expected(mean, std, input_size),
        facts={"torchvision": model, "arguments": options},
        naming=naming_of(class_names, *known, count=classes),
        notes=notes,
        origin=Origin("torchvision", model, options if classes is None else {**options, "num_classes": classes}),
    )


def _create(library: Any, model: str, options: dict[str, Any]) -> nn.Module:
    try:
        return library.models.get_model(model, weights=None, **options)
    except Exception as error:  # arguments that the model does not take
        what = f"torchvision cannot make {model!r}: {type(error).__name__}: {error}"
        raise TeacherError(Problem("arguments", what)) from error


def _from_file(
    library: Any,
    model: str,
    options: dict[str, Any],
    path: Path,
    weights_key: str | None,
    context: TeacherContext,
    *,
    named: Callable[[int], bool],
) -> tuple[nn.Module, list[str]]:
    """Return the network with the file's weights, and notes; of other classes than the data's only where `named`."""
    options.setdefault("num_classes", context.data.task.outputs)
    network = _create(library, model, options)
    checkpoint = read_weights(path)
    found = find_weights(network, checkpoint, weights_key)
    head = _head(network)
    if head is not None and f"{head}.weight" in found.state:
        classes = len(found.state[f"{head}.weight"])
        if classes != options["num_classes"]:
            if not named(classes):
                raise TeacherError(other_classes(classes, context.data))
            network = _create(library, model, {**options, "num_classes": classes})
            found = find_weights(network, checkpoint, weights_key)
    return network, load_found(network, found, checkpoint)


def _head(network: nn.Module) -> str | None:
    """Return the name of the classifier: the last linear layer that the model defines."""
    return next((name for name, part in reversed([*network.named_modules()]) if isinstance(part, nn.Linear)), None)


def _classes(network: nn.Module) -> int | None:
    head = _head(network)
    return None if head is None else len(network.get_submodule(head).weight)  # type: ignore[arg-type]


def _from_enum(library: Any, model: str, options: dict[str, Any], weights: str) -> tuple[nn.Module, Any]:
    """Return the network with the named weights, and those weights' entry."""
    enum = library.models.get_model_weights(model)
    if weights not in enum.__members__:
        allowed = f"{', '.join(enum.__members__)}, or a .safetensors or .pth file"
        raise TeacherError(Problem("weights", f"{model} has no weights {weights!r}", allowed))
    chosen = enum[weights]
    options.setdefault("num_classes", len(chosen.meta["categories"]))
    network = _create(library, model, options)
    try:
        state = torch.hub.load_state_dict_from_url(chosen.url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a damaged download
        what = f"{model} {weights} cannot be fetched from {chosen.url}: {type(error).__name__}: {error}"
        raise TeacherError(Problem("weights", what, "a local file also does")) from error
    load_weights(network, Checkpoint(chosen.url, state))
    return network, chosen
