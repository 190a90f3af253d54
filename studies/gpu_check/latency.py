"""Latency, memory and energy of networks on the device: eager and captured, batch 1 and a large one."""

from __future__ import annotations

from collections.abc import Iterator

import outcome
import setting
from bench import Bench, Row

from kdnas.errors import RunError
from kdnas.students import family_for
from kdnas.workshop.measuring import Subject, measure, targets

_LARGE = 1024


def latency(bench: Bench) -> Iterator[Row]:
    """What `kdnas measure` finds of ResNet-20, ResNet-56 and three small students, a row each and circumstance."""
    archs = {"ResNet-20": setting.resnet(20), "ResNet-56": setting.resnet(56)}
    archs |= {f"small {number}": arch for number, arch in enumerate(outcome.small_archs(), start=1)}
    subjects = [Subject(name, arch, family_for(arch.family, bench.data.task)) for name, arch in archs.items()]
    name = bench.device.type
    variants = targets(name, {})
    if not bench.quick:
        variants += targets(name, {"batch_size": _LARGE})
    for target in variants:
        try:
            report = measure(subjects[:1] if bench.quick else subjects, name, target, repeats=5 if bench.quick else 50)
        except RunError as error:
            yield {"where": target.where, "failed": str(error)}
            continue
        for student in report.as_dict()["students"]:
            found = {key: student[key] and student[key]["value"] for key in ("peak_memory_bytes", "energy_mj")}
            yield {
                "where": report.where,
                "network": student["source"],
                "macs": student["macs"],
                "latency_ms": student["latency_ms"]["value"],
                "latency_iqr_ms": student["latency_ms"]["spread"],
                "drift": report.drift,
                **found,
                **{key: value for key, value in student.items() if key.endswith("_missing")},
            }
