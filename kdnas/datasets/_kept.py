"""The data set that a run was made on, from the cache, whatever it was read from."""

from __future__ import annotations

import contextlib
import json
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
    for path in sorted((cache / "datasets").glob(f"*/{META}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # an entry of an older form, or damaged
            if json.loads(path.read_text())["fingerprint"] != fingerprint or checksums.damage(path.parent):
                continue
            for opened in _KINDS:
                if (data := opened(path.parent)) is not None:
                    return data
    return None
