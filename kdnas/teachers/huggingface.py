"""Any image classifier of Hugging Face transformers, from a local folder or the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdnas.errors import TeacherError
from kdnas.nn.pieces import LogitsOf
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Deviations, Expected, InputSize, Statistics, fit_teacher, image_shape
from kdnas.teachers._class_names import ClassNames, naming_of
from kdnas.teachers._image_processor import Processing, read_processing
from kdnas.teachers._loading import MAYBE_SEEN
from kdnas.teachers._transformers import Loaded, load_transformer


class ClassifierLogits(LogitsOf):
    """A transformers classifier that gives its logits [B, K] alone; its channel c is the image's `order[c]`."""

    def __init__(self, network: nn.Module, order: Sequence[int] = ()):
        super().__init__(network, return_dict=True)
        self.order = None if list(order) == sorted(order) else list(order)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        (images,) = inputs
        if self.order is not None:
            images = images[:, self.order]
        return super().forward(images)


@TEACHERS.register
def huggingface(
    context: TeacherContext,
    *,
    model: str,
    revision: str = "main",
    mean: Statistics = None,
    std: Deviations = None,
    input_size: InputSize = None,
    class_names: ClassNames = None,
) -> Teacher:
    """A transformers image classifier: a folder under the data root, or a hub id. Weights are safetensors only.

    Normalisation, input size and the order of channels are those of its image processor unless stated; logits are put
    in the data's class order where the model names its classes. No code of the model's repository runs. Raises
    TeacherError.

    Args:
        context: What the study hands over.
        model: A folder under the data root, or a hub id.
        revision: Branch, tag or commit of a hub id.
        mean: One number a channel on the 0-255 scale, subtracted from the pixels.
        std: One number a channel on the 0-255 scale, by which pixels are then divided.
        input_size: Height and width in pixels, or one number for both, that images are resized to.
        class_names: The names of the network's classes, in its own order, where its config has none.
    """
    loaded = load_transformer("AutoModelForImageClassification", model, context.data_root, revision)
    network: Any = loaded.network
    labels = network.config.id2label
    known = tuple(str(labels[index]) for index in range(len(labels)))
    order: tuple[int, ...] = ()
    notes = [MAYBE_SEEN]
    processing = _processing(loaded, context, needed=None in (mean, std, input_size))
    if processing is not None:
        if mean is None and std is None:
            mean, std = processing.mean, processing.std
        input_size = input_size or processing.size
        order = processing.order
        notes += processing.notes
    return fit_teacher(
        model,
        ClassifierLogits(network, order),
        context,
        Expected(mean, std, input_size),
        facts={"huggingface": type(network).__name__} | ({"channels": order} if list(order) != sorted(order) else {}),
        naming=naming_of(class_names, (known, "its config's id2label")),
        notes=notes,
        origin=dataclasses.replace(
            loaded.origin(("pixel_values",)),
            channels=() if list(order) == sorted(order) else order,
        ),
    )


def _processing(loaded: Loaded, context: TeacherContext, *, needed: bool) -> Processing | None:
    """Return what the model's processor does to images of the data's size; None where it is not there, nor needed."""
    channels = int(getattr(loaded.network.config, "num_channels", None) or 3)
    _, height, width = image_shape(context)
    try:
        shape = {"channels": channels, "height": height, "width": width}
        return read_processing(loaded.library, loaded.source, loaded.options, **shape)
    except TeacherError:
        if needed:
            raise
        return None
