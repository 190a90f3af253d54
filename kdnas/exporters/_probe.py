"""What exporters are checked against: probe images, and what the student makes of them.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.nn import functional

from kdnas.core.task import TaskSpec, image_classification
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.nn.normalise import Normalised
from kdnas.picture import eight_bits, fitted, opaque, upright


def probe_images(task: TaskSpec, count: int, seed: int = 0) -> Tensor:
    """Return uint8 images [count, C, H, W]: a black one, a white one, then noise and smooth scenes in turn.

    Smooth scenes (coarse noise, enlarged) have the low frequencies of photographs, which plain noise lacks.
    """
    channels, height, width = task.image_shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (count, channels, height, width), generator=generator).float()
    coarse = torch.rand((count, channels, 3, 3), generator=generator) * 255.0
    smooth = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    odd = (torch.arange(count) % 2 == 1).view(-1, 1, 1, 1)
    images = torch.where(odd, smooth, noise).round().clamp(0, 255).to(torch.uint8)
    images[:1] = 0
    images[1:2] = 255
    return images


def probe_pictures(student: TrainedStudent, folder: Path) -> list[tuple[Path, np.ndarray]]:
    """Write a turned, a partly transparent and a large picture into `folder`.

    Return each with the pixels, uint8 [C, H, W], that the student's training would have made of it.
    """
    channels, height, width = student.task.image_shape
    scene = probe_images(image_classification((3, 2 * height + 5, 3 * width + 1), 2), 4)[3].permute(1, 2, 0).numpy()
    large = Image.fromarray(scene)
    clear = large.copy()
    clear.putalpha(large.convert("L"))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    probes = []
    for name, picture in (("large", large), ("clear", clear), ("turned", large)):
        path = folder / f"{name}.png"
        picture.save(path, exif=turned if name == "turned" else Image.Exif())
        with Image.open(path) as opened:
            seen = opaque(eight_bits(upright(opened), opened.format), student.background)
            probes.append((path, fitted(seen, (height, width), channels)))
    return probes


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in eval mode on the CPU, in float32 and the default memory layout."""
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    for tensor in [*plain.parameters(), *plain.buffers()]:
        tensor.data = tensor.data.contiguous()
    return plain


def pixels_to_logits(student: TrainedStudent) -> Normalised:
    """Return a copy of the student behind its normalisation: raw pixels [B, C, H, W] (0..255) to logits [B, K]."""
    return Normalised(plain_copy(student.module), student.channel_mean, student.channel_std).eval()


@torch.no_grad()
def reference_logits(student: TrainedStudent, pixels: Tensor) -> Tensor:
    """Return the logits [B, K] of `student.module` for raw `pixels` [B, C, H, W], in float32 on the CPU.

    Raises ExportError when they are not finite numbers of the right shape: such a student cannot be checked.
    """
    logits: Tensor = pixels_to_logits(student)(pixels.float())
    expected = (len(pixels), student.task.outputs)
    if tuple(logits.shape) != expected:
        raise ExportError(f"the student gives outputs of shape {list(logits.shape)}, not {list(expected)}")
    if not torch.isfinite(logits).all():
        raise ExportError("the student's outputs are not all finite numbers")
    return logits
