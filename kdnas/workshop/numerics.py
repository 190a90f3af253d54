"""What computes a run's numbers, decided when it begins, kept for its life, and told where another machine differs.

The decisions (`kdnas.training.numerics`) stand in the lock file's `config.training`: `precision`, `threads`,
`fused_norms`. A run that is resumed keeps them, on whatever machine; one that was made before they were recorded gets
them now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kdnas.record.run_folder import machine
from kdnas.study.config import StudyConfig
from kdnas.training.numerics import bfloat16_is_native, settled
from kdnas.training.recipe import Training, numerics_of


def settled_config(config: StudyConfig, device: torch.device, lock: Mapping[str, Any] | None) -> StudyConfig:
    """Return `config` with its training settled, as the run's `lock` says where there is one.

    The `threads` that an executor is given are those of its trainings.
    """
    training, stated = config.training, config.executor.options.get("threads")
    if training.threads == "auto" and isinstance(stated, int):
        training = training.model_copy(update={"threads": stated})
    locked = {} if lock is None else lock["config"].get("training", {})
    return config.model_copy(update={"training": settled(numerics_of(training, locked), device)})


def resumed(lock: Mapping[str, Any], config: StudyConfig) -> dict[str, Any]:
    """Return the lock of a run that goes on as `config` says; it names every further machine under `resumed_on`."""
    known, here = list(lock.get("resumed_on", [])), machine()
    if here not in (lock.get("machine"), *known):
        known.append(here)
    more = {"resumed_on": known} if known else {}
    return {**lock, "config": config.model_dump(mode="json"), **more}


def differences(lock: Mapping[str, Any], config: StudyConfig, device: torch.device) -> list[str]:
    """Return in words in what the machine of the run's `lock` differs from this one, as far as scores rest on it."""
    if config.teacher is None:
        return []  # nothing is trained here
    training, before, now = config.training, lock.get("machine", {}), machine()
    said = []
    if lock["config"].get("training", {}).get("precision", "auto") == "auto":
        said.append(
            f"this run was begun before kdnas recorded what it computes in; from now on it is {_words(training)}"
        )
    pairs = [
        (before.get("processor"), now["processor"]),
        *((f"{name} {before.get('packages', {}).get(name)}", f"{name} {now['packages'][name]}") for name in ("torch",)),
    ]
    changed = [(was, here) for was, here in pairs if was and was != here]
    if changed:
        told = "; ".join(f"{was}, here {here}" for was, here in changed)
        computed = f"it goes on in {_words(training)}"
        said.append(f"this run began with {told}: equal trainings may differ in their last digits; {computed}")
    if training.precision == "bfloat16" and not bfloat16_is_native(device):
        said.append("this machine emulates bfloat16, in which this run computes: it will be slow")
    return said


def _words(training: Training) -> str:
    threads = "" if training.threads == "auto" else f", {training.threads} CPU thread{'s' * (training.threads != 1)}"
    return f"{training.precision}{threads}{', norms fused' if training.fused_norms is True else ''}"
