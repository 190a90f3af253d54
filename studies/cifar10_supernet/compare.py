"""When two searches of one study reached the same hypervolume: python studies/cifar10_supernet/compare.py RUN OTHER.

Hypervolumes are of the searches' own scores of the highest fidelity, which must be the same in both; seconds are of
searching, the training of a supernet included.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kdnas.errors import InputError
from kdnas.study.front import hypervolume_over_time
from kdnas.study.storage import load_run

SHARES = (0.8, 0.9, 0.95, 1.0)


def main(first: Path, second: Path) -> None:
    """Print a table. Raises InputError where the scores of the two runs do not compare."""
    runs = [load_run(path) for path in (first, second)]
    tops, points = ([run.config.fidelities[-1] for run in runs], [dict(run.reference_point) for run in runs])
    if tops[0] != tops[1] or points[0] != points[1]:
        raise InputError(f"the runs' scores do not compare: {tops[0].words} and {tops[1].words}, {points}")
    curves = [[(seconds, volume) for _, seconds, volume in hypervolume_over_time(run)] for run in runs]
    lower = min(curve[-1][1] if curve else 0.0 for curve in curves)
    names = [run.folder.name for run in runs]
    print(f"hypervolume below {points[0]}, scores {tops[0].reached}; seconds of searching\n")
    print(f"| hypervolume | {names[0]} | {names[1]} | {names[1]} / {names[0]} |\n|---|---|---|---|")
    for share in SHARES:
        times = [next((s for s, v in curve if v >= share * lower - 1e-12), None) for curve in curves]
        a, b = times
        ratio = f"{b / a:.2f}" if a and b else "–"
        cells = " | ".join("–" if time is None else f"{time:.0f} s" for time in times)
        print(f"| {share * lower:.6g} ({100 * share:g} % of the lower end) | {cells} | {ratio} |")
    for run, curve in zip(runs, curves, strict=True):
        end = f"{curve[-1][1]:.6g} after {curve[-1][0]:.0f} s" if curve else "none"
        supernet = f", {run.supernet.train_seconds:.0f} s of them for the supernet" if run.supernet else ""
        print(f"\n{run.folder.name}: {len(curve)} scores {tops[0].reached}, hypervolume {end}{supernet}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
