"""Where residual blocks begin, and what brief and longer trainings make of it; see README.md.

    python studies/brief_initialisation/run.py [--quick] [--only QUESTION] [--student NAME] [--tables]

One small file a training is kept under --runs: a run that was interrupted goes on, and questions share trainings.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from kdnas import atomic
from kdnas.core.arch import Scalar
from kdnas.core.seeds import derive_seed
from kdnas.errors import InputError
from kdnas.record.lock import this_machine
from kdnas.students import family_for, stated_arch
from kdnas.study.loading import load_study
from kdnas.training.loop import distil
from kdnas.training.recipe import Distillation, Recipe
from kdnas.training.teacher_cache import TeacherCache
from kdnas.workshop import opening

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "cifar10_resnet"
"""Data, teacher and recipe are those of this study."""


def _resnet(stem: int, *stages: tuple[int, int, str | float], skip: str = "identity") -> dict[str, Scalar]:
    choices: dict[str, Scalar] = {"stem_width": stem}
    for stage, (depth, width, bottleneck) in enumerate(stages, 1):
        choices |= {f"stage{stage}.depth": depth, f"stage{stage}.width": width}
        choices |= {f"stage{stage}.bottleneck": bottleneck, f"stage{stage}.skip": skip}
    return choices


def _mobilenet(stem: int, *stages: tuple[int, int, int]) -> dict[str, Scalar]:
    choices: dict[str, Scalar] = {"stem_width": stem, "head_width": 0}
    for stage, (depth, width, expand) in enumerate(stages, 1):
        choices |= {f"stage{stage}.depth": depth, f"stage{stage}.width": width, f"stage{stage}.expand": expand}
        choices |= {f"stage{stage}.kernel": 3, f"stage{stage}.squeeze_excite": False}
        choices |= {f"stage{stage}.skip": "identity"}
    return choices


_PLAIN = ((1, 8, "plain"), (2, 16, "plain"), (2, 32, "plain"))
_BOTTLENECK = ((1, 16, 0.5), (2, 24, 0.5), (2, 48, 0.5))
STUDENTS_TRIED: Mapping[str, tuple[str, dict[str, Scalar]]] = {
    "resnet": ("resnet", _resnet(16, *_PLAIN)),
    "resnet, no skips": ("resnet", _resnet(16, *_PLAIN, skip="none")),
    "bottlenecks": ("resnet", _resnet(16, *_BOTTLENECK)),
    "bottlenecks, no skips": ("resnet", _resnet(16, *_BOTTLENECK, skip="none")),
    "mobilenet": ("mobilenet", _mobilenet(8, (1, 8, 2), (2, 16, 3), (2, 40, 3), (1, 72, 3))),
    "ResNet-20": ("resnet", _resnet(16, (3, 16, "plain"), (3, 32, "plain"), (3, 64, "plain"))),
}
LOSSES_TRIED: Mapping[str, dict[str, Any]] = {
    "kd": {},  # the study's own
    "dkd": {"task_weight": 1.0, "losses": [{"type": "dkd"}]},
    "dkd, warm-up": {"task_weight": 1.0, "losses": [{"type": "dkd", "warmup_fraction": 1 / 12}]},
    "dkd, task 0.1": {"task_weight": 0.1, "losses": [{"type": "dkd"}]},
}
"""dkd as its authors have it: cross entropy at 1, its weight growing in 20 of 240 epochs; then without either."""
WITH_SKIPS = ("resnet", "bottlenecks", "mobilenet", "ResNet-20")


@dataclass(frozen=True)
class Run:
    """One training. `scale` is the last batch-norm scale of every block with a shortcut at the start."""

    student: str
    scale: float = 1.0
    warmup: float = 0.1
    learning_rate: float = 0.1
    data_fraction: float = 0.2
    seed: int = 0
    loss: str = "kd"
    """One of `LOSSES_TRIED`."""

    @property
    def file(self) -> str:
        """The name of its record."""
        name = self.student.replace(", ", "-").replace(" ", "-")
        parts = self.scale, self.warmup, self.learning_rate, self.data_fraction
        loss = "" if self.loss == "kd" else f"-{self.loss.replace(', ', '-').replace(' ', '-')}"
        return f"{name}-{'-'.join(f'{part:g}' for part in parts)}-{self.seed}{loss}.json"


SEEDS = (0, 1)
LONGER = 0.6


def _start() -> Iterator[Run]:
    for seed in SEEDS:
        for student in STUDENTS_TRIED:
            for scale in (0.0, 1.0) if student in WITH_SKIPS else (1.0,):
                yield Run(student, scale, seed=seed)


def _longer() -> Iterator[Run]:
    for student in ("resnet", "resnet, no skips", "bottlenecks", "mobilenet"):
        for scale in (0.0, 1.0) if student in WITH_SKIPS else (1.0,):
            yield Run(student, scale, data_fraction=LONGER)


def _recipes() -> Iterator[Run]:
    """Yield both starts by the study's own recipe: of the resnet with both seeds, of the mobilenet with one."""
    for student, seeds in (("resnet", SEEDS), ("mobilenet", SEEDS[:1])):
        yield from (Run(student, scale, seed=seed) for scale in (0.0, 1.0) for seed in seeds)


def _warmup() -> Iterator[Run]:
    return (replace(run, warmup=warmup) for run in _recipes() for warmup in (0.0, 0.3))


def _rate() -> Iterator[Run]:
    return (replace(run, learning_rate=rate) for run in _recipes() for rate in (0.05, 0.2))


def _loss() -> Iterator[Run]:
    return (Run("resnet", loss=loss, seed=seed) for loss in LOSSES_TRIED for seed in SEEDS)


QUESTIONS: Mapping[str, tuple[Run, ...]] = {
    "start": tuple(_start()),
    "longer": tuple(_longer()),
    "warmup": tuple(_warmup()),
    "rate": tuple(_rate()),
    "loss": tuple(_loss()),
}


class Bench:
    """Data, teacher, splits and recipe, opened once."""

    def __init__(self, cache: Path, *, quick: bool):
        study = load_study(STUDY)
        self.config, self.device = study.config, torch.device("cpu")
        self.workshop = opening.Workshop(
            opening.Sources.of_study(study.config, study.space),
            data_root=opening.data_root(None),
            cache=opening.cache_dir(),
            device=self.device,
        )
        self.data, self.teacher, held_out = self.workshop.data, self.workshop.teacher, self.workshop.validation_indices
        self.validation = self.workshop.batches(held_out[::10] if quick else held_out)
        self.share = 0.05 if quick else 1.0
        self.cache = TeacherCache(cache)

    def __call__(self, run: Run) -> dict[str, Any]:
        """Train and return the record."""
        family, choices = STUDENTS_TRIED[run.student]
        arch = stated_arch(family, choices)
        torch.manual_seed(derive_seed(run.seed, "weights"))
        network = family_for(family, self.data.task).build(arch)
        begin_at(network, run.scale)
        price = family_for(family, self.data.task).price(arch)
        fraction = run.data_fraction * self.share
        training = self.config.recipe.training.model_copy(
            update={
                "learning_rate": run.learning_rate,
                "warmup_fraction": run.warmup,
                "data_fraction": fraction,
                "precision": "bfloat16",  # not what is quicker at the moment: all are to be compared
            }
        )
        distillation = Distillation.model_validate({**self.config.distillation.model_dump(), **LOSSES_TRIED[run.loss]})
        images = self.workshop.share(fraction)
        started = time.process_time()
        trained = distil(
            network,
            self.teacher,
            images,
            self.validation,
            Recipe(training=training, distillation=distillation),
            data=self.data,
            seed=run.seed,
            device=self.device,
            view_seed=0,
            teacher_cache=self.cache,
        )
        return {
            **asdict(run),
            "arch_id": arch.arch_id,
            "macs": price.macs,
            "views": len(images) * training.epochs,
            "accuracy": trained.score,
            "last_loss": trained.history[-1].loss,
            "cpu_seconds": round(time.process_time() - started, 1),
        }


@torch.no_grad()
def begin_at(network: nn.Module, scale: float) -> None:
    """Set the last batch-norm scale of every block of a student that has a shortcut."""
    for block in network.modules():
        if getattr(block, "shortcut", None) is not None or getattr(block, "skip", False):
            nn.init.constant_(block.branch[-1][1].weight, scale)  # type: ignore[union-attr, index]


def main() -> None:
    """Make the missing trainings, then write the tables of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the images; says nothing")
    parser.add_argument("--only", choices=tuple(QUESTIONS), action="append", help="only this question; repeatable")
    parser.add_argument("--student", choices=tuple(STUDENTS_TRIED), action="append", help="only this one; repeatable")
    parser.add_argument("--tables", action="store_true", help="train nothing, write the tables of what is there")
    parser.add_argument("--runs", type=Path, default=Path("runs/brief_initialisation"))
    parser.add_argument("--results", type=Path, help="default: results/ beside this file; with --quick, under --runs")
    options = parser.parse_args()
    runs: Path = options.runs / ("quick" if options.quick else "default")
    runs.mkdir(parents=True, exist_ok=True)
    if not options.tables:
        bench = Bench(opening.cache_dir() / "teacher", quick=options.quick)
        for question in options.only or QUESTIONS:
            for run in QUESTIONS[question]:
                asked = options.student is None or run.student in options.student
                if asked and not (runs / run.file).exists():
                    record = bench(run)
                    atomic.write_text(runs / run.file, json.dumps(record))
                    print(f"{question}: {run.file}: {record['accuracy']:.4f}, {record['cpu_seconds']} s", flush=True)
    write_results(options.results or (runs / "results" if options.quick else HERE / "results"), runs)


def write_results(folder: Path, runs: Path) -> None:
    """Write scores.csv (a row a training) and table.md."""
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))]
    if not records:
        raise InputError(f"there are no trainings in {runs}")
    found = {Run(**{name: record[name] for name in asdict(Run(""))}): record for record in records}
    lines = io.StringIO()
    writer = csv.DictWriter(lines, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "scores.csv", lines.getvalue())
    table = "\n\n".join(["\n".join(_table(found, question)) for question in QUESTIONS])
    processor = this_machine().processor
    atomic.write_text(folder / "table.md", f"{processor}, one thread. Validation accuracy, seeds apart.\n\n{table}\n")
    print(table)


def _table(found: Mapping[Run, Mapping[str, Any]], question: str) -> list[str]:
    """Return the lines of one question's table: a row for each setting of a student, both starts side by side."""
    lines = [
        f"**{question}**",
        "",
        "| student | MACs | views | warm-up | rate | scale 0 | scale 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    wanted = list(QUESTIONS[question])
    if question in ("warmup", "rate"):  # beside the recipe's own setting
        wanted += _recipes()
    if question == "loss":
        lines[2:] = ["| student | MACs | views | loss | accuracy |", "|---|---|---|---|---|"]
        for run in dict.fromkeys(replace(run, seed=0) for run in wanted):
            record = found.get(run)
            if record is not None:
                cells = f"{record['macs'] / 1e6:.1f} M | {record['views']:,} | {run.loss}"
                lines.append(f"| {run.student} | {cells} | {_accuracies(found, run)} |")
        return lines
    rows = dict.fromkeys(replace(run, scale=1.0, seed=0) for run in wanted)
    for run in sorted(rows, key=lambda run: (list(STUDENTS_TRIED).index(run.student), run.warmup, run.learning_rate)):
        record = found.get(run) or found.get(replace(run, scale=0.0))
        if record is None:
            continue
        before = _accuracies(found, replace(run, scale=0.0)) if run.student in WITH_SKIPS else "(no shortcut)"
        lines.append(
            f"| {run.student} | {record['macs'] / 1e6:.1f} M | {record['views']:,} | {run.warmup:g} | "
            f"{run.learning_rate:g} | {before} | {_accuracies(found, run)} |"
        )
    return lines


def _accuracies(found: Mapping[Run, Mapping[str, Any]], run: Run) -> str:
    """Return the accuracy of each seed in percent, and their mean where there are several."""
    values: Sequence[float] = [
        100 * found[same]["accuracy"] for seed in SEEDS if (same := replace(run, seed=seed)) in found
    ]
    if not values:
        return "not run"
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"**{sum(values) / len(values):.1f}** ({each})" if len(values) > 1 else f"**{each}**"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:  # no CIFAR-10 where it is looked for
        print(error, file=sys.stderr)
        sys.exit(2)
