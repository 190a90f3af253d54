"""How fast students train on this GPU. One benchmark a call, its rows written as they come:

    python studies/gpu_check/benchmark.py throughput|together|processes|teacher|kernels OUT.json

ResNet-20-like students and a ResNet-56-like teacher of random weights on random CIFAR-shaped images: speed does not
depend on what they show. Trainings are kdnas's own (`distil`, `distil_together`), views augmented, the teacher's rows
cached beforehand. `images_per_s` is the median over the epochs after the first, `spread` their range over the median;
`first_epoch_s` holds the capture. `--device cpu --quick` tries the program itself, small, anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.data import ImageArrays, ImageData
from kdnas.core.measurement import Price
from kdnas.errors import TrialError
from kdnas.nn.normalise import Normalised
from kdnas.students import STUDENTS
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import EpochRecord, distil
from kdnas.training.packing import distil_together
from kdnas.training.recipe import Augmentation, Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

Row = dict[str, Any]
EPOCHS = 4


@dataclass(frozen=True)
class Bench:
    """What every benchmark trains on."""

    device: torch.device
    data: ImageData
    cache_folder: Path
    quick: bool

    @classmethod
    def make(cls, device: torch.device, cache: Path, *, quick: bool) -> Bench:
        """Return random images, `quick`: few."""
        count, rng = 96 if quick else 32_768, np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        arrays = ImageArrays(images, rng.integers(0, 10, count))
        names = tuple(map(str, range(10)))
        mean, std = (127.5,) * 3, (73.9,) * 3
        return cls(device, ImageData("random", names, arrays, arrays, "random", mean, std), cache, quick)

    @property
    def cache(self) -> TeacherCache:
        """The teacher's cached rows."""
        return TeacherCache(self.cache_folder)

    def depth(self, depth: int) -> dict[str, int | str]:
        """Return a residual network for 32x32 images of `depth` blocks a stage, He et al.'s 6 * depth + 2."""
        choices: dict[str, int | str] = {"stem_width": 16}
        for stage, width in enumerate((16, 32, 64), start=1):
            choices |= {f"stage{stage}.depth": depth, f"stage{stage}.width": width}
            choices |= {f"stage{stage}.bottleneck": "plain", f"stage{stage}.skip": "identity"}
        return choices

    def network(self, depth: int = 3, seed: int = 0) -> nn.Module:
        """Return a new network of random weights: 3 is ResNet-20, 9 is ResNet-56."""
        torch.manual_seed(seed)
        depth = 1 if self.quick else depth
        family = STUDENTS.build("resnet")
        return family.build(family.canonical(self.depth(depth)), self.data.task)

    def price(self, depth: int) -> Price:
        """Return the closed-form costs of such a network."""
        family = STUDENTS.build("resnet")
        return family.price(family.canonical(self.depth(depth)), self.data.task)

    def teacher(self) -> Teacher:
        """Return ResNet-56."""
        module = Normalised(self.network(9, seed=1), self.data.channel_mean, self.data.channel_std).eval()
        return Teacher("random", module, (), None, fingerprint="random ResNet-56")

    def images(self) -> Batches:
        """Return the images on the device."""
        indices = np.arange(len(self.data.train))
        return Batches(self.data.train, indices, num_classes=10, device=self.device)

    def recipe(self, batch_size: int, *, teacher: bool = True, epochs: int = EPOCHS) -> Recipe:
        """Return a CIFAR recipe in the device's best precision."""
        training = Training(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=0.01,
            augmentation=Augmentation(flip=True, crop_padding=4),
            precision="auto",
        )
        losses = (LossTerm(type="kd", weight=0.9),) if teacher else ()
        return Recipe(training=training, distillation=Distillation(task_weight=0.1, losses=losses))

    def train(
        self, batch_size: int, *, graphs: bool = True, teacher: str = "cached", train: Batches | None = None
    ) -> Row:
        """Train one student and return its speed; `teacher` is cached, live or none."""
        recipe = self.recipe(batch_size, teacher=teacher != "none")
        started = time.perf_counter()
        trained = distil(
            self.network(),
            None if teacher == "none" else self.teacher(),
            train or self.images(),
            None,
            recipe,
            data=self.data,
            seed=0,
            view_seed=0,
            device=self.device,
            teacher_cache=self.cache if teacher == "cached" else None,
            graphs=graphs,
        )
        return {
            "batch_size": batch_size,
            "graphs": graphs,
            "teacher": teacher,
            **speed(trained.history, len(self.data.train)),
            "whole_call_s": time.perf_counter() - started,
            "graph_failure": trained.graph_failure,
        }

    def fill(self, batch_size: int = 1024) -> None:
        """Have the teacher's rows of every view in the cache, and this process warm."""
        self.train(min(batch_size, len(self.data.train)))


def speed(history: Sequence[EpochRecord], images: int, students: int = 1) -> Row:
    """Return images a second over the epochs after the first; an epoch's seconds are one of `students` equal shares."""
    rates = [images / record.seconds for record in history[1:]]
    middle = statistics.median(rates)
    return {
        "images_per_s": middle,
        "spread": (max(rates) - min(rates)) / middle,
        "epochs_measured": len(rates),
        "first_epoch_s": history[0].seconds * students,
    }


def throughput(bench: Bench) -> Iterator[Row]:
    """One student: eager against captured steps, at batches from small to large."""
    bench.fill()
    train = bench.images()
    for batch_size in (32,) if bench.quick else (128, 512, 1024, 2048, 4096, 8192):
        for graphs in (True, False):
            yield bench.train(batch_size, graphs=graphs, train=train)


def together(bench: Bench) -> Iterator[Row]:
    """Several students at batch 128 in one process, on the same batches."""
    bench.fill()
    train = bench.images()
    batch_size = 32 if bench.quick else 128
    for students in (1, 2) if bench.quick else (1, 2, 4, 8, 16):
        started = time.perf_counter()
        outcomes = distil_together(
            [bench.network(seed=seed) for seed in range(students)],
            bench.teacher(),
            train,
            None,
            [bench.recipe(batch_size)] * students,
            data=bench.data,
            seeds=list(range(students)),
            view_seed=0,
            device=bench.device,
            teacher_cache=bench.cache,
        )
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, TrialError)]
        row: Row = {"students": students, "batch_size": batch_size, "failed": failed}
        if not failed:
            first = outcomes[0]
            assert not isinstance(first, TrialError)
            row |= speed(first.history, len(train), students)
            row["graph_failure"] = first.graph_failure
        yield {**row, "whole_call_s": time.perf_counter() - started}


def processes(bench: Bench) -> Iterator[Row]:
    """Several processes at batch 128, each with a student of its own, for comparison with `together`."""
    bench.fill()
    context = multiprocessing.get_context("spawn")
    for workers in (2,) if bench.quick else (1, 4, 16):
        barrier = context.Barrier(workers)
        with context.Pool(workers, _remember, (barrier,)) as pool:
            jobs = [(str(bench.device), str(bench.cache_folder), bench.quick)] * workers
            rows = pool.map(_one_process, jobs, chunksize=1)
        failures = sorted({str(row["graph_failure"]) for row in rows if row["graph_failure"]})
        # All of them train all the while, so their rates add up.
        rate = sum(row["images_per_s"] for row in rows)
        yield {"processes": workers, "images_per_s": rate, "graph_failures": failures}


_barrier: list[Barrier] = []


def _remember(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _one_process(job: tuple[str, str, bool]) -> Row:
    """Train twice in a worker, and return the second training, which all workers begin together."""
    torch.set_num_threads(1)
    device, cache, quick = job
    bench = Bench.make(torch.device(device), Path(cache), quick=quick)
    train, batch_size = bench.images(), 32 if quick else 128
    bench.train(batch_size, train=train)
    _barrier[0].wait(timeout=120)
    return bench.train(batch_size, train=train)


def teacher(bench: Bench) -> Iterator[Row]:
    """How much of the arithmetic that the teacher's cache saves becomes time saved."""
    bench.fill()
    train = bench.images()
    ours, theirs = bench.price(3).macs, bench.price(9).macs
    saved_arithmetic = theirs / (theirs + 3 * ours)  # a step is a forward and a backward of twice its cost
    for batch_size in (32,) if bench.quick else (128, 2048):
        rows = {kind: bench.train(batch_size, teacher=kind, train=train) for kind in ("cached", "live", "none")}
        seconds = {kind: 1.0 / row["images_per_s"] for kind, row in rows.items()}
        saved_time = 1.0 - seconds["cached"] / seconds["live"]
        yield {
            "batch_size": batch_size,
            "images_per_s": {kind: row["images_per_s"] for kind, row in rows.items()},
            "share_of_arithmetic_saved": saved_arithmetic,
            "share_of_time_saved": saved_time,
            "arithmetic_turned_into_time": saved_time / saved_arithmetic,
        }


def kernels(bench: Bench) -> Iterator[Row]:
    """Whether trying out convolution algorithms (cudnn.benchmark) pays within a trial."""
    bench.fill()
    train = bench.images()
    for batch_size in (32,) if bench.quick else (128, 2048):
        for tried in (False, True):
            torch.backends.cudnn.benchmark = tried
            yield {"cudnn_benchmark": tried, **bench.train(batch_size, train=train)}
    torch.backends.cudnn.benchmark = False


BENCHMARKS = {
    "throughput": throughput,
    "together": together,
    "processes": processes,
    "teacher": teacher,
    "kernels": kernels,
}


def machine(device: torch.device) -> Row:
    """Return what ran, and where."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "device": name, **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    record: dict[str, Any] = {"benchmark": given.benchmark, "machine": machine(device), "images": 0, "rows": []}
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench.make(device, Path(cache), quick=given.quick)
        record["images"] = len(bench.data.train)
        for row in BENCHMARKS[given.benchmark](bench):
            rounded = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
            record["rows"].append(rounded)
            print(json.dumps(rounded), flush=True)
            given.out.write_text(json.dumps(record, indent=1) + "\n")  # what is there survives a time limit


if __name__ == "__main__":
    main()
