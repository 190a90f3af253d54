import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnas.datasets import DATASETS
from kdnas.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (18, 5, 4, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def save(path: Path, images, labels, *, struct: bool = True, names=None, columns=("image", "label")) -> None:
    cells = [png(image) if isinstance(image, np.ndarray) else image for image in images]
    column = [{"bytes": cell, "path": None} for cell in cells] if struct else cells
    table = pyarrow.table({columns[0]: column, columns[1]: labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


def open_it(root: Path, **options):
    return DATASETS.build(
        "parquet", root, root / "cache", **{"train": "train-*.parquet", "test": "test.parquet", **options}
    )


def lay(root: Path, **options) -> None:
    labels = (np.arange(18) % 3).tolist()
    if options.pop("texts", False):
        labels = [("cat", "ant", "bee")[label] for label in labels]
    save(root / "train-1.parquet", IMAGES[6:12], labels[6:12], **options)
    save(root / "train-0.parquet", IMAGES[:6], labels[:6], **options)
    save(root / "test.parquet", IMAGES[12:], labels[12:], **options)


@pytest.mark.parametrize("struct", [True, False])
def test_shards_in_order_with_the_names_of_their_metadata(tmp_path, struct):
    lay(tmp_path, struct=struct, names=["x", "y", "z"])
    data = open_it(tmp_path)
    np.testing.assert_array_equal(data.train.inputs["pixels"], IMAGES[:12].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.inputs["pixels"], IMAGES[12:].transpose(0, 3, 1, 2))
    assert data.train.targets.tolist() == (np.arange(12) % 3).tolist()
    assert data.class_names == ("x", "y", "z")


def test_texts_numbers_other_columns_and_a_carved_split(tmp_path):
    lay(tmp_path, texts=True, columns=("img", "kind"))
    data = open_it(tmp_path, image_column="img", label_column="kind", size=8, grayscale=True)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.train.targets.tolist() == [2, 0, 1] * 4
    assert data.task.image_shape == (1, 8, 8)
    lay(tmp_path)
    data = open_it(tmp_path, test=None, test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"text", *IMAGES[1:6]], [0, 1, 2, 0, 1, 2], "row 0: is not an image"),
        ([None, *IMAGES[1:6]], [0, 1, 2, 0, 1, 2], "row 0: holds no image bytes"),
        ([*IMAGES[:5], IMAGES[5, :3]], [0, 1, 2, 0, 1, 2], "row 5: is 4x3 pixels, others 4x5"),
        (IMAGES[:6], [0, 1, 2, 0, 1, None], "row 5: its label is None"),
        (IMAGES[:6], [0.5] * 6, "its label is 0.5"),
        (IMAGES[:6], [0, 1, 2, 0, 1, 5], "no image of class 3, 4"),
        (IMAGES[:6], [0, 1, 2, 0, 1, -1], "out of range"),
        (IMAGES[:6], ["a"] * 6, "mixes numbers and texts"),
    ],
)
def test_bad_rows_are_named(tmp_path, images, labels, message):
    lay(tmp_path)
    save(tmp_path / "train-0.parquet", images, labels)
    with pytest.raises(DataError, match=message):
        open_it(tmp_path)


def test_only_one_class_is_refused(tmp_path):
    for name in ("train-0", "test"):
        save(tmp_path / f"{name}.parquet", IMAGES[:4], [0] * 4)
    with pytest.raises(DataError, match="only one class"):
        open_it(tmp_path)


def test_missing_files_columns_and_options(tmp_path):
    with pytest.raises(DataError, match=r"train-\*.parquet: there is no such file"):
        open_it(tmp_path)
    lay(tmp_path)
    with pytest.raises(DataError, match=r"has no column 'pixels' \(allowed: image, label\)"):
        open_it(tmp_path, image_column="pixels")
    with pytest.raises(DataError, match="either `test` or `test_fraction`"):
        open_it(tmp_path, test=None)
    lay(tmp_path, texts=True)
    with pytest.raises(DataError, match="are no class"):
        open_it(tmp_path, class_names=("ant", "bee"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_cut_file_is_refused(tmp_path, share):
    lay(tmp_path)
    content = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "test.parquet").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="not a parquet file or is damaged"):
        open_it(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    lay(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"kdnas\[parquet\]"):
        open_it(tmp_path)


def test_a_pattern_is_a_pattern_and_the_data_root_is_none(tmp_path):
    root = tmp_path / "data [v1]*?"
    root.mkdir()
    lay(root)
    assert len(open_it(root).train) == 12
    (root / "train-1.parquet").rename(root / "train[1].parquet")
    assert len(open_it(root, train="train[1].parquet").train) == 6


KINDS = ["x", "y", "z"]


def named(root: Path, file: str, rows: slice, names: list[str]) -> None:
    """Rows of IMAGES whose true class is KINDS[row % 3], numbered as `names` are."""
    labels = [names.index(KINDS[row % 3]) for row in range(18)[rows]]
    save(root / file, IMAGES[rows], labels, names=names)


def test_files_that_number_the_classes_differently_are_matched_by_name(tmp_path):
    named(tmp_path, "train-0.parquet", slice(0, 6), ["y", "z", "x"])
    named(tmp_path, "train-1.parquet", slice(6, 12), ["x", "z", "y"])
    named(tmp_path, "test.parquet", slice(12, 18), KINDS)
    data = open_it(tmp_path)
    assert data.class_names == ("y", "z", "x")
    for split, rows in ((data.train, range(12)), (data.test, range(12, 18))):
        assert [data.class_names[label] for label in split.targets] == [KINDS[row % 3] for row in rows]
    assert "its files number the classes differently: labels are matched by their names" in data.notes
    stated = open_it(tmp_path, class_names=("z", "x", "y"))
    assert [stated.class_names[label] for label in stated.train.targets] == [KINDS[row % 3] for row in range(12)]
    with pytest.raises(DataError, match="none of `class_names` is a name of theirs"):
        open_it(tmp_path, class_names=("ant", "bee", "cat"))


def test_numbers_and_texts_of_the_same_classes_may_be_mixed(tmp_path):
    named(tmp_path, "train-0.parquet", slice(0, 6), ["z", "y", "x"])
    save(tmp_path / "train-1.parquet", IMAGES[6:12], [KINDS[row % 3] for row in range(6, 12)])
    named(tmp_path, "test.parquet", slice(12, 18), KINDS)
    data = open_it(tmp_path)
    assert [data.class_names[label] for label in data.train.targets] == [KINDS[row % 3] for row in range(12)]


def test_class_names_rename_what_every_file_numbers_alike(tmp_path):
    lay(tmp_path, names=KINDS)
    data = open_it(tmp_path, class_names=("ant", "bee", "cat"))
    assert data.class_names == ("ant", "bee", "cat")
    assert data.train.targets.tolist() == (np.arange(12) % 3).tolist()
    with pytest.raises(DataError, match="2 names for 3 classes"):
        open_it(tmp_path, class_names=("ant", "bee"))
    with pytest.raises(DataError, match="labels z are no class"):
        open_it(tmp_path, class_names=("x", "y"))


def test_integers_that_cannot_be_matched_are_refused(tmp_path):
    lay(tmp_path, names=KINDS)
    save(tmp_path / "train-1.parquet", IMAGES[6:12], [0, 1, 2] * 2)
    with pytest.raises(DataError, match=r"train-1.parquet: its labels are integers without class names"):
        open_it(tmp_path)
    lay(tmp_path, names=KINDS)
    save(tmp_path / "test.parquet", IMAGES[12:], [-1] * 6, names=KINDS)
    with pytest.raises(DataError, match="row 0: its label is -1, which stands for a label that is withheld"):
        open_it(tmp_path)
    named(tmp_path, "test.parquet", slice(12, 18), [*KINDS, "new"])
    with pytest.raises(DataError, match="no image of class new"):
        open_it(tmp_path)


def test_pictures_are_decoded_as_from_files(tmp_path):
    lay(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, "PNG", exif=exif)
    save(tmp_path / "train-0.parquet", [file.getvalue(), *IMAGES[1:6]], [0, 1, 2] * 2)
    data = open_it(tmp_path)
    np.testing.assert_array_equal(data.train.inputs["pixels"][0], IMAGES[0][::-1, ::-1].transpose(2, 0, 1))
    assert any(note.startswith("1 of 18 pictures is stored turned") for note in data.notes)
    with pytest.raises(DataError, match="holds no image bytes but the path 'a.png'"):
        table = pyarrow.table({"image": [{"bytes": None, "path": "a.png"}], "label": [0]})
        pq.write_table(table, tmp_path / "train-0.parquet")
        open_it(tmp_path)


def test_names_may_be_told_by_number_as_in_a_data_card(tmp_path):
    lay(tmp_path, names={str(i): name for i, name in enumerate(KINDS)})
    assert open_it(tmp_path).class_names == ("x", "y", "z")
