"""Divides the spoken digits into those of parties, who keep them, and those that anybody may have.

python prepare.py /data      reads audio/fsdd_logmel.npz there, writes fsdd_private.npz and fsdd_public.npz beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def write(audio: Path, public: int = 300) -> None:
    """Write both files, the public one of so many samples; both have the same test samples."""
    with np.load(audio / "fsdd_logmel.npz") as arrays:
        images, digits, kept = arrays["x"], arrays["digit"], arrays["test"]
    pool = np.random.default_rng(0).permutation(np.flatnonzero(~kept))
    for name, places in (("public", pool[:public]), ("private", pool[public:])):
        np.savez_compressed(
            audio / f"fsdd_{name}.npz",
            train_images=images[places],
            train_labels=digits[places],
            test_images=images[kept],
            test_labels=digits[kept],
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "audio")
