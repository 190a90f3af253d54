"""Side-by-side measurements: interleaved rounds, ratios inside a round, medians and quartiles."""

from __future__ import annotations

import csv
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdnas_loop
import numpy as np
import plain_loop
import setting
import torch
from setting import Images
from tuned_loop import TunedTrial

PLAIN, TUNED, KDNAS = "plain loop", "tuned by hand", "kdnas"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles over `rounds`."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high), len(values))


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Return the rate of every way in each round; the ways take turns, in a changing order."""
    for way in ways.values():
        way()  # the first one is not measured: kernels are prepared, caches filled
    names, measured = list(ways), []
    for number in range(rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        rates = {name: ways[name]() for name in turn}
        measured.append({name: rates[name] for name in names})
        print(
            f"  round {number + 1}/{rounds}: " + ", ".join(f"{k} {v:.0f}" for k, v in measured[-1].items()), flush=True
        )
    return measured


class Bench:
    """The three ways of training a ResNet-20 beside a ResNet-56, a few hundred images at a time."""

    def __init__(self, *, threads: int, batch_size: int, quick: bool):
        torch.set_num_threads(threads)
        self.batch_size = batch_size
        self.data = setting.cifar10()
        self.teacher = setting.resnet56(self.data, CPU)
        steps = {PLAIN: 4, TUNED: 9, KDNAS: 8} if quick else {PLAIN: 6, TUNED: 17, KDNAS: 16}
        self.indices = {name: setting.some(self.data, count * batch_size, name) for name, count in steps.items()}
        self.folder = tempfile.TemporaryDirectory(prefix="trial_speed-")
        self._images = {name: Images.of(self.data, indices) for name, indices in self.indices.items()}
        self._tuned = TunedTrial(self._student(), self._images[TUNED], batch_size=batch_size, device=CPU, seed=0)

    def prepare_tuned(self) -> None:
        """Have B's teacher answer: not part of what is measured."""
        if len(self._tuned.theirs) == 0:
            self._tuned.ask(self.teacher.module)

    def plain(self, workers: int) -> float:
        """Return A's images a second."""
        return plain_loop.train(
            self._student(), self.teacher.module, self._images[PLAIN],
            batch_size=self.batch_size, device=CPU, workers=workers, seed=0, warmup_steps=1,
        )  # fmt: skip

    def tuned(self) -> float:
        """Return B's images a second."""
        self.prepare_tuned()
        return self._tuned.train(warmup_steps=1)

    def kdnas(self) -> float:
        """Return kdnas's images a second, the teacher's outputs being there."""
        return kdnas_loop.rate(self.kdnas_training(), len(self.indices[KDNAS]))

    def kdnas_training(self, cache: Path | None = None) -> Any:
        """Return one training by kdnas."""
        return kdnas_loop.train(
            self._student(), self.teacher, self.data, self.indices[KDNAS],
            batch_size=self.batch_size, device=CPU, seed=0, cache=cache or Path(self.folder.name),
        )  # fmt: skip

    def _student(self) -> torch.nn.Module:
        return setting.build(setting.resnet(20), self.data, seed=1)


def on_one_core(rounds: int, batch_size: int, *, quick: bool) -> list[dict[str, float]]:
    """Return rates with one thread each; A's DataLoader worker has the other core to itself."""
    bench = Bench(threads=1, batch_size=batch_size, quick=quick)
    return interleaved({PLAIN: lambda: bench.plain(workers=1), TUNED: bench.tuned, KDNAS: bench.kdnas}, rounds)


def on_two_cores(rounds: int, batch_size: int, *, quick: bool) -> list[dict[str, float]]:
    """Return rates of the whole machine: the loops with two threads, kdnas with two workers, as its searches have."""
    bench = Bench(threads=2, batch_size=batch_size, quick=quick)
    context = multiprocessing.get_context("spawn")
    with Workers(context, 2, (batch_size, quick)) as workers:
        ways = {PLAIN: lambda: bench.plain(workers=2), TUNED: bench.tuned, KDNAS: workers.rate}
        return interleaved(ways, rounds)


class Workers:
    """Processes of one core each, all measuring kdnas at the same time when asked."""

    def __init__(self, context: Any, count: int, settings: tuple[int, bool]):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * count
        self._pipes, self._processes = [], []
        for number in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, cores[number % len(cores)], *settings), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def rate(self) -> float:
        """Return the images a second of all processes together."""
        for pipe in self._pipes:
            pipe.send(True)
        return sum(pipe.recv() for pipe in self._pipes)


def _serve(pipe: Any, core: int | None, batch_size: int, quick: bool) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    bench = Bench(threads=1, batch_size=batch_size, quick=quick)
    while True:
        pipe.recv()
        pipe.send(bench.kdnas())


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
