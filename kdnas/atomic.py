"""Files that are written whole or not at all: readers see the old content or the new, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch file beside `path` to be written; at the end it is put in its place, after an error removed.

    The content reaches the disk before the name does. The file gets the usual mode of a new file, also where the writer
    makes private ones. Raises OSError where the folder is missing or cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never made
            scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all. Raises OSError."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")
