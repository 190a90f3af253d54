"""What a Hugging Face image processor does to pixels, found by asking it: plain colours in, numbers out.

Its configuration has been written in many ways (numbers for lists, lists for sizes, keys that only some classes have);
the processor itself resolves them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdnas.errors import Problem, TeacherError

_STATE_THEM = "state mean, std and input_size in the study instead"


@dataclass(frozen=True)
class Processing:
    """Raw channel `order[c]`, `(x - mean) / std` on the 0-255 scale, is the network's channel c; size in pixels.

    `mean` and `std` are in the order of the raw channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def read_processing(
    library: Any, source: str, options: Mapping[str, Any], *, channels: int, height: int, width: int
) -> Processing:
    """Return what the processor of `source` does to images of `channels` x `height` x `width`. Raises TeacherError."""
    try:
        declared, _ = library.image_processing_utils.BaseImageProcessor.get_image_processor_dict(source, **options)
        processor = library.AutoImageProcessor.from_pretrained(source, **options)
    except Exception as error:  # none there, damaged, of a class that needs remote code
        what = f"{source} has no readable preprocessor_config.json: {type(error).__name__}"
        raise TeacherError(Problem("model", what, _STATE_THEM)) from error

    def ask(colour: np.ndarray, **more: Any) -> tuple[np.ndarray, tuple[int, int]]:
        image = np.broadcast_to(colour.astype(np.uint8), (height, width, channels)).copy()
        made = processor(images=[image], return_tensors="np", input_data_format="channels_last", **more)
        pixels = np.asarray(made["pixel_values"][0], dtype=np.float64)
        return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2], (pixels.shape[1], pixels.shape[2])

    nothing, more = np.zeros(channels), {}
    try:
        try:
            offset, size = ask(nothing)
        except Exception:  # a kind of size that its class does not take
            size = _longest_edge(declared, height, width)
            more = {"do_resize": False, "do_center_crop": False}
            offset, _ = ask(nothing, **more)
        responses = np.stack([ask(255 * row, **more)[0] - offset for row in np.eye(channels)]) / 255  # [raw, own]
        middle = ask(np.full(channels, 128), **more)[0]
    except Exception as error:  # the processor is the library's, its settings are anybody's
        reason = " ".join(str(error).split())[:300]
        what = f"the image processor of {source} fails on images of {height}x{width}: {type(error).__name__}: {reason}"
        raise TeacherError(Problem("model", what, _STATE_THEM)) from error
    order = np.abs(responses).argmax(0)
    factors = responses[order, np.arange(channels)]
    only_these = np.zeros_like(responses)
    only_these[order, np.arange(channels)] = factors
    linear = np.allclose(only_these, responses, atol=1e-4) and np.allclose(middle, 128 * factors + offset, atol=0.02)
    if not linear or sorted(order) != list(range(channels)) or not (factors > 0).all():
        what = f"the image processor of {source} does more to pixels than to scale, shift and reorder channels"
        raise TeacherError(Problem("model", what, _STATE_THEM))
    notes: list[str] = []
    if declared.get("rescale_offset") and not _supports(processor, "rescale_offset"):
        offset = offset - factors / float(declared.get("rescale_factor", 1 / 255))
        notes.append(
            "rescale_offset is taken as its configuration states it, which its processor's class does not have"
        )
    if declared.get("do_flip_channel_order") and not _supports(processor, "do_flip_channel_order"):
        order = order[::-1]
        notes.append("channels are flipped as its configuration states, which its processor's class does not have")
    elif list(order) != list(range(channels)):
        notes.append("its channels are put in the order that it was trained with (BGR)")
    if declared.get("do_center_crop") and size != (height, width):
        notes.append("its processor cuts out the middle of images; here they are resized whole")
    mean, std = np.zeros(channels), np.ones(channels)
    mean[order], std[order] = -offset / factors, 1 / factors
    # As many digits as float32 answers hold on every machine: these numbers are part of what the teacher is.
    rounded = tuple(round(value, 4) + 0.0 for value in mean.tolist()), tuple(float(f"{v:.6g}") for v in std.tolist())
    return Processing(*rounded, tuple(order.tolist()), size, tuple(notes))


def _longest_edge(declared: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Return the size where the configuration states the longest edge alone. Raises KeyError, TypeError."""
    scale = float(declared["size"]["longest_edge"]) / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _supports(processor: Any, key: str) -> bool:
    """Return whether the class of `processor` has a setting of that name; it keeps others without using them."""
    kind = type(processor)
    stated = getattr(getattr(kind, "valid_kwargs", None), "__annotations__", {})
    return key in inspect.signature(kind.__init__).parameters or hasattr(kind, key) or key in stated
