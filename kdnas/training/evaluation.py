"""How good a network is on a split, and in which precision this machine computes best."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from kdnas.training.batches import Batches

_PROBES = 10
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


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether a network trains faster in bfloat16 than in float32 on `device`; on a CPU that is measured."""
    return bfloat16_is_native(device) and (device.type != "cpu" or bfloat16_speed() > 1.0)


@functools.cache
def bfloat16_speed() -> float:
    """Return how many times as fast as in float32 a small convolution trains in bfloat16 on this CPU.

    Measured once a process, in about a tenth of a second; the quickest of interleaved steps count, so that a busy
    neighbour does not decide.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layer = nn.Conv2d(32, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        images = torch.randn(32, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()

    def seconds(bfloat16: bool) -> float:
        begun = time.perf_counter()
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            layer(images).float().sum().backward()
        return time.perf_counter() - begun

    pairs = [(seconds(True), seconds(False)) for _ in range(_PROBES + 1)][1:]  # the first ones prepare the kernels
    return min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)


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
