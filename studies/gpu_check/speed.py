"""How fast students train: alone, against other loops, several at once, and what the teacher's cache saves."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import kdnas_loop
import measure
import plain_loop
import setting
import torch
from bench import Bench, Row, speed
from setting import Images
from tuned_loop import TunedTrial

from kdnas.errors import TrialError
from kdnas.students import family_for
from kdnas.targets import TARGETS, Missing
from kdnas.training.loop import Course, Pupil, train
from kdnas.training.teacher_cache import TeacherCache

_LOADERS = 8
"""DataLoader workers of the plain loop."""
_ENERGY_S = 3.0
"""Long beside the tenth of a second in which NVML's counter is renewed."""


def throughput(bench: Bench) -> Iterator[Row]:
    """One student: eager against captured steps, at batches from large to small."""
    bench.fill()
    for batch_size in bench.batch_sizes:
        for graphs in (True, False):
            yield bench.train(batch_size, graphs=graphs)


def loops(bench: Bench) -> Iterator[Row]:
    """The plain loop, the one tuned by hand and kdnas in turn, a row a round; kdnas's first epoch is counted."""
    bench.fill()
    teacher, few = bench.teacher(), bench.indices[: 96 if bench.quick else 8192]
    for batch_size in (32,) if bench.quick else (128, 2048):
        images, all_images = Images.of(bench.data, few), Images.of(bench.data, bench.indices)
        tuned = TunedTrial(bench.student(), all_images, batch_size=batch_size, device=bench.device, seed=0)
        tuned.ask(teacher.module)

        def plain(batch_size: int = batch_size, images: Images = images) -> float:
            return plain_loop.train(
                bench.student(), teacher.module, images, batch_size=batch_size, device=bench.device,
                workers=0 if bench.quick else _LOADERS, seed=0, warmup_steps=1,
            )  # fmt: skip

        def ours(batch_size: int = batch_size) -> float:
            trained = kdnas_loop.train(
                bench.student(), teacher, bench.data, bench.indices,
                batch_size=batch_size, device=bench.device, seed=0, epochs=bench.epochs, cache=bench.cache,
            )  # fmt: skip
            return kdnas_loop.rate(trained, len(bench.indices))

        ways: dict[str, Callable[[], float]] = {
            measure.PLAIN: plain,
            measure.TUNED: lambda tuned=tuned: tuned.train(warmup_steps=1),  # type: ignore[misc]
            measure.KDNAS: ours,
        }
        for number, rates in enumerate(measure.interleaved(ways, 1 if bench.quick else 3), start=1):
            yield {"batch_size": batch_size, "round": number, **rates}


def together(bench: Bench) -> Iterator[Row]:
    """Several students at batch 128 in one process, on the same batches."""
    bench.fill()
    images, batch_size = bench.images(), 32 if bench.quick else 128
    cache = TeacherCache(bench.cache)
    course = Course(bench.data, images, None, bench.teacher(), 0, bench.device, cache)
    given = setting.recipe(batch_size, bench.epochs)
    for students in (1, 2) if bench.quick else (1, 16, 8, 4, 2):
        begun = time.perf_counter()
        outcomes = train(course, [Pupil(bench.student(seed), given, seed) for seed in range(students)])
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, TrialError)]
        row: Row = {"students": students, "batch_size": batch_size, "failed": failed}
        first = outcomes[0]
        if not failed and not isinstance(first, TrialError):
            row |= speed(first.history, len(images), students) | {"graph_failure": first.graph_failure}
        yield {**row, "whole_call_s": time.perf_counter() - begun}


def processes(bench: Bench) -> Iterator[Row]:
    """Several processes at batch 128, each with a student of its own, for comparison with `together`."""
    bench.fill()
    context = multiprocessing.get_context("spawn")
    for workers in (2,) if bench.quick else (1, 8):
        barrier = context.Barrier(workers)
        with context.Pool(workers, _remember, (barrier,)) as pool:
            jobs = [(str(bench.device), str(bench.cache), bench.quick)] * workers
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
    batch_size = 32 if quick else 128
    bench.train(batch_size)
    _barrier[0].wait(timeout=120)
    return bench.train(batch_size)


def teacher(bench: Bench) -> Iterator[Row]:
    """How much of the arithmetic that the teacher's cache saves becomes time saved."""
    bench.fill()
    family = family_for("resnet", bench.data.task)
    ours, theirs = (family.price(setting.resnet(depth)).macs for depth in (20, 56))
    saved_arithmetic = theirs / (theirs + 3 * ours)  # a step is a forward and a backward of twice its cost
    for batch_size in (32,) if bench.quick else (128, 2048):
        rows = {kind: bench.train(batch_size, teacher=kind) for kind in ("cached", "live", "none")}
        seconds = {kind: 1.0 / row["images_per_s"] for kind, row in rows.items()}
        saved_time = 1.0 - seconds["cached"] / seconds["live"]
        yield {
            "batch_size": batch_size,
            **{f"images_per_s_{kind}": row["images_per_s"] for kind, row in rows.items()},
            "share_of_arithmetic_saved": saved_arithmetic,
            "share_of_time_saved": saved_time,
            "arithmetic_turned_into_time": saved_time / saved_arithmetic,
        }


def kernels(bench: Bench) -> Iterator[Row]:
    """Whether trying out convolution algorithms (cudnn.benchmark) pays within a trial."""
    bench.fill()
    for batch_size in (32,) if bench.quick else (128, 2048):
        for tried in (False, True):
            torch.backends.cudnn.benchmark = tried
            yield {"cudnn_benchmark": tried, **bench.train(batch_size)}
    torch.backends.cudnn.benchmark = False


def energy(bench: Bench) -> Iterator[Row]:
    """The energy of an image learnt from, by the device's own counter over some seconds; or why there is none."""
    counter = TARGETS.build(bench.device.type).energy_counter()
    if isinstance(counter, Missing):
        yield {"energy_mj_per_image": None, "missing": counter.reason}
        return
    bench.fill()
    for batch_size in (32,) if bench.quick else (128, 8192):
        images, begun, before = 0, time.perf_counter(), counter.read()
        while images == 0 or time.perf_counter() - begun < _ENERGY_S:
            bench.train(batch_size)
            images += bench.epochs * len(bench.indices)
        spent = counter.spent_mj(before, counter.read())
        seconds = time.perf_counter() - begun
        yield {
            "batch_size": batch_size,
            "energy_mj_per_image": spent / images,
            "mean_watts": spent / 1e3 / seconds,
            "seconds": seconds,
            "counter": counter.what,
        }
