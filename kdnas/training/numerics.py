"""What decides the numbers of a training outside its recipe: precision, CPU threads, fused norms. Decided here alone.

A setting that is `auto` is decided once, by what the machine is and never by a stop-watch, before anything is trained:
by the controller of a run, which writes the decision into the lock file and hands it to every worker, or at the start
of a training that is in no run. Scores then depend neither on how busy the machine is nor on the number of workers.

There is one rule of precision, for students and teachers alike. What trains, teaches, or is scored on samples of the
training split computes in the training's precision; what is scored on the test split computes in float32, as an
exported network does (`is_scored_in_bfloat16`).

One CPU thread trains a student unless the user states more. Seconds for 20 steps of a ResNet student (stem 16, widths
16/32/64, depth 2, batch 128 of 32x32 images, bfloat16) on two cores of an AMD EPYC, that three other processes share:

    | threads | fused norms | seconds |
    |---------|-------------|---------|
    | 1       | yes         | 6.1     |
    | 1       | no          | 7.8     |
    | 2       | no          | 23.1    |

A whole `kdnas train` of a student of 24x24 images, on the same cores with a load of nine: 3.3 seconds an epoch with one
thread, 81 with two. Workers, one a core, use a machine better than threads do; more threads may pay for one training of
large images that has a machine of many cores to itself (`training.threads`, `kdnas train --threads`): try both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import nn

from kdnas.training.batches import Batches
from kdnas.training.fused_norm import compiler
from kdnas.training.recipe import Recipe, Training

THREADS = 1
"""CPU threads of a training that states none."""
_PROBES = 10


def settled(training: Training, device: torch.device) -> Training:
    """Return `training` with every setting decided that is `auto`, by what `device` and this machine are.

    On a CUDA device the number of CPU threads changes no result and stays `auto`.
    """
    changes: dict[str, object] = {}
    if training.precision == "auto":
        changes["precision"] = "bfloat16" if bfloat16_is_native(device) else "float32"
    threads = training.threads
    if threads == "auto" and device.type == "cpu":
        changes["threads"] = threads = THREADS
    if training.fused_norms == "auto":
        changes["fused_norms"] = device.type == "cpu" and threads == 1 and compiler() is not None
    return training.model_copy(update=changes) if changes else training


def settled_recipe(recipe: Recipe, device: torch.device) -> Recipe:
    """Return `recipe` with its training settled."""
    return recipe.model_copy(update={"training": settled(recipe.training, device)})


@contextlib.contextmanager
def computing(training: Training, device: torch.device) -> Iterator[None]:
    """Compute with the CPU threads of a settled `training` until the context ends."""
    before = torch.get_num_threads()
    wanted = before if training.threads == "auto" or device.type != "cpu" else training.threads
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


def in_bfloat16(training: Training, device: torch.device) -> bool:
    """Return whether networks compute in bfloat16 in `training` on `device`, which decides where it does not."""
    return settled(training, device).precision == "bfloat16"


def is_scored_in_bfloat16(batches: Batches, training: Training) -> bool:
    """Return whether networks of `training`, or their teachers, are scored on `batches` in bfloat16."""
    return batches.split == "train" and in_bfloat16(training, batches.device)


def bfloat16_is_native(device: torch.device) -> bool:
    """Return whether `device` has bfloat16 instructions.

    CUDA devices have them from compute capability 8.0, CPUs with AVX-512 BF16 or AMX. Elsewhere bfloat16 is emulated,
    and slower than float32. With them a small student's step took 55 to 58 % of float32's processor time (AMD EPYC,
    AVX-512 BF16, one thread).
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


def bfloat16_speed() -> float:
    """Return how many times as fast as in float32 a small convolution trains in bfloat16 on this CPU.

    It is printed for the user and decides nothing. Measured in about a tenth of a second; the quickest of interleaved
    steps count.
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
