"""What the sources share: finding files, telling versions of them apart, decoding one image, collecting problems."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from kdnas.core.data import stratified_split
from kdnas.core.seeds import derive_seed
from kdnas.core.words import data_root_in_words
from kdnas.errors import DataError, Problem

Pixels = Annotated[int, Field(ge=1, le=4096)]
Size = Pixels | tuple[Pixels, Pixels]
"""A side in pixels, or (height, width)."""
TestFraction = Annotated[float, Field(gt=0.0, lt=1.0)]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Only formats that Pillow decodes by itself: EPS, for one, would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SHOWN = 10
_HASHED_BYTES = 1 << 20


class Problems:
    """Collects what is wrong with the data, keeping the first ten and counting the rest."""

    def __init__(self) -> None:
        self.shown: list[Problem] = []
        self.count = 0

    def add(self, where: str, what: str, allowed: str = "") -> None:
        """Add one problem."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(Problem(where, what, allowed))

    def raise_if_any(self) -> None:
        """Raise DataError with everything collected, if anything was."""
        if self.count > len(self.shown):
            raise DataError([*self.shown, Problem("", f"and {self.count - len(self.shown)} more problems like these")])
        if self.shown:
            raise DataError(self.shown)


def locate(data_root: Path, path: str, put_there: str) -> Path:
    """Return the full path of the user's `path`, relative to the data root. Raises DataError where nothing is there."""
    full = Path(os.path.abspath(data_root / Path(path).expanduser()))  # noqa: PTH100 - links stay as they were written
    if not full.exists():
        raise missing(full, data_root, put_there)
    return full


def missing(full: Path, data_root: Path, put_there: str) -> DataError:
    """Return the error for data that is not there: where it was looked for, how to change that, what to put there."""
    return DataError(
        Problem(
            str(full),
            f"there is no such file or folder; put there {put_there}. {data_root_in_words(data_root)}",
        )
    )


def file_identity(path: Path) -> dict[str, Any]:
    """Return what tells one version of a file from another: its content where small, else path, size and time.

    Raises DataError where the file cannot be opened.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            if status.st_size <= _HASHED_BYTES:
                return {"sha256": hashlib.sha256(file.read()).hexdigest()}
    except OSError as error:
        raise DataError(Problem(str(path), f"cannot be read: {error.strerror}")) from error
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def height_width(size: Size | None) -> tuple[int, int] | None:
    """Return `size` as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def decode_image(content: bytes, size: tuple[int, int] | None, grayscale: bool) -> np.ndarray:
    """Return an encoded image as uint8 [C, H, W], C 1 or 3, resized to `size` (height, width) where given.

    Raises ValueError saying why it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.mode in ("F", "I") or image.mode.startswith("I;16"):
                raise ValueError(f"has pixels of mode {image.mode}, more than 8 bits a channel")
            mode = "L" if grayscale else "RGB"
            image = image if image.mode == mode else image.convert(mode)
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.uint8)
    except ValueError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError("is not an image that can be read (allowed: JPEG, PNG, BMP, GIF, WebP, TIFF, PPM)") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"cannot be read: {error}") from error
    return pixels[np.newaxis] if grayscale else pixels.transpose(2, 0, 1)


def carve_test(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return bool [N]: which samples make the test split, `fraction` of every class, always the same ones."""
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[stratified_split(labels, fraction, derive_seed(0, "test split"))[1]] = True
    return is_test


def names_or_numbers(class_names: Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    """Return the class names; where none are given, the numbers from 0 to the largest of `labels`."""
    if class_names is not None:
        return tuple(class_names)
    return tuple(str(label) for label in range(int(labels.max()) + 1)) if len(labels) else ()


def check_labels(labels: np.ndarray, count: int, where: str, problems: Problems) -> np.ndarray:
    """Return labels as int64 [N]; adds to `problems` what is wrong. A trailing axis of one is dropped."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        problems.add(where, f"labels are {labels.dtype} {list(labels.shape)}", "integers [N]")
        return np.zeros(count, dtype=np.int64)
    if len(labels) != count:
        problems.add(where, f"{len(labels)} labels for {count} images")
    return labels.astype(np.int64)


def as_channels_first(images: np.ndarray, layout: str, where: str, problems: Problems) -> np.ndarray:
    """Return uint8 images as a view [N, C, H, W]; adds to `problems` what is wrong.

    `layout` is NCHW, NHWC, NHW, or auto: three axes are NHW; of four, the axis of length 1 or 3 holds the channels,
    where the last axis comes before the second.
    """
    if images.dtype != np.uint8:
        problems.add(where, f"images are {images.dtype}", "uint8, 0 to 255")
        return np.zeros((len(images) if images.ndim else 0, 1, 1, 1), dtype=np.uint8)
    if layout == "auto":
        layout = _detect_layout(images.shape)
    if images.ndim != len(layout) or layout == "unknown":
        problems.add(
            where, f"images have the shape {list(images.shape)}", "[N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3"
        )
        return np.zeros((len(images) if images.ndim else 0, 1, 1, 1), dtype=np.uint8)
    if layout == "NHW":
        return images[:, np.newaxis]
    return images.transpose(0, 3, 1, 2) if layout == "NHWC" else images


def _detect_layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        return "unknown"
    if shape[3] in (1, 3):
        return "NHWC"
    return "NCHW" if shape[1] in (1, 3) else "unknown"
