import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from kdnas.datasets._cache import ImageWriter, Labelling, cached, channel_statistics
from kdnas.errors import DataError

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (30, 3, 4, 5), dtype=np.uint8)
LABELS = np.arange(30) % 3
IS_TEST = np.arange(30) % 5 == 0
NAMES = ("a", "b", "c")


def write(writer: ImageWriter) -> Labelling:
    for image in IMAGES:
        writer.append(image)
    return Labelling(NAMES, LABELS, IS_TEST)


def open_from_process(cache: str, queue: multiprocessing.Queue) -> None:
    data = cached("toy", Path(cache), {"v": 1}, write)
    queue.put((data.fingerprint, int(data.train.inputs["pixels"].sum())))


def test_splits_are_arranged_and_memory_mapped(tmp_path):
    data = cached("toy", tmp_path, {"v": 1}, write)
    np.testing.assert_array_equal(data.train.inputs["pixels"], IMAGES[~IS_TEST])
    np.testing.assert_array_equal(data.test.inputs["pixels"], IMAGES[IS_TEST])
    np.testing.assert_array_equal(data.train.targets, LABELS[~IS_TEST])
    np.testing.assert_array_equal(data.test.targets, LABELS[IS_TEST])
    assert isinstance(data.train.inputs["pixels"], np.memmap)
    assert not data.train.inputs["pixels"].flags.writeable
    assert data.class_names == NAMES
    np.testing.assert_allclose(data.channel_mean, IMAGES[~IS_TEST].mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.channel_std, IMAGES[~IS_TEST].std(axis=(0, 2, 3)), rtol=1e-12)


def test_decodes_once_and_again_when_the_identity_changes(tmp_path):
    calls = []

    def decode(writer):
        calls.append(1)
        return write(writer)

    first = cached("toy", tmp_path, {"v": 1}, decode)
    second = cached("toy", tmp_path, {"v": 1}, decode)
    assert len(calls) == 1
    assert first.fingerprint == second.fingerprint
    assert cached("toy", tmp_path, {"v": 2}, decode).fingerprint == first.fingerprint
    assert len(calls) == 2


@pytest.mark.parametrize("changed", ["pixel", "label", "name", "split"])
def test_the_fingerprint_sees_every_change_of_content(tmp_path, changed):
    base = cached("toy", tmp_path, {"v": 1}, write)

    def decode(writer):
        images, labels, is_test, names = IMAGES.copy(), LABELS.copy(), IS_TEST.copy(), NAMES
        if changed == "pixel":
            images[7, 1, 2, 3] ^= 1
        if changed == "label":
            labels[7] = (labels[7] + 1) % 3
        if changed == "name":
            names = ("a", "b", "d")
        if changed == "split":
            is_test[1] = True
        writer.extend(images)
        return Labelling(names, labels, is_test)

    assert cached("toy", tmp_path, {"v": changed}, decode).fingerprint != base.fingerprint


def test_keep_drops_and_orders(tmp_path):
    keep = np.array([4, 2, 9, 5, 6, 10, 7])

    def decode(writer):
        writer.extend(IMAGES)
        return Labelling(NAMES, LABELS, IS_TEST, keep)

    data = cached("toy", tmp_path, {}, decode)
    np.testing.assert_array_equal(data.train.inputs["pixels"], IMAGES[[4, 2, 9, 6, 7]])
    np.testing.assert_array_equal(data.test.inputs["pixels"], IMAGES[[5, 10]])


def test_an_interrupted_decoding_leaves_nothing(tmp_path):
    def decode(writer):
        writer.extend(IMAGES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("toy", tmp_path, {}, decode)
    assert [path for path in (tmp_path / "datasets").iterdir() if path.is_dir()] == []


def test_what_a_killed_process_left_is_swept_and_a_damaged_entry_is_made_anew(tmp_path):
    data = cached("toy", tmp_path, {}, write)
    folder = Path(data.train.inputs["pixels"].filename).parent
    left = folder.parent / f".{folder.name}-killed"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    for name, damage in (("images.npy", b"\x93NUMPY"), ("meta.json", b"{"), ("labels.npy", b"")):
        (folder / name).write_bytes(damage)
        again = cached("toy", tmp_path, {}, write)
        assert again.fingerprint == data.fingerprint
        np.testing.assert_array_equal(again.train.inputs["pixels"], IMAGES[~IS_TEST])
    assert not left.exists()


def test_processes_may_race(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=open_from_process, args=(str(tmp_path), queue)) for _ in range(4)]
    for process in processes:
        process.start()
    results = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(results) == 1
    assert len([path for path in (tmp_path / "datasets").iterdir() if path.is_dir()]) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="KDNAS_CACHE"):
        cached("toy", tmp_path / "cache", {}, write)


def test_all_problems_of_the_samples_are_told_at_once(tmp_path):
    def decode(writer):
        writer.extend(IMAGES)
        return Labelling(("a", "b", "c", "d"), LABELS, np.zeros(30, dtype=bool))

    with pytest.raises(DataError, match="no image of class d") as caught:
        cached("toy", tmp_path, {}, decode)
    assert "no test images" in str(caught.value)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (("a",), np.zeros(30, dtype=int), "only one class"),
        (NAMES, LABELS + 1, r"out of range: 3 \(allowed: 0 to 2\)"),
        (NAMES, LABELS - 1, "out of range: -1"),
        (NAMES, LABELS[:-1], "30 images but 29 labels"),
        (("a", "b", "b"), LABELS, "occur twice"),
    ],
)
def test_unusable_samples_are_refused(tmp_path, names, labels, message):
    def decode(writer):
        writer.extend(IMAGES)
        return Labelling(names, labels, IS_TEST)

    with pytest.raises(DataError, match=message):
        cached("toy", tmp_path, {}, decode)


def test_a_constant_channel_has_a_usable_deviation():
    mean, std = channel_statistics(np.full((2, 1, 3, 3), 9, dtype=np.uint8))
    assert (mean, std) == ([9.0], [1.0])


def test_the_meta_file_holds_plain_facts(tmp_path):
    data = cached("toy", tmp_path, {}, write)
    meta = json.loads((Path(data.train.inputs["pixels"].filename).parent / "meta.json").read_text())
    assert meta["fingerprint"] == data.fingerprint
    assert meta["train_count"] == 24


def test_the_writer_refuses_another_shape_or_type(tmp_path):
    with ImageWriter(tmp_path / "images.npy") as writer:
        writer.append(IMAGES[0])
        with pytest.raises(ValueError, match="cannot follow"):
            writer.append(IMAGES[0, :, :3])
        with pytest.raises(ValueError, match="cannot follow"):
            writer.append(IMAGES[0].astype(np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), IMAGES[:1])
