"""A controller without data and teacher, two nodes that share no disk, one killed: `python studies/cluster/apart.py`.

Starts a Ray cluster of three nodes on this machine: a head without room for workers, and two nodes, each with a
KDNAS_CACHE of its own and the data and the teacher under a KDNAS_DATA that the controller has not. The same search
runs beside its data with the executor `local`, then from the controller with `--store` while one node is killed with
all its processes after the third trial. Writes results/apart.json: whether fronts and weights are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import ray
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import kdnas
from kdnas.checksums import file_sha256
from kdnas.machine import usable_cores

HERE = Path(__file__).parent
PORT = 6399
TEACHER = """\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x):
        return torch.relu(x + self.inner(x))


def build():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Block(16), Block(16), nn.Conv2d(16, 32, 2, stride=2), Block(32), Block(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""
STUDY = """\
name: apart
data: {type: npz, path: digits.npz, validation_fraction: 0.25}
teacher: {type: module, factory: my_teacher.py:build, weights: my_teacher.safetensors, mean: [100], std: [90]}
space: {derive: teacher}
objectives: [accuracy, macs]
costs: {}
constraints: ["macs<=60%"]
training: {epochs: 1, batch_size: 64, learning_rate: 0.001, optimizer: adamw}
start: inherited
sampler: random
executor: {type: local, workers: 1, threads: 1}
budget: {trials: 6, trial_time_limit_s: 600}
final: {seeds: 1, epochs: 1, max_students: 3, control: false}
export: {formats: [safetensors]}
"""


def main() -> None:
    """Run both searches and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apart-") as scratch:
        found = compared(Path(scratch))
    machine = {"cores": usable_cores(), "ray": ray.__version__, "kdnas": kdnas.__version__}
    (options.out / "apart.json").write_text(
        json.dumps({"machine": machine, **found}, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(found))


def compared(scratch: Path) -> dict[str, object]:
    """Return what the two searches have in common, and how long each took."""
    data, nothing = scratch / "workers", scratch / "nothing"
    data.mkdir()
    nothing.mkdir()
    make_data(data)
    (scratch / "study.yaml").write_text(STUDY)
    began = time.monotonic()
    search(scratch, "here", {"KDNAS_DATA": str(data)})
    here_s = time.monotonic() - began
    with nodes(scratch, data):
        began = time.monotonic()
        killed = search(
            scratch,
            "apart",
            {"KDNAS_DATA": str(nothing)},
            "--store",
            f"file://{scratch}/shared",
            "--set",
            f'executor={{type: ray, address: "127.0.0.1:{PORT}"}}',
            kill=f"{scratch}/ray",
        )
    here, apart = outcome(scratch / "here"), outcome(scratch / "apart")
    return {
        "trials": 6,
        "processes_killed": killed,
        "equal_fronts": here["front"] == apart["front"],
        "equal_weights": here["weights"] == apart["weights"],
        "retrained": len(here["weights"]),
        "exported_there": (scratch / "apart" / "export" / "student.safetensors").is_file(),
        "local_s": round(here_s),
        "apart_s": round(time.monotonic() - began),
        "load": round(os.getloadavg()[0], 1),
    }


def make_data(folder: Path) -> None:
    """Write the digits, and a teacher that has learned them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = (digits.images * 15).astype(np.uint8)[order][..., None], digits.target.astype(np.int64)[order]
    splits = {"train": slice(0, 1400), "test": slice(1400, None)}
    arrays = {f"{name}_images": images[part] for name, part in splits.items()}
    np.savez(folder / "digits.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in splits.items()})
    (folder / "my_teacher.py").write_text(TEACHER)
    scope: dict[str, object] = {}
    exec(TEACHER, scope)
    torch.manual_seed(0)
    network: nn.Module = scope["build"]()  # type: ignore[operator]
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    inputs, targets = torch.tensor(images[:1400]).permute(0, 3, 1, 2), torch.tensor(labels[:1400])
    for _ in range(6):
        for places in torch.randperm(1400).split(64):
            loss = cross_entropy(network((inputs[places].float() - 100) / 90), targets[places])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    save_file(network.state_dict(), folder / "my_teacher.safetensors")


@contextlib.contextmanager
def nodes(scratch: Path, data: Path) -> Iterator[None]:
    """Keep a head and two nodes with a cache each, until the context ends."""
    ray_folder = scratch / "ray"
    try:
        start(["--head", f"--port={PORT}", "--num-cpus=0", "--node-ip-address=127.0.0.1", f"--temp-dir={ray_folder}"])
        for place in (2, 3):
            own = {"KDNAS_CACHE": str(scratch / f"node{place}"), "KDNAS_DATA": str(data)}
            start([f"--address=127.0.0.1:{PORT}", "--num-cpus=1", f"--node-ip-address=127.0.0.{place}"], own)
        yield
    finally:
        kill(str(ray_folder))


def start(options: list[str], own: Mapping[str, str] = {}) -> None:
    """Start one node."""
    common = ["--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats", "--include-dashboard=false"]
    if "--head" not in options:
        common.pop()
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, *common]
    subprocess.run(command, env={**os.environ, "RAY_worker_niceness": "0", **own}, check=True, capture_output=True)


def search(scratch: Path, name: str, own: Mapping[str, str], *options: str, kill: str = "") -> int:
    """Run one search. After its third trial 127.0.0.3 of the cluster in `kill` dies; return of how many processes."""
    command = [sys.executable, "-m", "kdnas", "search", str(scratch / "study.yaml"), "--out", str(scratch / name)]
    environment = {**os.environ, "KDNAS_CACHE": str(scratch / f"cache of {name}"), **own}
    killed = 0
    with subprocess.Popen(
        [*command, *options], env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if kill and not killed and re.match(r"\[3/", line):
                killed = end_node(kill)
    if running.returncode:
        raise SystemExit(f"the search {name} ended with exit code {running.returncode}")
    return killed


def processes() -> dict[int, tuple[int, str]]:
    """Return parent and command line of every process, by its number."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = (
                parent,
                (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "),
            )
    return found


def end_node(folder: str) -> int:
    """Kill the raylet of 127.0.0.3 and all that it started; return how many processes those were."""
    known = processes()
    roots = [p for p, (_, line) in known.items() if "raylet/raylet" in line and folder in line and "127.0.0.3" in line]
    going = list(roots)
    for process in going:
        going += [child for child, (parent, _) in known.items() if parent == process]
    for process in going:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(going)


def kill(folder: str) -> None:
    """Kill what is left of the cluster that lives in `folder`."""
    for process, (_, line) in processes().items():
        if folder in line and process != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def outcome(run: Path) -> dict[str, object]:
    """Return the front of a run, without what is measured by the clock, and the hashes of its weights."""
    with (run / "front.csv").open() as file:
        front = [
            {key: row[key] for key in ("trial", "arch_id", "accuracy", "test_accuracy", "macs")}
            for row in csv.DictReader(file)
        ]
    return {
        "front": front,
        "weights": {path.name: file_sha256(path) for path in sorted((run / "checkpoints").glob("*.safetensors"))},
    }


if __name__ == "__main__":
    main()
