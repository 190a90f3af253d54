"""Several labels an image, images without labels, and what tells one image from all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.errors import DataError

N = 40
DIGIT, SPEAKER = np.arange(N) % 4, np.arange(N) % 3


@pytest.fixture
def write(tmp_path: Path):
    """Returns a function that writes arrays and reads them as the data set `npz` with the given options."""

    def written(options: dict, **arrays: np.ndarray) -> ImageData:
        images = np.random.default_rng(0).integers(0, 256, (N, 5, 7), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", x=images, digit=DIGIT, speaker=SPEAKER, **arrays)
        stated = {"path": "data.npz", "train_images": "x", "test_fraction": 0.25, **options}
        return DATASETS.build("npz", tmp_path, tmp_path / "cache", **stated)

    return written


def test_an_image_has_a_label_for_each_of_several_tasks(write):
    names = {"digit": ("zero", "one", "two", "three")}
    data = write({"train_labels": {"digit": "digit", "who": "speaker"}, "class_names": names})
    assert data.class_names == ("digit: zero", "digit: one", "digit: two", "digit: three", "who: 0", "who: 1", "who: 2")
    assert [(head.name, head.outputs, head.start) for head in data.task.heads] == [("digit", 4, 0), ("who", 3, 4)]
    every = np.concatenate([data.train.targets, data.test.targets])
    assert sorted(map(tuple, every)) == sorted(zip(DIGIT, SPEAKER, strict=True))
    again = write({"train_labels": {"digit": "digit", "who": "speaker"}, "class_names": names})
    assert again.fingerprint == data.fingerprint


def test_a_label_may_be_missing_where_the_study_says_what_stands_for_it(write):
    stated = {"train_labels": {"digit": "part", "who": "speaker"}, "missing_label": 99}
    data = write(stated, part=np.where(np.arange(N) % 5 == 0, 99, DIGIT))
    assert data.task.partly
    assert (np.concatenate([data.train.targets, data.test.targets])[:, 0] == -1).sum() == 8
    with pytest.raises(DataError, match="no image of class|out of range"):
        write({"train_labels": "part"}, part=np.where(np.arange(N) % 5 == 0, 99, DIGIT))


def test_images_without_labels_are_training_images(write):
    more = np.zeros((6, 5, 7), dtype=np.uint8)
    data = write({"train_labels": "digit", "unlabelled_images": "more"}, more=more)
    assert (data.train.targets == -1).sum() == 6
    assert (data.test.targets >= 0).all()
    assert data.task.partly
    assert not write({"train_labels": "digit"}, more=more).task.partly


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"train_labels": {"digit": "digit"}}, "one task alone"),
        ({"train_labels": "digit", "class_names": {"digit": ("a",)}}, "of several tasks"),
        ({"train_labels": {"a": "digit", "b": "speaker"}, "test_fraction": None}, "other tasks"),
        ({"train_labels": "digit", "test_keys": "speaker"}, "not of every image"),
    ],
)
def test_options_that_contradict_each_other_are_refused(write, options, told):
    with pytest.raises(DataError, match=told):
        write(options)


def test_keys_go_with_their_images(write):
    data = write({"train_labels": "digit", "train_keys": "named"}, named=np.array([f"k{i:02d}" for i in range(N)]))
    for part in (data.train, data.test):
        places = [int(key[1:]) for key in part.keys]
        assert (DIGIT[places] == part.targets).all()


@pytest.mark.parametrize(("kind", "expected"), [("stem", ["0", "1"]), ("path", ["train/a/0", "train/b/1"])])
def test_the_keys_of_picture_files_are_their_names(tmp_path, kind, expected):
    for place, part in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.new("RGB", (6, 6), (40 * place, 9, 9)).save(tmp_path / "set" / part / f"{place}.png")
    data = DATASETS.build("image_folder", tmp_path, tmp_path / "cache", path="set", keys=kind)
    assert data.train.keys.tolist() == expected
    plain = DATASETS.build("image_folder", tmp_path, tmp_path / "cache", path="set")
    assert plain.train.keys is None
    assert plain.fingerprint == data.fingerprint
