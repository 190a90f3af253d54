"""Whether speed costs accuracy: the same students trained by the plain loop and by kdnas, two processes at a time."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdnas_loop
import numpy as np
import plain_loop
import setting
import torch
from measure import CPU, KDNAS, PLAIN
from setting import Images

from kdnas.core.arch import Arch
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for, stated_arch
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.recipe import Training

BATCH_SIZE = 64


@dataclass(frozen=True)
class Task:
    """One training: by which way, of which student, with which seed, on how many images."""

    way: str
    arch: str
    seed: int
    images: int
    cache: str

    def row(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the line of the results' file."""
        arch = Arch.from_json(self.arch)
        macs = family_for(arch.family, setting.cifar10().task).price(arch).macs
        return {"way": self.way, "arch_id": arch.arch_id, "macs": macs, "seed": self.seed, **result}


def trained(task: Task) -> dict[str, Any]:
    """Return the test accuracy and the seconds of one training; each process has one thread."""
    torch.set_num_threads(1)
    data = setting.cifar10()
    teacher = setting.trained_teacher(CPU)
    indices = setting.some(data, task.images, "outcome")
    student = setting.build(Arch.from_json(task.arch), data, seed=task.seed)
    begun = time.perf_counter()
    if task.way == PLAIN:
        plain_loop.train(
            student, teacher.module, Images.of(data, indices),
            batch_size=BATCH_SIZE, device=CPU, workers=1, seed=task.seed,
        )  # fmt: skip
    else:
        kdnas_loop.train(
            student, teacher, data, indices,
            batch_size=BATCH_SIZE, device=CPU, seed=task.seed, cache=Path(task.cache),
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    test = Batches(data, np.arange(0, len(data.test), 2), device=CPU, split="test")
    score = evaluate(
        Normalised(student, data.channel_mean, data.channel_std),
        test,
        Training(precision="bfloat16" if task.way == KDNAS else "float32"),
    )
    return {"accuracy": round(score, 4), "seconds": round(seconds, 2)}


def all_trained(tasks: Sequence[Task]) -> tuple[list[dict[str, Any]], float]:
    """Return the results of `tasks`, a process a core at work, and the wall-clock seconds of all."""
    context = multiprocessing.get_context("spawn")
    begun = time.perf_counter()
    with _Pool(context) as pool:
        results = pool.run(tasks)
    return [task.row(result) for task, result in zip(tasks, results, strict=True)], time.perf_counter() - begun


class _Pool:
    """As many processes as cores. Not daemonic, as those of multiprocessing.Pool: a DataLoader has children."""

    def __init__(self, context: Any):
        self._context = context
        self._workers: list[tuple[Any, Any]] = []

    def __enter__(self) -> _Pool:
        for _ in range(os.cpu_count() or 1):
            here, there = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(there,))
            process.start()
            there.close()
            self._workers.append((process, here))
        return self

    def __exit__(self, *exception: object) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.join(10)
            process.kill()

    def run(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Return the results in the order of `tasks`."""
        results: dict[int, dict[str, Any]] = {}
        waiting = list(enumerate(tasks))
        busy: dict[Any, int] = {}
        idle = [pipe for _, pipe in self._workers]
        while waiting or busy:
            while waiting and idle:
                number, task = waiting.pop(0)
                pipe = idle.pop()
                pipe.send(task)
                busy[pipe] = number
            for pipe in multiprocessing.connection.wait(list(busy)):
                number = busy.pop(pipe)
                results[number] = pipe.recv()
                idle.append(pipe)
                print(f"  {tasks[number].way}, seed {tasks[number].seed}: {json.dumps(results[number])}", flush=True)
        return [results[number] for number in range(len(tasks))]


def _serve(pipe: Any) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(trained(task))


def small_archs() -> list[Arch]:
    """Return three students of the space cifar_resnet, of 2 to 20 M MACs."""
    shapes = [
        {"stem": 8, "width": (8, 16, 32), "depth": 1, "bottleneck": "plain", "skip": "projection"},
        {"stem": 16, "width": (16, 32, 48), "depth": 1, "bottleneck": "plain", "skip": "identity"},
        {"stem": 16, "width": (16, 32, 64), "depth": 2, "bottleneck": 0.5, "skip": "identity"},
    ]
    archs = []
    for shape in shapes:
        choices: dict[str, Any] = {"stem_width": shape["stem"]}
        for stage, width in enumerate(shape["width"], 1):  # type: ignore[var-annotated, arg-type]
            choices |= {f"stage{stage}.depth": shape["depth"], f"stage{stage}.width": width}
            choices |= {f"stage{stage}.bottleneck": shape["bottleneck"], f"stage{stage}.skip": shape["skip"]}
        archs.append(stated_arch("resnet", choices))
    return archs


def same_result(images: int, seeds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return every training, and for each student the two ways' accuracies with their difference and its interval."""
    with tempfile.TemporaryDirectory(prefix="trial_speed-") as cache:
        tasks = [
            Task(way, arch.canonical_json, seed, images, cache)
            for arch in small_archs()
            for seed in range(seeds)
            for way in (PLAIN, KDNAS)
        ]
        rows, _ = all_trained(tasks)
    return rows, [{**line, "images": images} for line in compared(rows, plain=PLAIN, kdnas=KDNAS)]


def compared(rows: Sequence[Mapping[str, Any]], **ways: str) -> list[dict[str, Any]]:
    """Return, for each student of `rows`, the accuracies by two ways, and their difference with its 95 % interval.

    `ways` are named as their columns shall be: first what is compared with, then what is compared.
    """
    from scipy import stats

    (base_name, base), (other_name, other) = ways.items()
    summary = []
    for arch_id in dict.fromkeys(row["arch_id"] for row in rows):
        theirs, ours = (
            [row["accuracy"] for row in rows if row["arch_id"] == arch_id and row["way"] == way]
            for way in (base, other)
        )
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        summary.append(
            {
                "arch_id": arch_id,
                f"{base_name}_mean": round(float(np.mean(theirs)), 4),
                f"{base_name}_std": round(float(np.std(theirs, ddof=1)), 4),
                f"{other_name}_mean": round(float(np.mean(ours)), 4),
                f"{other_name}_std": round(float(np.std(ours, ddof=1)), 4),
                "difference": round(float(np.mean(ours) - np.mean(theirs)), 4),
                "ci95_low": round(float(interval.low), 4),
                "ci95_high": round(float(interval.high), 4),
                "seeds": len(ours),
            }
        )
    return summary


def searches(archs: Sequence[Arch], images: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return every training of the same proposals by both ways, and each way's wall-clock seconds, start-up counted.

    The proposals are given, as those of a random search with a fixed seed: what is compared is what a search waits for.
    kdnas begins with an empty cache, so its teacher is paid for.
    """
    rows, seconds = [], {}
    for way in (KDNAS, PLAIN):
        with tempfile.TemporaryDirectory(prefix="trial_speed-") as cache:
            tasks = [Task(way, arch.canonical_json, 0, images, cache) for arch in archs]
            done, seconds[way] = all_trained(tasks)
        rows += done
    return rows, seconds
