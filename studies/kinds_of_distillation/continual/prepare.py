"""Divides the spoken digits by speaker: five that are learnt first, and a sixth that comes later, alone.

python prepare.py /data      reads audio/fsdd_logmel.npz there, writes fsdd_before.npz and fsdd_later.npz beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

LATER = 5


def write(audio: Path) -> None:
    """Write both files. The test samples of both are those of the five, so that what is forgotten shows."""
    with np.load(audio / "fsdd_logmel.npz") as arrays:
        images, digits, kept, later = arrays["x"], arrays["digit"], arrays["test"], arrays["speaker"] == LATER
    for name, of_it in (("before", ~later), ("later", later)):
        np.savez_compressed(
            audio / f"fsdd_{name}.npz",
            train_images=images[of_it & ~kept],
            train_labels=digits[of_it & ~kept],
            test_images=images[~later & kept],
            test_labels=digits[~later & kept],
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "audio")
