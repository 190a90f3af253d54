"""Twelve small studies, run and digested: does a change of the code leave their results as they were?

    python studies/equal_results/run.py record BEFORE.json      # at one commit
    python studies/equal_results/run.py record AFTER.json       # at another
    python studies/equal_results/run.py compare BEFORE.json AFTER.json

Every study runs by the command line, with one worker and one thread, from an empty cache. Its digest holds what may not
change: the trials, the front and the hash of every checkpoint's and export's weights; seconds and latencies may.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
KEPT = ("trial", "arch_id", "state", "accuracy", "accuracy_ci95", "test_accuracy", "macs", "params", "reason", "arch")
"""Columns of trials.csv and front.csv that are results; those called `fidelity_...` are kept too."""
SCORER = '''\
def price(choices):
    """Return the costs that are known without training."""
    return {"macs": 1000 * choices["stem_width"] * (1 + choices["stage1.depth"])}


def score(choices, *, epochs, data_fraction, seed):
    """Return a score that depends on the choices alone."""
    good = 0.5 + 0.4 * choices["stem_width"] / 16 - 0.05 * (choices["stage1.skip"] == "none")
    return {"accuracy": good, **price(choices)}
'''


@dataclass(frozen=True)
class Study:
    """One small study: its changes to study.yaml, its space, and the commands that follow its search."""

    changes: dict[str, Any]
    space: str = "resnet.yaml"
    then: tuple[tuple[str, ...], ...] = ()
    """Arguments of further commands; `RUN` stands for the run folder."""


_RUNGS = {"rungs": [{"epochs": 1}, {"epochs": 3}], "promotion": {"eta": 2}}
_SUPERNET = {"epochs": 2, "shrinking": {"policy": "sandwich", "subnets": 3}, "recalibration_images": 64}

STUDIES = {
    "resnet": Study({"sampler": "hvi"}),
    "mobilenet": Study({"constraints": ["macs<=60e3"]}, space="mobilenet.yaml"),
    "rungs_of_epochs": Study(_RUNGS),
    "rungs_of_data_and_size": Study(
        {
            "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.1, "precision": "float32"},
            "rungs": [{"epochs": 1, "data_fraction": 0.5, "resolution_fraction": 0.5}, {"epochs": 2}],
        }
    ),
    "supernet_rungs": Study(
        {
            "supernet": _SUPERNET,
            "rungs": [{"start": "supernet"}, {"start": "supernet", "epochs": 1}, {"epochs": 3}],
            "budget": {"trials": 12},
        },
        then=(("audit", "RUN", "--students", "6", "--epochs", "4", "--seeds", "1"),),
    ),
    "finetuned_front": Study(
        {
            "start": "supernet",
            "rungs": [{"epochs": 0}],
            "supernet": _SUPERNET,
            "final": {"start": "supernet", "seeds": 1, "epochs": 2},
        },
        space="mobilenet.yaml",
    ),
    "tuned": Study({"tune": {"training.learning_rate": {"low": 0.02, "high": 0.2, "log": True}}}),
    "packed": Study({**_RUNGS, "executor": {"type": "local", "workers": 1, "threads": 1, "per_device": 2}}),
    "feature_losses": Study(
        {
            "training": {"epochs": 2, "augmentation": {"crop_padding": 1}},
            "distillation": {
                "task_weight": 0.5,
                "losses": [
                    {"type": "kd", "weight": 0.5},
                    {"type": "attention", "weight": 100},
                    {"type": "hint", "weight": 1},
                ],
            },
        },
        then=(("audit", "RUN", "--students", "6", "--epochs", "4", "--seeds", "1", "--loss", "ce"),),
    ),
    "schedules": Study(
        {},
        then=(
            ("train", "RUN", "--pick", "best", "--epochs", "3"),
            ("schedule", "RUN", "--pick", "accuracy>=0", "--epochs", "6", "--route", "shrink"),
            ("train", "RUN", "--pick", "accuracy>=0", "--plan", "RUN/plan.yaml"),
        ),
    ),
    "table": Study(
        {
            **yaml.safe_load((HERE.parent / "nas_bench_macro" / "study.yaml").read_text()),
            "data": None,
            "teacher": None,
            "budget": {"trials": 30},
            "export": {"formats": []},
        },
        space="../nas_bench_macro/space.yaml",
    ),
    "module": Study(
        {
            "evaluator": {"type": "module", "function": "scorer.py:score", "price": "scorer.py:price"},
            "data": None,
            "teacher": None,
            "export": {"formats": []},
        }
    ),
}


def main() -> None:
    """Record or compare, as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser("record", help="run the studies and write their digests")
    record.add_argument("digests", type=Path)
    record.add_argument("--only", nargs="+", choices=STUDIES, help="these studies")
    compare = verbs.add_parser("compare", help="print every study's differences; exit status 1 where there are any")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.verb == "record":
        digests = json.loads(asked.digests.read_text()) if asked.digests.exists() else {}
        for name in asked.only or STUDIES:
            digests[name] = run_study(STUDIES[name], name)
            asked.digests.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
            print(f"{name}: {len(digests[name])} facts", flush=True)
    else:
        sys.exit(print_differences(json.loads(asked.before.read_text()), json.loads(asked.after.read_text())))


def run_study(study: Study, name: str) -> dict[str, str]:
    """Run `study` in a folder of its own and return its digest: facts by name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, run = Path(scratch), Path(scratch) / "run"
        plain = {
            **yaml.safe_load((HERE / "study.yaml").read_text()),
            "name": name,
            "space": "space.yaml",
            **study.changes,
        }
        plain |= {"name": name, "space": "space.yaml"}
        kept = {key: value for key, value in plain.items() if value is not None}
        (folder / "study.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
        (folder / "space.yaml").write_text((HERE / study.space).read_text())
        (folder / "scorer.py").write_text(SCORER)
        root = folder if name == "module" else Path(os.environ.get("KDNAS_DATA", "data"))
        for arguments in (("search", str(folder), "--out", "RUN"), *study.then):
            kdnas([word.replace("RUN", str(run)) for word in arguments], root, folder / "cache")
        return digest(run)


def kdnas(arguments: Sequence[str], data_root: Path, cache: Path) -> None:
    """Run one command, one thread. Raises CalledProcessError with what it printed where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDNAS_CACHE": str(cache), "KDNAS_DATA": str(data_root)}
    done = subprocess.run(
        [sys.executable, "-m", "kdnas", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"kdnas {' '.join(arguments)} ended with {done.returncode}")


def digest(run: Path) -> dict[str, str]:
    """Return what a run gave: rows of its tables, and the hash of every file of weights, by name."""
    facts: dict[str, str] = {}
    for table in ("trials.csv", "front.csv"):
        with (run / table).open(newline="") as file:
            for row in csv.DictReader(file):
                kept = {key: text for key, text in row.items() if key in KEPT or key.startswith("fidelity_")}
                facts[f"{table} {row['trial']}"] = json.dumps(kept, sort_keys=True)
    for path in sorted(run.rglob("*.safetensors")):
        content = hashlib.sha256()
        for name, value in sorted(load_file(path).items()):
            content.update(name.encode() + str(value.dtype).encode() + str(value.shape).encode() + value.tobytes())
        facts[str(path.relative_to(run))] = content.hexdigest()[:16]
    for path in sorted(run.rglob("result.json")):
        result = json.loads(path.read_text())
        facts[str(path.relative_to(run))] = json.dumps([result["score"], result["test_score"]])
    return facts


def print_differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    """Print a line a study, and every fact that differs; return 1 where one does."""
    unequal = 0
    for name in sorted({*before, *after}):
        old, new = (_in_present_words(digests.get(name, {})) for digests in (before, after))
        changed = [fact for fact in sorted({*old, *new}) if old.get(fact) != new.get(fact)]
        unequal |= bool(changed)
        print(f"{name:<24} {len(old):>3} facts, " + (f"{len(changed)} DIFFER" if changed else "equal"))
        for fact in changed:
            print(f"    {fact}\n      - {old.get(fact, '(absent)')}\n      + {new.get(fact, '(absent)')}")
    return unequal


def _in_present_words(facts: dict[str, str]) -> dict[str, str]:
    """Return facts whose trials say where their weights came from as this version does."""
    for earlier, start in (("own", "random"), ("shared", "supernet")):
        was, is_now = f'"fidelity_weights": "{earlier}"', f'"fidelity_start": "{start}"'
        facts = {name: fact.replace(was, is_now) for name, fact in facts.items()}
    return facts


if __name__ == "__main__":
    main()
