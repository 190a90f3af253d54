"""One study seed, many independent streams."""

from __future__ import annotations

import hashlib


def derive_seed(root: int, *path: str | int) -> int:
    """Return a seed in [0, 2**63) for the stream named by `path`, independent of every other path."""
    text = "/".join([str(root), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
