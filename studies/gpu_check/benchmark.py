"""How fast students train on this GPU, and what that costs. One benchmark a call, its rows written as they come:

    PYTHONPATH=studies/trial_speed python studies/gpu_check/benchmark.py NAME OUT.json

The networks, the recipe and the loops that kdnas is compared with are those of studies/trial_speed; trainings are
kdnas's own, views augmented, the teacher's outputs cached beforehand. `images_per_s` is the median over the epochs
after the first, `spread` their range over the median; `first_epoch_s` holds the capture. `--device cpu --quick` tries
the program itself, small, anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench import Bench, Row
from equality import equality
from latency import latency
from speed import energy, kernels, loops, processes, teacher, throughput, together
from transformers import derived, texts

import kdnas
from kdnas.errors import KdnasError

BENCHMARKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    benchmark.__name__: benchmark
    for benchmark in (
        throughput,
        together,
        teacher,
        loops,
        equality,
        derived,
        texts,
        latency,
        energy,
        kernels,
        processes,
    )
}


def machine(device: torch.device) -> Row:
    """Return when, on what and with which versions a benchmark ran."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "kdnas": kdnas.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }


def rounded(row: Row) -> Row:
    """Return `row` with five digits of every number."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    device, begun = torch.device(given.device), time.perf_counter()
    record: dict[str, Any] = {"benchmark": given.benchmark, "machine": machine(device), "quick": given.quick}
    record |= {"outcome": "cut short", "rows": []}

    def write(**changes: Any) -> None:  # what is there survives a time limit
        record.update(changes, seconds=round(time.perf_counter() - begun, 1))
        given.out.write_text(json.dumps(record, indent=1) + "\n")

    write()
    try:
        with tempfile.TemporaryDirectory() as cache:
            for row in BENCHMARKS[given.benchmark](Bench.make(device, Path(cache), quick=given.quick)):
                print(json.dumps(rounded(row)), flush=True)
                write(rows=[*record["rows"], rounded(row)])
    except (KdnasError, RuntimeError, OSError) as error:  # such as a driver that gave up: say so in the results
        write(outcome=f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        if isinstance(error, KdnasError):
            print(error, file=sys.stderr)
            return 2
        raise
    write(outcome="done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
