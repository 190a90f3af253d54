import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, DataError

CLASSES = ("ant", "bee", "cow")


def pixels(split: str, name: str, index: int, side: int = 6) -> np.ndarray:
    seed = sum(map(ord, split + name)) + 100 * index
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def tree(counts: dict[str, int] | None = None) -> dict[str, bytes]:
    return {
        f"{split}/{name}/{index}.png": png(pixels(split, name, index))
        for split, count in (counts or {"train": 4, "test": 2}).items()
        for name in CLASSES
        for index in range(count)
    }


def lay(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pack(path: Path, files: dict[str, bytes], order: int = 1) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in list(files)[::order]:
                archive.writestr(name, files[name])
        return
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name in list(files)[::order]:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))


def open_it(root: Path, path: str = "data", **options):
    return DATASETS.build("image_folder", root, root / "cache", path=path, **options)


def snapshot(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if "cache" not in path.relative_to(root).parts}


def test_a_folder_is_read_in_order_of_its_paths(tmp_path):
    lay(tmp_path / "data", tree())
    data = open_it(tmp_path)
    assert data.class_names == CLASSES
    assert data.name == "data"
    expected = [pixels("train", name, index).transpose(2, 0, 1) for name in CLASSES for index in range(4)]
    np.testing.assert_array_equal(data.train.inputs["pixels"], expected)
    assert data.train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = [pixels("test", name, index).transpose(2, 0, 1) for name in CLASSES for index in range(2)]
    np.testing.assert_array_equal(data.test.inputs["pixels"], expected)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
@pytest.mark.parametrize("wrapping", ["", "./", "somebody/CIFAR-10-images/"])
def test_archives_give_what_the_folder_gives_and_write_nothing_beside_the_cache(tmp_path, suffix, wrapping):
    lay(tmp_path / "data", tree())
    pack(tmp_path / f"data.{suffix}", {wrapping + name: content for name, content in tree().items()}, order=-1)
    before = snapshot(tmp_path)
    assert open_it(tmp_path, f"data.{suffix}").fingerprint == open_it(tmp_path).fingerprint
    assert snapshot(tmp_path) == before


def test_other_files_are_passed_over(tmp_path):
    extra = {
        "README.md": b"#",
        "train/ant/.DS_Store": b"x",
        "train/bee/notes.txt": b"x",
        "__MACOSX/train/ant/0.png": b"x",
    }
    lay(tmp_path / "plain", tree())
    pack(tmp_path / "data.zip", {**tree(), **extra})
    assert open_it(tmp_path, "data.zip").fingerprint == open_it(tmp_path, "plain").fingerprint


def test_val_serves_where_there_is_no_test_and_is_left_alone_where_there_is(tmp_path):
    lay(tmp_path / "val", tree({"train": 4, "val": 2}))
    assert len(open_it(tmp_path, "val").test) == 6
    lay(tmp_path / "both", tree({"train": 4, "test": 1, "val": 2}))
    data = open_it(tmp_path, "both")
    assert (len(data.train), len(data.test)) == (12, 3)


def test_a_test_split_is_carved_where_asked(tmp_path):
    files = {name.removeprefix("train/"): content for name, content in tree({"train": 10}).items()}
    lay(tmp_path / "data", files)
    data = open_it(tmp_path, test_fraction=0.3)
    assert np.bincount(data.test.targets).tolist() == [3, 3, 3]
    train, test = ({image.tobytes() for image in part.inputs["pixels"]} for part in (data.train, data.test))
    assert len(train) == 21
    assert not train & test
    with pytest.raises(DataError, match="no test split"):
        open_it(tmp_path)
    lay(tmp_path / "full", tree())
    with pytest.raises(DataError, match="test_fraction"):
        open_it(tmp_path, "full", test_fraction=0.3)


def test_a_changed_file_is_decoded_anew(tmp_path):
    lay(tmp_path / "data", tree())
    first = open_it(tmp_path).fingerprint
    lay(tmp_path / "data", {"train/ant/0.png": png(pixels("x", "y", 1))})
    assert open_it(tmp_path).fingerprint != first


def test_resizing_and_grey(tmp_path):
    files = {name: png(np.full((4 + i % 3, 5, 3), 40 * (i % 4), dtype=np.uint8)) for i, name in enumerate(tree())}
    lay(tmp_path / "data", files)
    data = open_it(tmp_path, size=(8, 7), grayscale=True)
    assert data.task.image_shape == (1, 8, 7)
    assert set(np.unique(data.train.inputs["pixels"])) == {0, 40, 80, 120}
    assert open_it(tmp_path, size=3).task.image_shape == (3, 3, 3)
    with pytest.raises(
        DataError, match=r"is 5x5 pixels, but train/ant/0.png 5x4 \(allowed: one size, or the option `size`"
    ):
        open_it(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    lay(tmp_path / "data", tree())
    (tmp_path / "data/train/dog").mkdir()
    (tmp_path / "data/test/dog").mkdir()
    with pytest.raises(DataError, match="train/dog: the class folder holds no images") as caught:
        open_it(tmp_path)
    assert "test/dog" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_unreadable_images_are_all_named_up_to_ten(tmp_path):
    files = tree({"train": 6, "test": 2})
    content = files["train/ant/0.png"]
    lay(tmp_path / "data", {**files, "train/ant/0.png": content[: len(content) // 2], "train/bee/1.png": b"text"})
    with pytest.raises(DataError) as caught:
        open_it(tmp_path)
    first, second = map(str, caught.value.problems)
    assert first.startswith(f"{tmp_path}/data: train/ant/0.png: cannot be read")
    assert "train/bee/1.png: is not an image" in second
    lay(tmp_path / "data", dict.fromkeys(files, b""))
    with pytest.raises(DataError, match="and 14 more problems like these") as caught:
        open_it(tmp_path)
    assert len(caught.value.problems) == 11


def test_pixels_on_an_unknown_scale_and_formats_that_run_programs_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6), 0.5, dtype=np.float32)).save(file, "TIFF")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n"
    lay(tmp_path / "data", {**tree(), "train/ant/0.png": file.getvalue(), "train/ant/1.png": postscript})
    with pytest.raises(DataError, match="more than 16 bits") as caught:
        open_it(tmp_path)
    assert "1.png: is not an image that can be read" in str(caught.value)


def test_only_one_class(tmp_path):
    lay(tmp_path / "data", {name: content for name, content in tree().items() if "/ant/" in name})
    with pytest.raises(DataError, match="only one class"):
        open_it(tmp_path)


def test_train_and_test_with_different_classes(tmp_path):
    files = {name.replace("test/cow", "test/yak"): content for name, content in tree().items()}
    lay(tmp_path / "data", files)
    with pytest.raises(DataError, match="only in train/: cow") as caught:
        open_it(tmp_path)
    assert "only in test/: yak" in str(caught.value)


def test_an_image_in_no_class_folder_and_a_folder_without_images(tmp_path):
    lay(tmp_path / "data", {**tree(), "train/stray.png": png(pixels("a", "b", 0))})
    with pytest.raises(DataError, match=r"train/stray\.png: lies in no class folder"):
        open_it(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_it(tmp_path, "empty")


def test_missing_and_foreign_paths(tmp_path):
    with pytest.raises(DataError, match="KDNAS_DATA") as caught:
        open_it(tmp_path, "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        open_it(tmp_path, "data.rar")
    with pytest.raises(ConfigError, match="size"):
        open_it(tmp_path, "data.rar", size=0)


def test_a_loop_of_links_ends(tmp_path):
    lay(tmp_path / "data", tree())
    expected = open_it(tmp_path).fingerprint
    (tmp_path / "data/train/ant/loop").symlink_to(tmp_path / "data")
    assert open_it(tmp_path).fingerprint == expected


def test_a_link_to_nothing_and_a_folder_in_a_files_place_are_named(tmp_path):
    lay(tmp_path / "data", tree())
    (tmp_path / "data/train/ant/9.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"train/ant/9\.png: cannot be read: No such file"):
        open_it(tmp_path)
    (tmp_path / "data.zip").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_it(tmp_path, "data.zip")


@pytest.mark.parametrize("suffix", ["tar", "tar.xz", "zip"])
@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "train/../../evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_members_that_would_leave_the_archive_are_refused(tmp_path, suffix, name):
    pack(tmp_path / f"data.{suffix}", {**tree(), name: png(pixels("a", "b", 0))})
    with pytest.raises(DataError, match="unsafe member"):
        open_it(tmp_path, f"data.{suffix}")
    assert snapshot(tmp_path) == {f"data.{suffix}"}
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    pack(tmp_path / "data.tar", tree())
    with tarfile.open(tmp_path / "data.tar", "a") as archive:
        info = tarfile.TarInfo("train/ant/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"is a (link|device)"):
        open_it(tmp_path, "data.tar")


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        info = zipfile.ZipInfo("train/ant/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or a device"):
        open_it(tmp_path, "data.zip")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_archive_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"data.{suffix}"
    pack(path, {**tree(), "train/ant/noise.bin": np.random.default_rng(0).bytes(40_000)})
    # A plain tar ends in up to 10 kB of zeros; the cut at a block's border is the one that tarfile does not notice.
    os.truncate(path, int(share * (path.stat().st_size - 10_240)) // 512 * 512)
    with pytest.raises(DataError, match=r"damaged or cut short|cannot be read"):
        open_it(tmp_path, path.name)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_member_beyond_all_reason_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("train/ant/huge.png")
    info.size = 1 << 40
    (tmp_path / "data.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="holds 1099511627776 bytes"):
        open_it(tmp_path, "data.tar")


@pytest.mark.slow
def test_the_real_cifar10_archive(data_root, tmp_path):
    data = DATASETS.build("image_folder", data_root, tmp_path, path="cifar10.tar.xz")
    assert np.bincount(data.train.targets).tolist() == [5000] * 10
    assert np.bincount(data.test.targets).tolist() == [1000] * 10
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"
    np.testing.assert_allclose(data.channel_mean, [125.3, 122.9, 113.9], atol=0.06)
    np.testing.assert_allclose(data.channel_std, [62.5, 61.9, 66.5], atol=0.06)


def moved(files: dict[str, bytes], **names: str) -> dict[str, bytes]:
    """`files` with their first folders renamed."""
    return {"/".join((names[(parts := name.split("/"))[0]], *parts[1:])): content for name, content in files.items()}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAINING", "testing"),
        ("train", "Validation"),
        ("training_set", "test_set"),
        ("train-images", "VALID"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_split_folders_are_known_in_any_case(tmp_path, train, test, suffix):
    lay(tmp_path / "plain", tree())
    files = moved(tree(), train=train, test=test)
    (pack if suffix else lay)(tmp_path / f"data{suffix}", files)
    data = open_it(tmp_path, f"data{suffix}")
    assert data.fingerprint == open_it(tmp_path, "plain").fingerprint
    assert data.class_names == CLASSES
    assert any("is the test split" in note for note in data.notes) == test.lower().startswith("valid")


@pytest.mark.parametrize("suffix", ["", ".tar"])
@pytest.mark.parametrize("stray", ["holdout/ant/0.png", "preview.png", "Extra/0.png"])
def test_images_outside_the_splits_are_refused_and_left_out_where_the_splits_are_named(tmp_path, suffix, stray):
    put = pack if suffix else lay
    put(tmp_path / f"data{suffix}", {**tree(), stray: png(pixels("a", "b", 0))})
    with pytest.raises(DataError, match="1 image lies outside the splits test/ and train/"):
        open_it(tmp_path, f"data{suffix}")
    data = open_it(tmp_path, f"data{suffix}", train="train", test="test")
    assert (len(data.train), len(data.test)) == (12, 6)
    assert "1 image outside train/ and test/ is left out" in data.notes


def test_a_validation_split_beside_a_test_split_is_said_to_be_unused(tmp_path):
    lay(tmp_path / "data", tree({"train": 4, "test": 1, "val": 2}))
    assert any(note.startswith("val/ is not used (6 images)") for note in open_it(tmp_path).notes)


def test_a_class_may_be_called_train(tmp_path):
    flat = {f"{name}/{i}.png": png(pixels("x", name, i)) for name in ("bus", "train", "van") for i in range(5)}
    lay(tmp_path / "flat", flat)
    data = open_it(tmp_path, "flat", test_fraction=0.2)
    assert data.class_names == ("bus", "train", "van")
    assert (len(data.train), len(data.test)) == (12, 3)
    lay(
        tmp_path / "split",
        {f"{split}/{name}": content for name, content in flat.items() for split in ("train", "test")},
    )
    assert open_it(tmp_path, "split").class_names == ("bus", "train", "van")


def test_a_test_folder_beside_classes_is_no_class(tmp_path):
    files = {f"{name}/{i}.png": png(pixels("x", name, i)) for name in CLASSES for i in range(4)}
    files |= {f"Test/{name}/{i}.png": png(pixels("y", name, i)) for name in CLASSES for i in range(2)}
    lay(tmp_path / "data", files)
    with pytest.raises(DataError, match="Test/ holds folders with the names of classes next to it: ant, bee, cow"):
        open_it(tmp_path, test_fraction=0.2)
    data = open_it(tmp_path, train=".", test="Test")
    assert data.class_names == CLASSES
    assert (len(data.train), len(data.test)) == (12, 6)


def test_other_names_are_given_by_options(tmp_path):
    files = moved(tree(), train="set_a/seg_train", test="set_b/seg_test")
    lay(tmp_path / "data", {**files, "set_c/pred/0.png": png(pixels("a", "b", 0))})
    data = open_it(tmp_path, train="set_a/seg_train", test="set_b/seg_test")
    assert (data.class_names, len(data.train), len(data.test)) == (CLASSES, 12, 6)
    assert "1 image outside set_a/seg_train/ and set_b/seg_test/ is left out" in data.notes
    with pytest.raises(DataError, match="there are no images in nowhere/"):
        open_it(tmp_path, train="nowhere", test="set_b/seg_test")


def test_two_folders_for_one_split_are_refused(tmp_path):
    lay(tmp_path / "data", {**tree(), **moved(tree({"train": 1}), train="Training")})
    with pytest.raises(DataError, match="several folders may be the train split: Training, train"):
        open_it(tmp_path)


def test_splits_without_class_folders_are_refused(tmp_path):
    lay(
        tmp_path / "data",
        {f"{split}/{i}.png": png(pixels(split, "x", i)) for split in ("train", "test") for i in (0, 1)},
    )
    with pytest.raises(DataError, match="test, train hold images but no class folders"):
        open_it(tmp_path, test_fraction=0.5)


@pytest.mark.parametrize("suffix", ["", ".tar.gz"])
def test_every_picture_is_read_whatever_its_suffix_and_the_rest_is_counted(tmp_path, suffix):
    names = ["0.PNG", "1", "2.jpg-large", "3.png?w=80"]
    odd = {f"{Path(name).parent}/{names[int(Path(name).stem)]}": content for name, content in tree().items()}
    rest = {
        "README.md": b"#",
        "train/ant/labels.csv": b"0",
        "train/ant/notes.txt": b"BM is no picture",
        "train/ant/Thumbs.db": b"",
        "train/ant/.ipynb_checkpoints/0.png": b"x",
        "__MACOSX/train/ant/._0.png": b"x",
    }
    lay(tmp_path / "plain", tree())
    (pack if suffix else lay)(tmp_path / f"data{suffix}", {**odd, **rest})
    data = open_it(tmp_path, f"data{suffix}")
    assert data.fingerprint == open_it(tmp_path, "plain").fingerprint
    assert "left out as no pictures: 3 files (1 .md, 1 .csv, 1 .txt)" in data.notes
    assert any(note.startswith("left out as hidden: 2 files (") and "__MACOSX" in note for note in data.notes)


def test_a_link_is_followed_as_often_as_it_is_met_but_never_in_circles(tmp_path):
    lay(tmp_path / "data", tree())
    (tmp_path / "data/train/dog").symlink_to(tmp_path / "data/train/ant")
    (tmp_path / "data/test/dog").symlink_to(tmp_path / "data/test/ant")
    (tmp_path / "data/train/ant/up").symlink_to(tmp_path / "data/train")
    (tmp_path / "data/train/ant/self").symlink_to("self")
    os.mkfifo(tmp_path / "data/train/ant/pipe")
    data = open_it(tmp_path)
    assert data.class_names == ("ant", "bee", "cow", "dog")
    assert np.bincount(data.train.targets).tolist() == [4] * 4
    assert any(note.endswith("a folder around it: not followed") for note in data.notes)
    assert any("equal to one of another class" in note for note in data.notes)


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_class_names_that_are_no_text_are_refused_before_anything_is_decoded(tmp_path, suffix):
    files = {name.replace("bee", os.fsdecode(b"caf\xe9")): content for name, content in tree().items()}
    (pack if suffix else lay)(tmp_path / f"data{suffix}", files)
    with pytest.raises(DataError, match=r"class caf\\udce9: its name is no text in UTF-8") as caught:
        open_it(tmp_path, f"data{suffix}")
    str(caught.value).encode()


def test_accents_written_in_two_ways_are_one_class(tmp_path):
    files = {
        name.replace("bee", "café" if "train" in name else "cafe\u0301"): content for name, content in tree().items()
    }
    lay(tmp_path / "data", files)
    assert open_it(tmp_path).class_names == ("ant", "café", "cow")


@pytest.mark.parametrize("name", ["data/train/ant/0.png", "data.tar"])
def test_a_file_replaced_within_the_same_size_and_time_is_noticed(tmp_path, name):
    large = {"noise.bin": np.random.default_rng(0).bytes(2 << 20)}  # so that the archive is not hashed whole
    lay(tmp_path / "data", tree())
    pack(tmp_path / "data.tar", {**tree(), **large})
    path, source = tmp_path / name, name.partition("/")[0]
    status, first = path.stat(), open_it(tmp_path, source).fingerprint
    changed = png(pixels("other", "ant", 0))
    if source == "data":
        path.write_bytes(changed.ljust(status.st_size, b"\0"))
    else:
        pack(path, {**tree(), "train/ant/0.png": changed, **large})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert open_it(tmp_path, source).fingerprint != first


def test_a_class_named_as_a_split_is_said(tmp_path):
    lay(tmp_path / "data", {f"{name}/{i}.png": png(pixels("x", name, i)) for name in ("cat", "test") for i in range(4)})
    data = open_it(tmp_path, test_fraction=0.25)
    assert data.class_names == ("cat", "test")
    assert "test/ is taken for a class: images lie directly inside" in data.notes


def test_a_stray_picture_beside_the_split_folders_is_named_whatever_lies_around(tmp_path):
    files = {f"photos/v2/{name}": content for name, content in tree().items()}
    lay(tmp_path / "data", {**files, "photos/v2/preview.png": png(pixels("a", "b", 0))})
    with pytest.raises(DataError, match="1 image lies outside the splits test/ and train/"):
        open_it(tmp_path)


def test_a_path_that_an_archive_holds_twice_means_the_last(tmp_path):
    lay(tmp_path / "plain", {**tree(), "train/ant/0.png": png(pixels("new", "ant", 0))})
    pack(tmp_path / "data.tar", tree())
    content = png(pixels("new", "ant", 0))
    with tarfile.open(tmp_path / "data.tar", "a") as archive:
        info = tarfile.TarInfo("train/ant/0.png")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    assert open_it(tmp_path, "data.tar").fingerprint == open_it(tmp_path, "plain").fingerprint


@pytest.mark.parametrize(
    "names", [("seg_train", "seg_test", "seg_pred"), ("flowers-train", "flowers-val"), ("cat", "test", "val")]
)
def test_folders_that_may_be_splits_are_no_classes_unless_the_user_says_so(tmp_path, names):
    deep = "" if "cat" in names else "rose/"
    lay(tmp_path / "data", {f"{name}/{deep}{i}.png": png(pixels("x", name, i)) for name in names for i in range(4)})
    with pytest.raises(DataError, match="may be splits or classes"):
        open_it(tmp_path, test_fraction=0.25)
    assert open_it(tmp_path, train=".", test_fraction=0.25).class_names == tuple(sorted(names))


def test_splits_inside_the_classes_are_not_mixed_unless_the_user_says_so(tmp_path):
    places = [f"{name}/{split}/{i}.png" for name in ("cat", "dog") for split in ("Train", "val") for i in range(4)]
    lay(tmp_path / "data", {place: png(pixels("x", place, 0)) for place in places})
    for options in ({}, {"test_fraction": 0.25}):
        with pytest.raises(DataError, match="the splits Train, val lie inside the classes cat, dog"):
            open_it(tmp_path, **options)
    assert len(open_it(tmp_path, train=".", test_fraction=0.25).train) == 12


def test_splits_without_labels_or_images_are_told_in_one_line(tmp_path):
    lay(tmp_path / "flat", {**tree({"train": 4}), **{f"test/{i}.png": png(pixels("x", "y", i)) for i in range(4)}})
    with pytest.raises(DataError, match="test/: holds images but no class folders") as caught:
        open_it(tmp_path, "flat")
    assert len(caught.value.problems) == 1
    data = open_it(tmp_path, "flat", train="train", test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert "4 images outside train/ are left out" in data.notes
    lay(tmp_path / "empty", {**tree({"train": 4}), "test/readme.txt": b"x"})
    with pytest.raises(DataError, match="test/: holds no images") as caught:
        open_it(tmp_path, "empty")
    assert len(caught.value.problems) == 1
    lay(tmp_path / "hidden", {f".cache/{name}": content for name, content in tree().items()})
    with pytest.raises(DataError, match=r"holds no images but in hidden folders: .* 18 files \(.cache\)"):
        open_it(tmp_path, "hidden")


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_the_order_of_the_classes_may_be_stated(tmp_path, suffix):
    (pack if suffix else lay)(tmp_path / f"data{suffix}", tree())
    plain, stated = (open_it(tmp_path, f"data{suffix}", class_names=names) for names in (None, ("cow", "ant", "bee")))
    assert stated.class_names == ("cow", "ant", "bee")
    np.testing.assert_array_equal(stated.train.inputs["pixels"], plain.train.inputs["pixels"])
    assert [stated.class_names[i] for i in stated.test.targets] == [plain.class_names[i] for i in plain.test.targets]
    with pytest.raises(DataError, match=r"class_names: are not the class folders: bee, yak \(allowed: ant, bee, cow\)"):
        open_it(tmp_path, f"data{suffix}", class_names=("cow", "ant", "yak"))
