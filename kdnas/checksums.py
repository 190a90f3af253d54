"""Checksums of what is kept to be read again: caches and checkpoints are trusted as far as they are checked.

What lies on a disk for months is zeroed by a crash, cut short by a full disk, flipped by a bad cable, edited by hand;
most of it would still be read, and teach other students without a word. Three forms of one idea:

- a folder that is written once is sealed: `checksums.json` in it has every file's size and a checksum a block;
- rows of an array that fills up by and by have a checksum each (`row_sums`);
- a file that is replaced whole carries the checksum of its own content (`content_sum`).

Of what is large a sample is checked, other blocks each time. They find accidents and edits, not a forger, who would
write new ones: what nobody else may change belongs in a folder that nobody else may write.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEAL = "checksums.json"
_BLOCK = 1 << 20
_SUM_BYTES = 8
CHECKED_BYTES = 128 << 20
"""So much of a folder, or of an array, is checked at each opening: a tenth of a second."""
_CHUNK_BYTES = 8 << 20
_chance = random.SystemRandom()
"""Draws without a seed: another opening is to draw other blocks, and the user's own draws stay as they are."""


def seal(folder: Path) -> None:
    """Write the checksums of every file below `folder`, which is whole now. Raises OSError."""
    files = {str(path.relative_to(folder)): _described(path) for path in _files(folder)}
    (folder / SEAL).write_text(json.dumps({"block_bytes": _BLOCK, "files": files}), encoding="utf-8")


def damage(folder: Path, limit: int = CHECKED_BYTES) -> str:
    """Return in words what is not as it was sealed, empty where nothing is seen.

    Small files are read whole; of the others about as many bytes as are left of `limit`, at places drawn anew.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files = sorted(((int(one["bytes"]), name, str(one["blocks"])) for name, one in sealed["files"].items()))
        block, left = int(sealed["block_bytes"]), limit
        for place, (size, name, sums) in enumerate(files):
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
            share = left // (len(files) - place)
            checked = _drawn(-(-size // block), max(1, share // block))
            if not _agree(path, block, sums, checked):
                return f"{name} is not what was written"
            left -= min(size, len(checked) * block)
    except FileNotFoundError:
        return f"there is no {SEAL}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{SEAL} cannot be read"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)


def _described(path: Path) -> dict[str, Any]:
    sums, size = [], 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sums.append(_sum(block))
            size += len(block)
    return {"bytes": size, "blocks": "".join(sums)}


def _agree(path: Path, block: int, sums: str, checked: Iterable[int]) -> bool:
    digits = 2 * _SUM_BYTES
    with path.open("rb") as file:
        for number in checked:
            file.seek(number * block)
            if _sum(file.read(block)) != sums[number * digits : (number + 1) * digits]:
                return False
    return True


def _drawn(blocks: int, most: int) -> list[int]:
    return list(range(blocks)) if blocks <= most else sorted(_chance.sample(range(blocks), most))


def _sum(block: bytes) -> str:
    return hashlib.blake2b(block, digest_size=_SUM_BYTES).hexdigest()


def content_sum(parts: Iterable[tuple[str, Any]]) -> str:
    """Return one checksum of named parts, each given as bytes or whatever has a buffer of them, in any order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, part in sorted(parts, key=lambda pair: pair[0]):
        view = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
        digest.update(f"{len(name)} {name} {view.nbytes} ".encode())
        digest.update(view)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_BLOCK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


# -- rows --------------------------------------------------------------------------------------------------------------

_NONE = np.uint32(0)
"""The checksum of a row that is not there."""


def row_sums(places: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """Return the checksums uint32 [n] of rows, none of them 0: of where each stands and of its `parts` [n, W].

    Parts are numbers of two or four bytes. Multiply-add hashing modulo 2^64 with odd factors (Dietzfelbinger et al.,
    1997), of which the upper half is kept: one changed number always changes the whole sum.
    """
    sums = np.empty(len(places), dtype=np.uint32)
    factors = [_factors(part.shape[1], number) for number, part in enumerate(parts)]
    own = _factors(2, len(parts))
    width = sum(part.shape[1] for part in parts)
    step = max(1, _CHUNK_BYTES // (8 * max(width, 1)))
    for start in range(0, len(places), step):
        some = slice(start, start + step)
        total = own[0] + own[1] * np.asarray(places[some], dtype=np.uint64)
        for part, factor in zip(parts, factors, strict=True):
            words = np.ascontiguousarray(part[some]).view(f"u{part.itemsize}")
            total += (words.astype(np.uint64) * factor).sum(axis=1, dtype=np.uint64)
        sums[some] = (total >> np.uint64(32)).astype(np.uint32)
    sums[sums == _NONE] = 1
    return sums


def drawn_rows(rows: np.ndarray, row_bytes: int, limit: int = CHECKED_BYTES) -> np.ndarray:
    """Return those of the places `rows` that are to be checked now: all, or as many as `limit` bytes hold."""
    most = max(1, limit // max(row_bytes, 1))
    if len(rows) <= most:
        return rows
    first = _chance.randrange(len(rows))  # a run of them: what is damaged is seldom one row, and reading is quick
    return rows[(first + np.arange(most)) % len(rows)]


def _factors(count: int, stream: int) -> np.ndarray:
    """Return odd factors uint64 [count], always the same."""
    draws = np.random.Generator(np.random.PCG64(stream))
    return draws.integers(0, 1 << 64, size=count, dtype=np.uint64) | np.uint64(1)
