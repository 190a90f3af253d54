"""`kdnas help`: pages on what takes more than one command. A page is a file of `pages/`, its first line the summary."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from kdnas.errors import ConfigError, Problem

_PAGES = Path(__file__).with_name("pages")


def command(
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help="The page; none: which there are.", show_default=False)
    ] = None,
) -> None:
    """Show a page on a topic, such as how to search on many machines.

    Examples:
      kdnas help
      kdnas help cluster
    """
    pages = {file.stem: file.read_text(encoding="utf-8").rstrip() for file in sorted(_PAGES.glob("*.txt"))}
    if topic is None:
        width = max(map(len, pages))
        for name, text in pages.items():
            typer.echo(f"kdnas help {name:{width}}   {text.partition(chr(10))[0]}")
        return
    if topic not in pages:
        near = difflib.get_close_matches(topic, pages, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(Problem("", f"there is no page {topic!r}{hint}", f"{', '.join(pages)}; `kdnas VERB --help`"))
    typer.echo(pages[topic])
