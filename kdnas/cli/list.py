"""`kdnas list`: everything a study can name, with its options."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from typing import Annotated

import typer

from kdnas.cli._members import Entry, Option, describe
from kdnas.cli._options import Json

# Family -> the heading, and the key of study.yaml that takes its names.
_HEADINGS = {
    "datasets": ("Data sets", "data.type"),
    "teachers": ("Teacher sources", "teacher.type"),
    "students": ("Student families", "a space's family"),
    "spaces": ("Search spaces", "space"),
    "losses": ("Distillation losses", "distillation.losses"),
    "costs": ("Costs", "objectives, constraints, costs"),
    "evaluators": ("Evaluators", "evaluator.type"),
    "samplers": ("Samplers", "sampler.type"),
    "executors": ("Executors", "executor.type"),
    "exporters": ("Export formats", "export.formats"),
    "targets": ("Targets", "kdnas measure --target, costs.latency_ms.target"),
}

Family = Enum("Family", {name: name for name in _HEADINGS})  # type: ignore[misc]


def command(
    family: Annotated[
        Family | None, typer.Argument(help="Only this family, with every option.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List what a study can name: data sets, teachers, spaces, losses, costs, evaluators, samplers, executors, formats.

    Naming a family adds the options of its members, with their types and defaults.

    Examples:
      kdnas list
      kdnas list losses
      kdnas list --json | jq .teachers
    """
    families = [family.value] if family else list(_HEADINGS)
    entries = {name: _entries(name) for name in families}
    if as_json:
        typer.echo(json.dumps({name: [asdict(entry) for entry in found] for name, found in entries.items()}, indent=2))
        return
    typer.echo("\n\n".join(_section(name, found, with_options=family is not None) for name, found in entries.items()))
    if family is None:
        typer.echo("\nOptions: kdnas list FAMILY, such as `kdnas list losses`.")


def _entries(family: str) -> list[Entry]:
    if family == "spaces":
        return _spaces()
    from kdnas.study.members import registry_of

    registry = registry_of(family)
    return [describe(registry, name) for name in registry.names()]


def _spaces() -> list[Entry]:
    from pathlib import Path

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
        lines.append(f"  {entry.name:<{width}}  {entry.unusable or entry.summary}".rstrip())
        if with_options:
            lines += [f"      {_option_line(option)}" for option in entry.options]
    return "\n".join(lines)


def _option_line(option: Option) -> str:
    default = "required" if option.default is None else f"default {option.default}"
    explained = f"  {option.help}" if option.help else ""
    return f"{option.name}: {option.type} ({default}){explained}"
