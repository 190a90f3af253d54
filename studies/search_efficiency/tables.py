"""The published tables as problems: a search space, what every student scores and costs, and the true front."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kdnas.core.arch import Scalar
from kdnas.core.hypervolume import hypervolume
from kdnas.core.objective import ACCURACY, Quantity, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.space import Choice, SearchSpace

REFERENCE_QUANTILE = 0.1
"""Of a table's accuracies: where its hypervolume is measured from, together with its dearest cost."""
_KD_STAGES = (16, 32, 64)
_WIDTHS = 12
"""Values of a width that a sampler may propose; the nearest student of the table stands for each proposal."""


@dataclass(frozen=True, eq=False)
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
    short_accuracy: np.ndarray | None = None
    """After a short training, where the table has one."""
    short_cost: float = 0.0
    """Of a short training, in full ones."""
    is_cost_known: bool = True
    """Whether the cost that is an objective is known without training."""
    racers: tuple[str, ...] = ()
    """Who races on it; empty: everyone. On a variant of another table the rest would do the same again."""

    @property
    def objectives(self) -> tuple[Quantity, ...]:
        """Accuracy and the cost."""
        return ACCURACY, self.cost

    @property
    def reference_point(self) -> dict[str, float]:
        """A low accuracy of the table, and its dearest student's cost."""
        return self._reference_point(REFERENCE_QUANTILE)

    def _reference_point(self, quantile: float) -> dict[str, float]:
        accuracy = float(np.quantile(self.accuracy, quantile))
        return {"accuracy": accuracy, self.cost.name: float(self.costs[self.cost.name].max())}

    def reference(self, quantile: float = REFERENCE_QUANTILE) -> np.ndarray:
        """Return the reference point [2], minimised, at a quantile of the accuracies."""
        return minimised([self._reference_point(quantile)], self.objectives)[0]

    @cached_property
    def true_front(self) -> np.ndarray:
        """The table's true front [N, 2], minimised."""
        everything = self.points(range(len(self.accuracy)))
        order = np.lexsort(everything.T)
        best = np.minimum.accumulate(everything[order, 0])
        front = everything[order][np.concatenate([[True], best[1:] < best[:-1]])]
        return front[non_dominated(front)]

    @cached_property
    def true_volume(self) -> float:
        """The hypervolume of the true front."""
        return hypervolume(self.true_front, self.reference())

    def key(self, params: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        """Return what identifies the student of `params`."""
        return tuple(params[choice.name] for choice in self.space.choices)

    @cached_property
    def keys(self) -> tuple[tuple[Scalar, ...], ...]:
        """The values of the choices, row by row."""
        if isinstance(self.rows, _Nearest):
            return self.rows.points
        return tuple(sorted(self.rows, key=self.rows.__getitem__))

    def row(self, params: Mapping[str, Scalar]) -> int:
        """Return the row of the student of `params`."""
        return self.rows[self.key(params)]

    def price(self, params: Mapping[str, Scalar]) -> dict[str, float]:
        """Return the cheap costs."""
        row = self.row(params)
        hidden = "" if self.is_cost_known else self.cost.name
        return {name: float(values[row]) for name, values in self.costs.items() if name != hidden}

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
    """Return the problems from the files in `folder`, and variants of them that some race on."""
    titan, xeon = _nb201(folder / "nb201_cifar100.csv.gz")
    return [
        _macro(folder / "nas_bench_macro_cifar10.json"),
        titan,
        xeon,
        _kd_depth(folder / "kd_depth_cifar100.csv"),
        *_shufflenets(folder / "kd_brief_shufflenet_cifar100.csv"),
        _measured(titan),
        _measured(xeon),
    ]


def _measured(table: Table) -> Table:
    """Return `table` with a cost that is known of trained students only."""
    return dataclasses.replace(
        table,
        name=f"{table.name}_measured",
        title=f"{table.title}, measured with the training",
        cost=dataclasses.replace(table.cost, kind="measured"),
        short_accuracy=None,
        is_cost_known=False,
        racers=("hvi",),
    )


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
            column("cifar100_val_accuracy_12_epochs_percent") / 100,
            12 / 200,
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
    )


class _Nearest(Mapping[tuple[Scalar, ...], int]):
    """Values of the choices to the nearest of `points` [N, D], each choice scaled to its range."""

    def __init__(self, points: np.ndarray):
        self._low, self._range = points.min(axis=0), np.ptp(points, axis=0)
        self._points = (points - self._low) / self._range
        self._known: dict[tuple[Scalar, ...], int] = {}
        self.points: tuple[tuple[Scalar, ...], ...] = tuple(map(tuple, points.tolist()))

    def __getitem__(self, key: tuple[Scalar, ...]) -> int:
        if key not in self._known:
            place = (np.array(key, dtype=float) - self._low) / self._range
            self._known[key] = int(np.argmin(((self._points - place) ** 2).sum(axis=1)))
        return self._known[key]

    def __iter__(self) -> Iterator[tuple[Scalar, ...]]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _shufflenets(path: Path) -> list[Table]:
    """Return the problem with each of two short trainings; without one they are the same."""
    with path.open() as file:
        entries = list(csv.DictReader(file))

    def column(name: str) -> np.ndarray:
        return np.array([float(entry[name]) for entry in entries])

    names = ("width1", "width2", "width3", "head_width", "depth1", "depth2", "depth3")
    points = np.stack([column(name) for name in names], axis=1)
    choices = []
    for name, values in zip(names, points.T, strict=True):
        low, high = int(values.min()), int(values.max())
        step = max(round((high - low) / (_WIDTHS - 1)), 1)
        choices.append(Choice(name, tuple(range(low, high + 1, step))))
    whole = Table(
        "kd_shufflenet",
        "ShuffleNets, CIFAR-100: MACs",
        SearchSpace("kd_shufflenet", "table", tuple(choices)),
        _Nearest(points),
        column("full_nokd_test_accuracy"),
        {"macs": column("macs")},
        Quantity("macs", "MACs", "minimize", "cheap"),
        column("kd_1of9_valid_accuracy"),
        1 / 9,
    )
    shorter = dataclasses.replace(
        whole,
        name="kd_shufflenet_27",
        title="the same, short trainings of 1/27",
        short_accuracy=column("kd_1of27_valid_accuracy"),
        short_cost=1 / 27,
        racers=("hvi_rungs", "hvi_model"),
    )
    return [whole, shorter]


def _resnet_costs(depths: tuple[int, ...]) -> tuple[int, int]:
    """Return (MACs, parameters) of the convolutions and the classifier of a CIFAR ResNet of 16/32/64 channels."""
    macs, params, before = 3 * 9 * 16 * 1024, 3 * 9 * 16, 16
    for stage, (width, depth) in enumerate(zip(_KD_STAGES, depths, strict=True)):
        weights = 9 * (before * width + (2 * depth - 1) * width * width)
        macs, params, before = macs + weights * (32 >> stage) ** 2, params + weights, width
    return macs + 64 * 100, params + 64 * 100
