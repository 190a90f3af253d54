"""`kdnas spaces`: the search spaces that kdnas carries, and the user's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdnas.cli._options import DataRoot, Json, StudyPath
from kdnas.core.space import Choice, Condition
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import is_plugin, short_name

if TYPE_CHECKING:
    from kdnas.core.space import SearchSpace
    from kdnas.core.task import TaskSpec
    from kdnas.nn.cutting import Axis
    from kdnas.students import StudentFamily
    from kdnas.study.loading import LoadedStudy
    from kdnas.workshop.opening import Workshop
    from kdnas.workshop.teacher_anatomy import TeacherAnatomy

_SAMPLES = 1000
_PIPED = 100_000
"""Columns of what is no terminal: as many as a table may need."""

app = typer.Typer(help="Search spaces: list them, show one, count its networks.")

Space = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `kdnas spaces list`, a path to a YAML file, or a study.",
        show_default=False,
    ),
]


Importance = Literal["activation", "taylor", "l1"]


@app.command("list")
def list_spaces(as_json: Json = False) -> None:
    """List the search spaces that kdnas carries, with their sizes."""
    from kdnas.study.spaces import space_names

    spaces = [_load(name) for name in space_names()]
    if as_json:
        keys = ("name", "family", "archs", "description")
        _print_json([dict(zip(keys, (s.name, s.family, s.count(), s.description), strict=True)) for s in spaces])
        return
    rows = [(space.name, space.family, f"{space.count():,}", space.description) for space in spaces]
    _print_table(("space", "family", "archs", "description"), rows, numbers=(2,))


@app.command("show")
def show_space(
    space: Space,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="CxHxW|TxV",
            help="Channels, height and width of images (3x32x32), or tokens of a text and words of the vocabulary "
            "(64x30522).",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Number of classes.")] = 10,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show the choices of a search space, and what its networks cost.

    Where a study's students are cut out of its teacher, the teacher is opened, and what can and cannot be cut of it is
    shown first, with the reasons.
    """
    from kdnas.students import family_for

    loaded, workshop = _space_of(space, data_root)
    if workshop is not None:
        _show_cut(workshop, as_json=as_json)
        return
    task = _task_of(loaded, input_shape, classes)
    size = "x".join(map(str, _shape_of(task)))
    unknown = input_shape is None and (_is_of_study(space) or _takes_anything(loaded.family))
    family = family_for(loaded.family, task) if loaded.family and not unknown else None
    costs = {} if family is None else _costs(loaded, family)
    if as_json:
        steps = () if family is None else _strides(loaded, family, task)
        given = {"input": list(_shape_of(task)), "classes": classes, "sampled_archs": _SAMPLES}
        _print_json(
            {
                **_described(loaded),
                "strides": [{"part": part, "stride": list(s), "size": list(sides)} for part, s, sides in steps],
                "costs": {} if family is None else {**given, **costs},
            }
        )
        return
    typer.echo(": ".join(filter(None, (loaded.name, loaded.description))))
    typer.echo(f"family {short_name(loaded.family) or 'none'}, {loaded.count():,} archs\n")
    rows = [(choice.name, _domain(choice), _when(loaded, choice.name)) for choice in loaded.choices]
    rows += [(name, f"{value} (fixed)", _when(loaded, name)) for name, value in loaded.fixed.items()]
    _print_table(("choice", "values", "active when"), rows)
    if unknown:
        typer.echo("\nWhat its networks cost depends on the data: `kdnas validate STUDY --open`, or --input.")
    if family is None:
        return
    steps = _strides(loaded, family, task)
    if steps:
        typer.echo(f"\nStrides on {size} images (stage<i>.stride and stem_stride in a space of your own):")
        _print_table(("part", "stride", "works at"), [(part, _either(s), _either(sides)) for part, s, sides in steps])
    inputs = f"{size} images" if len(_shape_of(task)) == 3 else f"texts of {task.size} tokens of {_shape_of(task)[1]:,}"
    _print_costs(costs, f" on {inputs}" + ("" if task.rows > 1 else f", {classes} classes"))


@app.command("count")
def count_space(space: Space, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Count the networks of a search space.

    Counted are its assignments, those that differ in an active choice, and the distinct networks.
    """
    from kdnas.study.space_size import space_size

    loaded, workshop = _space_of(space, data_root)
    size = space_size(loaded, None if workshop is None else workshop.family)
    if as_json:
        _print_json(
            {
                "name": loaded.name,
                "assignments": size.assignments,
                "archs": size.active,
                "networks": size.networks,
                "networks_exact": not size.sampled,
                "sampled_assignments": size.sampled,
            }
        )
        return
    about = f"about {float(f'{size.networks:.2g}'):,.0f}" if size.sampled else f"{size.networks:,}"
    how = f"estimated from {size.sampled} random assignments" if size.sampled else "counted one by one"
    rows = [
        ("assignments", f"{size.assignments:,}", "every combination of values"),
        ("archs", f"{size.active:,}", "inactive choices dropped"),
        ("networks", about, f"one for all spellings of the same network; {how}"),
    ]
    _print_table((loaded.name, "count", "meaning"), rows, numbers=(1,))


@app.command("anatomy")
def show_anatomy(
    study: StudyPath,
    importance: Annotated[
        Importance | None,
        typer.Option(
            "--importance",
            metavar="activation|taylor|l1",
            help="Measure on training samples how much each block and unit matters.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show what can be cut out of a study's teacher, and what not.

    Blocks, heads, neurons and channels are listed, with the reasons for what cannot be cut. The teacher is opened, cut
    along every axis, and compared with the same network whose cut parts are masked.

    Examples:
      kdnas spaces anatomy my-study --importance taylor
    """
    from kdnas.record.started_study import read_study
    from kdnas.workshop.teacher_anatomy import open_anatomy

    found = open_anatomy(_workshop_of(read_study(study), data_root), importance=importance)
    if as_json:
        _print_json(_anatomy_document(found))
    else:
        _print_anatomy(found)


def _workshop_of(loaded: LoadedStudy, data_root: Path | None) -> Workshop:
    from kdnas.workshop import opening

    return opening.Workshop(
        opening.Sources.of_study(loaded.config, loaded.space),
        data_root=opening.data_root(data_root),
        cache=opening.cache_dir(),
        device=opening.resolve_device(loaded.config.device),
        notify=lambda line: typer.echo(line, err=True),
    )


def _space_of(name: str, data_root: Path | None) -> tuple[SearchSpace, Workshop | None]:
    """Return the space called `name`, or that of a study, and the workshop where its teacher defines it."""
    from kdnas.record.started_study import read_study

    if not _is_of_study(name):
        return _load(name), None
    study = read_study(Path(name))
    if isinstance(study.config.space, str):
        return study.space, None
    workshop = _workshop_of(study, data_root)
    return workshop.space, workshop


def _is_of_study(name: str) -> bool:
    """Whether `name` is a study's or a run's, whose data say what students are given, and not that of a space alone."""
    from kdnas.record.started_study import run_folder
    from kdnas.study.yaml_lines import read_yaml

    path = Path(name)
    return path.is_dir() or bool(run_folder(path)) or (path.is_file() and "space" in read_yaml(path).data)


def _show_cut(workshop: Workshop, *, as_json: bool) -> None:
    """Show what a study's students are cut out of, and the choices that follow."""
    from kdnas.students.derived import Derived
    from kdnas.workshop.teacher_anatomy import anatomy_of

    family, space = workshop.family, workshop.space
    assert isinstance(family, Derived)
    found = anatomy_of(family)
    costs = _costs(space, family)
    parts = {choice.name: [part.name for part in choice.parts] for choice in family.choices.choices}
    if as_json:
        costs_document = {"sampled_archs": _SAMPLES, **costs}
        _print_json({**_described(space), "cuts": parts, "costs": costs_document, "anatomy": _anatomy_document(found)})
        return
    _print_anatomy(found)
    typer.echo(f"\n{space.count():,} archs")
    rows = [
        (choice.name, _domain(choice), _when(space, choice.name), _some(parts[choice.name])) for choice in space.choices
    ]
    rows += [(name, f"{value} (fixed)", "", _some(parts[name])) for name, value in space.fixed.items()]
    _print_table(("choice", "values", "active when", "cuts"), rows)
    _print_costs(costs)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _anatomy_document(found: TeacherAnatomy) -> dict[str, Any]:
    anatomy = found.anatomy
    return {
        "teacher": found.teacher,
        "network": found.network,
        "kind": anatomy.kind,
        "macs": found.whole.macs,
        "params": found.whole.params,
        "smallest": {"macs": found.least.macs, "params": found.least.params},
        "blocks": [{"name": d.name, "blocks": d.blocks, "least": d.least} for d in anatomy.depths],
        "axes": [
            {
                "name": axis.name,
                "role": axis.role,
                "size": axis.size,
                "tied": sorted({tie.tensor for tie in axis.ties}),
                "inexact": axis.inexact,
            }
            for axis in anatomy.axes
        ],
        "importance": None if found.ranking is None else found.ranking.scores,
        "uncut": [{"what": part.what, "why": part.why} for part in anatomy.uncut],
    }


def _print_anatomy(found: TeacherAnatomy) -> None:
    anatomy, ranking = found.anatomy, found.ranking
    typer.echo(f"teacher {found.teacher}: {found.network}, read as {anatomy.kind}")
    typer.echo(
        f"{found.whole.macs:,} MACs, {found.whole.params:,} parameters; with the fewest blocks and units that work "
        f"{found.least.macs:,} and {found.least.params:,}\n"
    )
    if anatomy.depths:
        ranks = {} if ranking is None else ranking.orders
        rows = [
            (
                d.name,
                f"{d.least} .. {len(d.blocks)}",
                ", ".join(d.blocks[block] for block in ranks.get(d.name, d.order)),
            )
            for d in anatomy.depths
        ]
        order = "" if ranking is None else ", the most important first"
        _print_table(("depth", "blocks", f"which may be left out{order}"), rows)
        typer.echo("")
    if anatomy.axes:
        parts = [
            (
                axis.name,
                f"{axis.least} .. {axis.size}",
                _some(_tied_layers(axis), 2),
                "" if ranking is None else f"{_better_half(ranking.scores[axis.name]):.0%}",
                "nearly" if axis.inexact else "exact",
            )
            for axis in anatomy.axes
        ]
        better = "" if ranking is None else "better half"
        _print_table(("axis", "size", "cuts together", better, "cut = masked"), parts, numbers=(1, 3))
        notes = [f"nearly: {why}" for why in dict.fromkeys(axis.inexact for axis in anatomy.axes) if why]
        if ranking is not None:
            notes.insert(0, "better half: the share of its importance that the better half of an axis holds")
        if notes:
            typer.echo("\n" + "\n".join(notes))
    if anatomy.uncut:
        typer.echo("")
        _print_table(("left whole", "because"), [(_some(names), why) for why, names in anatomy.left_whole.items()])


def _better_half(scores: Sequence[float]) -> float:
    """Return the share of all importance that the more important half of the units has."""
    ordered = sorted(scores, reverse=True)
    return sum(ordered[: (len(ordered) + 1) // 2]) / (sum(ordered) or 1.0)


def _tied_layers(axis: Axis) -> list[str]:
    """Return the layers that lose what the axis loses, those that make it first."""
    ties = sorted(axis.ties, key=lambda tie: tie.reads)
    return list(dict.fromkeys(tie.tensor.rpartition(".")[0] or tie.tensor for tie in ties))


def _load(name: str) -> SearchSpace:
    from kdnas.study.spaces import load_space

    return load_space(name, Path.cwd())


def _task_of(space: SearchSpace, text: str | None, classes: int) -> TaskSpec:
    """Return the kind of work that the space's students are for, on inputs of the shape that `text` spells."""
    from kdnas.core.task import image_classification
    from kdnas.core.text import language_modelling, text_classification
    from kdnas.students import STUDENTS

    kinds = STUDENTS.get(space.family).tasks if space.family else ()
    if "text_classification" in kinds:
        return text_classification(*_text_shape(text or "64x30522"), classes)
    if "language_modelling" in kinds:
        return language_modelling(*_text_shape(text or "256x4096"))
    return image_classification(_image_shape(text or "3x32x32"), classes)


def _takes_anything(family: str) -> bool:
    """Whether nothing is known of what students of a family are given: it is the user's own and names no task."""
    from kdnas.students import STUDENTS

    return bool(family) and is_plugin(family) and not STUDENTS.get(family).tasks


def _image_shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise ConfigError(Problem("--input", f"{text!r} is no image shape", "CHANNELSxHEIGHTxWIDTH such as 3x32x32"))
    return int(match[1]), int(match[2]), int(match[3])


def _text_shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,6})", text)
    if match is None:
        raise ConfigError(Problem("--input", f"{text!r} is no shape of texts", "TOKENSxVOCABULARY such as 64x30522"))
    return int(match[1]), int(match[2])


def _shape_of(task: TaskSpec) -> tuple[int, ...]:
    """Return the shape of the task's first input, with the vocabulary where that is tokens."""
    taken = task.inputs[0]
    return taken.shape if taken.kind == "pixels" else (*taken.shape, taken.levels)


def _strides(
    space: SearchSpace, family: StudentFamily, task: TaskSpec
) -> list[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Return of stem and stages the strides that they may have, and the sizes that they work at then."""
    domains = {**{choice.name: choice.values for choice in space.choices}, **{k: (v,) for k, v in space.fixed.items()}}
    parts, worked_at = family.strides(domains), list[tuple[str, tuple[int, ...], tuple[str, ...]]]()
    sizes = {task.image_size} if parts else set()
    for part, strides in parts:
        sizes = {(-(-height // stride), -(-width // stride)) for height, width in sizes for stride in strides}
        worked_at.append((part, strides, tuple(f"{height}x{width}" for height, width in sorted(sizes, reverse=True))))
    return worked_at


def _either(values: Sequence[object]) -> str:
    return " or ".join(map(str, values))


def _described(space: SearchSpace) -> dict[str, Any]:
    return {
        "name": space.name,
        "family": space.family,
        "description": space.description,
        "archs": space.count(),
        "choices": {choice.name: list(choice.values) for choice in space.choices},
        "conditions": [
            {"choice": gate.choice, "when": gate.when, "in": list(gate.values)} for gate in space.conditions
        ],
        "fixed": dict(space.fixed),
    }


def _costs(space: SearchSpace, family: StudentFamily) -> dict[str, dict[str, int]]:
    """Return by cost the quantiles of what random archs of `space` cost."""
    from kdnas.study.space_size import random_prices

    prices = random_prices(space, family, samples=_SAMPLES)
    return {name: _quantiles([getattr(price, name) for price in prices]) for name in ("macs", "params")}


def _print_costs(costs: dict[str, dict[str, int]], where: str = "") -> None:
    typer.echo(f"\nCosts of {_SAMPLES:,} random archs{where}:")
    cells = [(name, *(f"{value:,}" for value in quantiles.values())) for name, quantiles in costs.items()]
    _print_table(("cost", "smallest", "10 %", "median", "90 %", "largest"), cells, numbers=(1, 2, 3, 4, 5))


def _quantiles(values: list[int]) -> dict[str, int]:
    ordered = sorted(values)
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items()}


def _domain(choice: Choice) -> str:
    if choice.step is None or len(choice.values) < 4:
        return ", ".join(_spelled(value) for value in choice.values)
    return f"{choice.values[0]} .. {choice.values[-1]} step {choice.step}"


def _when(space: SearchSpace, name: str) -> str:
    gates: list[Condition] = [gate for gate in space.conditions if gate.choice == name]
    return " and ".join(f"{gate.when} in {', '.join(map(_spelled, gate.values))}" for gate in gates)


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _print_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: tuple[int, ...] = ()) -> None:
    from kdnas.cli._terminal import console, printed
    from kdnas.report.table import Table

    texts = {*range(len(headings))} - {*numbers}
    terminal = console()
    if not terminal.is_terminal and "COLUMNS" not in os.environ:
        terminal.width = _PIPED  # a line a row, for other programs to search
    terminal.print(printed(Table.of_texts("", headings, rows, text=texts)))
