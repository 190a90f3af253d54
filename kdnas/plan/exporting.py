"""Export of a run's student: the checkpoint, the record and the recipe put together, written whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from torch import nn

from kdnas import atomic
from kdnas.core.card import (
    ControlCard,
    CostRecord,
    DataCard,
    FurtherScore,
    MeanScore,
    StudentCard,
    TeacherCard,
    WeightsRecord,
)
from kdnas.core.data import Data, ImageData
from kdnas.core.preprocessing import OwnPreprocessing, Preprocessing, TextPreprocessing
from kdnas.core.text import TokenData
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, DataError, ExportError, KdnasError, Problem
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, lacking_formats, lacking_packages
from kdnas.faults import reach
from kdnas.nn.origin import Cut
from kdnas.nn.ruling import LABEL_RULES
from kdnas.plan.train_file import TrainFile, locked_fingerprint, train_file_for
from kdnas.plugins import short_name
from kdnas.record.front import doubts
from kdnas.record.lock import TeacherReport
from kdnas.record.products import checkpoint_path, note_products
from kdnas.record.records import FrontMember, Repeat, RunRecord
from kdnas.study.config import DERIVED
from kdnas.tasks import task_of
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers.label_rules import stated_rules
from kdnas.version import __version__
from kdnas.workshop.afterwards import best_repeat, load_trained, open_run
from kdnas.workshop.opening import Workshop, cache_dir


def available_formats() -> tuple[list[str], dict[str, str]]:
    """Return (the formats whose packages are installed, why each other one is missing)."""
    missing = {name: what for name in EXPORTERS.names() if (what := lacking_packages(name))}
    return [name for name in EXPORTERS.names() if name not in missing], missing


def export_student(
    run: RunRecord,
    member: FrontMember,
    formats: Sequence[str] | None,
    out: Path,
    *,
    data_root: Path,
    cache: Path | None = None,
    on_skip: Callable[[str], None] | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the student of `member` to `out` in every one of `formats` and return the files.

    None stands for every format that is installed and that the student has; with `on_skip` those that it has not are
    left out, and `on_skip` gets the reason. The weights are those of the repeat with the best validation score. Raises
    ConfigError when the student was not retrained, a format is unknown, or it has none of those that may be skipped,
    RunFolderError when its checkpoint is missing or damaged, DataError when the data is not what the run was made on,
    and ExportError, with nothing written, when a format fails its check.
    """
    written = write_student(run, member, formats, out, data_root=data_root, cache=cache, on_skip=on_skip, notify=notify)
    if out.resolve() == export_folder(run).resolve():
        note_products(run, "export", written, wanted_export(run))
    return written


def write_student(
    run: RunRecord,
    member: FrontMember,
    formats: Sequence[str] | None,
    out: Path,
    *,
    data_root: Path,
    cache: Path | None = None,
    on_skip: Callable[[str], None] | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Do what `export_student` does, and note nothing: the run's database need not be where this is done."""
    _ = run.training_data
    repeat = best_repeat(run, member.trial)
    if formats is not None:
        check_formats(formats)
    expected = locked_fingerprint(run, "data")
    workshop = open_run(run, data_root=data_root, cache=cache or cache_dir(), notify=notify)
    if expected and workshop.data.fingerprint != expected:
        raise DataError(
            f"data: {workshop.data.name} is not what {run.folder} was made on "
            f"(content hash {workshop.data.fingerprint}, was {expected})"
        )
    notify(f"student {member.trial.arch.arch_id}, seed {repeat.seed}")
    student = trained_student(run, member, repeat, workshop)
    if formats is None or on_skip is not None:
        formats = had_formats(student, formats, on_skip or notify)
    return write_formats(student, formats, out, notify=notify)


def had_formats(student: TrainedStudent, formats: Sequence[str] | None, notify: Callable[[str], None]) -> list[str]:
    """Return those of `formats`, or of all that are installed, that `student` has; others are reported with the reason.

    Raises ConfigError where it has none of them.
    """
    missing: dict[str, str] = {}
    if formats is None:
        formats, missing = available_formats()
    lacking = lacking_formats(formats, student.cut, student.network)
    if "student_py" in formats and student.source is None and student.cut is None:
        why = "how the teacher's network is made is not known, so there is no code of a cut one"
        if student.arch.family != DERIVED:
            why = f"the family {short_name(student.arch.family)} gives no source of its networks"
        lacking["student_py"] = why
    had = [name for name in formats if name not in lacking]
    if not had:
        whose = f"student {student.arch.arch_id} has no"
        raise ConfigError([Problem("export", f"{whose} {short_name(name)}: {why}") for name, why in lacking.items()])
    for name, why in {**missing, **lacking}.items():
        notify(f"skipped {short_name(name)}: {why}")
    return had


def export_folder(run: RunRecord) -> Path:
    """Return where a search itself exports the student that its study picks."""
    return run.folder / "export"


def wanted_export(run: RunRecord) -> str:
    """Return what the study wants exported, as one line."""
    return run.config.export.model_dump_json()


def trained_student(run: RunRecord, member: FrontMember, repeat: Repeat, workshop: Workshop) -> TrainedStudent:
    """Return the student of `member` with the weights of `repeat`. Raises RunFolderError on a bad checkpoint."""
    file = train_file_for(run, member.trial, workshop.data)
    remedy = command_line("kdnas", "search", run.folder)
    network = load_network(file, workshop, checkpoint_path(run, repeat), repeat.sha256, remedy)
    return assemble(file, network, workshop, card=run_card(run, member, repeat, workshop.data))


def assemble(file: TrainFile, network: nn.Module, workshop: Workshop, *, card: StudentCard) -> TrainedStudent:
    """Return `network`, trained by `file` in `workshop`, with everything an exporter may write."""
    arch, data = file.student, workshop.data
    own, cut = workshop.family.cut(arch, network) or (network, None)
    tokenizer = data.tokenizer if isinstance(data, TokenData) else None
    return TrainedStudent(
        arch=arch,
        spec=data.task,
        module=workshop.task.entrance(network, data).eval(),
        network=own,
        source=workshop.family.source(arch),
        preprocessing=_preprocessing(file, data, cut),
        recipe=file.with_preprocessing(_own_statistics(cut)).plain(),
        card=card,
        cut=cut,
        tokenizer=tokenizer,
    )


def _own_statistics(cut: Cut | None) -> dict[str, tuple[float, ...]]:
    """Return the normalisation that a student has from the teacher that it was cut out of; empty where it has none."""
    entrance = None if cut is None else cut.origin.entrance
    return {} if entrance is None else {"channel_mean": entrance.mean, "channel_std": entrance.std}


def _preprocessing(
    file: TrainFile, data: Data, cut: Cut | None
) -> Preprocessing | TextPreprocessing | OwnPreprocessing:
    """Return what is done to the samples of `data` before the student that `file` trains gets them."""
    if isinstance(data, TokenData):
        return _of_texts(data, file)
    if isinstance(data, ImageData):
        return _of_pictures(file, data, cut)
    return OwnPreprocessing(short_name(data.task.kind), data.class_names)


def _of_texts(data: TokenData, file: TrainFile) -> TextPreprocessing:
    files = tuple(sorted(path.name for path in data.tokenizer.iterdir() if path.is_file()))
    stated = [teacher for teacher in file.teachers.values() if teacher.type == LABEL_RULES]
    rules = tuple(rule for teacher in stated for rule in stated_rules(teacher.options))
    return TextPreprocessing(data.length, data.class_names, files, rules)


def _of_pictures(file: TrainFile, data: ImageData, cut: Cut | None) -> Preprocessing:
    channels, height, width = data.task.image_shape
    reading = file.preparation
    mean, std = (tuple(data.statistics[name]) for name in (MEAN, DEVIATION))
    preprocessing = Preprocessing(
        size=(height, width),
        colour="greyscale" if channels == 1 else "RGB",
        channel_mean=mean,
        channel_std=std,
        class_names=data.class_names,
        background=reading.background,
        from_pictures=reading.from_pictures,
        tasks={head.name: head.outputs for head in data.task.heads},
    )
    entrance = None if cut is None else cut.origin.entrance
    if cut is None or entrance is None:
        return preprocessing
    return dataclasses.replace(
        preprocessing,
        channel_mean=entrance.mean,
        channel_std=entrance.std,
        repeat=entrance.repeat,
        network_size=entrance.size,
        channel_order=cut.origin.channels,
    )


def load_network(file: TrainFile, workshop: Workshop, path: Path, sha256: str = "", remedy: str = "") -> nn.Module:
    """Return the student of `file` with the weights in the safetensors file `path`, in eval mode.

    Raises RunFolderError as `load_trained` does.
    """
    network: nn.Module = workshop.family.build(file.student)
    load_trained(network, file.arch_id, path, sha256, remedy)
    return network.eval()


def run_card(run: RunRecord, member: FrontMember, repeat: Repeat, data: Data) -> StudentCard:
    """Return what is known of `member`, whose weights are those of `repeat`."""
    trained = len(member.trial.repeats)
    score, fidelity = member.values.get(run.score.name), repeat.fidelity
    labels = (control for control in run.controls if not control.direct)
    controls = (control for control in labels if control.number == member.trial.number)
    control = next((ControlCard(found.score, found.test_score) for found in controls if found.score is not None), None)
    return StudentCard(
        study=run.config.name,
        trial=member.trial.number,
        made_by=f"kdnas {__version__}",
        validation=None if score is None else MeanScore(score, member.score_ci95, trained),
        test=None if member.test_score is None else MeanScore(member.test_score, member.test_score_ci95, trained),
        further={
            name: FurtherScore(mean, half, trained, run.teacher_further.get(name))
            for name, (mean, half) in member.further.items()
        },
        weights=WeightsRecord(
            repeat.seed,
            fidelity.epochs,
            fidelity.data_fraction,
            fidelity.start,
            repeat.train_seconds,
            repeat.score,
            repeat.test_score,
            f"the best of {trained} on the validation split" if trained > 1 else "",
            cut_from_trial=repeat.cut_from,
            route=repeat.route,
        ),
        control=control,
        quantities={name: _cost(run, member, name) for name in member.values if name != run.score.name},
        teacher=None if run.teacher is None else _teacher_card(run.teacher),
        further_teachers={name: _teacher_card(report) for name, report in run.lock.further_teachers.items()},
        data=data_card(run.training_data.validation_fraction, run.config.seed, data),
        limits=tuple(f"As it is, {why}." for why in doubts(run, member)),
    )


def _cost(run: RunRecord, member: FrontMember, name: str) -> CostRecord:
    unit = run.quantities[name].unit if name in run.quantities else ""
    taken = member.trial.measurements.get(name)
    if taken is None:
        return CostRecord(member.values[name], unit)
    return CostRecord(taken.value, unit, taken.spread, taken.repeats, taken.context)


def data_card(validation_fraction: float, seed: int, data: Data) -> DataCard:
    """Return what is known of the data and its split."""
    samples, stated = data.task.samples, data.stated_validation
    drawn = f"{100 * validation_fraction:g} %, {task_of(data.task).split_in_words} with seed {seed},"
    held = f"Of its {len(data.train):,} training {samples} {drawn} were held out for validation."
    if stated:
        held = f"It has {len(data.train) - stated:,} training {samples}, and {stated:,} for validation."
    split = f"{held} Its {len(data.test):,} test {samples} were only used for the test {data.task.score.name}."
    return DataCard(data.name, data.fingerprint, split, data.notes)


def _teacher_card(report: TeacherReport) -> TeacherCard:
    values = {name: float(value) for name, value in report.values.items()}
    return TeacherCard(report.name, report.score, report.test_score, values, report.notes)


def check_formats(formats: Sequence[str]) -> None:
    """Raise ConfigError naming every unknown or repeated format, and an empty list."""
    problems = [
        Problem("--format", problem.what, problem.allowed)
        for name in formats
        if (problem := EXPORTERS.missing(name)) is not None
    ]
    if not formats:
        problems.append(Problem("--format", "names no format", ", ".join(EXPORTERS.names())))
    if problems:
        raise ConfigError(problems)


def write_formats(
    student: TrainedStudent, formats: Sequence[str], out: Path, *, notify: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write `student` to the folder `out` in every one of `formats`, all or none, and return the files.

    They are written and checked in a scratch folder next to `out` and moved when all are sound; other files in
    `out` stay as they are. Raises ExportError when a check fails, ConfigError when `out` cannot be written.
    """
    check_formats(formats)
    out = out.resolve()
    try:
        if out.exists() and not out.is_dir():
            raise ConfigError(Problem("--out", f"{out} is a file, not a folder"))
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic.scratch_folder(out) as scratch:
            names: dict[str, None] = {}
            lacking = lacking_formats(formats, student.cut, student.network)
            if lacking:
                raise ExportError(next(f"{name}: {why}" for name, why in lacking.items()))
            for name in dict.fromkeys(formats):
                reach("export")
                made = _write_one(student, name, scratch)
                names |= dict.fromkeys(made.files)
                notify(f"checked {short_name(name)}")
                for note in made.notes:
                    notify(f"{name}: {note}")
            return _move(names, scratch, out)
    except OSError as error:
        raise ConfigError(Problem("--out", f"{out} cannot be written: {error.strerror or error}")) from error


def _write_one(student: TrainedStudent, name: str, folder: Path) -> Written:
    try:
        made: Written = EXPORTERS.build(name, student, folder)
    except (KdnasError, OSError):
        raise
    except (Exception, SystemExit) as error:  # other people's converters, or the user's: all failures are export errors
        first = (str(error).strip().splitlines() or [""])[0]
        raise ExportError(f"{name}: {type(error).__name__}: {first}") from error
    return made


def _move(names: Collection[str], scratch: Path, out: Path) -> list[Path]:
    blocked = [name for name in names if (out / name).is_dir()]
    if blocked:
        raise ConfigError(Problem("--out", f"{out} holds folders where files go: {', '.join(blocked)}"))
    out.mkdir(exist_ok=True)
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        reach("export")
        (scratch / name).replace(out / name)
    return [out / name for name in names]
