"""How good a network is on a split, and in which precision this machine computes best."""

from __future__ import annotations

import torch
from torch import nn

from kdnas.training.batches import Batches


def accuracy(
    module_on_raw_images: nn.Module, batches: Batches, *, batch_size: int = 512, bfloat16: bool = False
) -> float:
    """Return the fraction in 0..1 of `batches` that the network gets right, images as they are, in eval mode.

    `module_on_raw_images` takes [B, C, H, W] floats in 0..255 and is left in the mode it came in. Raises ValueError
    when there are no images.
    """
    if len(batches) == 0:
        raise ValueError("no images to evaluate on")
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


def bfloat16_is_native(device: torch.device) -> bool:
    """Return whether `device` has bfloat16 instructions.

    CUDA devices have them from compute capability 8.0, CPUs with AVX-512 BF16 or AMX. Elsewhere bfloat16 is emulated,
    and slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        flags = capabilities()
        return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch 2.6 to 2.8
    return bool(supported is not None and supported())
