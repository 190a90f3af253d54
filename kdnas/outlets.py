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
    told = os.environ.get("PYTHONWARNINGS", "")
    if _TRACKED not in told:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (told, _TRACKED)))


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
