"""The sources that give arrays: digits, npz, module."""

from pathlib import Path

import numpy as np
import pytest

from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, DataError

RNG = np.random.default_rng(5)
TRAIN = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
TEST = RNG.integers(0, 256, (6, 6, 5, 3), dtype=np.uint8)
TRAIN_LABELS = np.arange(12) % 3
TEST_LABELS = np.arange(6) % 3


def save(folder: Path, **changes: np.ndarray | None) -> None:
    arrays = {
        "train_images": TRAIN,
        "train_labels": TRAIN_LABELS,
        "test_images": TEST,
        "test_labels": TEST_LABELS,
        **changes,
    }
    np.savez_compressed(folder / "data.npz", **{name: array for name, array in arrays.items() if array is not None})


def open_npz(folder: Path, **options):
    return DATASETS.build("npz", folder, folder / "cache", path="data.npz", **options)


def test_digits_are_scikit_learns_on_the_full_scale(tmp_path):
    from sklearn.datasets import load_digits

    data = DATASETS.build("digits", tmp_path, tmp_path)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.task.image_shape == (1, 8, 8)
    assert data.task.outputs == 10
    both = np.concatenate([data.train.inputs["pixels"], data.test.inputs["pixels"]])[:, 0]
    assert both.max() == 255
    source = load_digits()
    ours = sorted(map(bytes, np.rint(both / (255 / 16)).astype(np.uint8).reshape(len(both), -1)))
    assert ours == sorted(map(bytes, source.images.astype(np.uint8).reshape(len(both), -1)))
    share = np.bincount(data.test.targets) / np.bincount(source.target)
    assert (np.abs(share - 0.2) < 0.01).all()


def test_digits_split_is_always_the_same_and_follows_its_fraction(tmp_path):
    first = DATASETS.build("digits", tmp_path, tmp_path / "one")
    second = DATASETS.build("digits", tmp_path, tmp_path / "two")
    assert first.fingerprint == second.fingerprint
    assert len(DATASETS.build("digits", tmp_path, tmp_path / "one", test_fraction=0.5).test) in range(890, 910)
    with pytest.raises(ConfigError, match="must be below 1"):
        DATASETS.build("digits", tmp_path, tmp_path, test_fraction=1.0)


def test_npz_layouts_agree(tmp_path):
    save(tmp_path)
    last = open_npz(tmp_path)
    np.testing.assert_array_equal(last.train.inputs["pixels"], TRAIN.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(last.test.targets, TEST_LABELS)
    save(tmp_path, train_images=TRAIN.transpose(0, 3, 1, 2), test_images=TEST.transpose(0, 3, 1, 2))
    assert open_npz(tmp_path).fingerprint == last.fingerprint
    save(tmp_path, train_images=TRAIN[..., 0], test_images=TEST[..., 0], train_labels=TRAIN_LABELS[:, np.newaxis])
    grey = open_npz(tmp_path, class_names=("x", "y", "z"))
    np.testing.assert_array_equal(grey.train.inputs["pixels"], TRAIN[..., :1].transpose(0, 3, 1, 2))
    assert grey.class_names == ("x", "y", "z")


def test_npz_layout_can_be_stated_where_it_cannot_be_told(tmp_path):
    images = RNG.integers(0, 256, (12, 3, 4, 3), dtype=np.uint8)
    save(tmp_path, train_images=images, test_images=images[:6])
    assert open_npz(tmp_path).task.image_shape == (3, 3, 4)
    np.testing.assert_array_equal(open_npz(tmp_path, layout="NCHW").train.inputs["pixels"], images)


def test_npz_carves_a_test_split_of_every_class(tmp_path):
    save(tmp_path, test_images=None, test_labels=None)
    data = open_npz(tmp_path, test_fraction=0.25)
    assert np.bincount(data.test.targets).tolist() == [1, 1, 1]
    assert len(data.train) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": TRAIN.astype(np.float32) / 255}, r"train_images: images are float32 \(allowed: uint8"),
        ({"train_images": TRAIN / 255.0}, r"these are in 0..1: `\(255 \* images\).round"),
        ({"train_images": TRAIN / 64.0 - 2}, r"these reach from -2 to .*: undo their normalisation first"),
        ({"train_images": np.where(TRAIN > 9, np.nan, TRAIN)}, "some values are not finite"),
        ({"train_images": TRAIN.astype(np.int64)}, r"`.astype\('uint8'\)` keeps these"),
        ({"test_images": TEST // 255}, "on different scales: no training pixel is above 255; no test pixel is above"),
        ({"train_labels": np.eye(3)[TRAIN_LABELS]}, "one-hot rows become them by `.argmax"),
        ({"train_labels": np.eye(3, dtype=int)[TRAIN_LABELS]}, "one-hot rows become them by `.argmax"),
        ({"train_images": TRAIN[:, :, :, :2]}, r"shape \[12, 6, 5, 2\]"),
        ({"test_images": TEST[:, :4]}, r"test_images: images are \[3, 4, 5\]"),
        ({"train_labels": TRAIN_LABELS.astype(np.float64)}, "train_labels: labels are float64"),
        ({"train_labels": TRAIN_LABELS[:-1]}, "11 labels for 12 images"),
        ({"train_labels": np.zeros(12, dtype=int), "test_labels": np.zeros(6, dtype=int)}, "only one class"),
        (
            {"train_labels": TRAIN_LABELS + 1, "test_labels": TEST_LABELS + 1},
            "class 0 .labels that count from 1",
        ),
        ({"test_labels": TEST_LABELS + 1}, "no image of class 3"),
        ({"test_labels": -TEST_LABELS}, "out of range"),
        ({"test_images": None}, r"test_images: there is no such array \(allowed: train_images.* `test_fraction`\)"),
        ({"train_labels": np.array([object()] * 12)}, "would execute code"),
    ],
)
def test_bad_npz_arrays_are_refused(tmp_path, changes, message):
    save(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_npz(tmp_path)


def test_bytes_of_nought_and_one_are_spoken_of(tmp_path):
    save(tmp_path, train_images=TRAIN // 128, test_images=TEST // 128)
    assert "no pixel is above 1 of 255: were they in 0..1 and made bytes?" in open_npz(tmp_path).notes


def test_all_problems_of_an_npz_are_told_at_once(tmp_path):
    save(tmp_path, train_images=TRAIN.astype(float), test_labels=TEST_LABELS[:-1])
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_cut_npz_is_refused(tmp_path, share):
    save(tmp_path)
    content = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="cut short"):
        open_npz(tmp_path)


def test_a_damaged_npz_array_is_refused(tmp_path):
    save(tmp_path)
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_npz(tmp_path)


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "data.npz").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_npz(tmp_path)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path)
    text = str(caught.value)
    for part in (
        str(tmp_path / "data.npz"),
        f"data root is {tmp_path}",
        "--data-root",
        "KDNAS_DATA",
        "data/",
        "train_images",
    ):
        assert part in text


LOADER = """
import numpy as np

def load(data_root, classes=3, wrong=""):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 4, 4), dtype=np.uint8) for n in (12, 6))
    if wrong == "raise":
        raise RuntimeError("no luck in " + data_root.name)
    if wrong == "list":
        return [train]
    if wrong == "shape":
        test = test[:, :3]
    if wrong == "many":
        return train.astype(float), np.zeros(5, dtype=int), test, test
    names = [f"class {i}" for i in range(classes)]
    return train, np.arange(12) % classes, test, np.arange(6) % classes, names
"""


def open_module(folder: Path, **options):
    (folder / "mine.py").write_text(LOADER)
    function = options.pop("function", "mine.py:load")
    return DATASETS.build("module", folder, folder / "cache", function=function, options=options)


def test_a_users_function_is_called_with_its_options(tmp_path):
    data = open_module(tmp_path, classes=4)
    assert data.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert data.task.image_shape == (1, 4, 4)
    expected = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(data.train.inputs["pixels"][:, 0], expected)
    assert isinstance(data.train.inputs["pixels"], np.memmap)
    assert open_module(tmp_path, classes=3).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrong": "raise"}, "'mine.py:load' fails: RuntimeError: no luck"),
        ({"wrong": "list"}, "returned list"),
        ({"wrong": "shape"}, r"train images are \[1, 4, 4\], test images \[1, 3, 4\]"),
        ({"colour": 1}, "fails: TypeError"),
        ({"classes": 1}, "only one class"),
        ({"classes": 13}, "no image of class class 12"),
    ],
)
def test_a_users_function_that_fails_is_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        open_module(tmp_path, **options)


def test_all_problems_of_a_users_arrays_are_told_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        open_module(tmp_path, wrong="many")
    assert len(caught.value.problems) == 3


def test_a_users_function_that_is_not_there_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no 'nothing'"):
        open_module(tmp_path, function="mine.py:nothing")


WITH_WORKERS = """
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from labels import NAMES

torch.set_grad_enabled(False)

class Digits(Dataset):
    def __len__(self): return 12
    def __getitem__(self, index): return torch.full((4, 4), index, dtype=torch.uint8), index % 3

def load(data_root):
    images, labels = zip(*DataLoader(Digits(), batch_size=4, num_workers=2, multiprocessing_context={context!r}))
    images, labels = torch.cat(images), torch.cat(labels)
    return images, labels, images, labels, NAMES
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_users_function_may_use_workers_and_what_stands_beside_it(tmp_path, context):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(WITH_WORKERS.replace("{context!r}", repr(context)))
    (tmp_path / "code" / "labels.py").write_text("NAMES = ['x', 'y', 'z']\n")
    data = DATASETS.build("module", tmp_path, tmp_path / "cache", function="code/mine.py:load")
    assert data.class_names == ("x", "y", "z")
    assert data.train.inputs["pixels"][:, 0, 0, 0].tolist() == list(range(12))
    assert "(gradients on or off): put back" in data.notes[-1]
