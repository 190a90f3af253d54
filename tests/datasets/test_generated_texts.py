"""Texts that a teacher writes are its own, each once, written once, and a function of the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdnas.core.text import CorpusData
from kdnas.datasets import DATASETS, _generated
from kdnas.errors import InputError
from kdnas.tokenizing import Tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

LINES = [f"{number} times a king went out to see the world" for number in range(40)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a small random GPT-2 with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "train.txt").write_text("\n".join([*LINES, "short"]))
    (folder / "test.txt").write_text("\n".join(LINES[:9]))
    train_tokenizer("bytes", (), folder / "teacher", vocabulary=257, purpose="running")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=257,
        n_positions=48,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "teacher")
    return folder


def opened(root: Path, cache: Path, generate: Any, **options: Any) -> CorpusData:
    stated = {"train": "train.txt", "test": "test.txt", "tokenizer": "teacher", "length": 8, "documents": "lines"}
    data: CorpusData = DATASETS.build("text_corpus", root, cache, **{**stated, **options}, generate=generate)
    return data


def written(cache: Path) -> list[str]:
    files = sorted((cache / "generated").glob("*/*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]


def test_the_likeliest_texts_are_those_of_a_plain_loop(root: Path, tmp_path: Path) -> None:
    generate = {"teacher": "teacher", "texts": 5, "prompt_tokens": 6, "tokens": 12, "temperature": 0}
    data = opened(root, tmp_path, generate)
    network = transformers.GPT2LMHeadModel.from_pretrained(root / "teacher").eval()
    tokenizer, expected = Tokenizer(root / "teacher"), []
    for line in LINES[:5]:
        ids = list(tokenizer.encode([line], None, special=False)[0].ids)[:6]
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.end:
                break
        expected.append(tokenizer.decode([token for token in ids if token != tokenizer.end]))
    assert written(tmp_path) == expected
    stream = np.asarray(data.train.inputs["tokens"]).ravel().tolist()
    encoded = [[*one.ids, tokenizer.end] for one in tokenizer.encode(expected, None, special=False)]
    assert stream == [token for ids in encoded for token in ids][: len(stream)]


def test_texts_are_written_once_and_go_on_where_they_ended(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_generated, "_BATCH", 4)
    generate = {"teacher": "teacher", "texts": 10, "prompt_tokens": 4, "tokens": 8}
    first = opened(root, tmp_path, generate)
    whole = written(tmp_path)
    assert len(whole) == len(set(whole)) == 10
    assert any("10 training texts written by teacher" in note for note in first.notes)
    last = sorted((tmp_path / "generated").glob("*/*.jsonl"))[-1]
    last.unlink()  # as an interruption leaves it
    opened(root, tmp_path, generate, length=16)
    assert written(tmp_path) == whole
    monkeypatch.setattr(_generated, "_language_model", pytest.fail)
    opened(root, tmp_path, generate, length=12)


def test_texts_that_repeat_others_are_left_out(root: Path, tmp_path: Path) -> None:
    generate = {"teacher": "teacher", "texts": 9, "prompt_tokens": 0, "tokens": 20, "temperature": 0}
    data = opened(root, tmp_path, generate, length=4)
    assert any("8 repeated or empty ones left out" in note for note in data.notes)
    assert len(set(written(tmp_path))) == 1


def test_rules_leave_texts_out_and_say_how_many(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = {"teacher": "teacher", "texts": 20, "prompt_tokens": 4, "tokens": 8}
    opened(root, tmp_path, generate)
    whole = written(tmp_path)
    kept = [text for text in whole if text.startswith("1") and "t" in text]
    assert 0 < len(kept) < 20
    monkeypatch.setattr(_generated, "_language_model", pytest.fail)  # rules are no reason to write anew
    data = opened(root, tmp_path, {**generate, "accept": ["^1"], "reject": ["^[^t]*$"]}, length=4)
    assert any(
        f"{20 - len(kept)} ({(20 - len(kept)) / 20:.1%}) against the rules left out" in note for note in data.notes
    )
    assert any(f"{len(kept) + 9} documents" in note for note in data.notes)


@pytest.mark.parametrize(
    ("generate", "options", "words"),
    [
        ({"teacher": "teacher"}, {"validation": 0.3}, "validation would be texts that the teacher writes"),
        ({"teacher": "teacher", "tokens": 400}, {}, "416 together, and the teacher takes 48"),
        ({"teacher": "teacher", "prompt_tokens": 46, "tokens": 2}, {}, "no training document has 46 tokens"),
        ({"teacher": "teacher", "accept": ["("]}, {}, "is no regular expression"),
        ("nowhere", {}, "is no folder of a language model"),
    ],
)
def test_what_cannot_be_written(root: Path, tmp_path: Path, generate: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        opened(root, tmp_path, generate, **options)
