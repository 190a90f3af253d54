"""The results of a check in one table: `python studies/gpu_check/summary.py RESULTS` writes summary.md and summary.csv.

What was not measured is said to be so: a goal is met, missed, or not measured.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PLAIN, TUNED, KDNAS = "plain loop", "tuned by hand", "kdnas"


@dataclass(frozen=True)
class Finding:
    """One line of the table. `value` is None where nothing was measured; `goal` is a least value, None: no goal."""

    what: str
    value: float | None
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if self.value is None:
            return "not measured"
        if self.goal is None:
            return ""
        return "met" if self.value >= self.goal else "missed"


def findings(results: Path) -> list[Finding]:
    """Return every finding of the files in `results`, those without a result too."""
    found = []
    for name, read in READERS.items():
        path = results / f"{name}.json"
        record = json.loads(path.read_text()) if path.exists() else {"rows": [], "outcome": "did not run"}
        lines = read([row for row in record["rows"] if not row.get("failed")])
        if record["outcome"] != "done":
            lines.append(Finding(name, None, "", note=record["outcome"]))
        found += lines
    return found


def _throughput(rows: Sequence[Row]) -> list[Finding]:
    captured = [row for row in rows if row["graphs"] and row["graph_failure"] is None]
    best = max(captured or rows, key=lambda row: row["images_per_s"], default=None)
    failures = sorted({row["graph_failure"] for row in rows if row["graph_failure"]})
    note = f"batch {best['batch_size']}, spread {best['spread']:.0%}" if best else ""
    lines = [
        Finding("one student, images a second, best batch", best and best["images_per_s"], "images/s", 350e3, note)
    ]
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        rates = {row["graphs"]: row["images_per_s"] for row in rows if row["batch_size"] == size}
        if len(rates) == 2:
            note = f"{rates[True]:,.0f} against {rates[False]:,.0f} images/s"
            lines.append(
                Finding(f"captured over eager steps, batch {size}", rates[True] / rates[False], "x", None, note)
            )
    return [
        *lines,
        *(Finding(f"a capture failed: {failure}", None, "", None, "see throughput.json") for failure in failures),
    ]


def _transformer(what: str) -> Callable[[Sequence[Row]], list[Finding]]:
    """Return what reads the rows of a transformer's training."""

    def read(rows: Sequence[Row]) -> list[Finding]:
        lines = []
        for size in dict.fromkeys(row["batch_size"] for row in rows):
            rates = {row["graphs"]: row["images_per_s"] for row in rows if row["batch_size"] == size}
            failed = [row["graph_failure"] for row in rows if row["batch_size"] == size and row["graph_failure"]]
            note = f"captured over eager {rates[True] / rates[False]:.2f}" if len(rates) == 2 else ""
            note = f"a capture failed: {failed[0]}" if failed else note
            lines.append(Finding(f"{what}, batch {size}", max(rates.values()), "samples/s", None, note))
        return lines or [Finding(what, None, "samples/s")]

    return read


def _together(rows: Sequence[Row]) -> list[Finding]:
    rates = {row["students"]: row["images_per_s"] for row in rows}
    goals = {16: 4.0}
    many = sorted(count for count in rates if count > 1 and 1 in rates) or [16]
    return [
        Finding(
            f"{count} students at batch 128 over one",
            rates[count] / rates[1] if count in rates and 1 in rates else None,
            "x",
            goals.get(count),
            f"{rates[count]:,.0f} images/s" if count in rates else "",
        )
        for count in (many if 16 in many else [*many, 16])
    ]


def _teacher(rows: Sequence[Row]) -> list[Finding]:
    what = "share of the teacher's arithmetic turned into time"
    if not rows:
        return [Finding(what, None, "", 0.9)]
    return [Finding(f"{what}, batch {row['batch_size']}", row["arithmetic_turned_into_time"], "", 0.9) for row in rows]


def _loops(rows: Sequence[Row]) -> list[Finding]:
    lines = []
    for size in dict.fromkeys(row["batch_size"] for row in rows) or (128,):
        here = [row for row in rows if row["batch_size"] == size]
        for way in (PLAIN, TUNED):
            ratios = [row[KDNAS] / row[way] for row in here]
            note = f"{len(ratios)} rounds, {min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""
            value = statistics.median(ratios) if ratios else None
            lines.append(Finding(f"kdnas over {way}, batch {size}", value, "x", None, note))
    return lines


def _equality(rows: Sequence[Row]) -> list[Finding]:
    compared = [row for row in rows if "comparison" in row]
    if not compared:
        return [Finding("accuracy, captured - eager", None, "points")]
    return [
        Finding(
            f"accuracy of {row['arch_id'][:10]}, {row['comparison']}",
            100 * row["difference"],
            "points",
            None,
            f"95 % interval {100 * row['ci95_low']:.1f} to {100 * row['ci95_high']:.1f}, {row['seeds']} seeds: "
            + ("within noise" if row["ci95_low"] <= 0 <= row["ci95_high"] else "DIFFERENT"),
        )
        for row in compared
    ]


def _latency(rows: Sequence[Row]) -> list[Finding]:
    chosen = [row for row in rows if row["network"] == "ResNet-20"]
    if not chosen:
        return [Finding("latency of ResNet-20", None, "ms")]
    return [
        Finding(
            f"latency of ResNet-20, {row['where']}", row["latency_ms"], "ms", None, f"IQR {row['latency_iqr_ms']:.3g}"
        )
        for row in chosen
    ]


def _energy(rows: Sequence[Row]) -> list[Finding]:
    measured = [row for row in rows if row["energy_mj_per_image"] is not None]
    reasons = [row["missing"] for row in rows if row["energy_mj_per_image"] is None]
    if not measured:
        return [Finding("energy of an image learnt from", None, "mJ", None, "; ".join(reasons))]
    return [
        Finding(
            f"energy of an image learnt from, batch {row['batch_size']}",
            row["energy_mj_per_image"],
            "mJ",
            None,
            f"{row['mean_watts']:.0f} W, {row['counter']}",
        )
        for row in measured
    ]


def _kernels(rows: Sequence[Row]) -> list[Finding]:
    pairs = {(row["batch_size"], row["cudnn_benchmark"]): row["images_per_s"] for row in rows}
    sizes = [size for size, tried in pairs if tried and (size, False) in pairs]
    return [
        Finding(f"trying out convolution algorithms, batch {size}", pairs[size, True] / pairs[size, False], "x")
        for size in sizes
    ] or [Finding("trying out convolution algorithms", None, "x")]


def _processes(rows: Sequence[Row]) -> list[Finding]:
    rates = {row["processes"]: row["images_per_s"] for row in rows}
    counts = [count for count in rates if count > 1 and 1 in rates]
    return [Finding(f"{count} processes at batch 128 over one", rates[count] / rates[1], "x") for count in counts] or [
        Finding("several processes over one", None, "x")
    ]


READERS: dict[str, Callable[[Sequence[Row]], list[Finding]]] = {
    "throughput": _throughput,
    "together": _together,
    "teacher": _teacher,
    "loops": _loops,
    "equality": _equality,
    "derived": _transformer("a student cut out of a vision transformer"),
    "texts": _transformer("a student that reads texts"),
    "latency": _latency,
    "energy": _energy,
    "kernels": _kernels,
    "processes": _processes,
}


def heading(results: Path) -> str:
    """Return the date, the device and the versions of the results."""
    for name in READERS:
        path = results / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            stated = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
            return f"{stated}{'; A TRY OF THE PROGRAM: these are no results' if record['quick'] else ''}"
    return "no benchmark has run"


def main() -> None:
    results = Path(sys.argv[1])
    found = findings(results)
    columns = ["what", "value", "unit", "goal", "verdict", "note"]
    cells = [[f.what, "" if f.value is None else f"{f.value:.4g}", f.unit, f"{f.goal:g}" if f.goal else "", f.verdict,
              f.note] for f in found]  # fmt: skip
    with (results / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *cells])
    lines = [heading(results), "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    for name in ("parts.txt", "tests.txt"):
        path = results / name
        if path.exists():
            last = path.read_text().splitlines()[-14:] if name == "parts.txt" else path.read_text().splitlines()[-1:]
            lines += ["", f"{name}:", "", *(f"    {line}" for line in last)]
    (results / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
