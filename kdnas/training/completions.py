"""How often a language model completes texts rightly: the last word, the likeliest of several endings, an answer.

Files hold one JSON object a line: `{"context", "target"}`, `{"context", "endings", "label"}` (HellaSwag, Zellers et
al., ACL 2019; LAMBADA, Paperno et al., ACL 2016), or `{"question", "answers"}` (NQ-open, Lee et al., ACL 2019). A space
stands between a context and what follows it. Tokens are those of both read together, as EleutherAI's evaluation harness
counts them, whose `acc`, `acc_norm` and `exact_match` (no examples shown) these are.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdnas.datasets._text_files import TextFile, open_text
from kdnas.errors import DataError, Problem
from kdnas.tokenizing import Tokenizer

_BATCH = 16
_SHOWN = 5
_ANSWER_TOKENS = 16
_ANSWER_ENDS = re.compile(r"[\n.,]")
_FORMS = (
    '{"context": TEXT, "target": WORD}, {"context", "endings": [TEXT, ...], "label": NUMBER} or '
    '{"question": TEXT, "answers": [TEXT, ...]}'
)


@dataclass(frozen=True)
class Item:
    """A context, what may follow it, and which of these is right. One ending alone is a word to be predicted.

    Of a question, `is_question`, the endings are its answers, of which the network is to write one.
    """

    context: str
    endings: tuple[str, ...]
    label: int = 0
    is_question: bool = False

    @property
    def chance(self) -> float:
        """How likely whoever knows nothing is right."""
        return 0.0 if self.is_question or len(self.endings) < 2 else 1 / len(self.endings)

    @property
    def kind(self) -> str:
        """What it asks for."""
        return "questions" if self.is_question else "endings" if len(self.endings) > 1 else "last words"


@dataclass(frozen=True)
class Completions:
    """How many items there are, and which share of them is right.

    `accuracy` of endings is by their likelihood, `normalised` by that of each byte. Of last words and of questions
    `accuracy` is by the likeliest token at every place, and `normalised` None.
    """

    count: int
    accuracy: float
    normalised: float | None = None


def read_items(file: TextFile, *, skip: int = 0, first: int | None = None) -> list[Item]:
    """Return the items of a file: `first` ones after those that are to `skip`; None: all.

    Raises DataError naming the lines that hold none.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    with open_text(file, "utf-8-sig") as lines:
        stated = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for number, line in islice(stated, skip, None if first is None else skip + first):
            try:
                items.append(_item(json.loads(line)))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                problems.append(Problem(f"{file.shown}: line {number}", f"is no item: {reason}", _FORMS))
    kinds = sorted({item.kind for item in items})
    if len(kinds) > 1:
        problems.append(Problem(str(file.shown), f"mixes {' and '.join(kinds)}", "one of them"))
    if not items and not problems:
        problems.append(Problem(str(file.shown), f"holds no more than {skip:,} items" if skip else "holds no items"))
    if problems:
        raise DataError(problems[:_SHOWN])
    return items


def _item(line: dict[str, Any]) -> Item:
    if "question" in line:
        question, answers = line["question"], line["answers"]
        if not isinstance(answers, list) or not answers:
            raise ValueError("there are no answers")
        if not all(isinstance(text, str) and text.strip() for text in (question, *answers)):
            raise ValueError("a text is empty, or none")
        return Item(f"Q: {question.strip().rstrip('?')}?\nA:", tuple(answers), is_question=True)
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

    Contexts are cut at their beginning where they and what follows are longer than `length` tokens.
    """
    if items[0].is_question:
        answered = zip(items, _answers(network, tokenizer, items, length, device), strict=True)
        right = sum(_normal(answer) in map(_normal, item.endings) for item, answer in answered)
        return Completions(len(items), right / len(items))
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


def share_completed(
    network: nn.Module, tokenizer: Tokenizer, items: Sequence[Item], *, length: int, device: torch.device
) -> float:
    """Return the share of `items` that is right as `completions` has it; of endings by the likelihood of a byte."""
    found = completions(network, tokenizer, items, length=length, device=device)
    return found.accuracy if found.normalised is None else found.normalised


def _answers(
    network: nn.Module, tokenizer: Tokenizer, items: Sequence[Item], length: int, device: torch.device
) -> Iterator[str]:
    """Yield what the network writes after every context, the likeliest token at each place, up to a sentence's end."""
    most = min(_ANSWER_TOKENS, length // 2)
    for start in range(0, len(items), _BATCH):
        contexts = [item.context for item in items[start : start + _BATCH]]
        given = [list(one.ids)[-(length - most) :] for one in tokenizer.encode(contexts, None, special=False)]
        ends = torch.tensor([len(ids) for ids in given], device=device)
        longest = int(ends.max())
        tokens = torch.zeros(len(given), longest + most, dtype=torch.int64, device=device)
        for row, ids in enumerate(given):
            tokens[row, : len(ids)] = torch.tensor(ids)
        every = torch.arange(len(given), device=device)
        for step in range(most):
            logits = network(tokens[:, : longest + step])  # what stands behind a text changes nothing before it
            tokens[every, ends + step] = logits[every, ends + step - 1].argmax(1)
        for row, end in enumerate(ends.tolist()):
            written = tokens[row, end : end + most].tolist()
            written = written[: written.index(tokenizer.end)] if tokenizer.end in written else written
            yield _ANSWER_ENDS.split(tokenizer.decode(written).strip(), maxsplit=1)[0]


def _normal(answer: str) -> str:
    """Return an answer without case, punctuation, articles and odd spaces (Rajpurkar et al., "SQuAD", EMNLP 2016)."""
    plain = "".join(sign for sign in answer.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


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
