"""Counters of consumed energy: Intel's RAPL for processors, NVIDIA's NVML for GPUs. Both count all that the chip does.

RAPL: David et al., "RAPL: memory power estimation and capping" (ISLPED 2010); Linux shows it under /sys/class/powercap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdnas.targets import EnergyCounter, Missing

POWERCAP = Path("/sys/class/powercap")


def processor_energy(powercap: Path = POWERCAP) -> EnergyCounter | Missing:
    """Return the RAPL counter of all processor packages together, or why there is none."""
    packages = []
    try:
        for domain in sorted(powercap.glob("intel-rapl:*")):
            if (domain / "name").read_text().startswith("package"):
                packages.append((domain / "energy_uj", int((domain / "max_energy_range_uj").read_text())))
        for counter, _ in packages:
            counter.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Missing(f"RAPL under {powercap} cannot be read: {reason}")
    if not packages:
        return Missing(f"there is no RAPL counter under {powercap}")

    def read() -> list[int]:
        return [int(counter.read_text()) for counter, _ in packages]

    def spent_mj(start: list[int], end: list[int]) -> float:
        spent = 0
        for before, after, (_, wraps_at_uj) in zip(start, end, packages, strict=True):
            spent += after - before if after >= before else after - before + wraps_at_uj
        return spent / 1e3

    return EnergyCounter("the whole processor by RAPL, what it draws at rest included", read, spent_mj)


def gpu_energy(device: torch.device) -> EnergyCounter | Missing:
    """Return the NVML counter of the CUDA device `device`, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return Missing("NVML is not installed: pip install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
        # By its identity: NVML's numbers do not follow CUDA_VISIBLE_DEVICES.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return Missing(f"NVML reports no energy: {error}")

    def read() -> Any:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # mJ since the driver was loaded

    return EnergyCounter("the whole GPU by NVML, what it draws at rest included", read, lambda start, end: end - start)
