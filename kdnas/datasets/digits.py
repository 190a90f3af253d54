"""The handwritten digits that ship inside scikit-learn (UCI Optical Recognition of Handwritten Digits, 1998)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._inputs import TestFraction, carve_test


@DATASETS.register
def digits(data_root: Path, cache: Path, *, test_fraction: TestFraction = 0.2) -> ImageData:
    """Real handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes; needs no files.

    Args:
        data_root: Not used.
        cache: kdnas's cache folder.
        test_fraction: Share of every class that makes the test split; always the same images.
    """

    def decode(writer: ImageWriter) -> Labelling:
        from sklearn.datasets import load_digits  # takes a second to import

        source = load_digits()
        images = np.rint(source.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
        labels = source.target.astype(np.int64)
        writer.extend(images[:, np.newaxis])
        return Labelling(tuple(str(digit) for digit in range(10)), labels, carve_test(labels, test_fraction))

    identity = {"scikit-learn": version("scikit-learn"), "test_fraction": test_fraction}
    return cached("digits", cache, identity, decode)
