"""What exporters are checked against: probe samples, and what the student makes of them.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.nn import functional

from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import TaskSpec
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.picture import eight_bits, fitted, opaque, upright


def probe_inputs(spec: TaskSpec, count: int, seed: int = 0, size: int | None = None) -> tuple[Tensor, ...]:
    """Return `count` raw samples, a tensor for each input of `spec`; tokens `size` long where that is given."""
    if spec.inputs[0].kind == "pixels":
        return (probe_images(spec.image_shape, count, seed),)
    generator = torch.Generator().manual_seed(seed)
    probes = []
    for taken in spec.inputs if size is None else spec.at(size).inputs:
        shape = (count, *taken.shape)
        if taken.kind == "tokens":
            probes.append(torch.randint(0, taken.levels, shape, generator=generator))
        elif taken.kind == "mask":  # every sample ends a token earlier than the one before
            ends = (taken.shape[0] - torch.arange(count) % taken.shape[0]).view(-1, 1)
            probes.append((torch.arange(taken.shape[0]) < ends).long())
        else:
            probes.append(torch.randn(shape, generator=generator))
    return tuple(probes)


def as_fed(raw: Tensor) -> Tensor:
    """Return raw samples as networks are fed: pixels as floats."""
    return raw.float() if raw.dtype == torch.uint8 else raw


def probe_images(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Return uint8 images [count, C, H, W] of `shape` (C, H, W): a black one, a white one, then noise and scenes.

    Smooth scenes (coarse noise, enlarged) have the low frequencies of photographs, which plain noise lacks.
    """
    channels, height, width = shape
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
    assert isinstance(student.preprocessing, Preprocessing)
    background, (channels, height, width) = student.preprocessing.background, student.spec.image_shape
    scene = probe_images((3, 2 * height + 5, 3 * width + 1), 4)[3].permute(1, 2, 0).numpy()
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
            seen = opaque(eight_bits(upright(opened), opened.format), background)
            probes.append((path, fitted(seen, (height, width), channels)))
    return probes


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in eval mode on the CPU, in float32 and the default memory layout."""
    return plain(copy.deepcopy(module))


def plain(module: nn.Module) -> nn.Module:
    """Bring `module` itself into eval mode on the CPU, float32 and the default memory layout, and return it."""
    module.to("cpu", torch.float32).eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.contiguous()
    return module


@torch.no_grad()
def reference_logits(student: TrainedStudent, *inputs: Tensor) -> Tensor:
    """Return the student's logits, [B, K] or [B, T, V], for raw `inputs`, in float32 on the CPU.

    Raises ExportError when they are not finite numbers of the right shape: such a student cannot be checked.
    """
    logits: Tensor = plain_copy(student.module)(*map(as_fed, inputs))
    rows = inputs[0].shape[1:] if student.spec.rows > 1 else ()
    expected = (len(inputs[0]), *rows, student.spec.outputs)
    if tuple(logits.shape) != expected:
        raise ExportError(f"the student gives outputs of shape {list(logits.shape)}, not {list(expected)}")
    if not torch.isfinite(logits).all():
        raise ExportError("the student's outputs are not all finite numbers")
    return logits
