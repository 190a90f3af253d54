"""Write a decoded subset of CIFAR-10 and its teacher to a folder that can travel to a machine with a GPU.

    python studies/gpu_check/subset.py --data-root DIR [--out data] [--train 10000] [--test 2000]

DIR is a data root of studies/cifar10_resnet: it holds cifar10.tar.xz and teachers/cifar10. The out folder becomes a
data root with cifar10.npz (uint8 images, the same number of every class, the first of each) and the teacher.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from kdnas.core.data import Samples
from kdnas.datasets import DATASETS


def first_of_each(arrays: Samples, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [M, H, W, C] and labels [M]: the first `count` // classes of every class."""
    labels = np.asarray(arrays.targets)
    classes = np.unique(labels)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[: count // len(classes)] for label in classes]))
    return np.asarray(arrays.inputs["pixels"])[chosen].transpose(0, 2, 3, 1), labels[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=2_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        data = DATASETS.build("image_folder", given.data_root, Path(cache), path="cifar10.tar.xz")
        given.out.mkdir(parents=True, exist_ok=True)
        train, test = first_of_each(data.train, given.train), first_of_each(data.test, given.test)
    target = given.out / "cifar10.npz"
    np.savez(target, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1])
    shutil.copytree(given.data_root / "teachers" / "cifar10", given.out / "teachers" / "cifar10", dirs_exist_ok=True)
    print(f"{target}: {len(train[1])} + {len(test[1])} images, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
