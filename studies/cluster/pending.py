"""What it costs to propose while others still train: `python studies/cluster/pending.py [--seeds 10] [--trainings 40]`.

On published tables `hvi` proposes one student after another, each knowing all scores before it, and with 8 trainings
under way at any time, of which the oldest ends next: so each proposal knows the scores of all but the last 7. Both are
compared after equal numbers of trainings that have ended. Writes results/pending.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "search_efficiency"))

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from racing import RUNGS, Racer, _Asking, _Track  # noqa: E402
from tables import Table, load_tables  # noqa: E402

TABLES = ("kd_depth_macs", "macro_macs")
PENDING = 8
SHOWN = (10, 20, 40)


def main() -> None:
    """Race, and write how the two compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trainings", type=int, default=max(SHOWN))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tables", nargs="*", default=TABLES)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KDNAS_DATA", "data")))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pending.json")
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        for table in options.tables:
            jobs = [(options.data, table, pending, options.trainings, seed) for seed in range(options.seeds)
                    for pending in (1, PENDING)]  # fmt: skip
            ratios = dict(zip(((seed, pending) for *_, pending, _, seed in jobs), pool.map(_raced, jobs), strict=True))
            for trainings in (shown for shown in SHOWN if shown <= options.trainings):
                alone, beside = (
                    np.array([ratios[seed, pending][trainings - 1] for seed in range(options.seeds)])
                    for pending in (1, PENDING)
                )
                rows.append(
                    {"table": table, "trainings": trainings, "seeds": options.seeds, **_compared(alone, beside)}
                )
                print(json.dumps(rows[-1]), flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"pending": PENDING, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _compared(alone: np.ndarray, beside: np.ndarray) -> dict[str, Any]:
    """Return means over seeds [N], and of the paired difference the half width of Student's 95 % interval."""
    from scipy.stats import t

    lost = alone - beside
    half = t.ppf(0.975, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost))
    means = {"sequential": alone.mean(), "pending": beside.mean(), "loss": lost.mean(), "loss_ci95": half}
    return {name: round(float(value), 4) for name, value in means.items()}


@cache
def _tables(data: Path) -> dict[str, Table]:
    return {table.name: table for table in load_tables(data / "tabular")}


def _raced(job: tuple[Path, str, int, int, int]) -> list[float]:
    """Return the share of the true hypervolume after each training that ended."""
    data, name, pending, trainings, seed = job
    table = _tables(data)[name]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asking = _Asking(table, Racer("hvi", "hvi", trainings, 1, member="hvi"), seed)
    track, under_way = _Track(table), deque[optuna.Trial]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(track.curve.ratios) < trainings:
            while len(under_way) < pending and (trial := asking.ask()) is not None:
                trial.set_user_attr("arch_id", str(table.row(trial.params)))
                trial.set_user_attr("tuned", {})
                trial.set_user_attr("fidelity", RUNGS[-1].as_dict())
                under_way.append(trial)
            trial = under_way.popleft()
            asking.tell(trial.params, trial, rung=1)
            track.add(table.row(trial.params), 1.0)
    return track.curve.ratios


if __name__ == "__main__":
    main()
