"""Any image classifier of timm (PyTorch Image Models)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kdnas.errors import Problem, TeacherError
from kdnas.nn.origin import Origin
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Deviations, Expected, InputSize, Statistics, fit_teacher
from kdnas.teachers._class_names import ClassNames, names_near, naming_of, other_classes
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
    std: Deviations = None,
    input_size: InputSize = None,
    class_names: ClassNames = None,
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
        class_names: The names of the network's classes, in its own order; matched with the data's by name.
    """
    library = require("timm", "vision")
    if (weights is None) == (not pretrained):
        raise TeacherError(Problem("weights, pretrained", "state where the weights come from", "one of the two"))
    path = find_file(weights, context.data_root) if weights is not None else None
    options = dict(arguments or {})
    checkpoint = None if path is None else read_weights(path)
    if path is not None:
        options.setdefault("num_classes", context.data.task.outputs)
    network = _create(library, model, pretrained, options)
    known = () if path is None else names_near(path)
    notes = [MAYBE_SEEN]
    if checkpoint is not None:
        found = find_weights(network, checkpoint, weights_key)
        classes = _head_classes(network, found.state)
        if classes is not None and classes != options["num_classes"]:
            if naming_of(class_names, *known, _names_of(network), _imagenet(library, classes), count=classes) is None:
                raise TeacherError(other_classes(classes, context.data))
            network = _create(library, model, pretrained, {**options, "num_classes": classes})
            found = find_weights(network, checkpoint, weights_key)
        notes += load_found(network, found, checkpoint)
    classes = network.num_classes
    naming = naming_of(class_names, *known, _names_of(network), _imagenet(library, classes), count=classes)
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
        naming=naming,
        notes=notes,
        origin=Origin("timm", model, {**options, "num_classes": classes}),
    )


def _create(library: Any, model: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    try:
        with only_weights():
            return library.create_model(model, pretrained=pretrained, **options)
    except Exception as error:  # no such model, no network, a refused checkpoint, arguments it does not take
        what = f"timm cannot make {model!r}: {type(error).__name__}: {str(error)[:300]}"
        raise TeacherError(Problem("model", what, "see timm.list_models()")) from error


def _head_classes(network: Any, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes the file's classifier answers for; None where it is not found."""
    heads = network.pretrained_cfg.get("classifier") or ()
    own = network.state_dict()
    for head in [heads] if isinstance(heads, str) else heads:
        if (name := f"{head}.weight") in state and name in own:
            return len(state[name])
    return None


def _names_of(network: Any) -> tuple[tuple[str, ...] | None, str]:
    names = network.pretrained_cfg.get("label_names")
    return (None if names is None else tuple(map(str, names))), "its pretrained_cfg's label_names"


def _imagenet(library: Any, classes: int) -> tuple[Sequence[Sequence[str]] | None, str]:
    """Return the spellings of ImageNet's classes where timm has a variant of so many: WordNet ids, and words."""
    subset = library.data.infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return None, ""
    info = library.data.ImageNetInfo(subset)
    words = zip(info.label_names(), info.label_descriptions(), strict=True)
    return [(label, text, *text.split(", ")) for label, text in words], f"timm's {subset}"
