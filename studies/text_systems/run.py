"""The systems of the field on one small scale: each a short study, one table. See README.md.

    KDNAS_DATA=/data python studies/text_systems/run.py [--only distilbert,tinybert] [--minilm FOLDER] [--tables]

Every study resumes; results/table.md tells what there is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdnas
from kdnas import atomic

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Published:
    """What a system's authors report."""

    title: str
    size: str
    speed: str
    kept: str


SYSTEMS = {
    "kdnas": Published("kdnas's own (fitted, kd)", "", "", ""),
    "distilbert": Published("DistilBERT", "66 / 110 M", "1.6x", "SST-2 91.3 of 92.7"),
    "tinybert": Published("TinyBERT, two steps", "14.5 / 110 M", "9.4x", "GLUE 77.0 of 79.5"),
    "mobilebert": Published("MobileBERT-like", "25.3 / 110 M", "5.5x", "GLUE 77.7, 0.6 below"),
    "minilm_v2": Published("MiniLM v2", "22 / 110 M", "5.3x", "MNLI 84.2 at 66 M"),
    "layerdrop": Published("LayerDrop", "half of the layers", "", "LM 8 of 16 layers: 146 of 247 M"),
    "patient": Published("Patient KD", "66 / 110 M", "2x", "SST-2 91.0 of 92.6"),
    "rules": Published("Labels, teacher and rules", "", "", ""),
    "rocketqa": Published("RocketQAv2, lists of 8", "dual encoders", "", "MARCO MRR@10 38.8, re-ranker 41.9"),
    "unsupervised": Published("No labels: contrastive and kd", "", "", ""),
    "deit": Published("DeiT on digits, from a ResNet", "6 M", "", "ImageNet 74.5, 72.2 without"),
}

LISTS = "rocketqa"
"""The one whose data and teacher are made first."""


def main() -> None:
    """Run the studies that have not been, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SYSTEMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/text_systems"))
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2, from which rocketqa/lists.py makes a teacher")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the table of what is there")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only.split(","):
        folder = arguments.runs / name
        if not arguments.tables:
            search = [sys.executable, "-m", "kdnas", "search", str(HERE / name), "--out", str(folder)]
            if name == LISTS:
                lists = arguments.runs / f"{LISTS}_lists"
                if arguments.minilm is None and not (lists / "teacher").exists():
                    print(f"{LISTS} is left out: --minilm names the network that its teacher begins with")
                    continue
                base = ["--base", str(arguments.minilm)]
                subprocess.run([sys.executable, str(HERE / LISTS / "lists.py"), str(lists), *base], check=True)
                search += ["--data-root", str(lists)]
            subprocess.run([*search, "--workers", "1"], check=True)
        if folder.exists():
            for row in measured(name, folder):
                atomic.write_text(RESULTS / f"{name}-{row['arch']}.json", json.dumps(row, indent=1) + "\n")
    atomic.write_text(RESULTS / "table.md", table([json.loads(path.read_text()) for path in RESULTS.glob("*.json")]))


def measured(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return what is known of the students of a run that were trained in full."""
    run = kdnas.load_run(folder).record
    teacher = run.teacher
    assert teacher is not None
    rows = []
    for trial in run.trials:
        scores = [one for one in trial.repeats if one.test_score is not None]
        if scores:
            latency = trial.values.get("latency_ms")
            rows.append(
                {
                    "system": name,
                    "arch": trial.arch.arch_id,
                    "choices": dict(trial.arch.choices),
                    "params": trial.values["params"] / teacher.values["params"],
                    "macs": trial.values["macs"] / teacher.values["macs"],
                    "latency": None if latency is None else latency / teacher.values["latency_ms"],
                    "as_begun": trial.values[run.score.name],
                    "validation": sum(one.score for one in scores) / len(scores),
                    "test": sum(one.test_score or 0.0 for one in scores) / len(scores),
                    "teacher": [teacher.score, teacher.test_score],
                    "seeds": len(scores),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the systems side by side, beside what their authors report."""
    lines = [
        "| system | params | MACs | speed | validation | test | of the teacher's | published: size | speed | score |"
    ]
    lines.append("|" + "---|" * 10)
    for row in sorted(rows, key=lambda row: (list(SYSTEMS).index(row["system"]), row["macs"])):
        known = SYSTEMS[row["system"]]
        depth = row["choices"]["depth"]
        title = f"{known.title}: {depth} layers"
        speed = "" if row["latency"] is None else f"{1 / row['latency']:.1f}x"
        costs = f"{row['params']:.2f} | {row['macs']:.2f} | {speed}"
        scores = f"{100 * row['validation']:.1f} | {100 * row['test']:.1f} | {row['test'] / row['teacher'][1]:.3f}"
        lines.append(f"| {title} | {costs} | {scores} | {known.size} | {known.speed} | {known.kept} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
