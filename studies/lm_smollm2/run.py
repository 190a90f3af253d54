"""A third of a real language model: how much of it stays? See README.md.

    KDNAS_DATA=/data python studies/lm_smollm2/run.py [--tokens 32768] [--items 100] [--hours 1] [--tables]

Cells are trained and scored one by one, those that say most first, and a small file in `results/` is kept of each: a
later call goes on, and with other `--tokens` or `--items` adds cells of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, FILES, Cell
from summary import share_right, write_tables
from teacher import write_teacher
from torch import nn

from kdnas import atomic
from kdnas.core.seeds import derive_seed
from kdnas.core.text import BYTES_PER_TOKEN
from kdnas.datasets._text_files import find_text_files
from kdnas.study.loading import load_study
from kdnas.tokenizing import Tokenizer
from kdnas.training.completions import completions, read_items
from kdnas.training.loop import distil
from kdnas.training.recipe import LossTerm
from kdnas.training.teacher_cache import TeacherCache, truncation_error
from kdnas.workshop.opening import Sources, Workshop, cache_dir, data_root

HERE = Path(__file__).resolve().parent
LENGTH = 512
"""Tokens that a text to be completed may have."""
_TRUNCATED = 4
"""Blocks that show what keeping some logits loses."""


def main() -> None:
    """Run the cells that are missing, then write the tables of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768, help="B, that a cell of one measure is trained on")
    parser.add_argument("--items", type=int, default=100, help="of each file to complete; of last words twice as many")
    parser.add_argument("--hours", type=float, default=1.0, help="begin no cell after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", help="only these, by name: " + ", ".join(cell.name for cell in CELLS))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/lm_smollm2"), help="the teacher, and what is known of it"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    wanted = [cell for cell in CELLS if arguments.cells is None or cell.name in arguments.cells.split(",")]
    missing = [cell for cell in wanted if not _file(arguments, cell).is_file()]
    arguments.results.mkdir(parents=True, exist_ok=True)
    if missing and not arguments.tables:
        bench = Bench(arguments.runs, arguments.items)
        for cell in missing:
            if time.monotonic() - began > 3600 * arguments.hours:
                break
            record = bench.run(cell, round(cell.share * arguments.tokens), arguments.seed)
            record["scale"] = [arguments.tokens, arguments.items]
            atomic.write_text(_file(arguments, cell), json.dumps(record, indent=1) + "\n")
            print(f"{(time.monotonic() - began) / 60:5.1f} min  {cell.name}: {_line(record)}", flush=True)
            write_tables(arguments.results)
    write_tables(arguments.results)


def _file(arguments: argparse.Namespace, cell: Cell) -> Path:
    seed = "" if arguments.seed == 0 or cell.share == 0 else f"-seed{arguments.seed}"
    return arguments.results / f"{cell.name}-{arguments.tokens}-{arguments.items}{seed}.json"


def _line(record: dict[str, Any]) -> str:
    found = {name: share_right(one)[0] for name, one in record["completed"].items()}
    words = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return (
        f"{record['params'] / 1e6:.1f} M, {record['tokens']:,} tokens, perplexity {record['perplexity']:.1f}; {words}"
    )


def _told(view: int, part: int, parts: int) -> None:
    if part == 1:
        print(f"the teacher's answers are computed, {parts} parts", flush=True)


@dataclass(frozen=True)
class _Begun:
    network: nn.Module
    params: int
    macs: int
    arch: str


class Bench:
    """The opened study, and the texts that its networks complete."""

    def __init__(self, runs: Path, items: int):
        folder = (runs / "teacher").resolve()
        if not (folder / "config.json").is_file():
            write_teacher(folder)
        loaded = load_study(HERE, [f"teacher.model={folder}", f"data.tokenizer={folder}"])
        self.recipe = loaded.config.recipe
        self.workshop = Workshop(
            Sources.of_study(loaded.config, loaded.space, runs),
            data_root=data_root(None),
            cache=cache_dir(),
            device=torch.device("cpu"),
        )
        self.cache = TeacherCache(
            cache_dir() / "teacher_outputs",
            top_k=self.recipe.distillation.teacher_top_k,
            on_fill=_told,
        )
        self.tokenizer = Tokenizer(folder)
        root = data_root(None)
        files = {name: find_text_files(root, f"text/lm_qa.tar.xz/{path}", path)[0] for name, (path, _) in FILES.items()}
        self.items = {name: read_items(file, first=round(FILES[name][1] * items)) for name, file in files.items()}

    def run(self, cell: Cell, tokens: int, seed: int) -> dict[str, Any]:
        """Return the record of one network, trained on so many tokens."""
        workshop, began = self.workshop, time.process_time()
        begun = self._begun(cell, seed)
        prepared = time.process_time()
        workshop.keep()
        if tokens:
            self._train(begun.network, cell, tokens, seed)
        trained = time.process_time()
        module = workshop.teacher.module if cell.start == "teacher" else workshop.entered(begun.network)
        record = {
            **asdict(cell),
            "seed": seed,
            "params": begun.params,
            "macs": begun.macs,
            "arch": begun.arch,
            "tokens": tokens,
            "perplexity": workshop.test_score(module),
            "bytes_per_token": workshop.data.statistics[BYTES_PER_TOKEN][1],
            "test_tokens": len(workshop.data.test) * workshop.data.task.rows,
            "completed": {name: asdict(found) for name, found in self._completed(module)} if cell.completes else {},
        }
        if cell.start == "teacher":
            record["truncation"] = self._truncation()
        record["prepare_cpu_s"] = round(prepared - began, 1)
        record["train_cpu_s"] = round(trained - prepared, 1)
        record["score_cpu_s"] = round(time.process_time() - trained, 1)
        return record

    def _begun(self, cell: Cell, seed: int) -> _Begun:
        family = self.workshop.family
        arch = family.canonical({} if cell.start == "teacher" else cell.choices)
        price = family.price(arch)
        if cell.start == "teacher":
            return _Begun(self.workshop.teacher.module, price.params, price.macs, arch.arch_id)
        return _Begun(self.workshop.begin(arch, cell.start, seed), price.params, price.macs, arch.arch_id)

    def _train(self, network: nn.Module, cell: Cell, tokens: int, seed: int) -> None:
        """Train one look at so many tokens; the blocks of a smaller number are among those of a larger one."""
        workshop, distillation = self.workshop, self.recipe.distillation
        losses = (LossTerm(type="kd", weight=1 - cell.task_weight, temperature=cell.temperature),)
        stated = {"task_weight": cell.task_weight, "losses": losses}
        training = self.recipe.training.model_copy(update={"learning_rate": cell.learning_rate})
        blocks = len(workshop.train_indices) * workshop.data.task.rows
        distil(
            network, workshop.teacher, workshop.share(min(1.0, tokens / blocks)), None,
            self.recipe.model_copy(
                update={"training": training, "distillation": distillation.model_copy(update=stated)}
            ),
            data=workshop.data, seed=seed, view_seed=derive_seed(seed, "views"), device=torch.device("cpu"),
            teacher_cache=self.cache,
        )  # fmt: skip

    def _completed(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        for name, items in self.items.items():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = completions(module, self.tokenizer, items, length=LENGTH, device=torch.device("cpu"))
            yield name, found

    def _truncation(self) -> dict[str, float]:
        """Return the divergence in nats of what is kept of the teacher's answers, by temperature."""
        (tokens,), _ = self.workshop.samples(_TRUNCATED)
        with torch.no_grad():
            logits = self.workshop.teacher.module(tokens.long()).flatten(0, 1)
        kept = self.cache.top_k
        assert kept is not None
        return {str(one): truncation_error(logits, kept, temperature=one) for one in (1, 2, 4)}


if __name__ == "__main__":
    main()
