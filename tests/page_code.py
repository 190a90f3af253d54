"""The examples that the pages of `kdnas help` show, as a user has them who copies them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import kdnas.cli

_PAGES = Path(kdnas.cli.__file__).parent / "pages"


def examples(page: str) -> dict[str, str]:
    """Return what stands, set in, below each heading of a page that is followed by it at once."""
    text = (_PAGES / f"{page}.txt").read_text(encoding="utf-8")
    found = re.findall(r"(?m)^(\S.*)\n((?:    .*\n|\n)+)", text)
    return {heading: dedent(below).strip() + "\n" for heading, below in found if below.strip()}
