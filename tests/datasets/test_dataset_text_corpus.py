"""Running text: documents become one stream, closed by end tokens, in blocks that miss no prediction."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdnas.core.text import CorpusData
from kdnas.datasets import DATASETS
from kdnas.errors import DataError, InputError
from kdnas.tokenizing import Tokenizer

pytest.importorskip("tokenizers")

DOCUMENTS = [f"= tale {n} =\nOnce there was a king, number {n}.\n\nHe had {n} sons.\n" for n in range(40)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.txt").write_text("".join(DOCUMENTS))
    (folder / "test.txt").write_text("".join(DOCUMENTS[:8]))
    return folder


def opened(root: Path, **options: Any) -> CorpusData:
    stated = {"train": "train.txt", "test": "test.txt", "tokenizer": "bytes", "length": 16, **options}
    data: CorpusData = DATASETS.build("text_corpus", root, root.parent / "cache", **stated)
    return data


def stream_of(data: CorpusData, part: str = "train") -> list[int]:
    """Return the tokens of a split as one stream, and check that blocks and targets follow from it."""
    samples = getattr(data, part)
    tokens, targets = np.asarray(samples.inputs["tokens"]), np.asarray(samples.targets)
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])
    stated = data.stated_validation if part == "train" else 0
    whole = len(tokens) - stated
    assert np.array_equal(tokens[1:whole, 0], targets[: whole - 1, -1])
    return [*tokens[:whole].ravel().tolist(), int(targets[whole - 1, -1])]


def expected(documents: list[str], data: CorpusData) -> list[int]:
    tokenizer = Tokenizer(data.tokenizer)
    assert tokenizer.end is not None
    return [
        token for text in documents for token in [*tokenizer.encode([text], None, special=False)[0].ids, tokenizer.end]
    ]


@pytest.mark.parametrize(
    ("options", "documents"),
    [
        ({}, ["".join(DOCUMENTS)]),
        ({"begins": "^= .* =$"}, DOCUMENTS),
        ({"documents": "lines"}, [line for line in "".join(DOCUMENTS).split("\n") if line]),
        ({"documents": "paragraphs"}, [part + "\n" for part in "".join(DOCUMENTS).removesuffix("\n").split("\n\n")]),
    ],
)
def test_documents_stand_one_after_the_other(root: Path, options: dict[str, Any], documents: list[str]) -> None:
    data = opened(root, **options)
    stream, whole = stream_of(data), expected(documents, data)
    assert stream == whole[: len(stream)]
    assert len(whole) - len(stream) < 16
    test = expected(DOCUMENTS[:8], data) if options == {"begins": "^= .* =$"} else []
    if test:
        assert f"test; {len(documents) + 8} documents" in data.notes[-1]
        assert data.bytes_per_token[1] == pytest.approx(len("".join(DOCUMENTS[:8])) / len(test))


def test_long_documents_are_read_in_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream_of(opened(root, begins="^= .*1 =$"))
    monkeypatch.setattr("kdnas.datasets.text_corpus._PIECE", 60)
    other = opened(root, begins="^= .*1 =$", encoding="utf-8")
    assert stream_of(other) == whole


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_row_is_a_document(root: Path, suffix: str) -> None:
    if suffix == "jsonl":
        (root / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = __import__("pyarrow.parquet").parquet
        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), root / "a.parquet")
    data = opened(root, train=f"a.{suffix}")
    stream = stream_of(data)
    assert stream == expected(DOCUMENTS, data)[: len(stream)]


def test_splits_are_files_or_shares_of_the_documents(root: Path) -> None:
    (root / "valid.txt").write_text("".join(DOCUMENTS[:4]))
    data = opened(root, begins="^= .* =$", validation="valid.txt")
    count = data.stated_validation
    tokens = np.asarray(data.train.inputs["tokens"])[-count:].ravel().tolist()
    assert tokens == expected(DOCUMENTS[:4], data)[: len(tokens)]
    shared = opened(root, begins="^= .* =$", validation=0.2, test=0.2)
    decoded = [
        Tokenizer(shared.tokenizer).decode(part)
        for part in (
            np.asarray(shared.train.inputs["tokens"])[: -shared.stated_validation].ravel().tolist(),
            np.asarray(shared.train.inputs["tokens"])[-shared.stated_validation :].ravel().tolist(),
            np.asarray(shared.test.inputs["tokens"]).ravel().tolist(),
        )
    ]
    tales = [{number for number in range(40) if f"= tale {number} =" in text} for text in decoded]
    assert all(tales)
    assert not tales[0] & tales[1]
    assert not tales[0] & tales[2]
    assert not tales[1] & tales[2]
    with pytest.raises(InputError, match="validation and test are all of the documents"):
        opened(root, validation=0.5, test=0.5)


def test_tokens_that_another_program_wrote(root: Path, data_root: Path) -> None:
    teacher = data_root / "teachers/gpt2_fairybooks"
    rng = np.random.default_rng(0)
    streams = {name: rng.integers(1, 4096, size).astype(np.uint16) for name, size in (("train", 400), ("test", 100))}
    streams["train"].tofile(root / "train.bin")
    np.save(root / "test.npy", streams["test"])
    options = {"train": "train.bin", "test": "test.npy", "tokenizer": str(teacher), "length": 32}
    data = DATASETS.build("token_files", root, root.parent / "cache", **options)
    assert stream_of(data) == streams["train"][:385].tolist()
    assert stream_of(data, "test") == streams["test"][:97].tolist()
    assert data.vocabulary == data.task.outputs == 4096
    (root / "train.bin").write_bytes(np.array([1, 2, 5000, 3] * 20, dtype=np.uint16).tobytes())
    with pytest.raises(DataError, match="token 5000 at place 2, and the tokenizer has 4,096"):
        DATASETS.build("token_files", root, root.parent / "cache", **options)


def test_what_is_trained_on_as_well_is_told(root: Path, data_root: Path) -> None:
    (root / "new.txt").write_text(DOCUMENTS[3] + "= new =\nA tale that no other file has.\n")
    notes = opened(root, begins="^= .* =$", validation="new.txt").notes
    assert notes[0] == "1 of 2 validation documents is among the training documents as well"
    assert notes[1] == "8 of 8 test documents are among the training documents as well"
    assert "1 of 1 test document is among the training documents as well" in opened(root, test="train.txt").notes
    assert not [note for note in opened(root).notes if "among" in note]
    tokens = np.arange(4 * 16 + 1)
    np.save(root / "train.npy", tokens)
    np.concatenate([tokens[16:48], 100 + tokens]).astype(np.uint16).tofile(root / "test.bin")
    options = {"train": "train.npy", "test": "test.bin", "tokenizer": "teachers/gpt2_fairybooks", "length": 16}
    shutil.copytree(data_root / options["tokenizer"], root / options["tokenizer"])
    data = DATASETS.build("token_files", root, root.parent / "cache", **options)
    assert data.notes[0] == "2 of 6 test blocks are among the training blocks as well"


# -- bad input ---------------------------------------------------------------------------------------------------------


def complaint(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(root, **options)
    return str(caught.value)


def test_a_tokenizer_without_an_end_token(root: Path, data_root: Path) -> None:
    bare = root / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((data_root / "teachers/gpt2_fairybooks/tokenizer.json").read_bytes())
    assert "its tokenizer names no end token, which keeps documents apart" in complaint(root, tokenizer="bare")
    assert "the tokenizer has no token '</s>'" in complaint(root, tokenizer="bare", end="</s>")
    data = opened(root, tokenizer="bare", end="<|endoftext|>", begins="^= .* =$")
    assert (np.asarray(data.train.inputs["tokens"]) == 0).sum() > 30


def test_too_little_text(root: Path) -> None:
    (root / "short.txt").write_text("one two")
    printed = complaint(root, test="short.txt")
    assert "test: has 8 tokens, fewer than a block of 16 and what follows it" in printed
    (root / "short.txt").write_text("")
    assert "test: has 0 tokens" in complaint(root, test="short.txt")


def test_longer_than_the_model_takes(root: Path, data_root: Path) -> None:
    printed = complaint(root, tokenizer=str(data_root / "teachers/gpt2_fairybooks"), length=300)
    assert "300 tokens, and the model takes 256" in printed


def test_mixed_encodings_and_a_byte_order_mark(root: Path) -> None:
    (root / "train.txt").write_bytes("Grüße\n".encode() * 40 + "Grüße\n".encode("cp1252"))
    assert "mixes encodings: some lines are UTF-8, 1 is not: line 41 (byte 0xFC)" in complaint(root)
    (root / "train.txt").write_bytes("\ufeffGrüße\r\n".encode() * 40)
    data = opened(root)
    assert Tokenizer(data.tokenizer).decode(stream_of(data)).startswith("Grüße\nGrüße\n")


def test_rows_without_text(root: Path) -> None:
    (root / "a.jsonl").write_text('{"text": "fine"}\n{"body": "no"}\n[1]\n{"text": 3}\n')
    printed = complaint(root, train="a.jsonl")
    assert "a.jsonl: line 2: has no text" in printed
    assert "a.jsonl: line 3: is no JSON object" in printed
    assert "a.jsonl: line 4: its text is int 3" in printed
    rows = [json.dumps({"text": f"a text of its own {number}" if number % 4 else None}) for number in range(40)]
    (root / "a.jsonl").write_text("\n".join(rows))
    assert f"10 empty texts of {root / 'a.jsonl'} left out" in opened(root, train="a.jsonl").notes
    assert "is no regular expression" in complaint(root, begins="(")


def test_a_share_of_one_document(root: Path) -> None:
    printed = complaint(root, test=0.2)
    assert "test: none of 1 document fell to its share (allowed: `documents` or `begins`" in printed


def test_a_large_text_on_a_small_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 900))
    printed = complaint(root, begins="^= .* =$")
    assert "has 0 MB free, and the tokens need about" in printed
    assert not list((root.parent / "cache" / "datasets").glob("*/"))
