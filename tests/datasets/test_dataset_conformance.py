"""Every data set of the registry keeps its family's contract, on a few small files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnas.datasets import DATASETS
from kdnas.testing import DatasetConformance

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(24) % 3


class TestDigits(DatasetConformance):
    member = "digits"


class TestNpz(DatasetConformance):
    member = "npz"

    def write(self, data_root: Path):
        parts = {"train_images": IMAGES[:18], "train_labels": LABELS[:18]}
        np.savez(data_root / "d.npz", **parts, test_images=IMAGES[18:], test_labels=LABELS[18:])
        return {"path": "d.npz"}


class TestModule(DatasetConformance):
    member = "module"

    def write(self, data_root: Path):
        np.savez(data_root / "d.npz", images=IMAGES, labels=LABELS)
        (data_root / "own.py").write_text(
            "import numpy as np\n"
            "def load(data_root):\n"
            "    d = np.load(data_root / 'd.npz')\n"
            "    return d['images'][:18], d['labels'][:18], d['images'][18:], d['labels'][18:]\n"
        )
        return {"function": "own.py:load"}


class TestImageFolder(DatasetConformance):
    member = "image_folder"

    def write(self, data_root: Path):
        for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            folder = data_root / "pictures" / ("train" if index < 18 else "test") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index}.png")
        return {"path": "pictures", "size": 8}


class TestParquet(DatasetConformance):
    member = "parquet"

    def write(self, data_root: Path):
        pytest.importorskip("pyarrow")
        import io

        import pyarrow
        import pyarrow.parquet

        def encoded(image):
            file = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
            return {"bytes": file.getvalue()}

        for name, part in (("train", slice(0, 18)), ("test", slice(18, 24))):
            table = {"image": [encoded(image) for image in IMAGES[part]], "label": LABELS[part].tolist()}
            pyarrow.parquet.write_table(pyarrow.table(table), data_root / f"{name}.parquet")
        return {"train": "train.parquet", "test": "test.parquet", "size": 8}


class TestTextLists(DatasetConformance):
    member = "text_lists"

    def write(self, data_root: Path):
        rows = [f"what is {n}\tit is {n}\tno, {n + 1}\tperhaps {n}\t{n % 3}\n" for n in range(24)]
        (data_root / "train.tsv").write_text("query\ta\tb\tc\tlabel\n" + "".join(rows[:18]))
        (data_root / "test.tsv").write_text("query\ta\tb\tc\tlabel\n" + "".join(rows[18:]))
        columns = {"query_column": "query", "candidates": ("a", "b", "c")}
        return {"train": "train.tsv", "test": "test.tsv", "tokenizer": "bytes", **columns}


class TestTextTable(DatasetConformance):
    member = "text_table"

    def write(self, data_root: Path):
        rows = [f"{'good' if index % 2 else 'bad'}\ttext {index} of these\n" for index in range(24)]
        (data_root / "train.tsv").write_text("label\ttext\n" + "".join(rows[:18]))
        (data_root / "test.tsv").write_text("label\ttext\n" + "".join(rows[18:]))
        return {"train": "train.tsv", "test": "test.tsv", "tokenizer": "bytes"}


class TestTextFolder(DatasetConformance):
    member = "text_folder"

    def write(self, data_root: Path):
        for index in range(24):
            folder = data_root / "texts" / ("train" if index < 18 else "test") / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.txt").write_text(f"text {index} of these")
        return {"path": "texts", "tokenizer": {"type": "bpe", "vocabulary": 300}}


class TestTextModule(DatasetConformance):
    member = "text_module"

    def write(self, data_root: Path):
        (data_root / "own_texts.py").write_text(
            "def load(data_root):\n"
            "    texts, labels = [f'text {n}' for n in range(24)], [n % 3 for n in range(24)]\n"
            "    return texts[:18], labels[:18], texts[18:], labels[18:]\n"
        )
        return {"function": "own_texts.py:load", "tokenizer": "bytes"}


class TestTextCorpus(DatasetConformance):
    member = "text_corpus"

    def write(self, data_root: Path):
        (data_root / "train.txt").write_text("\n".join(f"this is line {index} of them" for index in range(24)))
        (data_root / "test.txt").write_text("a few lines\nof other text\n")
        return {"train": "train.txt", "test": "test.txt", "validation": 0.3, "documents": "lines", "length": 8} | {
            "tokenizer": "bytes"
        }


class TestTokenFiles(DatasetConformance):
    member = "token_files"

    def write(self, data_root: Path):
        from kdnas.tokenizing import train_tokenizer

        train_tokenizer("bytes", (), data_root / "tokenizer", vocabulary=257, purpose="running")
        for name in ("train", "test"):
            RNG.integers(0, 257, 100).astype(np.uint16).tofile(data_root / f"{name}.bin")
        return {"train": "train.bin", "test": "test.bin", "tokenizer": "tokenizer", "length": 8}


class TestCifarArchive(DatasetConformance):
    member = "cifar_archive"

    def write(self, data_root: Path):
        images = RNG.integers(0, 256, (30, 3072), dtype=np.uint8)
        folder = data_root / "cifar-10-batches-py"
        folder.mkdir()
        names = [f"data_batch_{number}" for number in range(1, 6)]
        for number, name in enumerate([*names, "test_batch"]):
            part = slice(5 * number, 5 * number + 5)
            batch = {"data": images[part], "labels": [index % 10 for index in range(30)][part]}
            (folder / name).write_bytes(pickle.dumps(batch))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
        return {"path": "cifar-10-batches-py"}


def test_no_data_set_is_left_out() -> None:
    tried = {suite.member for suite in DatasetConformance.__subclasses__()}
    assert set(DATASETS.names()) <= tried
