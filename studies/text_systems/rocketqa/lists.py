"""Lists to rank, made of questions and their answers, and a cross-encoder for them.

    KDNAS_DATA=/data python studies/text_systems/rocketqa/lists.py FOLDER --base MINILM [--minutes 4]

A query is a question of WebQuestions (Berant et al., EMNLP 2013); the candidates are an answer to it and seven answers
to other questions of the same part, none of which answers it. Test questions are those of the data set; the last
training questions are for validation. `--base` is the folder of all-MiniLM-L6-v2, as its package has it; a training
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from kdnas import atomic

ARCHIVE = "text/lm_qa.tar.xz"
PARTS = {
    "train": ("train", slice(0, 2000)),
    "validation": ("train", slice(-300, None)),
    "test": ("test", slice(0, 500)),
}
"""Of each part: the file of questions, and which of them."""
CANDIDATES, LENGTH = 8, 32
_UPDATES, _BATCH, _RATE = 120, 8, 2e-4
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def prepare(data_root: Path, folder: Path) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl into `folder`, each a query, its candidates and a label."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(data_root / ARCHIVE) as members:
        for part, (name, places) in PARTS.items():
            content = members.extractfile(f"qa/webquestions/{name}.jsonl")
            assert content is not None
            questions = [json.loads(line) for line in content.read().decode("utf-8").splitlines()]
            lists = lists_of(questions[places], random.Random(part))
            atomic.write_text(folder / f"{part}.jsonl", "".join(json.dumps(one) + "\n" for one in lists))


def lists_of(questions: list[dict[str, Any]], draws: random.Random) -> Iterator[dict[str, Any]]:
    """Yield a list of each question, its right answer at a random place."""
    every = sorted({one["answers"][0] for one in questions})
    for one in questions:
        others = draws.sample([answer for answer in every if answer not in one["answers"]], CANDIDATES - 1)
        label = draws.randrange(CANDIDATES)
        candidates = [*others[:label], one["answers"][0], *others[label:]]
        yield {"query": one["question"], "candidates": candidates, "label": label}


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lists of a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scores_of(network: torch.nn.Module, tokenizer: Any, lists: list[dict[str, Any]]) -> torch.Tensor:
    """Return the scores [n, CANDIDATES] of the candidates of `lists`."""
    pairs = [(one["query"], candidate) for one in lists for candidate in one["candidates"]]
    given = tokenizer(pairs, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(**given).logits
    return logits.float().view(len(lists), CANDIDATES)


def fine_tune(folder: Path, base: Path, minutes: float) -> bool:
    """Train a cross-encoder that begins with the weights in `base`, for so many minutes; return whether it is done.

    It is written as the folder `teacher`; what is not done yet lies in `teacher.pt`.
    """
    torch.manual_seed(0)
    begun = time.monotonic()
    lists, kept = read(folder / "train.jsonl"), folder / "teacher.pt"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.01)
    order = torch.randperm(len(lists)).tolist()
    step, losses = 0, []
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while step < _UPDATES and time.monotonic() - begun < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20) * (1 - step / _UPDATES)
        part = [lists[place] for place in order[step * _BATCH : (step + 1) * _BATCH]]
        loss = cross_entropy(scores_of(network, tokenizer, part), torch.tensor([one["label"] for one in part]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % 10 == 0:
            print(f"step {step} of {_UPDATES}: loss {sum(losses[-10:]) / len(losses[-10:]):.3f}", flush=True)
    if step < _UPDATES:
        with atomic.replacing(kept) as scratch:
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, scratch)
        return False
    half = folder / "teacher.part"
    network.eval().half().save_pretrained(half)
    for name in _FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, half / name)
    half.rename(folder / "teacher")
    kept.unlink(missing_ok=True)
    return True


@torch.no_grad()
def accuracy(folder: Path, part: str) -> float:
    """Return the share of lists of a part in which the teacher ranks the right one first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "teacher")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "teacher", dtype=torch.float32)
    lists = read(folder / f"{part}.jsonl")
    firsts = torch.cat([scores_of(network.eval(), tokenizer, lists[n : n + 8]) for n in range(0, len(lists), 8)])
    return float((firsts.argmax(1) == torch.tensor([one["label"] for one in lists])).float().mean())


def main() -> None:
    """Make the lists and the teacher, as far as they are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop then; the same command goes on")
    arguments = parser.parse_args()
    prepare(Path(os.environ.get("KDNAS_DATA", "data")), arguments.folder)
    if (arguments.folder / "teacher").exists() or fine_tune(arguments.folder, arguments.base, arguments.minutes):
        print(f"right first: {100 * accuracy(arguments.folder, 'validation'):.1f} % of the validation lists")


if __name__ == "__main__":
    main()
