"""How good a network is on a split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from kdnas.training.batches import Batches

_EVALUATION_BYTES = 64 << 20


def accuracy(
    module_on_raw_images: nn.Module, batches: Batches, *, batch_size: int | None = None, bfloat16: bool = False
) -> float:
    """Return the fraction in 0..1 of `batches` that the network gets right, images as they are, in eval mode.

    `module_on_raw_images` takes [B, C, H, W] floats in 0..255 and is left in the mode it came in. `batch_size` None is
    512, on a CUDA device as many images as 64 MiB hold, at most 8192. Raises ValueError when there are no images.
    """
    if len(batches) == 0:
        raise ValueError("no images to evaluate on")
    if batch_size is None:
        batch_size = evaluation_batch(batches.image_shape, batches.device)
    training = [part for part in module_on_raw_images.modules() if part.training]
    module_on_raw_images.eval()
    hits: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            for batch in batches.ordered(batch_size=batch_size):
                images = batch.images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                    logits = module_on_raw_images(images)
                hits.append((logits.argmax(dim=1) == batch.labels).sum())
    finally:
        for part in training:
            part.training = True
    return float(torch.stack(hits).sum()) / len(batches)  # the only wait for the device


def evaluation_batch(image_shape: Sequence[int], device: torch.device) -> int:
    """Return how many images [C, H, W] are evaluated at once: few large batches keep a GPU busy."""
    if device.type != "cuda":
        return 512
    return max(1, min(_EVALUATION_BYTES // (math.prod(image_shape) * 4), 8192))
