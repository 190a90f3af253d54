"""Whatever happens to a kept file, nothing else is taught by it: what is damaged is told and made anew."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted_teacher import counting_teacher, train
from torch import nn
from workshops import split_of, workshop_of

from kdnas import checksums
from kdnas.core.data import Data, ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._kept import kept_data
from kdnas.errors import CheckpointError
from kdnas.training.checkpoint import discard_damaged, load_checkpoint, save_checkpoint
from kdnas.training.teacher_cache import TeacherCache


def zero_a_stretch(path: Path, place: int | None = None) -> None:
    whole = bytearray(path.read_bytes())
    place = len(whole) // 2 if place is None else place
    whole[place : place + 64] = bytes(len(whole[place : place + 64]))
    path.write_bytes(bytes(whole))


def flip_a_bit(path: Path, place: int | None = None) -> None:
    whole = bytearray(path.read_bytes())
    whole[-5 if place is None else place] ^= 4
    path.write_bytes(bytes(whole))


def cut_short(path: Path, place: int | None = None) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def make_longer(path: Path, place: int | None = None) -> None:
    path.write_bytes(path.read_bytes() + bytes(8))


def remove(path: Path, place: int | None = None) -> None:
    path.unlink()


DAMAGES = [zero_a_stretch, flip_a_bit, cut_short, make_longer, remove]
each_damage = pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)

IMAGES = np.random.default_rng(3).integers(1, 256, (30, 3, 4, 5), dtype=np.uint8)
TEXTS = ["a fine day", "no good at all", "fine, and then some", "bad; worse", 'he said "no"', "so so"] * 4


def some_images(root: Path) -> Data:
    def write(writer: ImageWriter) -> Labelling:
        writer.extend(IMAGES)
        return Labelling(("a", "b", "c"), np.arange(30) % 3, np.arange(30) % 5 == 0)

    return cached("toy", root / "cache", {}, write)


def some_texts(root: Path) -> Data:
    with (root / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, ("bad", "good") * (len(TEXTS) // 2), strict=True)])
    options: dict[str, Any] = {"train": "texts.csv", "tokenizer": "bytes", "test_fraction": 0.34}
    return DATASETS.build("text_table", root, root / "cache", **options)  # type: ignore[no-any-return]


def some_running_text(root: Path) -> Data:
    for name in ("train", "test"):
        (root / f"{name}.txt").write_text("Once there was a king.\n\nHe had sons.\n" * 20)
    options: dict[str, Any] = {"train": "train.txt", "test": "test.txt", "tokenizer": "bytes", "length": 16}
    return DATASETS.build("text_corpus", root, root / "cache", **options)  # type: ignore[no-any-return]


FILES = [
    (some_images, "images.npy"),
    (some_images, "labels.npy"),
    (some_images, "meta.json"),
    (some_images, checksums.SEAL),
    (some_texts, "tokens.bin"),
    (some_texts, "labels.npy"),
    (some_texts, "places.npy"),
    (some_texts, "tokenizer/tokenizer.json"),
    (some_running_text, "train.bin"),
    (some_running_text, "test.bin"),
]


def content(data: Data) -> list[bytes]:
    parts = [*data.train.inputs.values(), data.train.targets, *data.test.inputs.values(), data.test.targets]
    return [np.asarray(part[:] if hasattr(part, "__getitem__") else part).tobytes() for part in parts]


@each_damage
@pytest.mark.parametrize(("make", "name"), FILES, ids=lambda value: getattr(value, "__name__", value))
def test_decoded_data_are_made_anew(
    make: Callable[[Path], Data], name: str, harm: Callable[..., None], tmp_path: Path, capfd: Any
) -> None:
    if make is not some_images:
        pytest.importorskip("tokenizers")
    before = make(tmp_path)
    known, whole = before.fingerprint, content(before)
    assert kept_data(tmp_path / "cache", known) is not None
    (folder,) = (path for path in (tmp_path / "cache" / "datasets").iterdir() if path.is_dir())
    harm(folder / name)
    assert kept_data(tmp_path / "cache", known) is None  # a run's own data are not these
    again = make(tmp_path)
    assert (again.fingerprint, content(again)) == (known, whole)
    printed = capfd.readouterr().err
    assert f"note: {folder}: " in printed
    assert name.rpartition("/")[2] in printed or name == checksums.SEAL
    assert "decoded anew" in printed
    make(tmp_path)
    assert not capfd.readouterr().err


def test_labels_that_somebody_edited_are_not_learnt(tmp_path: Path, capfd: Any) -> None:
    before = np.array(some_images(tmp_path).train.targets)
    (labels,) = (tmp_path / "cache").glob("datasets/*/labels.npy")
    edited = np.load(labels)
    edited[0] = 99
    np.save(labels, edited)
    assert np.array_equal(some_images(tmp_path).train.targets, before)
    assert "labels.npy is not what was written: toy is decoded anew" in capfd.readouterr().err


def test_of_large_files_other_blocks_are_checked_each_time(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    (tmp_path / "small").write_bytes(b"12345")
    checksums.seal(tmp_path)
    assert not checksums.damage(tmp_path)
    with (tmp_path / "large").open("r+b") as file:
        file.seek(7 << 20)
        file.write(b"x")
    assert checksums.damage(tmp_path) == "large is not what was written"
    seen = [checksums.damage(tmp_path, limit=4 << 20) for _ in range(60)]
    assert {*seen} == {"", "large is not what was written"}
    (tmp_path / "small").write_bytes(b"12346")
    assert checksums.damage(tmp_path, limit=1 << 20) == "small is not what was written"


@pytest.mark.parametrize("top_k", [None, 3])
@each_damage
def test_the_teachers_rows_are_computed_anew(
    harm: Callable[..., None], top_k: int | None, digits: ImageData, tmp_path: Path
) -> None:
    teacher, printed = counting_teacher(), list[str]()
    cache = TeacherCache(tmp_path, top_k=top_k, on_damage=printed.append)
    whole, _ = train(digits, teacher, cache)
    for kind in (".rows", ".sums", *([".classes"] if top_k else [])):
        harm(next(tmp_path.glob(f"*/view00001{kind}")), 8)  # sample 0, which is trained on
        again, asked = train(digits, teacher, cache)
        assert 0 < asked <= 300
        pairs = zip(whole.network.parameters(), again.network.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert train(digits, teacher, cache)[1] == 0
    assert all("the teacher's outputs are computed anew" in line for line in printed)
    assert printed or harm is remove


def test_rows_that_were_zeroed_or_moved_teach_nobody(digits: ImageData, tmp_path: Path) -> None:
    teacher, printed = counting_teacher(), list[str]()
    cache = TeacherCache(tmp_path, on_damage=printed.append)
    whole, _ = train(digits, teacher, cache, epochs=1)
    path = next(tmp_path.glob("*/*.rows"))
    rows = np.memmap(path, dtype=np.float32, mode="r+").reshape(-1, 10)
    rows[0:20] = 0
    rows[[40, 42]] = rows[[42, 40]]
    again, asked = train(digits, teacher, cache, epochs=1)
    assert printed == [f"12 rows of {path} are not what was written: the teacher's outputs are computed anew"]
    assert asked > 0
    assert [record.loss for record in again.history] == [record.loss for record in whole.history]


def test_damaged_rows_that_cannot_be_mended_are_not_read(digits: ImageData, tmp_path: Path, monkeypatch: Any) -> None:
    teacher, cache = counting_teacher(), TeacherCache(tmp_path)
    whole, _ = train(digits, teacher, cache, epochs=1)
    zero_a_stretch(next(tmp_path.glob("*/*.rows")), 0)

    def refuse(*given: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("kdnas.training.teacher_cache._write_rows", refuse)
    again, asked = train(digits, teacher, cache, epochs=1)
    assert asked == 300
    assert [record.loss for record in again.history] == [record.loss for record in whole.history]


@each_damage
def test_a_kept_teacher_is_trained_again(harm: Callable[..., None], digits: ImageData, tmp_path: Path) -> None:
    choices = {"stem_width": 8, "stage1.depth": 1, "stage1.width": 8, "stage1.skip": "identity"}
    teacher = {"type": "student", "family": "resnet", "choices": {**choices, "stage1.bottleneck": "plain"}}
    stated = {**teacher, "training": {"epochs": 1, "data_fraction": 0.2}}
    indices, _ = split_of(digits)

    def opened(notify: Callable[[str], None]) -> str:
        return workshop_of(digits, teacher=stated, train=indices, cache=tmp_path, notify=notify).teacher.fingerprint

    first, printed = opened(lambda line: None), list[str]()
    (kept,) = (tmp_path / "teachers").iterdir()
    harm(kept)
    assert opened(printed.append) == first
    assert any("is damaged and is trained again" in line for line in printed) or harm is remove


@each_damage
def test_a_damaged_checkpoint_continues_nothing(harm: Callable[..., None], tmp_path: Path) -> None:
    network = nn.Linear(40, 40)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    path, device = tmp_path / "checkpoint", torch.device("cpu")
    save_checkpoint(path, {"n": network}, optimizer, identity="i", progress={"history": []}, device=device)
    assert not discard_damaged(path)
    kept = tmp_path / "kept"
    shutil.copy(path, kept)
    harm(path)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path, {"n": network}, optimizer, identity="i", device=device)
    there = path.exists()
    assert bool(discard_damaged(path)) == there
    assert not path.exists()
    load_checkpoint(kept, {"n": network}, optimizer, identity="i", device=device)
