"""Wording that messages, tables and reports share."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 2000
_TERMINAL_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours and moves of the cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)


_LABELS = {"macs": "MACs", "params": "parameters", "f1": "macro F1", "matthews": "Matthews correlation"}
_LABELS |= {"spearman": "Spearman correlation", "pearson": "Pearson correlation", "mrr": "mean reciprocal rank"}
UNIT_SUFFIXES = {"_ms": "ms", "_mj": "mJ", "_seconds": "s", "_bytes": "B"}
"""By the end of a quantity's name: its unit."""


def label(name: str) -> str:
    """Return the name of a quantity in words, its unit left to the value: `latency_ms` is "latency"."""
    if name in _LABELS:
        return _LABELS[name]
    for suffix in UNIT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace("_", " ")


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return `text` as one line that any terminal, table, page or database takes as it stands.

    Terminal codes, control characters and lone surrogates, which messages of other people's code may hold, are dropped;
    line ends and tabs become spaces; what is longer than `longest` characters is cut, with a mark at its end.
    """
    cut = len(text) - longest
    line = re.sub(r"\s*[^\S ]\s*", " ", _TERMINAL_CODES.sub("", text[: 4 * longest])).strip()
    line = "".join(character for character in line if character.isprintable())
    return line if cut <= 0 and len(line) <= longest else f"{line[:longest].rstrip()} ... ({len(text)} characters)"


def without_password(text: str) -> str:
    """Return `text` with the passwords of the URLs in it left out."""
    return re.sub(
        r"(://[^\s:/@]*:)[^\s@]*@|(\bpassword=)[^\s&'\"]*", lambda m: f"{m[1]}***@" if m[1] else f"{m[2]}***", text
    )


def escaped(text: str) -> str:
    """Return `text` with control characters and lone surrogates spelled out, as names of files and classes need it."""
    return "".join(
        sign if sign.isprintable() or sign == " " else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )


def commonest(reasons: Iterable[str]) -> tuple[str, int]:
    """Return the reason given most often, of equals the first, and how often; reasons may differ in their numbers.

    Raises ValueError where there is none.
    """
    given = list(reasons)
    kinds = [re.sub(r"\d+", "#", reason) for reason in given]
    if not kinds:
        raise ValueError("no reasons were given")
    kind, times = Counter(kinds).most_common(1)[0]
    return given[kinds.index(kind)], times


def counted(number: int, noun: str) -> str:
    """Return "1 trial", "3 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def progress_bar(share: float) -> str:
    """Return how far something is, a share in [0, 1], as a bar of 20 characters."""
    done = min(round(20 * share), 20)
    return "█" * done + "░" * (20 - done)


def capitalised(text: str) -> str:
    """Return `text` with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def command_line(*words: str | Path) -> str:
    """Return a command that can be pasted into a shell, whatever its paths hold."""
    return shlex.join(without_password(str(word)) for word in words)


def data_root_in_words(root: Path) -> str:
    """Return where a study's files were looked for, and how to change that."""
    return (
        f"The data root is {root.absolute()}; "
        "set it with --data-root or the environment variable KDNAS_DATA (default: data/)"
    )
