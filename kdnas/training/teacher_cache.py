"""Teacher outputs on the views that a study's trials share, computed once and kept on disk.

Trials of a study see the same augmented views (common random numbers), so what the teacher says of view v of sample n
need not be computed again. A row is a sample's logits, and its embedding where a loss reads it, in float32.

On disk each key (teacher, data, augmentation, ...) is a folder with two files a view: `rows` float32 [N, W] and
`mask` uint8 [N], which is 1 where the row is there. The mask is written after the rows are on the disk, so
a killed process leaves rows that nobody reads, and several processes may write the same view: they write the same rows.

Exactness: a row is what the teacher gave for that view in the batch it was computed in. The same batches give the
same bits; another batch size may differ in the last ones, as the teacher itself does.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_FORMAT = 1


@dataclass(frozen=True)
class ViewsKey:
    """All that decides the teacher's outputs on a study's views; equal keys share rows."""

    teacher: str
    """The teacher's fingerprint."""
    data: str
    """The data's fingerprint."""
    augmentation: str
    """The augmentation as JSON."""
    view_seed: int
    precision: str
    device: str
    """The device's type: kernels differ in the last bits."""
    samples: int
    """Images in the training arrays, N."""
    classes: int
    """Logits in a row, K."""
    embedding: int
    """Embedding numbers after them, D; 0 where no loss reads the embedding."""

    @property
    def width(self) -> int:
        """Numbers in a row, W = K + D."""
        return self.classes + self.embedding

    @property
    def digest(self) -> str:
        """The folder's name: 24 hexadecimal digits of a SHA-256."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class TeacherCache:
    """Cached teacher rows under `folder`, which may be shared by processes of one machine and by studies."""

    def __init__(self, folder: Path):
        self._folder = folder

    def read(self, key: ViewsKey, view: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (rows float32 [N, W], a read-only map, and which are there bool [N]) of `view`, None where none is."""
        rows, mask = self._paths(key, view)
        try:
            if mask.stat().st_size != key.samples or rows.stat().st_size != key.samples * key.width * 4:
                return None
            filled = np.fromfile(mask, dtype=np.uint8) == 1
        except OSError:
            return None
        if not filled.any():
            return None
        return np.memmap(rows, dtype=np.float32, mode="r", shape=(key.samples, key.width)), filled

    def write(self, key: ViewsKey, view: int, samples: np.ndarray, values: np.ndarray) -> bool:
        """Store `values` [M, W] as the rows of `samples` [M]. Returns False, storing nothing, where the disk is full.

        Rows that are not finite are refused (ValueError): a teacher that overflows must not be remembered.
        """
        if not np.all(np.isfinite(values)):
            raise ValueError("the teacher gave outputs that are not finite")
        rows, mask = self._paths(key, view)
        try:
            rows.parent.mkdir(parents=True, exist_ok=True)
            if mask.exists() and (not rows.exists() or rows.stat().st_size != key.samples * key.width * 4):
                mask.unlink(missing_ok=True)  # rows that somebody cut short: the mask promises what is lost
            _write_rows(rows, (key.samples, key.width), np.float32, samples, values)
            _write_rows(mask, (key.samples, 1), np.uint8, samples, np.ones((len(samples), 1), dtype=np.uint8))
        except OSError:
            return False  # the cache only saves time; a training goes on without it
        return True

    def _paths(self, key: ViewsKey, view: int) -> tuple[Path, Path]:
        folder = self._folder / key.digest
        return folder / f"view{view:05d}.rows", folder / f"view{view:05d}.mask"


def _write_rows(
    path: Path, shape: tuple[int, int], dtype: type[np.generic], samples: np.ndarray, values: np.ndarray
) -> None:
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size < size:
            # Space is claimed first: writing to a map of a file that the disk cannot hold kills the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.truncate(descriptor, size)
    finally:
        os.close(descriptor)
    mapped = np.memmap(path, dtype=dtype, mode="r+", shape=shape)
    mapped[samples] = values
    mapped.flush()
