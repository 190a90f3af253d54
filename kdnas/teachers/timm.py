"""Any image classifier of timm (PyTorch Image Models)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdnas.errors import Problem, TeacherError
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, InputSize, Statistics, fit_teacher, other_classes
from kdnas.teachers._loading import MAYBE_SEEN, find_file, only_weights, read_weights, require
from kdnas.teachers._state_dict import find_weights, load_found


@TEACHERS.register
def timm(
    context: TeacherContext,
    *,
    model: str,
    weights: str | None = None,
    weights_key: str | None = None,
    pretrained: bool = False,
    arguments: dict[str, Any] | None = None,
    mean: Statistics = None,
    std: Statistics = None,
    input_size: InputSize = None,
) -> Teacher:
    """A timm model by name, with weights from a file under the data root or `pretrained: true` from the model hub.

    Normalisation and input size are those of the model's pretrained_cfg unless stated. Raises TeacherError.

    Args:
        context: What the study hands over.
        model: Its name in the library.
        weights: A file under the data root: safetensors or a torch checkpoint of tensors only.
        weights_key: Where in the file the weights stand, as `state_dict_ema`, where several places fit; `.` is the top.
        pretrained: Weights from the model hub instead of a file.
        arguments: What the function that builds the network is called with.
        mean: One number a channel on the 0-255 scale, subtracted from the pixels.
        std: One number a channel on the 0-255 scale, by which pixels are then divided.
        input_size: Height and width in pixels, or one number for both, that images are resized to.
    """
    library = require("timm", "vision")
    if (weights is None) == (not pretrained):
        raise TeacherError(Problem("weights, pretrained", "state where the weights come from", "one of the two"))
    path = find_file(weights, context.data_root) if weights is not None else None
    options = dict(arguments or {})
    if path is not None:
        options.setdefault("num_classes", context.data.task.num_classes)
    try:
        with only_weights():
            network = library.create_model(model, pretrained=pretrained, **options)
    except Exception as error:  # no such model, no network, a refused checkpoint, arguments it does not take
        what = f"timm cannot make {model!r}: {type(error).__name__}: {str(error)[:300]}"
        raise TeacherError(Problem("model", what, "see timm.list_models()")) from error
    notes = [MAYBE_SEEN]
    if path is not None:
        checkpoint = read_weights(path)
        found = find_weights(network, checkpoint, weights_key)
        _check_head(network, found.state, context)
        notes += load_found(network, found, checkpoint)
    declared = library.data.resolve_data_config(model=network)
    if mean is None and std is None:
        mean, std = (tuple(255.0 * value for value in declared[key]) for key in ("mean", "std"))
        if int(options.get("in_chans", 3)) == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if input_size is None:
        input_size = options.get("img_size") or declared["input_size"][1:]
    return fit_teacher(
        f"timm {model}",
        network,
        context,
        Expected(mean, std, input_size),
        facts={"timm": model, "arguments": options},
        notes=notes,
    )


def _check_head(network: nn.Module, state: Mapping[str, Tensor], context: TeacherContext) -> None:
    """Raise TeacherError where the file's classifier answers for another number of classes than the network's."""
    heads = network.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    own = network.state_dict()
    for head in [heads] if isinstance(heads, str) else heads:
        name = f"{head}.weight"
        if name in state and name in own and len(state[name]) != len(own[name]):
            raise TeacherError(other_classes(len(state[name]), context))
