"""How good a network is on a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kdnas.core.task import TaskSpec
from kdnas.nn.folding import folded
from kdnas.nn.ruling import ruled
from kdnas.training.batches import Batches
from kdnas.training.numerics import is_scored_in_bfloat16
from kdnas.training.recipe import Training

_EVALUATION_BYTES = 64 << 20


def evaluate(network: nn.Module, batches: Batches, training: Training, *, batch_size: int | None = None) -> float:
    """Return the task's score of `network` on `batches` (`tally_of`). Raises ValueError when there are no samples."""
    return batches.task.score(tally_of(network, batches, training, batch_size=batch_size))


def all_scores(network: nn.Module, batches: Batches, training: Training) -> dict[str, float]:
    """Return what students are scored by on `batches` (`TaskSpec.scores`), by name, as `evaluate` does."""
    task, tally = batches.task, tally_of(network, batches, training)
    known = task.scores(tally) if task.spec.heads else {}
    return {
        task.spec.score.name: task.score(tally),
        **{score.name: known[score.name] for score in task.spec.scores[1:]},
    }


@dataclass(frozen=True)
class Ruled:
    """What becomes of answers once rules are applied to them."""

    tally: torch.Tensor
    changed: float
    """The share of the answers that the rules change."""


def tally_of(
    network: nn.Module, batches: Batches, training: Training, *, batch_size: int | None = None
) -> torch.Tensor:
    """Return the tally, on the CPU, of `network`'s answers to `batches`: `tally_and_ruled` without rules."""
    return tally_and_ruled(network, {}, batches, training, batch_size=batch_size)[0]


def tally_and_ruled(
    network: nn.Module,
    rules: Mapping[str, nn.Module],
    batches: Batches,
    training: Training,
    *,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, dict[str, Ruled]]:
    """Return the tally, on the CPU, of `network`'s answers to `batches`, and what each of `rules` makes of them.

    All take plain samples (`Task.entrance`), which come as they are; `rules` give logits as `kdnas.nn.ruling` reads
    them. `network` is in eval mode meanwhile. `training` is its own, or that of the students of a teacher: it decides
    the precision (`kdnas.training.numerics`). `batch_size` None is that of `evaluation_batch`. Raises ValueError when
    there are no samples.
    """
    if len(batches) == 0:
        raise ValueError("no samples to evaluate on")
    task, bfloat16 = batches.task, is_scored_in_bfloat16(batches, training)
    modes = [part for part in network.modules() if part.training]
    network.eval()
    tallies: list[torch.Tensor] = []
    by_rules: dict[str, list[torch.Tensor]] = {name: [] for name in rules}
    changed = dict.fromkeys(rules, 0)
    try:
        with folded(network), torch.inference_mode():
            for batch in batches.grouped(batch_size=batch_size or evaluation_batch(task.spec, batches.device)):
                inputs = batch.laid_out
                with torch.autocast(batches.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                    logits = network(*inputs)
                tallies.append(task.tally(task.rows(logits, inputs, batch.targets)))
                for name, each in rules.items():
                    kept = ruled(logits, each(*inputs))
                    changed[name] += int((kept.argmax(dim=1) != logits.argmax(dim=1)).sum())
                    by_rules[name].append(task.tally(task.rows(kept, inputs, batch.targets)))
    finally:
        for part in modes:
            part.training = True
    tally = task.together(tallies).cpu()  # the only wait for the device where there are no rules
    found = {name: Ruled(task.together(by_rules[name]).cpu(), changed[name] / len(batches)) for name in rules}
    return tally, found


def evaluation_batch(spec: TaskSpec, device: torch.device) -> int:
    """Return how many samples are evaluated at once: 512, on a GPU 8192, or as many as 64 MiB hold of their logits.

    Of lists so many candidates.
    """
    answers = _EVALUATION_BYTES // (spec.rows * spec.logits * 4)
    if device.type != "cuda":
        return max(1, min(answers, 512 // spec.runs))
    return max(1, min(_EVALUATION_BYTES // (spec.numbers * 4), answers, 8192 // spec.runs))
