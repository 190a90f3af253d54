"""How well three cheap scores rank CIFAR-10 students as long training does, and what each costs; see README.md.

    python studies/supernet_rank_cifar10/run.py [--quick | --full] [--processes 2] [--set KEY=VALUE] [--tables]

The scores are those of a search whose rungs begin from a supernet's weights, as they are and trained on, and from
random ones, made by kdnas's own evaluator. One
small file a score is kept under --runs, and the supernet with its checkpoint: a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tables import KINDS, write_results

from kdnas import atomic
from kdnas.core.arch import Arch
from kdnas.core.objective import breaches
from kdnas.core.seeds import derive_seed
from kdnas.errors import InputError
from kdnas.record.run_folder import locked
from kdnas.study.loading import LoadedStudy, load_study
from kdnas.training.supernet.shrinking_file import read_shrinking
from kdnas.workshop import opening
from kdnas.workshop.evaluators import Evaluator, EvaluatorContext, open_evaluator
from kdnas.workshop.jobs import Job, final_job, search_job
from kdnas.workshop.run_files import SUPERNET_FOLDER

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "cifar10_supernet"
_DRAWS = 2_000


@dataclass(frozen=True)
class Setting:
    """The size of the study. Epochs are on `data_fraction` of the 45,000 training images; `supernet_epochs` count the
    work of epochs of the largest student."""

    archs: int = 16
    data_fraction: float = 0.2
    supernet_epochs: int = 4
    finetune_epochs: int = 1
    finetune_data_fraction: float = 0.05
    scratch_epochs: int = 3
    reference_epochs: int = 12
    seeds: int = 2
    supernet_views: int | None = 4
    score_images: int = 5000
    batch_size: int = 64
    changes: tuple[str, ...] = ()
    """Further ones, as `kdnas search --set` takes them."""

    @property
    def overrides(self) -> list[str]:
        """What it changes in the study whose search is judged."""
        return [
            f"rungs=[{{start: supernet}}, {{start: supernet, epochs: {self.finetune_epochs}, "
            f"data_fraction: {self.finetune_data_fraction}}}, {{epochs: {self.scratch_epochs}}}]",
            f"training.data_fraction={self.data_fraction}",
            f"training.batch_size={self.batch_size}",
            f"supernet.epochs={self.supernet_epochs}",
            f"supernet.views={'null' if self.supernet_views is None else self.supernet_views}",
            f"supernet.score_samples={self.score_images}",
            "final.start=random",
            f"final.epochs={self.reference_epochs}",
            f"final.data_fraction={self.data_fraction}",
            f"final.seeds={self.seeds}",
            "costs={}",
            *self.changes,
        ]


VARIANTS = {
    "default": Setting(),
    "quick": Setting(
        archs=6, data_fraction=0.01, supernet_epochs=3, finetune_data_fraction=0.005, reference_epochs=4, seeds=2,
        score_images=500,
    ),
    "full": Setting(
        archs=32, data_fraction=1.0, supernet_epochs=60, finetune_epochs=1, scratch_epochs=8, reference_epochs=60,
        seeds=3, supernet_views=None, score_images=5000,
        batch_size=128,
    ),
}  # fmt: skip


def main() -> None:
    """Make the missing scores, then write the tables of all that are there."""
    arguments = _arguments()
    setting = dataclasses.replace(VARIANTS[arguments.variant], changes=tuple(arguments.changes))
    runs: Path = (arguments.runs / arguments.variant).resolve()
    runs.mkdir(parents=True, exist_ok=True)
    _refuse_others(runs, setting)
    if not arguments.tables:
        count = 0 if arguments.helper else arguments.processes - 1
        helpers = [subprocess.Popen([sys.executable, *sys.argv, "--helper"]) for _ in range(count)]
        _work(load_study(STUDY, setting.overrides), setting, runs)
        if arguments.helper:
            return
        if any(helper.wait() for helper in helpers):
            raise InputError("a helping process failed; the same command goes on")
    results = arguments.results or (HERE / "results" if setting == Setting() else runs / "results")
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*.json")) if path.name != "setting.json"]
    if records:
        supernet = json.loads((runs / SUPERNET_FOLDER / "cost.json").read_text())
        write_results(results, asdict(setting), records, supernet)
        print((results / "table.md").read_text())


def _work(study: LoadedStudy, setting: Setting, runs: Path) -> None:
    """Train the supernet where there is none, then make the scores that no other process is at."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    root, cache = opening.data_root(None).resolve(), opening.cache_dir().resolve()
    context = EvaluatorContext(study.config, study.space, runs, root, cache, str(device), notify=_notify)
    with (runs / ".supernet.lock").open("w") as claim:
        locked(claim, wait=True)
        evaluator = open_evaluator(context)
        trained = evaluator.prepare()
        assert trained is not None
        shrinking = read_shrinking(runs / SUPERNET_FOLDER)
        spent = sum(stage.spent for stage in shrinking.stages) * shrinking.budget_macs
        cost = {"macs": round(spent), "seconds": round(trained.train_seconds, 1), "policy": shrinking.policy}
        atomic.write_text(runs / SUPERNET_FOLDER / "cost.json", json.dumps(cost))
    archs = _archs(study, evaluator, setting.archs)
    for kind, seed in [*((kind, 0) for kind in KINDS), *(("reference", seed) for seed in range(setting.seeds))]:
        for number, arch in enumerate(archs):
            _score(study, evaluator, runs, kind, seed, number, arch)


def _archs(study: LoadedStudy, evaluator: Evaluator, count: int) -> list[Arch]:
    """Return `count` students within the study's bounds: of as many equal shares of all by MACs one each, at random."""
    draws = np.random.default_rng(derive_seed(0, "archs of supernet_rank_cifar10"))
    drawn = {arch.arch_id: arch for arch in (evaluator.arch(study.space.random(draws)) for _ in range(_DRAWS))}
    within = [arch for arch in drawn.values() if not breaches(evaluator.price(arch), study.config.bounds)]
    within.sort(key=lambda arch: (evaluator.price(arch)["macs"], arch.arch_id))
    shares = np.array_split(np.arange(len(within)), count)
    return [within[int(draws.choice(share))] for share in shares]


def _job(study: LoadedStudy, kind: str, seed: int, number: int, arch: Arch) -> Job:
    """Return a score as the search makes it, or a finalist's training."""
    if kind == "reference":
        job = final_job(study.config, number, arch, {}, seed)
        return dataclasses.replace(job, test=False, checkpoint=None)
    return dataclasses.replace(search_job(study.config, arch, {}, KINDS.index(kind)), measure=False, legs=())


def _score(study: LoadedStudy, evaluator: Evaluator, runs: Path, kind: str, seed: int, number: int, arch: Arch) -> None:
    """Make one score and keep its record, unless it is there or another process is at it."""
    path = runs / f"{kind}-{number:02d}-{seed}.json"
    with (runs / f".{path.name}.lock").open("w") as claim:
        if not locked(claim) or path.exists():
            return
        job = _job(study, kind, seed, number, arch)
        result = evaluator(job)
        price = evaluator.price(arch)
        images = _images(study, evaluator, job)
        record = {
            "kind": kind,
            "number": number,
            "seed": seed,
            "arch_id": arch.arch_id,
            "arch": arch.canonical_json,
            "macs": price["macs"],
            "params": price["params"],
            "accuracy": result.values["accuracy"],
            "seconds": round(result.train_seconds, 3),
            "spent_macs": round(images * price["macs"]),
        }
        atomic.write_text(path, json.dumps(record))
        _notify(f"{path.stem}: accuracy {record['accuracy']:.4f}, {record['seconds']} s")


def _images(study: LoadedStudy, evaluator: Evaluator, job: Job) -> float:
    """Return how many images' forward passes a score costs: training takes three for each image."""
    supernet = study.config.supernet
    assert supernet is not None
    if not job.trains:
        return supernet.recalibration_samples + (supernet.score_samples or 0)
    training_images = 0.9 * 50_000 * job.recipe.training.data_fraction
    return 3 * job.recipe.training.epochs * training_images


def _refuse_others(runs: Path, setting: Setting) -> None:
    """Keep the setting beside the scores. Raises InputError where they are of another."""
    path = runs / "setting.json"
    stated = json.dumps(asdict(setting), indent=1)
    if path.exists() and json.loads(path.read_text()) != json.loads(stated):
        raise InputError(f"{runs} holds scores of another setting; choose other --runs")
    atomic.write_text(path, stated)


def _notify(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="variant", action="store_const", const="quick", help="6 students, 450 images")
    size.add_argument("--full", dest="variant", action="store_const", const="full", help="all images: a GPU")
    parser.set_defaults(variant="default")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each, sharing the scores")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the study, such as supernet.epochs=12; with --runs of its own",
    )
    parser.add_argument("--tables", action="store_true", help="make no score, write the tables of what is there")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/supernet_rank_cifar10"), help="one file a score; resumes"
    )
    parser.add_argument("--results", type=Path, help="default: results/ beside this file, of variants under --runs")
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
