"""How things are said that messages, tables and reports share."""

from __future__ import annotations

import shlex
from pathlib import Path


def counted(number: int, noun: str) -> str:
    """Return "1 trial", "3 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def command_line(*words: str | Path) -> str:
    """Return a command that can be pasted into a shell, whatever its paths hold."""
    return shlex.join(str(word) for word in words)


def data_root_in_words(root: Path) -> str:
    """Return where a study's files were looked for, and how to change that."""
    return (
        f"The data root is {root.absolute()}; "
        "set it with --data-root or the environment variable KDNAS_DATA (default: data/)"
    )
