"""The terminal as rich sees it: what its encoding lacks is replaced before tables are laid out, not after."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from kdnas.outlets import fits, in_ascii


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` rendered, in ASCII where the terminal cannot show it: a cell is as wide as it will be."""
        return super().render_str(text if fits(text, self.encoding) else in_ascii(text), **options)


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error."""
    return _Console(highlight=False, stderr=stderr)


def redraws(terminal: Console) -> bool:
    """Return whether `terminal` can be drawn anew in place: neither a file nor a terminal that says it is dumb."""
    return terminal.is_terminal and not terminal.is_dumb_terminal
