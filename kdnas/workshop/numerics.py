"""What computes a run's numbers, decided when it begins, kept for its life, and reported where another machine differs.

The decisions (`kdnas.training.numerics`) stand in the lock file's `config.training`: `precision`, `threads`,
`fused_norms`. A run that is resumed keeps them, on whatever machine; one that was made before they were recorded gets
them now.
"""

from __future__ import annotations

import dataclasses

import torch

from kdnas.record.lock import Lock, Machine, this_machine
from kdnas.study.config import StudyConfig
from kdnas.training.numerics import bfloat16_is_native, settled
from kdnas.training.recipe import Training, numerics_of


def settled_config(config: StudyConfig, device: torch.device, lock: Lock | None) -> StudyConfig:
    """Return `config` with its training settled, as in the run's `lock` where there is one."""
    known = known_config(config, lock)
    return known.model_copy(update={"training": settled(known.training, device)})


def known_config(config: StudyConfig, lock: Lock | None) -> StudyConfig:
    """Return `config` with its training settled as far as it is stated, or stands in the run's `lock`.

    The `threads` that an executor is given are those of its trainings.
    """
    training, stated = config.training, config.executor.options.get("threads")
    if training.threads == "auto" and isinstance(stated, int):
        training = training.model_copy(update={"threads": stated})
    return config.model_copy(
        update={"training": training if lock is None else numerics_of(training, lock.config.training)}
    )


def resumed(lock: Lock, config: StudyConfig, here: Machine) -> Lock:
    """Return the lock of a run that goes on by `config` on the machine `here`; it names every further machine."""
    further = () if here in (lock.machine, *lock.resumed_on) else (here,)
    return dataclasses.replace(lock, config=config, resumed_on=(*lock.resumed_on, *further))


def differences(lock: Lock, config: StudyConfig, device: torch.device) -> list[str]:
    """Return in words in what the machine of the run's `lock` differs from this one, as far as scores rest on it."""
    if config.data is None:
        return []  # nothing is trained here
    training, before, now = config.training, lock.machine, this_machine()
    lines = []
    if lock.config.training.precision == "auto":
        lines.append(
            f"this run was begun before kdnas recorded what it computes in; from now on it is {_words(training)}"
        )
    pairs = [
        (before.processor, now.processor),
        (f"torch {before.packages.get('torch')}", f"torch {now.packages['torch']}"),
    ]
    changed = [(was, here) for was, here in pairs if was and was != here]
    if changed:
        changes = "; ".join(f"{was}, here {here}" for was, here in changed)
        computed = f"it goes on in {_words(training)}"
        lines.append(f"this run began with {changes}: equal trainings may differ in their last digits; {computed}")
    if training.precision == "bfloat16" and not bfloat16_is_native(device):
        lines.append("this machine emulates bfloat16, in which this run computes: it will be slow")
    return lines


def _words(training: Training) -> str:
    threads = "" if training.threads == "auto" else f", {training.threads} CPU thread{'s' * (training.threads != 1)}"
    return f"{training.precision}{threads}{', norms fused' if training.fused_norms is True else ''}"
