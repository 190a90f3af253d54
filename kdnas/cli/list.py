"""`kdnas list`: everything a study can name, with its options."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kdnas.cli._members import Entry, Option, describe
from kdnas.cli._options import Json, colour

# Family -> the heading, and the key of study.yaml that takes its names.
_HEADINGS = {
    "tasks": ("Kinds of work", "what the data pose"),
    "datasets": ("Data sets", "data.type"),
    "teachers": ("Teacher sources", "teacher.type"),
    "students": ("Student families", "a space's family"),
    "spaces": ("Search spaces", "space"),
    "losses": ("Distillation losses", "distillation.losses"),
    "proxies": ("Proxies: which samples a share of the data holds", "training.proxy"),
    "costs": ("Costs", "objectives, constraints, costs"),
    "evaluators": ("Evaluators", "evaluator.type"),
    "samplers": ("Samplers", "sampler.type"),
    "executors": ("Executors", "executor.type"),
    "exporters": ("Export formats", "export.formats"),
    "trackers": ("Trackers", "trackers"),
    "targets": ("Targets", "kdnas measure --target, costs.latency_ms.target"),
    "policies": ("Shrinking policies", "supernet.shrinking.policy"),
}

_FILE_COLUMNS = 120
"""Of a line where no terminal reports its width."""

Family = Enum("Family", {name: name for name in _HEADINGS})  # type: ignore[misc]


def command(
    family: Annotated[
        Family | None, typer.Argument(help="Only this family, with every option.", show_default=False)
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="STUDY", help="Also the members of your own that this study names."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what a study can name, family by family.

    The families are data sets, teachers, spaces, losses, costs, samplers, executors, export formats and others. With
    FAMILY its members' whole documentation is printed: options with their types and defaults, the keys of a student
    family's choices, the arguments and the result of a function of your own.

    Examples:
      kdnas list
      kdnas list losses
      kdnas list losses --study my-study
      kdnas list --json | jq .teachers
    """
    families = [family.value] if family else list(_HEADINGS)
    own = _own_members(study) if study is not None else {}
    entries = {name: _entries(name, own.get(name, ())) for name in families}
    if as_json:
        typer.echo(json.dumps({name: [asdict(entry) for entry in found] for name, found in entries.items()}, indent=2))
        return
    typer.echo(
        "\n\n".join(_section(name, found, with_options=family is not None) for name, found in entries.items()),
        color=colour(),
    )
    if family is None:
        typer.echo("\nOptions: kdnas list FAMILY, such as `kdnas list losses`.")


def _own_members(study: Path) -> dict[str, list[str]]:
    """Return the plug-ins that a study and its space, or a run, name, by family. Raises InputError."""
    from kdnas.plugins import plugins_named
    from kdnas.record.lock import read_code_settings
    from kdnas.record.run_folder import LOCK_FILE
    from kdnas.study.loading import own_study, study_file
    from kdnas.study.yaml_lines import read_yaml

    if (study / LOCK_FILE).exists():
        settings = [read_code_settings(study)]
    else:
        file = study_file(study)
        settings = [own_study(read_yaml(file), file.parent).data]
        space = settings[0].get("space")
        if isinstance(space, str) and (file.parent / space).is_file():
            settings.append(own_study(read_yaml(file.parent / space), (file.parent / space).parent).data)
    found: dict[str, list[str]] = {}
    for plugin in (plugin for plain in settings for plugin in plugins_named(plain)):
        found.setdefault(plugin.family, []).append(plugin.spec)
    return found


def _entries(family: str, own: Sequence[str]) -> list[Entry]:
    if family == "spaces":
        return _spaces()
    from kdnas.study.members import registry_of

    registry = registry_of(family)
    return [describe(registry, name) for name in dict.fromkeys([*registry.names(), *own])]


def _spaces() -> list[Entry]:
    from kdnas.errors import ConfigError
    from kdnas.study.spaces import load_space, space_names

    entries = []
    for name in space_names():
        try:
            space = load_space(name, Path())
        except ConfigError as error:
            entries.append(Entry(name, "", unusable=str(error).partition("\n")[0]))
        else:
            entries.append(Entry(name, f"{' '.join(space.description.split())} ({space.family or 'no family'})"))
    return entries


def _section(family: str, entries: list[Entry], *, with_options: bool) -> str:
    heading, key = _HEADINGS[family]
    width = max((len(entry.name) for entry in entries), default=0)
    lines = [f"{typer.style(heading, bold=True)}  ({key})"]
    for entry in entries:
        lines.append(_headline(f"  {entry.name:<{width}}  ", entry.unusable or entry.summary))
        if with_options:
            lines += [_wrapped(paragraph) for paragraph in entry.details]
            lines += [_wrapped(f"needs: {', '.join(entry.needs)}")] if entry.needs else []
            lines += [_wrapped(_option_line(option), hanging=True) for option in (*entry.choices, *entry.options)]
    return "\n".join(lines)


def _headline(start: str, text: str) -> str:
    """Return a member's first line: in a file whole, for tools that go by lines; else wrapped beneath itself."""
    if not sys.stdout.isatty():
        return f"{start}{text}".rstrip()
    return _filled(text, shutil.get_terminal_size().columns, start, " " * len(start)).rstrip() or start.rstrip()


def _wrapped(text: str, *, hanging: bool = False) -> str:
    """Return `text` below its member, whole: it goes on in further lines, those of an option set in."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _FILE_COLUMNS
    return _filled(text, columns, "      ", "          " if hanging else "      ")


def _filled(text: str, columns: int, start: str, further: str) -> str:
    return textwrap.fill(
        text, max(columns, 40), initial_indent=start, subsequent_indent=further, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _option_line(option: Option) -> str:
    default = "required" if option.default is None else f"default {option.default}"
    explained = f"  {option.help}" if option.help else ""
    return f"{option.name}: {option.type} ({default}){explained}"
