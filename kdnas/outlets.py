"""Where text leaves the program: written in what the reader's encoding has, and dropped once the reader has left.

A search must not end because `| head -1` has read enough, nor because a terminal of another century knows no "±".
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from typing import TextIO

_ERRORS = "kdnas.twin"
_TWINS = {
    "◆": ">", "★": "*", "≈": "~", "±": "+-", "×": "x", "’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "-",
    "—": "-", "−": "-", "≤": "<=", "≥": ">=", "→": "->", "µ": "u", "█": "#", "░": ".", "━": "-", "╸": "-", "╺": "-",
    "·": "-", "•": "*", "²": "2", "½": "1/2", "¼": "1/4",
}  # fmt: skip
"""What kdnas prints beyond ASCII, in ASCII."""


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


class Outlet(io.TextIOWrapper):
    """A text stream that neither a narrow encoding nor a reader who left can break."""

    def write(self, text: str) -> int:
        """Write `text`, or nothing any more once the reader has left."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._abandon()
            return len(text)

    def flush(self) -> None:
        """Hand on what is written, to nobody once the reader has left."""
        try:
            super().flush()
        except BrokenPipeError:
            self._abandon()

    def _abandon(self) -> None:
        """Point the descriptor at nothing: what is still buffered goes there, also at the interpreter's end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_outlets() -> None:
    """Make standard output and standard error outlets. Streams that a caller put in their place are left alone."""
    codecs.register_error(_ERRORS, _replaced)
    sys.stdout, sys.stderr = _outlet(sys.stdout), _outlet(sys.stderr)


def _outlet(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, Outlet):
        return stream
    stream.flush()
    return Outlet(
        stream.buffer,
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
