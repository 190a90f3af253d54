"""`kdnas init`: a commented study for the user's own teacher and data."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from kdnas import atomic
from kdnas.cli._members import Option, describe
from kdnas.core.arch import Scalar
from kdnas.core.objective import ACCURACY
from kdnas.core.space import Choice
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, InputError, Problem

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
}
_SPACE_FILE = "space.yaml"
_MADE_FOR = {8: "digits_resnet", 32: "cifar_resnet", 64: "photo64_resnet", 224: "photo224_resnet"}
"""By the side of images in pixels: the space of residual networks made for them."""
_OF_TEXTS = {"text_classification": "texts_bert", "language_modelling": "texts_gpt"}
"""By the kind of work: the space of transformers made for it."""
_SIZES = {"digits": 8, "cifar_archive": 32}
"""The side of the images of data that has but one."""


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder of the study; made if needed.")
    ] = Path(),
    data: Annotated[str, typer.Option(help="Where your images are: a name of `kdnas list datasets`.")] = "image_folder",
    teacher: Annotated[
        str, typer.Option(help="Where your teacher is from: a name of `kdnas list teachers`.")
    ] = "module",
    space: Annotated[
        str, typer.Option(help="The students to search: a name of `kdnas list spaces`; auto: one for images of --size.")
    ] = "auto",
    size: Annotated[
        int | None,
        typer.Option(
            min=4, max=4096, metavar="PIXELS", help="Side that images are resized to. Default: as the data has them."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Training images, which epochs and batch size follow. Default: those of the data, if it is there.",
        ),
    ] = None,
    own_space: Annotated[
        bool, typer.Option("--own-space", help=f"Also write that space as {_SPACE_FILE}, to be changed.")
    ] = False,
    from_teacher: Annotated[
        bool,
        typer.Option("--from-teacher", help="Search students that are cut out of the teacher, in place of --space."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented study.yaml for your own teacher and data, ready to be filled in.

    Every setting is explained beside its default. Files that are there stay as they are, unless --force is given.

    Examples:
      kdnas init my-study
      kdnas init my-study --data npz --teacher timm --own-space
      kdnas init my-photos --size 64
      kdnas init my-model --teacher huggingface --from-teacher
      kdnas init tryout --data digits --teacher student --space digits_resnet
    """
    from kdnas.study.loading import STUDY_FILE, load_study

    if directory.suffix in (".yaml", ".yml") or directory.is_file():
        raise ConfigError(Problem(str(directory), "names a file, and a study is a folder", str(directory.parent)))
    files = study_files(
        directory,
        data,
        teacher,
        space,
        size=size,
        own_space=own_space,
        images=images or _images_there(data),
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


def study_files(
    directory: Path,
    data: str,
    teacher: str,
    space: str,
    *,
    size: int | None = None,
    own_space: bool,
    images: int | None = None,
    from_teacher: bool = False,
) -> dict[str, str]:
    """Return the files of a new study by name, in the order they are written. Raises ConfigError on unknown names.

    `space` auto is one made for texts, or images of `size` pixels, or of the size that the data is known to have. So
    many training `images` decide epochs and batch size; None: not known, taken as 5,000.
    """
    from kdnas.datasets import kind_of
    from kdnas.study.loading import STUDY_FILE
    from kdnas.study.members import registry_of
    from kdnas.study.spaces import load_space, space_names

    problems = [
        Problem(f"--{option}", f"there is no {name!r}", ", ".join(names))
        for option, name, names in (
            ("data", data, registry_of("datasets").names()),
            ("teacher", teacher, registry_of("teachers").names()),
            ("space", space, [*space_names(), "auto"]),
        )
        if name not in names
    ]
    if from_teacher and (own_space or space != "auto"):
        what = "students are cut out of the teacher: there is no other space"
        problems.append(Problem("--from-teacher", what, "without --space and --own-space"))
    if problems:
        raise ConfigError(problems)
    if space == "auto":
        space = _OF_TEXTS.get(kind_of(data).poses) or space_for(size or _SIZES.get(data))
    given = {} if size is None else {"size": size}
    if given and "size" not in registry_of("datasets").options(data).model_fields:
        raise ConfigError(Problem("--size", f"{data} gives its images in one size: resize them before", "no --size"))
    searched = load_space(space, directory)
    largest = searched.active({choice.name: _most(choice) for choice in searched.choices})
    images = images or _UNKNOWN_IMAGES
    epochs, batch_size = proposed_training(images)
    steps = _steps("derived" if from_teacher else searched.family)
    recipe = {"epochs": max(30, epochs), "batch_size": batch_size, **_unusual(searched.family)}
    trained_here = {"family": searched.family, "choices": largest, "training": recipe}
    score = kind_of(data).score or ACCURACY
    files = {}
    if own_space:
        files[_SPACE_FILE] = _space_text(space)
    files[STUDY_FILE] = _TEMPLATE.format(
        name=_study_name(directory),
        data=_section("datasets", data, given),
        teacher=_section("teachers", teacher, trained_here if teacher == "student" else {}),
        students=_CUT
        if from_teacher
        else _STATED.format(space=_SPACE_FILE if own_space else space, spaces=", ".join(space_names())),
        score=score.name,
        goal="accuracy>=0.9" if score.is_fraction else f"{score.name}<=20",
        start="" if from_teacher else _START,
        **steps,
        views="" if kind_of(data).poses in _OF_TEXTS else _VIEWS,
        losses=_losses(),
        images=images,
        epochs=epochs,
        batch_size=batch_size,
        updates=epochs * math.ceil(images / batch_size),
        short=max(1, epochs // 3),
        nearly=epochs - 1,
    )
    return files


def space_for(size: int | None) -> str:
    """Return the space whose images are nearest to `size` pixels in proportion; None: not known, taken as 32."""
    return _MADE_FOR[min(_MADE_FOR, key=lambda made: abs(math.log(made / (size or 32))))]


_UPDATES = 1_000
"""Of a proposed score: twice what says little (`kdnas.study.updates.FEW_UPDATES`)."""
_UNKNOWN_IMAGES = 5_000


def _steps(family: str) -> dict[str, Any]:
    """Return the template's optimizer and learning rates, of a family's own kind."""
    from kdnas.study.members import registry_of

    member = registry_of("students").get(family)
    rate = member.learning_rate
    low, high = (0.01, 0.3) if rate == 0.1 else (rate / 4, rate * 4)
    other = "sgd" if member.optimizer == "adamw" else "adamw"
    return {
        "optimizer": f"{member.optimizer}  # or {other}",
        "rate": rate,
        "low": low,
        "high": high,
        "decay": f"{member.weight_decay:.1e}".replace("e-0", "e-"),
    }


def _unusual(family: str) -> dict[str, Any]:
    """Return what a training of the family states beside what a training is unless stated."""
    from kdnas.study.members import registry_of

    member = registry_of("students").get(family)
    stated = ("optimizer", "learning_rate", "weight_decay")
    return {name: getattr(member, name) for name in stated} if member.optimizer != "sgd" else {}


def proposed_training(images: int) -> tuple[int, int]:
    """Return (epochs, batch size) of a score on so many training images: small batches on few, `_UPDATES` at least."""
    batch_size = 128 if images >= 20_000 else 64 if images >= _UNKNOWN_IMAGES else 32
    return max(5, math.ceil(_UPDATES / math.ceil(images / batch_size))), batch_size


def _images_there(data: str) -> int | None:
    """Return how many training images the data has, None where it is not there yet or cannot be read."""
    from kdnas.study.config import DataConfig
    from kdnas.workshop.opening import cache_dir, data_root, load_data

    options = {option: value for (name, option), value in _PLACEHOLDERS.items() if name == data}
    root = data_root(None)
    if data == "module" or any(not (root / str(value)).exists() for value in options.values()):
        return None
    with contextlib.suppress(InputError):
        section = DataConfig.model_validate({"type": data, **options})
        return round(len(load_data(section, root, cache_dir()).train) * (1 - section.validation_fraction))
    return None


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


def _section(family: str, name: str, known: dict[str, Any]) -> str:
    """Return the YAML of one member: what must be given to be filled in, the rest as comments with its default."""
    from kdnas.study.members import registry_of

    entry = describe(registry_of(family), name)
    lines = [f"  type: {name}"]
    for option in entry.options:
        placeholder = _PLACEHOLDERS.get((name, option.name))
        if option.default is None or placeholder is not None or option.name in known:
            value = known.get(option.name, placeholder or _value_of(option))
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


_STATED = """\
# --- Students: {spaces}, or a .yaml file of your own. `kdnas spaces show NAME --input 3x64x64` tells
# what its students cost on images of that size, and how stem and stages stride.
space: {space}
"""
_CUT = """\
# --- Students: cut out of the teacher, beginning with its weights. `kdnas spaces show .` opens it and tells what of it
# can be cut, what cannot and why, and the choices that follow; `kdnas spaces count .` counts them.
# Each is a list of shares of the teacher's ([0.5, 1]), of sizes ([96, 128]), or a range of either (0.25..1).
space:
  derive: teacher
  # granularity: stage  # or network, or block: what one choice rules; network for transformers unless stated
  depth: 0.25..1  # blocks that stay
  width: [0.5, 0.75, 1]  # of what flows from block to block
  inner: [0.25, 0.5, 0.75, 1]  # inside blocks: bottlenecks, expansions, MLPs
  # heads: [0.5, 1]  # of attention, with all queries that share keys and values
  # round_to: 8
  # freeze: []  # modules, choices or parts that stay whole, by name; * stands for anything
  # importance: activation  # what ranks units; or taylor, l1
  # block_importance: influence  # what ranks blocks; or even
  # reconstruct: true  # what stays of a layer makes up for what is gone, before any training
start: inherited  # or random
"""
_START = """\
# start: inherited  # begin from weights of a teacher of the students' family; random unless stated
"""
_VIEWS = """\
  augmentation:
    flip: true  # not where left and right matter, as in digits
    crop_padding: 4  # pixels; 0 for none
    cutout: 0  # side of a square, in pixels
    mixup: 0.0
    # random_resized_crop: {scale: [0.5, 1.0]}  # share of the image's area; {} is 0.08 to 1
    # color_jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}
    # rand_augment: {ops: 2, magnitude: 9}
    # random_erasing: {probability: 0.25}
"""
_TEMPLATE = """\
# A kdnas study. Fill in the lines marked YOURS; everything else has a sensible default.
#   kdnas validate .          every problem at once, with its line
#   kdnas validate . --open   opens data and teacher too, and checks and measures them as the search does
#   kdnas search .            the search; run it again to resume
name: {name}
seed: 0  # the same seed on one worker gives the same trials
device: auto  # auto, cpu or cuda

# --- Data: paths are relative to the data root (--data-root, else the environment variable KDNAS_DATA, else ./data).
# Other sources: kdnas list datasets
data:
{data}
  validation_fraction: 0.2  # of the training split, held out to score students on; the test split waits for the end
# task: my_task  # the kind of work, where it is not the one that the data pose: a task of your own

# --- Teacher: the fixed network that students learn from. Paths are relative to the data root. Weights are safetensors
# or a checkpoint of tensors; pickled modules and .pt2 files are refused. mean and std are one number a channel
# on the 0-255 scale; unless stated, those of the data. Other sources: kdnas list teachers
teacher:
{teacher}
# teacher_name: teacher  # what it is called; `teachers: {{NAME: {{type: ...}}}}` states both

{students}
# --- What is wanted: {score}, and what it shall be traded for (two to four in all).
objectives: [{score}, macs]  # kdnas list costs
# Hard bounds on costs: what breaks one known from the arch alone is never trained. Also of the teacher's ("macs<=5%"),
# and goals for the retrained students: "{goal}", "teacher-1" (at most one point below the teacher).
constraints: []  # such as ["macs<=10M", "latency_ms<=2"]
# Options of measured costs:
# costs:
#   latency_ms: {{threads: 1}}

# --- How a student is trained to be scored. Fewer epochs, a share of the data, or of the images' height and width, make
# cheaper and rougher scores. Updates decide, not epochs: here a score is {updates:,} of them, on {images:,} training
# images; below about 500 it says little. With few images take more epochs and smaller batches.
training:
  epochs: {epochs}
  data_fraction: 1.0
  resolution_fraction: 1.0
  batch_size: {batch_size}
  optimizer: {optimizer}
  learning_rate: {rate:g}  # warmed up, then a cosine to zero
  momentum: 0.9
  weight_decay: {decay}
  warmup_fraction: 0.1
  # clip_norm: 1.0
  # ema: 0.999  # score and keep a moving average of the weights
  precision: auto  # bfloat16 where the processor has instructions for it, else float32; recorded with the run
  # threads: 1  # CPU threads of a training; more pay for large images with few workers
  # fused_norms: auto  # where there is a C compiler
{views}
# --- loss = task_weight * cross entropy + the sum of weight * distillation loss
distillation:
  task_weight: 0.1  # 1.0 beside dkd and losses that read features, as their authors have it
  label_smoothing: 0.0
{losses}
  losses:
    - {{type: kd, weight: 0.9, temperature: 4.0}}
    # - {{type: hint, weight: 100.0}}  # its authors' weight, which it has unless stated
    # - {{type: dkd, warmup_fraction: 0.083}}  # its weight grows in this share of the steps
  # teacher_top_k: 100  # with thousands of classes: keep only the largest of the teacher's logits

# --- Training settings to search with the architecture. The learning rate often decides more than the network does; for
# adamw it is about 3e-4 to 1e-2. Take this out where a supernet scores.
tune:
  training.learning_rate: {{low: {low:g}, high: {high:g}, log: true}}
#   distillation.losses.0.temperature: {{low: 1.0, high: 8.0}}

# --- The search.
# storage: postgresql://user@host/database  # keeps the trials where many studies do; the run folder unless stated
sampler: auto  # by budget and objectives; kdnas list samplers
executor:
  type: local  # workers: one a core, or one a GPU, unless stated
  per_device: 1  # students trained at once on a GPU; auto measures how many pay
# Lowest first, the last one as `training` above; the promising students of one are trained on at the next. A budget of
# trials counts the scores of all rungs.
# rungs: [{{epochs: {short}}}, {{epochs: {epochs}}}]
# rungs: [{{epochs: {nearly}, resolution_fraction: 0.5}}, {{epochs: {epochs}}}]  # or data_fraction: trained anew
# promotion:
#   rule: rank  # who is promising: rank, moasha, halving
#   eta: 3  # one of so many goes on; by default the step between rungs
# evaluator: distil  # where a score comes from: a brief training; kdnas list evaluators
{start}# One supernet, trained first, scores hundreds of students untrained; the promising ones are trained as before:
# rungs: [{{start: supernet}}, {{start: supernet, epochs: 1, data_fraction: 0.2}}, {{epochs: {epochs}}}]
# supernet:
#   epochs: 20  # of training, counted in epochs of its largest student
#   score_images: 1000  # validation images of a score; all of them unless stated
budget:  # the first limit that is reached ends the search
  trials: 40  # scores of students
  # full_trainings: 20  # epochs x data share x resolution share squared, in units of one final training
  # wall_clock_s: 7200
  # stagnation: {{trials: 30, gain: 0.005}}  # stop when 30 scores in a row made the hypervolume grow by less
  trial_time_limit_s: 3600

# --- The students on the front are retrained from scratch with several seeds, and only then meet the test split.
final:
  seeds: 3
  # epochs: 30  # as in `training` unless stated
  until: flat  # doubles these epochs until twice as many give less than 1 point more; or `epochs`: no more than those
  max_epochs: 200
  control: true  # the picked student is also trained once without its teacher: what does distillation add?
  data_fraction: 1.0
  max_students: 8
  attempts: 2  # a retraining that failed so often is given up

# --- What is exported at the end. kdnas list exporters
export:
  # near-best: the cheapest student within 1 point of the best, or within its 95 % interval up to 3 points; or
  # best-0.5, teacher-1 (within 1 point of the teacher), best, knee, 'accuracy>=0.95' (the cheapest that reaches it),
  # 'macs<=5M' or 'macs<=5%' of the teacher's (the best within it)
  pick: near-best
  formats: [safetensors, student_json, student_py, train_yaml, model_card]
"""
