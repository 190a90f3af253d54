"""How fast one distillation trial is: `python studies/trial_speed/run.py [--quick] [--accuracy] [--search]`.

Needs CIFAR-10 as an image folder (KDNAS_DATA/cifar10.tar.xz); --accuracy and --search the teacher of
studies/cifar10_resnet too. Writes rates.csv, table.md, rates.svg, phases.csv and operators.csv to results/.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import outcome
import torch
from drawing import rates_picture
from measure import KDNAS, PLAIN, TUNED, Bench, Spread, write

from kdnas.core.arch import Arch
from kdnas.errors import InputError
from kdnas.machine import usable_cores

HERE = Path(__file__).parent
GOALS = {PLAIN: 6.0, TUNED: 1.2}
BATCH_SIZE = 128


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute on a quiet machine, few rounds")
    parser.add_argument("--accuracy", action="store_true", help="only: the same students by both ways (slow)")
    parser.add_argument("--search", action="store_true", help="only: the same search by both ways (slow)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.accuracy:
        accuracy(options.out, images=1280 if options.quick else 9000, seeds=3)
    if options.search:
        search(options.out, images=1280 if options.quick else 9000, count=4 if options.quick else 12)
    if not (options.accuracy or options.search):
        speed(options.out, quick=options.quick)


def speed(out: Path, *, quick: bool) -> None:
    """Measure, and write the table, the picture and the profile."""
    print(f"{machine()}\none core:", flush=True)
    groups = {"one core": measure.on_one_core(3 if quick else 12, BATCH_SIZE, quick=quick)}
    if usable_cores() > 1:
        print("two cores:", flush=True)
        groups["two cores"] = measure.on_two_cores(2 if quick else 8, BATCH_SIZE, quick=quick)
    rows = [
        {"cores": group, "round": number, "way": way, "images_per_second": round(rate, 2)}
        for group, rounds in groups.items()
        for number, rates in enumerate(rounds, 1)
        for way, rate in rates.items()
    ]
    write(out / "rates.csv", rows)
    (out / "rates.svg").write_text(rates_picture(groups), encoding="utf-8")
    phases, operators = profile()
    write(out / "phases.csv", phases)
    write(out / "operators.csv", operators)
    table = "\n".join([*rates_table(groups), "", *profile_table(phases, operators)])
    (out / "table.md").write_text(f"{machine()}\n\n{table}\n", encoding="utf-8")
    print(table)


def machine() -> str:
    """Return what the numbers were made on."""
    name = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    today = datetime.date.today().isoformat()
    return f"{today}: {name}, {usable_cores()} cores, torch {torch.__version__}, batch {BATCH_SIZE}{load}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def rates_table(groups: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Return the lines of the table of rates; ratios are taken inside each round."""
    lines = [
        "| cores | way | images/s, median (quartiles) | kdnas is faster by, median (quartiles) | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for group, rounds in groups.items():
        for way in rounds[0]:
            rate = Spread.of([rates[way] for rates in rounds])
            ratio = Spread.of([rates[KDNAS] / rates[way] for rates in rounds])
            line = f"| {group} | {way} | {rate.median:.0f} ({rate.low:.0f}–{rate.high:.0f}), n = {rate.rounds} |"
            if way == KDNAS:
                lines.append(f"{line} | | |")
                continue
            met = "yes" if ratio.median >= GOALS[way] else "**missed**"
            line += f" {ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) | {GOALS[way]:g} | {met} |"
            lines.append(line)
    return lines


def profile() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return where kdnas's seconds go, with an empty cache and with a full one, and which operators take them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    bench = Bench(threads=1, batch_size=BATCH_SIZE, quick=True)
    phases = []
    with tempfile.TemporaryDirectory(prefix="trial_speed-") as cache:
        for state in ("first trial", "later trial"):
            trained = bench.kdnas_training(Path(cache))
            total = sum(trained.phases.values())
            phases += [
                {"trial": state, "phase": phase, "seconds": round(seconds, 4), "share": round(seconds / total, 4)}
                for phase, seconds in trained.phases.items()
            ]
        with profiled(activities=[ProfilerActivity.CPU]) as record:
            bench.kdnas_training(Path(cache))
    events = [event for event in record.key_averages() if event.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: -event.self_cpu_time_total)
    operators = [
        {"operator": event.key, "calls": event.count, "share": round(event.self_cpu_time_total / total, 4)}
        for event in events[:12]
    ]
    return phases, operators


def profile_table(phases: Sequence[Mapping[str, Any]], operators: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines that say where kdnas's time goes."""
    lines = ["| kdnas, one core | student | teacher | making batches |", "|---|---|---|---|"]
    for state in dict.fromkeys(row["trial"] for row in phases):
        of = {row["phase"]: row["share"] for row in phases if row["trial"] == state}
        lines.append(f"| {state} | {of['student']:.1%} | {of['teacher']:.1%} | {of['data']:.1%} |")
    lines += ["", "| operator (later trial) | share |", "|---|---|"]
    return lines + [f"| `{row['operator']}` | {row['share']:.1%} |" for row in operators[:8]]


def accuracy(out: Path, *, images: int, seeds: int) -> None:
    """Train three students with each seed by both ways and write accuracy.csv and accuracy_summary.csv."""
    rows, summary = outcome.same_result(images, seeds)
    write(out / "accuracy.csv", rows)
    write(out / "accuracy_summary.csv", summary)
    for row in summary:
        print(json.dumps(row))


def search(out: Path, *, images: int, count: int) -> None:
    """Score the first `count` students of studies/cifar10_resnet's search by both ways and write search.csv."""
    with (HERE.parent / "cifar10_resnet/results/trials.csv").open(encoding="utf-8") as file:
        archs = [Arch.from_json(row["arch"]) for row in csv.DictReader(file) if row["state"] == "complete"][:count]
    rows, seconds = outcome.searches(archs, images)
    fronts = {way: front([row for row in rows if row["way"] == way]) for way in (PLAIN, KDNAS)}
    for row in rows:
        row["on_front"] = row["arch_id"] in fronts[row["way"]]
    write(out / "search.csv", rows)
    both = sorted(set(fronts[PLAIN]) & set(fronts[KDNAS]))
    record = {
        "students": len(archs),
        "images": images,
        "seconds": {way: round(value, 1) for way, value in seconds.items()},
        "ratio": round(seconds[PLAIN] / seconds[KDNAS], 2),
        "fronts": fronts,
        "on_both_fronts": both,
        "machine": machine(),
    }
    (out / "search.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def front(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the arch_ids that no other beats in accuracy at as few MACs."""
    found, best = [], -1.0
    for row in sorted(rows, key=lambda row: (row["macs"], -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            found.append(row["arch_id"])
    return found


if __name__ == "__main__":
    try:
        main()
    except InputError as error:  # no CIFAR-10 where it is looked for
        print(error, file=sys.stderr)
        sys.exit(2)
