"""Any image classifier of Hugging Face transformers, from a local folder or the hub."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdnas.errors import Problem, TeacherError
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, InputSize, Statistics, fit_teacher
from kdnas.teachers._class_names import ClassNames, naming_of
from kdnas.teachers._loading import MAYBE_SEEN, require


class ClassifierLogits(nn.Module):
    """A transformers classifier that gives its logits [B, K] alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised `images` [B, C, H, W]."""
        return self.network(pixel_values=images, return_dict=True).logits


@TEACHERS.register
def huggingface(
    context: TeacherContext,
    *,
    model: str,
    revision: str = "main",
    mean: Statistics = None,
    std: Statistics = None,
    input_size: InputSize = None,
    class_names: ClassNames = None,
) -> Teacher:
    """A transformers image classifier: a folder under the data root, or a hub id. Weights are safetensors only.

    Normalisation and input size are those of its preprocessor_config.json unless stated; logits are put in the data's
    class order where the model names its classes. No code of the model's repository runs. Raises TeacherError.

    Args:
        context: What the study hands over.
        model: A folder under the data root, or a hub id.
        revision: Branch, tag or commit of a hub id.
        mean: One number a channel on the 0-255 scale, subtracted from the pixels.
        std: One number a channel on the 0-255 scale, by which pixels are then divided.
        input_size: Height and width in pixels, or one number for both, that images are resized to.
        class_names: The names of the network's classes, in its own order, where its config does not say.
    """
    library = require("transformers", "hf")
    folder = context.data_root / model
    source = str(folder) if folder.is_dir() else model
    options = {"trust_remote_code": False, "local_files_only": folder.is_dir(), "revision": revision}
    try:
        network, found = library.AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=False, **options
        )
    except Exception as error:  # no such folder, no network, pickled weights only, damaged files, remote code
        reason = " ".join(str(error).split())[:400]
        what = f"{source} cannot be loaded: {type(error).__name__}: {reason}"
        raise TeacherError(
            Problem("model", what, "a folder under the data root or a hub id, with model.safetensors")
        ) from error
    _refuse_gaps(found, source)
    network = network.float()
    labels = network.config.id2label
    known = tuple(str(labels[index]) for index in range(len(labels)))
    if mean is None or std is None or input_size is None:
        declared = _declared(library, source, options)
        stated = (mean, std) if (mean is not None or std is not None) else _normalisation(declared, source)
        mean, std = stated
        input_size = input_size or _size(declared)
    return fit_teacher(
        model,
        ClassifierLogits(network),
        context,
        Expected(mean, std, input_size),
        facts={"huggingface": type(network).__name__},
        naming=naming_of(class_names, (known, "its config's id2label")),
        notes=[MAYBE_SEEN],
    )


def _refuse_gaps(found: dict[str, Any], source: str) -> None:
    """Raise TeacherError where transformers filled in weights that the checkpoint does not have."""
    kinds = {"missing_keys": "missing", "mismatched_keys": "of another shape", "error_msgs": "unreadable"}
    problems = []
    for key, kind in kinds.items():
        names = sorted(str(name) for name in found.get(key) or ())
        if names:
            problems.append(Problem(source, f"{len(names)} weights are {kind}: {', '.join(names[:5])}"))
    if problems:
        raise TeacherError(problems)


def _declared(library: Any, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the model's preprocessor_config.json. Raises TeacherError when it has none."""
    try:
        declared, _ = library.image_processing_utils.BaseImageProcessor.get_image_processor_dict(source, **options)
    except Exception as error:
        what = f"{source} has no readable preprocessor_config.json: {type(error).__name__}"
        raise TeacherError(Problem("model", what, "state mean, std and input_size in the study instead")) from error
    return declared


def _normalisation(declared: dict[str, Any], source: str) -> tuple[Statistics, Statistics]:
    """Return (mean, std) on the 0-255 scale of a processor that rescales, then normalises."""
    factor = float(declared.get("rescale_factor", 1 / 255)) if declared.get("do_rescale", True) else 1.0
    if not declared.get("do_normalize", True):
        channels = 3
        return (0.0,) * channels, (1 / factor,) * channels
    if "image_mean" not in declared or "image_std" not in declared:
        what = f"the preprocessor_config.json of {source} states no image_mean and image_std"
        raise TeacherError(Problem("mean, std", what, "state them in the study, on the 0-255 scale"))
    mean, std = (
        tuple(value / factor for value in ([part] if isinstance(part, float) else part))
        for part in (declared["image_mean"], declared["image_std"])
    )
    return mean, std


def _size(declared: dict[str, Any]) -> InputSize:
    """Return what images are resized to: the crop where it crops, else the size; None where it does neither."""
    if declared.get("do_center_crop") and declared.get("crop_size"):
        size = declared["crop_size"]
    elif declared.get("do_resize", True):
        size = declared.get("size")
    else:
        return None
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge")
    return int(size) if size else None
