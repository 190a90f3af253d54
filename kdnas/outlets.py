"""Where text leaves the program: written in what the reader's encoding has, and dropped once nobody can take it.

A search must not end because `| head -1` has read enough, the disk that its log goes to is full, the terminal is gone,
nor because an old one has no "±".
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

Notify = Callable[[str], None]
"""Takes a line for whoever follows what is done."""
_ERRORS = "kdnas.twin"
_TWINS = {
    "◆": ">", "★": "*", "≈": "~", "±": "+-", "×": "x", "’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "-",
    "—": "-", "−": "-", "≤": "<=", "≥": ">=", "→": "->", "µ": "u", "█": "#", "░": ".", "━": "-", "╸": "-", "╺": "-",
    "·": "-", "•": "*", "²": "2", "½": "1/2", "¼": "1/4",
}  # fmt: skip
"""What kdnas prints beyond ASCII, in ASCII."""


def silent(news: object) -> None:
    """Take a line, or how far something is, and do nothing with it."""


def in_ascii(text: str) -> str:
    """Return `text` in ASCII: symbols by their likes, letters without their accents, anything else as "?"."""
    return "".join(character if character.isascii() else _twin(character) for character in text)


def fits(text: str, encoding: str) -> bool:
    """Return whether `encoding` can write all of `text`."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Settings by which libraries draw no bars of their own into ours, unless the user has set them."""
_TRACKED = "ignore:resource_tracker:UserWarning"
"""Workers are ended at once, so what their libraries' locks leave behind is cleaned up for them, without a word."""


def quiet_libraries() -> None:
    """Have the libraries of this process and of its workers draw no progress bars, and end without complaints."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    filters = os.environ.get("PYTHONWARNINGS", "")
    if _TRACKED not in filters:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, _TRACKED)))


class Outlet(io.TextIOWrapper):
    """A text stream that neither a narrow encoding nor a place that takes nothing more can break."""

    lost: str = ""
    """Why what was written here did not arrive; empty while it did, and where the reader left by his own will."""

    def write(self, text: str) -> int:
        """Write `text`, or nothing any more once it cannot be taken."""
        try:
            return super().write(text)
        except OSError as error:
            self._abandon(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is written, to nobody once it cannot be taken."""
        try:
            super().flush()
        except OSError as error:
            self._abandon(error)

    def _abandon(self, error: OSError) -> None:
        """Point the descriptor at nothing: what is still buffered goes there, also at the interpreter's end."""
        if not isinstance(error, BrokenPipeError):
            self.lost = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_outlets() -> None:
    """Make standard output and standard error outlets. Streams that a caller put in their place are left alone.

    One that is closed, as by `>&-`, leads to nothing: its number would go to the next file that is opened, a database.
    """
    codecs.register_error(_ERRORS, _replaced)
    _occupy_closed()
    sys.stdout, sys.stderr = _outlet(sys.stdout), _outlet(sys.stderr)


def lost_output() -> str:
    """Return why standard output did not arrive where it was sent; empty where it did."""
    return sys.stdout.lost if isinstance(sys.stdout, Outlet) else ""


def _occupy_closed() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            stream = open(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def _outlet(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, Outlet):
        return stream
    stream.flush()
    # A buffer of its own: that of a stream whose descriptor was turned elsewhere still takes it for the file it was.
    buffering = 0 if stream.write_through else -1
    return Outlet(
        open(stream.fileno(), "wb", buffering=buffering, closefd=False),
        encoding=stream.encoding,
        errors=_ERRORS if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def _twin(character: str) -> str:
    if character in _TWINS:
        return _TWINS[character]
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return plain or "?"
