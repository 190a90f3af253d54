"""When two searches of one study reached the same hypervolume: python studies/cifar10_supernet/compare.py RUN OTHER.

Hypervolumes are of the searches' own validation scores; seconds are of searching, the training of a supernet included.
Told twice: of scores of the highest fidelity, which must be the same in both, and of all students that were trained,
however long and from whichever weights: those that a user then has in hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kdnas.errors import InputError
from kdnas.record.front import comparable, hypervolume_over_time
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.record.storage import load_run

SHARES = (0.8, 0.9, 0.95, 1.0)


def main(first: Path, second: Path) -> None:
    """Print both tables. Raises InputError where the scores of the two runs do not compare."""
    runs = [load_run(path) for path in (first, second)]
    tops, points = ([run.config.fidelities[-1] for run in runs], [dict(run.reference_point) for run in runs])
    if tops[0] != tops[1] or points[0] != points[1]:
        raise InputError(f"the runs' scores do not compare: {tops[0].words} and {tops[1].words}, {points}")
    for run in runs:
        supernet = f", {run.supernet.train_seconds:.0f} s before that for the supernet" if run.supernet else ""
        print(f"{run.folder.name}: {len(run.trials)} scores{supernet}")
    print(f"\nHypervolume below {points[0]}.\n\n## Scores {tops[0].reached}\n")
    _table(runs, [comparable(run) for run in runs])
    print("\n## Trained students in hand, however trained\n")
    _table(runs, [[trial for trial in run.trials if trial.fidelity.epochs and _done(trial)] for run in runs])


def _table(runs: Sequence[RunRecord], trials: Sequence[Sequence[TrialRecord]]) -> None:
    """Print when each run reached shares of the lower of the two ends."""
    curves = [[(s, v) for _, s, v in hypervolume_over_time(run, some)] for run, some in zip(runs, trials, strict=True)]
    ends = [curve[-1][1] if curve else 0.0 for curve in curves]
    names = [run.folder.name for run in runs]
    print(f"| hypervolume | {names[0]} | {names[1]} | {names[1]} / {names[0]} |\n|---|---|---|---|")
    for share in SHARES:
        times = [next((s for s, v in curve if v >= share * min(ends) - 1e-12), None) for curve in curves]
        a, b = times
        ratio = f"{b / a:.2f}" if a and b else "–"
        cells = " | ".join("–" if time is None else f"{time:.0f} s" for time in times)
        print(f"| {share * min(ends):.6g} ({100 * share:g} % of the lower end) | {cells} | {ratio} |")
    for name, curve, end in zip(names, curves, ends, strict=True):
        print(f"\n{name}: {len(curve)} of these scores, hypervolume {end:.6g}")


def _done(trial: TrialRecord) -> bool:
    return trial.state == "complete"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
