"""`kdnas init`: a commented study for the user's own teacher and data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdnas import atomic
from kdnas.cli._members import Option, describe
from kdnas.cli._options import DataRoot
from kdnas.cli._study_template import CUT, IMAGES, OF_TEXTS, START, STATED, TEMPLATE
from kdnas.core.arch import Scalar
from kdnas.core.objective import ACCURACY, SPEARMAN, Quantity
from kdnas.core.space import Choice
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, InputError, Problem

if TYPE_CHECKING:
    from kdnas.cli._own_files import Chosen

# What stands for the user's own where an option must be given. Other required options get a value of their type.
_PLACEHOLDERS = {
    ("image_folder", "path"): "my_images",
    ("cifar_archive", "path"): "cifar-10-python.tar.gz",
    ("npz", "path"): "my_arrays.npz",
    ("parquet", "train"): "my_data/train-*.parquet",
    ("module", "function"): "my_data.py:load",
    ("module", "factory"): "my_teacher.py:build_teacher",
    ("module", "weights"): "my_teacher.safetensors",
    ("timm", "model"): "resnet18",
    ("timm", "weights"): "my_teacher.safetensors",
    ("torchvision", "model"): "resnet18",
    ("torchvision", "weights"): "my_teacher.safetensors",
    ("huggingface", "model"): "my_teacher",
    ("sequence_classifier", "model"): "my_teacher",
    ("causal_lm", "model"): "my_teacher",
    ("text_lists", "train"): "my_lists.jsonl",
    ("text_lists", "test_fraction"): 0.2,
    ("text_table", "train"): "my_texts.csv",
    ("text_table", "test_fraction"): 0.2,
    ("text_folder", "path"): "my_texts",
    ("text_module", "function"): "my_data.py:load",
    ("text_corpus", "train"): "my_texts/*.txt",
    ("text_corpus", "test"): 0.1,
    ("token_files", "train"): "my_tokens/train.bin",
    ("token_files", "test"): "my_tokens/test.bin",
}
_SPACE_FILE = "space.yaml"
_MADE_FOR = {8: "digits_resnet", 32: "cifar_resnet", 64: "photo64_resnet", 224: "photo224_resnet"}
"""By the side of images in pixels: the space of residual networks made for them."""
_SIZES = {"digits": 8, "cifar_archive": 32}
"""The side of the images of data that has but one."""


Data = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        help="Where your samples are: a name of `kdnas list datasets`, or a file or folder under the data root. auto: "
        "image_folder, or texts where the teacher reads them.",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        metavar="NAME|FOLDER",
        help="Where your teacher is from: a name of `kdnas list teachers`, or a Hugging Face folder under the data "
        "root. auto: module for images, a Hugging Face model for texts.",
    ),
]
Space = Annotated[
    str,
    typer.Option(help="The students to search: a name of `kdnas list spaces`; auto: one for texts, or for --size."),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=4,
        max=65536,
        metavar="N",
        help="Side in pixels that images are resized to, or tokens that a text has at most. Default: as the data has "
        "them.",
    ),
]
SampleCount = Annotated[
    int | None,
    typer.Option(
        "--samples",
        "--images",
        min=1,
        metavar="N",
        help="Training samples, which epochs and batch size follow. Default: those of the data, if it is there.",
    ),
]


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder of the study; made if needed.")
    ] = Path(),
    data: Data = "auto",
    teacher: Teacher = "auto",
    space: Space = "auto",
    size: Size = None,
    samples: SampleCount = None,
    root_option: DataRoot = None,
    own_space: Annotated[
        bool, typer.Option("--own-space", help=f"Also write that space as {_SPACE_FILE}, to be changed.")
    ] = False,
    from_teacher: Annotated[
        bool,
        typer.Option("--from-teacher", help="Search students that are cut out of the teacher, in place of --space."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented study.yaml for your own teacher and data.

    Every setting is explained next to its default. Existing files are kept, unless --force is given.

    Examples:
      kdnas init my-study
      kdnas init my-study --data npz --teacher timm --own-space
      kdnas init my-photos --size 64
      kdnas init my-model --teacher huggingface --from-teacher
      kdnas init my-reviews --data reviews.csv --teacher my_bert --from-teacher
      kdnas init my-corpus --data text_corpus --size 128 --from-teacher
      kdnas init tryout --data digits --teacher student --space digits_resnet
    """
    from kdnas.cli._own_files import choose
    from kdnas.study.loading import STUDY_FILE, load_study
    from kdnas.workshop.opening import data_root

    if directory.suffix in (".yaml", ".yml") or directory.is_file():
        raise ConfigError(Problem(str(directory), "names a file, and a study is a folder", str(directory.parent)))
    problems = _space_problems(space, own_space=own_space, from_teacher=from_teacher)
    root = data_root(root_option)
    try:
        own_data, own_teacher = choose(data, teacher, root)
    except ConfigError as error:
        problems = [*error.problems, *problems]
    if problems:
        raise ConfigError(problems)
    there, score = _there(own_data, own_teacher, root)
    files = study_files(
        directory,
        own_data,
        own_teacher,
        space,
        size=size,
        own_space=own_space,
        samples=samples or there,
        score=score,
        from_teacher=from_teacher,
    )
    taken = [name for name in files if (directory / name).exists()]
    if taken and not force:
        raise ConfigError(Problem(str(directory / name), "is there already; --force replaces it") for name in taken)
    for name, text in files.items():
        _write(directory / name, text)
    load_study(directory)  # what was written must be sound
    typer.echo(f"wrote {', '.join(str(directory / name) for name in files)}")
    typer.echo(f"next: fill in the lines marked YOURS in {directory / STUDY_FILE}, then run")
    typer.echo(f"  {command_line('kdnas', 'validate', directory, '--open')}")
    typer.echo(f"  {command_line('kdnas', 'search', directory)}")


def _space_problems(space: str, *, own_space: bool, from_teacher: bool) -> list[Problem]:
    from kdnas.study.spaces import space_names

    problems = []
    if space not in (names := [*space_names(), "auto"]):
        problems.append(Problem("--space", f"there is no {space!r}", ", ".join(names)))
    if from_teacher and (own_space or space != "auto"):
        what = "students are cut out of the teacher: there is no other space"
        problems.append(Problem("--from-teacher", what, "without --space and --own-space"))
    return problems


def study_files(
    directory: Path,
    data: Chosen,
    teacher: Chosen,
    space: str,
    *,
    size: int | None = None,
    own_space: bool = False,
    samples: int | None = None,
    score: Quantity | None = None,
    from_teacher: bool = False,
) -> dict[str, str]:
    """Return the files of a new study by name, in the order they are written. Raises ConfigError on another --size.

    `space` auto is one made for texts, or images of `size` pixels, or of the size that the data is known to have. So
    many training `samples` decide epochs and batch size; None: not known, taken as 5,000. `score` is that of the data,
    None where it is not known.
    """
    from kdnas.datasets import kind_of
    from kdnas.study.config import ExportConfig
    from kdnas.study.loading import STUDY_FILE
    from kdnas.study.members import TRAINED_HERE, registry_of
    from kdnas.study.spaces import load_space, space_names

    work = OF_TEXTS.get(kind_of(data.type).poses, IMAGES)
    if space == "auto":
        space = work.space or space_for(size or _SIZES.get(data.type))
    known = _data_options(data, teacher)
    if size is not None:
        if work.size_option not in registry_of("datasets").options(data.type).model_fields:
            what = f"{data.type} gives its {work.samples} in one size: change it before"
            raise ConfigError(Problem("--size", what, "no --size"))
        known[work.size_option] = size
    searched = load_space(space, directory)
    family = "derived" if from_teacher else searched.family
    largest = searched.active({choice.name: _most(choice) for choice in searched.choices})
    count = samples or _UNKNOWN_SAMPLES
    epochs, batch_size = proposed_training(count)
    recipe = {"epochs": max(30, epochs), "batch_size": batch_size, **_unusual(searched.family)}
    trained_here = {"family": searched.family, "choices": largest, "training": recipe}
    score = score or next(iter(kind_of(data.type).scores), ACCURACY)
    where, others = _SPACE_FILE if own_space else space, ", ".join(space_names())
    stated = STATED.format(space=where, spaces=others, shape=work.shape, samples=work.samples)
    files = {_SPACE_FILE: _space_text(space)} if own_space else {}
    files[STUDY_FILE] = TEMPLATE.format(
        name=_study_name(directory),
        data=_section("datasets", data.type, known),
        teacher=_section(
            "teachers",
            teacher.type,
            trained_here if teacher.type in TRAINED_HERE else {**_placeholders(teacher), **teacher.options},
        ),
        students=CUT.format(cut=work.cut) if from_teacher else stated,
        score=score.name,
        goal=f"{score.name}>=0.9" if score.direction == "maximize" else f"{score.name}<=20",
        start="" if from_teacher else START,
        steps=_steps(family, fine_tuned=from_teacher and work is not IMAGES),
        clip="" if work is not IMAGES else "# ",
        views=work.views,
        losses=_losses(),
        loss="{type: mse, weight: 0.9}" if score == SPEARMAN else "{type: kd, weight: 0.9, temperature: 4.0}",
        formats=", ".join([*(["huggingface"] if from_teacher and work is not IMAGES else []), *ExportConfig().formats]),
        latency=work.latency,
        samples=work.samples,
        size=work.size,
        count=count,
        epochs=epochs,
        batch_size=batch_size,
        updates=epochs * math.ceil(count / batch_size),
        short=max(1, epochs // 3),
        nearly=epochs - 1,
    )
    return files


def _data_options(data: Chosen, teacher: Chosen) -> dict[str, Any]:
    """Return what is known of the data's options: of texts also the tokenizer, the one that the teacher reads with."""
    from kdnas.study.members import TRAINED_HERE, registry_of

    known = {**_placeholders(data), **data.options}
    if "test" in data.options:
        known.pop("test_fraction", None)
    options = registry_of("datasets").options(data.type).model_fields
    if "tokenizer" in options:
        trained_here = teacher.type in TRAINED_HERE and data.type != "token_files"
        known["tokenizer"] = "bpe" if trained_here else teacher.options.get("model", "my_teacher")
    return known


def _placeholders(chosen: Chosen) -> dict[str, Any]:
    return {option: value for (member, option), value in _PLACEHOLDERS.items() if member == chosen.type}


def space_for(size: int | None) -> str:
    """Return the space whose images are nearest to `size` pixels in proportion; None: not known, taken as 32."""
    return _MADE_FOR[min(_MADE_FOR, key=lambda made: abs(math.log(made / (size or 32))))]


_UPDATES = 1_000
"""Of a proposed score: twice what is too few (`kdnas.study.updates.FEW_UPDATES`)."""
_UNKNOWN_SAMPLES = 5_000
_FINE_TUNING = 3e-4, 5e-5, 2e-3
"""Learning rate, lowest, highest of students cut out of a transformer of texts, which a larger one makes forget."""


@dataclass(frozen=True)
class _Steps:
    """The template's optimizer, and its learning rate with the range that is searched."""

    optimizer: str
    rate: float
    low: float
    high: float
    decay: str


def _steps(family: str, *, fine_tuned: bool) -> _Steps:
    """Return the steps of a family's own kind."""
    from kdnas.study.members import registry_of

    member = registry_of("students").get(family)
    rate, (low, high) = member.learning_rate, member.learning_rates
    if fine_tuned:
        rate, low, high = _FINE_TUNING
    other = "sgd" if member.optimizer == "adamw" else "adamw"
    decay = f"{member.weight_decay:.1e}".replace("e-0", "e-")
    return _Steps(f"{member.optimizer}  # or {other}", rate, low, high, decay)


def _unusual(family: str) -> dict[str, Any]:
    """Return what a training of the family states in place of the defaults."""
    from kdnas.study.members import registry_of

    member = registry_of("students").get(family)
    stated = ("optimizer", "learning_rate", "weight_decay")
    return {name: getattr(member, name) for name in stated} if member.optimizer != "sgd" else {}


def proposed_training(samples: int) -> tuple[int, int]:
    """Return (epochs, batch size) of a score on so many training samples: small batches on few, `_UPDATES` at least."""
    batch_size = 128 if samples >= 20_000 else 64 if samples >= _UNKNOWN_SAMPLES else 32
    return max(5, math.ceil(_UPDATES / math.ceil(samples / batch_size))), batch_size


def _there(data: Chosen, teacher: Chosen, root: Path) -> tuple[int | None, Quantity | None]:
    """Return how many training samples there are, and their task's score.

    None where there are none yet, or they cannot be read, which is told.
    """
    from kdnas.study.config import DataConfig
    from kdnas.workshop.opening import cache_dir, load_data

    options = _data_options(data, teacher)
    named = [value for value in options.values() if isinstance(value, str) and value not in ("bpe", "bytes")]
    if "function" in options or not all(_is_there(root, value) for value in named):
        return None, None
    try:
        section = DataConfig.model_validate({"type": data.type, **options})
        loaded = load_data(section, root, cache_dir())
    except InputError as error:
        for problem in error.problems:
            typer.echo(f"note: the data is there and cannot be read as stated: {problem}", err=True)
        return None, None
    scored = loaded.stated_validation or section.validation_fraction * len(loaded.train)
    return round(len(loaded.train) - scored), loaded.task.score


def _is_there(root: Path, name: str) -> bool:
    """Whether the file, folder or glob `name` is under `root`, or the archive that it is a member of."""
    if "*" in name:
        return any(root.glob(name))
    return (root / name).exists() or any((root / part).is_file() for part in Path(name).parents)


def _most(choice: Choice) -> Scalar:
    """Return the largest of numbers, the first of anything else: a teacher is as capable as the space allows."""
    numbers = [value for value in choice.values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(choice.values):
        return choice.values[0]
    return min(numbers) if choice.name == "patch_size" else max(numbers)


def _study_name(directory: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.resolve().name).strip("-._")
    return name or "study"


def _space_text(space: str) -> str:
    from kdnas.study.spaces import space_path

    return (
        f"# The students to search, copied from kdnas's space {space}: change what is listed under `choices`.\n"
        f"# `kdnas spaces show {_SPACE_FILE}` and `kdnas spaces count {_SPACE_FILE}` describe the result.\n"
        f"{space_path(space).read_text(encoding='utf-8')}"
    )


def _section(family: str, name: str, known: Mapping[str, Any]) -> str:
    """Return the YAML of one member: what must be given to be filled in, the rest as comments with its default."""
    from kdnas.study.members import registry_of

    entry = describe(registry_of(family), name)
    lines = [f"  type: {name}"]
    for option in entry.options:
        if option.default is None or option.name in known:
            value = known.get(option.name, _value_of(option))
            lines.append(f"  {option.name}: {_yaml(value)}  # YOURS: {option.help or option.type}")
        else:
            lines.append(f"  # {option.name}: {_default(option)}  # {option.help or option.type}")
    return "\n".join([f"  # {entry.summary}", *lines])


def _value_of(option: Option) -> Any:
    """Return some value of a required option's type."""
    kind = option.type.partition(" ")[0]
    return {"int": 1, "float": 1.0, "true": True, "list": [], "mapping": {}}.get(kind, "CHANGE_ME")


def _default(option: Option) -> str:
    return "null" if option.default == "none" else str(option.default)


def _losses() -> str:
    from kdnas.study.members import registry_of

    registry = registry_of("losses")
    return "\n".join(f"  #   {name:<12} {registry.summary(name)}" for name in registry.names())


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _write(path: Path, text: str) -> None:
    """Write `text` whole or not at all. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
    except OSError as error:
        raise ConfigError(Problem(str(path), f"cannot be written: {error.strerror or error}")) from error
