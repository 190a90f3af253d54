"""How often a language model completes texts rightly: the last word, or the likeliest of several endings.

Files hold one JSON object a line: `{"context", "target"}`, or `{"context", "endings", "label"}` (HellaSwag, Zellers et
al., ACL 2019; LAMBADA, Paperno et al., ACL 2016). A space stands between a context and what follows it. Tokens are
those of both read together, as EleutherAI's evaluation harness counts them, whose `acc` and `acc_norm` these are.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdnas.errors import DataError, Problem
from kdnas.tokenizing import Tokenizer

_BATCH = 16
_SHOWN = 5


@dataclass(frozen=True)
class Item:
    """A context, what may follow it, and which of these is right. One ending alone is a word to be told."""

    context: str
    endings: tuple[str, ...]
    label: int = 0


@dataclass(frozen=True)
class Completions:
    """How many items there are, and which share of them is right.

    `accuracy` of endings is by their likelihood, `normalised` by that of each byte. Of last words `accuracy` is by the
    likeliest token at every place, and `normalised` None.
    """

    count: int
    accuracy: float
    normalised: float | None = None


def read_items(path: Path) -> list[Item]:
    """Return the items of a file. Raises DataError naming the lines that hold none."""
    items: list[Item] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            allowed = '{"context": TEXT, "target": WORD} or {"context", "endings": [TEXT, ...], "label": NUMBER}'
            problems.append(Problem(f"{path}: line {number}", f"is no item: {error}", allowed))
    if len({len(item.endings) > 1 for item in items}) > 1:
        problems.append(Problem(str(path), "mixes last words and endings", "one of the two"))
    if not items and not problems:
        problems.append(Problem(str(path), "holds no items"))
    if problems:
        raise DataError(problems[:_SHOWN])
    return items


def _item(line: dict[str, Any]) -> Item:
    context, endings = line["context"], line.get("endings")
    if endings is None:
        endings, label = [line["target"]], 0
    else:
        label = line["label"]
    texts = [context, *endings]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a text is empty, or none")
    if not isinstance(label, int) or not 0 <= label < len(endings):
        raise ValueError(f"label {label!r} names none of {len(endings)} endings")
    return Item(context.rstrip(), tuple(ending.strip() for ending in endings), label)


@torch.no_grad()
def completions(
    network: nn.Module, tokenizer: Tokenizer, items: Sequence[Item], *, length: int, device: torch.device
) -> Completions:
    """Return how `network`, tokens int64 [B, T] to logits [B, T, V] in eval mode, completes `items`.

    Contexts are cut at their beginning where they and an ending are longer than `length` tokens.
    """
    scored = _scored(network, tokenizer, items, length, device)
    if len(items[0].endings) == 1:
        right = sum(is_likeliest for _, is_likeliest in scored)
        return Completions(len(items), right / len(items))
    by_sum = by_byte = 0
    for item in items:
        nats = [next(scored)[0] for _ in item.endings]
        each = [total / len(ending.encode()) for total, ending in zip(nats, item.endings, strict=True)]
        by_sum += nats.index(max(nats)) == item.label
        by_byte += each.index(max(each)) == item.label
    return Completions(len(items), by_sum / len(items), by_byte / len(items))


def _scored(
    network: nn.Module, tokenizer: Tokenizer, items: Sequence[Item], length: int, device: torch.device
) -> Iterator[tuple[float, bool]]:
    """Yield (log likelihood in nats, whether each token is the likeliest) of every ending, item by item."""
    texts = [(item.context, f"{item.context} {ending}") for item in items for ending in item.endings]
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        before = tokenizer.encode([context for context, _ in part], None, special=False)
        whole = tokenizer.encode([text for _, text in part], None, special=False)
        rows, ends = [], []
        for context, text in zip(before, whole, strict=True):
            ids = list(text.ids)
            own = max(1, len(ids) - max(1, len(context.ids)))
            rows.append(ids[-(length + 1) :])
            ends.append(min(own, len(rows[-1]) - 1))
        yield from _of_rows(network, rows, ends, device)


def _of_rows(
    network: nn.Module, rows: Sequence[Sequence[int]], ends: Sequence[int], device: torch.device
) -> Iterator[tuple[float, bool]]:
    """Yield what `_scored` does of rows of tokens, of which the last `ends` are the endings."""
    longest = max(len(row) for row in rows) - 1
    padded = torch.tensor([[*row[:-1], *[0] * (longest - len(row) + 1)] for row in rows], device=device)
    logits: Tensor = network(padded)  # what stands behind a text changes nothing before it
    for index, (row, own) in enumerate(zip(rows, ends, strict=True)):
        last = len(row) - 1
        answers = functional.log_softmax(logits[index, last - own : last].float(), dim=-1)
        targets = torch.tensor(row[-own:], device=device)
        nats = answers.gather(1, targets[:, None]).sum()
        yield float(nats), bool((answers.argmax(1) == targets).all())
