"""The published tables as problems: a search space, what every student scores and costs, and the true front."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kdnas.core.arch import Scalar
from kdnas.core.hypervolume import hypervolume
from kdnas.core.objective import ACCURACY, Quantity, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.space import Choice, SearchSpace

LOW_COST = 12 / 200
"""Of a training of 12 epochs, in full trainings of 200."""
_KD_STAGES = (16, 32, 64)


@dataclass(frozen=True)
class Table:
    """A table as a two-objective problem: `accuracy` (a fraction) against one cost that is known without training."""

    name: str
    title: str
    space: SearchSpace
    rows: Mapping[tuple[Scalar, ...], int]
    """Values of the choices, in the space's order, to the row."""
    accuracy: np.ndarray
    costs: Mapping[str, np.ndarray]
    """Every cheap cost; `cost` is the objective."""
    cost: Quantity
    worthless_accuracy: float
    short_accuracy: np.ndarray | None = None
    """After 12 epochs, where the table has it."""

    @property
    def objectives(self) -> tuple[Quantity, ...]:
        """Accuracy and the cost."""
        return ACCURACY, self.cost

    @property
    def reference_point(self) -> dict[str, float]:
        """The accuracy that is worth nothing, and the dearest student's cost."""
        return {"accuracy": self.worthless_accuracy, self.cost.name: float(self.costs[self.cost.name].max())}

    @property
    def reference(self) -> np.ndarray:
        """The reference point [2], minimised."""
        return minimised([self.reference_point], self.objectives)[0]

    @cached_property
    def true_volume(self) -> float:
        """The hypervolume of the table's true front."""
        everything = self.points(range(len(self.accuracy)))
        order = np.lexsort(everything.T)
        best = np.minimum.accumulate(everything[order, 0])
        front = everything[order][np.concatenate([[True], best[1:] < best[:-1]])]
        return hypervolume(front[non_dominated(front)], self.reference)

    def key(self, params: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        """Return what identifies the student of `params`."""
        return tuple(params[choice.name] for choice in self.space.choices)

    def row(self, params: Mapping[str, Scalar]) -> int:
        """Return the row of the student of `params`."""
        return self.rows[self.key(params)]

    def price(self, params: Mapping[str, Scalar]) -> dict[str, float]:
        """Return the cheap costs."""
        row = self.row(params)
        return {name: float(values[row]) for name, values in self.costs.items()}

    def values(self, row: int, *, short: bool = False) -> list[float]:
        """Return the objectives of a row, after a short training or a full one."""
        accuracy = self.short_accuracy if short else self.accuracy
        assert accuracy is not None
        return [float(accuracy[row]), float(self.costs[self.cost.name][row])]

    def points(self, rows: list[int] | range) -> np.ndarray:
        """Return the minimised objectives [N, 2] of fully trained `rows`."""
        chosen = np.asarray(rows, dtype=int)
        return np.stack([-self.accuracy[chosen], self.costs[self.cost.name][chosen]], axis=1)


def load_tables(folder: Path) -> list[Table]:
    """Return the four problems from the files in `folder`."""
    return [
        _macro(folder / "nas_bench_macro_cifar10.json"),
        *_nb201(folder / "nb201_cifar100.csv.gz"),
        _kd_depth(folder / "kd_depth_cifar100.csv"),
    ]


def _macro(path: Path) -> Table:
    entries = json.loads(path.read_text())
    operators = ("identity", "mb3_k3", "mb6_k5")
    keys = sorted(entries)
    return Table(
        "macro_macs",
        "NAS-Bench-Macro, CIFAR-10: MACs",
        SearchSpace("macro", "table", tuple(Choice(f"layer{i}", operators) for i in range(1, 9))),
        {tuple(operators[int(digit)] for digit in key): row for row, key in enumerate(keys)},
        np.array([entries[key]["test_acc"][0] for key in keys]) / 100,
        {name: np.array([float(entries[key][column]) for key in keys]) for name, column in _MACRO_COSTS.items()},
        Quantity("macs", "MACs", "minimize", "cheap"),
        0.80,
    )


_MACRO_COSTS = {"macs": "flops", "params": "params"}  # the file's flops are multiply-accumulates


def _nb201(path: Path) -> list[Table]:
    with gzip.open(path, "rt") as file:
        entries = list(csv.DictReader(file))

    def column(name: str) -> np.ndarray:
        return np.array([float(entry[name]) for entry in entries])

    operators = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    cells = [tuple(re.findall(r"([a-z0-9_]+)~\d", entry["arch"])) for entry in entries]
    space = SearchSpace("nb201", "table", tuple(Choice(f"edge{i}", operators) for i in range(1, 7)))
    devices = {"titan": ("Titan RTX", "titan_rtx_batch256"), "xeon": ("Xeon Gold 6226", "xeon_gold_6226")}
    return [
        Table(
            f"nb201_{name}",
            f"NAS-Bench-201, CIFAR-100: latency, {device}",
            space,
            {cell: row for row, cell in enumerate(cells)},
            column("cifar100_test_accuracy_200_epochs_percent") / 100,
            {
                "macs": column("macs_millions") * 1e6,
                "params": column("params_millions") * 1e6,
                "latency_ms": column(f"latency_{label}_ms"),
            },
            Quantity("latency_ms", "ms", "minimize", "cheap"),
            0.40,
            column("cifar100_val_accuracy_12_epochs_percent") / 100,
        )
        for name, (device, label) in devices.items()
    ]


def _kd_depth(path: Path) -> Table:
    with path.open() as file:
        entries = list(csv.DictReader(file))
    depths = [tuple(int(entry[f"blocks_stage{i}"]) for i in (1, 2, 3)) for entry in entries]
    macs, params = zip(*(_resnet_costs(depth) for depth in depths), strict=True)
    return Table(
        "kd_depth_macs",
        "ResNet depths with KD, CIFAR-100: MACs",
        SearchSpace("kd_depth", "table", tuple(Choice(f"stage{i}.depth", (1, 3, 5, 7)) for i in (1, 2, 3))),
        {depth: row for row, depth in enumerate(depths)},
        np.array([float(entry["top1_kd_percent"]) for entry in entries]) / 100,
        {"macs": np.array(macs, dtype=float), "params": np.array(params, dtype=float)},
        Quantity("macs", "MACs", "minimize", "cheap"),
        0.60,
    )


def _resnet_costs(depths: tuple[int, ...]) -> tuple[int, int]:
    """Return (MACs, parameters) of the convolutions and the classifier of a CIFAR ResNet of 16/32/64 channels."""
    macs, params, before = 3 * 9 * 16 * 1024, 3 * 9 * 16, 16
    for stage, (width, depth) in enumerate(zip(_KD_STAGES, depths, strict=True)):
        weights = 9 * (before * width + (2 * depth - 1) * width * width)
        macs, params, before = macs + weights * (32 >> stage) ** 2, params + weights, width
    return macs + 64 * 100, params + 64 * 100
