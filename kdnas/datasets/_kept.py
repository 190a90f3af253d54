"""The data set that a run was made on, from the cache, whatever it was read from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdnas import checksums
from kdnas.core.data import Data
from kdnas.datasets._cache import open_images
from kdnas.datasets._corpus_cache import open_corpus
from kdnas.datasets._entries import META
from kdnas.datasets._token_cache import open_texts

_KINDS = (open_images, open_texts, open_corpus)


def kept_data(cache: Path, fingerprint: str) -> Data | None:
    """Return the data set of this content from the cache; None where it is not there."""
    for folder in _entries(cache, fingerprint):
        for opened in _KINDS:
            if (data := opened(folder)) is not None:
                return data
    return None


def kept_folder(cache: Path, fingerprint: str) -> Path | None:
    """Return the folder in the cache that holds the data set of this content; None where there is none."""
    return next(_entries(cache, fingerprint), None)


def fetched_folder(cache: Path, fingerprint: str) -> Path:
    """Return where a data set of this content is put that comes from elsewhere; what is damaged there is removed."""
    folder = cache / "datasets" / fingerprint[:20]
    if folder.exists() and checksums.damage(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _entries(cache: Path, fingerprint: str) -> Iterator[Path]:
    for path in sorted((cache / "datasets").glob(f"*/{META}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # an entry of an older form, or damaged
            if json.loads(path.read_text())["fingerprint"] == fingerprint and not checksums.damage(path.parent):
                yield path.parent
