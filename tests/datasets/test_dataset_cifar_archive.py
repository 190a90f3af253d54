import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kdnas.datasets import DATASETS
from kdnas.errors import DataError

RNG = np.random.default_rng(11)


def batch(count: int, classes: int = 10, **extra: object) -> dict[str, object]:
    labels = (np.arange(count) % classes).tolist()
    return {
        "data": RNG.integers(0, 256, (count, 3072), dtype=np.uint8),
        "labels": labels,
        "filenames": ["a.png"] * count,
        **extra,
    }


def as_bytes_keys(record: dict[str, object]) -> dict[bytes, object]:
    return {key.encode(): value for key, value in record.items()}


def cifar10() -> dict[str, dict[str, object]]:
    files = {f"data_batch_{i}": batch(20) for i in range(1, 6)}
    return {**files, "test_batch": batch(10), "batches.meta": {"label_names": [f"name {i}" for i in range(10)]}}


def pack(path: Path, contents: dict[str, bytes], folder: str = "cifar-10-batches-py") -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in sorted(contents.items()):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def pickled(files: dict[str, dict[str, object]], protocol: int = 2) -> dict[str, bytes]:
    return {name: pickle.dumps(record, protocol) for name, record in files.items()}


def open_it(root: Path, path: str = "cifar.tar.gz", **options):
    return DATASETS.build("cifar_archive", root, root / "cache", path=path, **options)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10_archive_and_folder(tmp_path, protocol):
    files = cifar10()
    contents = pickled(files, protocol)
    pack(tmp_path / "cifar.tar.gz", contents)
    data = open_it(tmp_path)
    expected = np.concatenate([files[f"data_batch_{i}"]["data"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train.inputs["pixels"], expected)
    np.testing.assert_array_equal(data.test.inputs["pixels"], files["test_batch"]["data"].reshape(-1, 3, 32, 32))
    assert data.train.targets.tolist() == list(range(10)) * 10
    assert data.class_names == tuple(f"name {i}" for i in range(10))
    folder = tmp_path / "extracted" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert open_it(tmp_path, "extracted").fingerprint == data.fingerprint


def test_a_pickle_as_python_2_wrote_it(tmp_path):
    """Spelled in opcodes: Python 2's str as BINSTRING, numpy's array through numpy.core.multiarray."""
    pixels = bytes(range(256)) * 12  # 3072
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + (6144).to_bytes(4, "little")
        + pixels * 2
        + b"tb"
    )
    content = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x00K\x01eu."
    files = {**{f"data_batch_{i}": content for i in range(1, 6)}, "test_batch": content}
    pack(tmp_path / "cifar.tar.gz", files)
    data = open_it(tmp_path)
    assert data.train.inputs["pixels"][0].tobytes() == pixels
    assert data.train.targets.tolist() == [0, 1] * 5
    assert data.class_names == ("0", "1")


@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100(tmp_path, labels, classes):
    train = batch(200, fine_labels=(np.arange(200) % 100).tolist(), coarse_labels=(np.arange(200) % 20).tolist())
    test = batch(100, fine_labels=(np.arange(100) % 100).tolist(), coarse_labels=(np.arange(100) % 20).tolist())
    meta = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    pack(tmp_path / "cifar.tar.gz", pickled({"train": train, "test": test, "meta": meta}), "cifar-100-python")
    data = open_it(tmp_path, labels=labels)
    assert (len(data.train), len(data.test)) == (200, 100)
    assert data.class_names == tuple(f"{labels[0]}{i}" for i in range(classes))
    assert data.train.targets.tolist() == (np.arange(200) % classes).tolist()


class Evil:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: Evil(os.mkdir, path),
        lambda path: Evil(eval, f"__import__('os').mkdir({path!r})"),
        lambda path: Evil(getattr, os, "sep"),
        lambda path: Evil(np.load, path),
    ],
)
def test_a_malicious_pickle_runs_nothing(tmp_path, make, protocol):
    path = str(tmp_path / "evil")
    files = pickled(cifar10())
    files["data_batch_3"] = (
        pickle.dumps({**batch(20), "extra": make(path)}, protocol)
        if make(path).function is not getattr
        else (b"\x80\x02cbuiltins\ngetattr\ncos\nsep\nX\x01\x00\x00\x00a\x86R.")
    )
    pack(tmp_path / "cifar.tar.gz", files)
    with pytest.raises(DataError, match="data_batch_3: refused: the pickle asks for"):
        open_it(tmp_path)
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps(batch(20))[:-5000], "damaged or cut short"),
        (b"", "damaged or cut short"),
        (
            pickle.dumps({"data": np.zeros((20, 3072)), "labels": [0] * 20}, 2),
            "refused: the pickle holds an array of type",
        ),
        (
            pickle.dumps({"data": np.zeros((20, 3), dtype=np.uint8), "labels": [0] * 20}, 2),
            r"uint8 \[20, 3\], not uint8",
        ),
        (pickle.dumps({"data": 7, "labels": [0]}, 2), "its data is int"),
        (pickle.dumps({**batch(20), "labels": [0] * 19}, 2), "19 labels for 20 images"),
        (pickle.dumps({**batch(20), "labels": ["a"] * 20}, 2), "not a list of integers"),
        (b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "damaged"),  # a giant array
    ],
)
def test_a_bad_batch_is_named(tmp_path, content, message):
    pack(tmp_path / "cifar.tar.gz", {**pickled(cifar10()), "data_batch_2": content})
    with pytest.raises(DataError, match=f"data_batch_2: {message}|data_batch_2: .*{message}"):
        open_it(tmp_path)


def test_labels_out_of_range_and_missing_files(tmp_path):
    files = pickled({**cifar10(), "test_batch": {**batch(10), "labels": [12] * 10}})
    pack(tmp_path / "cifar.tar.gz", files)
    with pytest.raises(DataError, match=r"10 are out of range: 12 \(allowed: 0 to 9"):
        open_it(tmp_path)
    del files["test_batch"], files["data_batch_4"]
    pack(tmp_path / "cifar.tar.gz", files)
    with pytest.raises(DataError, match="holds no data_batch_4") as caught:
        open_it(tmp_path)
    assert "holds no test_batch" in str(caught.value)


def test_a_cut_archive_and_an_unsafe_member_are_refused(tmp_path):
    pack(tmp_path / "cifar.tar.gz", pickled(cifar10()), "../evil")
    with pytest.raises(DataError, match="unsafe member"):
        open_it(tmp_path)
    pack(tmp_path / "cifar.tar.gz", pickled(cifar10()))
    os.truncate(tmp_path / "cifar.tar.gz", (tmp_path / "cifar.tar.gz").stat().st_size // 2)
    with pytest.raises(DataError, match="cut short"):
        open_it(tmp_path)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz"):
        open_it(tmp_path, "nowhere.tar.gz")
