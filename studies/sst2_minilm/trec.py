"""A second data set: questions by what they ask for (TREC, Li and Roth, 2002), and a teacher like the first for it."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy

from kdnas import atomic

ARCHIVE = "text/text_classification.tar.xz"
BASE = "teachers/minilm_l6_sst2"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_VALIDATION = 11
"""Every so many-th training question is one that students are scored on."""
_EPOCHS, _BATCH, _RATE = 3, 32, 1e-4

Questions = list[tuple[str, str]]
"""Label and text of each."""


def prepare(data_root: Path, folder: Path) -> None:
    """Write train.tsv, dev.tsv, test.tsv and the folder `teacher` into `folder`, where they are not."""
    parts = read(data_root / ARCHIVE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, questions in parts.items():
        atomic.write_text(folder / f"{name}.tsv", "".join(f"{a}\t{b}\n" for a, b in [("label", "text"), *questions]))
    if not (folder / "teacher").exists():
        fine_tune(parts["train"], data_root / BASE, folder / "teacher")


def read(archive: Path) -> dict[str, Questions]:
    """Return the questions with their coarse labels; the archive has no validation split."""
    found: dict[str, Questions] = {}
    with tarfile.open(archive) as members:
        for name in ("train", "test"):
            content = members.extractfile(f"trec/{name}.tsv")
            assert content is not None
            rows = csv.DictReader(io.TextIOWrapper(content, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
            found[name] = [(row["label"].split(":")[0], row["text"]) for row in rows]
    rows = found["train"]
    found["dev"] = rows[::_VALIDATION]
    found["train"] = [row for place, row in enumerate(rows) if place % _VALIDATION]
    return found


def fine_tune(questions: Questions, base: Path, folder: Path) -> None:
    """Train the classifier in `base`, with a new head, on `questions`, and write it as the folder `folder`."""
    torch.manual_seed(0)
    names = sorted({label for label, _ in questions})
    numbers = dict(zip(names, range(len(names)), strict=True))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id=numbers,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    ).train()
    steps = _EPOCHS * -(-len(questions) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    for _ in range(_EPOCHS):
        order = torch.randperm(len(questions)).tolist()
        for start in range(0, len(order), _BATCH):
            part = [questions[place] for place in order[start : start + _BATCH]]
            given = tokenizer([text for _, text in part], padding=True, truncation=True, return_tensors="pt")
            loss = cross_entropy(network(**given).logits, torch.tensor([numbers[label] for label, _ in part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    half = folder.with_name("teacher.part")
    network.eval().half().save_pretrained(half)
    for name in _FILES[2:]:
        shutil.copyfile(base / name, half / name)
    half.rename(folder)
