"""A small run written by hand for tests of export and training: real digits, untrained weights, invented scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import SearchSpace
from kdnas.core.task import image_classification
from kdnas.record.lock import DataDescription, Lock, TeacherReport
from kdnas.record.records import FrontMember, Repeat, RunRecord, TrialRecord
from kdnas.students import family_for, stated_arch
from kdnas.study.config import StudyConfig

CHOICES = {
    "stem_width": 4,
    "stage1.depth": 1, "stage1.width": 4, "stage1.bottleneck": "plain", "stage1.skip": "identity",
    "stage2.depth": 1, "stage2.width": 8, "stage2.bottleneck": 0.5, "stage2.skip": "projection",
}  # fmt: skip
TASK = image_classification((1, 8, 8), 10)
ACCURACIES = {0: 0.90, 1: 0.94, 2: 0.92}
"""By seed; the best is neither the first nor the last."""


def small_arch() -> Arch:
    """A digits-sized resnet."""
    return stated_arch("resnet", CHOICES)


def small_network(seed: int) -> torch.nn.Module:
    """That arch with random weights and norm statistics that are not the initial ones, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family_for("resnet", TASK).build(small_arch())
        network.train()
        for _ in range(3):
            network(torch.randn(32, *TASK.image_shape) * 2 + 0.5)
    return network.eval()


def study_config(**changes: object) -> StudyConfig:
    """A digits study with a teacher of the same family."""
    teacher = {
        "type": "student",
        "family": "resnet",
        "choices": {**CHOICES, "stem_width": 8},
        "training": {"epochs": 6, "batch_size": 64},
    }
    plain = {
        "name": "tiny",
        "seed": 5,
        "device": "cpu",
        "data": "digits",
        "teacher": teacher,
        "space": "digits_resnet",
        "training": {
            "epochs": 1,
            "batch_size": 64,
            "learning_rate": 0.05,
            "data_fraction": 0.5,
            "precision": "float32",
        },
        "distillation": {"task_weight": 1.0, "losses": [{"type": "kd", "weight": 0.5, "temperature": 4.0}]},
        "final": {"epochs": 2, "data_fraction": 1.0},
    }
    return StudyConfig.model_validate({**plain, **changes})


def trained_run(folder: Path, data: ImageData, *, teacher_fingerprint: str = "") -> RunRecord:
    """A run of one student with three retrainings, whose checkpoints lie in `folder`."""
    arch = small_arch()
    price = family_for("resnet", TASK).price(arch)
    (folder / "checkpoints").mkdir(parents=True)
    repeats = []
    for seed, accuracy in ACCURACIES.items():
        name = f"{arch.arch_id}-seed{seed}.safetensors"
        safetensors.torch.save_file(small_network(seed).state_dict(), folder / "checkpoints" / name)
        repeats.append(Repeat(seed, accuracy, accuracy - 0.01, Fidelity(2, 1.0), 3.5, name))
    latency = Measurement(0.5, 0.02, 50, "cpu, 1 thread, batch 1")
    trial = TrialRecord(
        number=7,
        arch=arch,
        state="complete",
        fidelity=Fidelity(1, 0.5),
        tuned={"training.learning_rate": 0.15, "distillation.losses.0.temperature": 2.5},
        values={"accuracy": 0.8, "macs": price.macs, "params": price.params, "latency_ms": 0.5},
        measurements={"latency_ms": latency},
        repeats=tuple(repeats),
    )
    macs = Quantity("macs", "MACs", "minimize", "cheap")
    lock = Lock(
        config=study_config(),
        space=SearchSpace("digits_resnet", "resnet", ()),
        fingerprints={"data": data.fingerprint, "teacher": teacher_fingerprint},
        quantities=(ACCURACY, macs, Quantity("latency_ms", "ms", "minimize", "measured")),
        reference_point={"accuracy": 0.1, "macs": 1e6},
        teacher=TeacherReport("resnet trained here", 0.97, 0.96, {"macs": 12345.0}),
        data=DataDescription(data.name, tuple(data.class_names), training_samples=1000),
    )
    return RunRecord(
        folder=folder,
        config=lock.config,
        lock=lock,
        objectives=(ACCURACY, macs),
        constraints=(),
        quantities={quantity.name: quantity for quantity in lock.quantities},
        trials=(trial, replace(trial, number=8, repeats=())),
        teacher=lock.teacher,
        reference_point=lock.reference_point,
        class_names=lock.data.class_names,
        finished="",
    )


def member_of(run: RunRecord) -> FrontMember:
    """The run's retrained student."""
    trial = run.trials[0]
    return FrontMember(trial, {**trial.values, "accuracy": 0.92}, 0.05, 0.91, 0.05)
