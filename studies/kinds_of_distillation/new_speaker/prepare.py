"""Writes spoken digits of five speakers with labels, and of a sixth without: a target domain that nobody labelled.

python prepare.py /data      reads audio/fsdd_logmel.npz there, and writes audio/fsdd_new_speaker.npz beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TARGET = 5


def write(audio: Path) -> None:
    """Write the file. Students are scored on the other speakers while they are searched; the test is the target's."""
    with np.load(audio / "fsdd_logmel.npz") as arrays:
        images, digits, kept, of_target = arrays["x"], arrays["digit"], arrays["test"], arrays["speaker"] == TARGET
    np.savez_compressed(
        audio / "fsdd_new_speaker.npz",
        train_images=images[~of_target],
        train_labels=digits[~of_target],
        unlabelled_images=images[of_target & ~kept],
        test_images=images[of_target & kept],
        test_labels=digits[of_target & kept],
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "audio")
