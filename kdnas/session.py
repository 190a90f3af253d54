"""One call of a search, whole: a study opened and searched, its front retrained, report and student written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from kdnas.controller.events import Note, Observer, Ready
from kdnas.controller.preparation import Opened, prepare_study
from kdnas.controller.queue import enqueue, read_students
from kdnas.controller.runner import Search
from kdnas.controller.site import Site, site_of
from kdnas.errors import KdnasError, Problem, RunError, RunFolderError
from kdnas.plan.exporting import export_folder, wanted_export, write_student
from kdnas.record.database import Database
from kdnas.record.front import failure, front, pick
from kdnas.record.lock import read_config
from kdnas.record.products import checkpoint_path, is_current, lost_products, note_products
from kdnas.record.records import RunRecord
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.storage import run_held
from kdnas.report.page import write_report
from kdnas.study.config import StudyConfig
from kdnas.study.loading import LoadedStudy
from kdnas.trackers import tracked
from kdnas.trust import own_storage
from kdnas.workshop.afterwards import best_repeat
from kdnas.workshop.evaluators import Evaluator
from kdnas.workshop.opening import cache_dir


def search_study(
    study: LoadedStudy,
    folder: Path,
    *,
    data_root: Path,
    observe: Observer,
    queue: Sequence[Path] = (),
    on_end: Callable[[RunRecord, list[Path], list[str]], None] = lambda run, written, skipped: None,
) -> RunRecord:
    """Search in the run folder `folder`, or go on there, and return the run.

    `queue` are files of students made by hand, which are scored first. `on_end` gets the run, the files that were
    written, none where everything was done before, and why wanted exports were skipped. Raises InputError where
    something is wrong before anything is trained, RunError where every student failed.
    """
    if study.space.choices:  # those that are read off a teacher are known once that is open
        read_students(queue, study.config, study.space)  # faults of a file are reported before anything is opened
    with contextlib.ExitStack() as stack:
        study, database = stack.enter_context(_held(study, folder))
        observe = stack.enter_context(tracked(study.config.trackers, observe))
        site = stack.enter_context(site_of(study.config, observe))
        opened = _prepared(study, folder, database, data_root, observe, site)
        if queue:
            enqueue(opened, read_students(queue, opened.config, opened.space, opened.evaluator.arch), observe)
        observe(Ready(opened.run, bool(opened.run.trials), opened.crew))
        search = Search(opened, observe)
        try:
            run = search.run()
        except BaseException:
            with contextlib.suppress(KdnasError):  # a full disk: the error that ended the search is reported, not this
                observe(Note("writing the report"))
                write_report(opened.snapshot())
            raise
        if search.did_nothing and _is_current(run, observe):
            on_end(run, [], [])
        else:
            written, skipped = [*write_report(run)], list[str]()
            try:
                written += _export(opened, run, skipped.append)
            finally:
                on_end(run, written, skipped)
        if failed := failure(run):
            raise RunError(failed)
        return run


@contextlib.contextmanager
def opened_study(study: LoadedStudy, folder: Path, *, data_root: Path, observe: Observer) -> Iterator[Opened]:
    """Give the run in `folder`, begun where there is none, open for trainings, and hold it until the context ends.

    Raises InputError where something is wrong with it.
    """
    with _held(study, folder) as (study, database), site_of(study.config, observe) as site:
        yield _prepared(study, folder, database, data_root, observe, site)


@contextlib.contextmanager
def _held(study: LoadedStudy, folder: Path) -> Iterator[tuple[LoadedStudy, Database]]:
    """Hold the run in `folder`, and give the study with the storage of its trials, and their database."""
    study = dataclasses.replace(study, config=_where_it_is_kept(study.config, folder))
    with run_held(folder, study.config) as database:
        yield study, database


def _prepared(
    study: LoadedStudy, folder: Path, database: Database, data_root: Path, observe: Observer, site: Site | None
) -> Opened:
    return prepare_study(
        study,
        folder,
        database=database,
        data_root=data_root,
        cache=cache_dir().resolve(),
        observe=observe,
        site=site,
    )


def _where_it_is_kept(config: StudyConfig, folder: Path) -> StudyConfig:
    """Return `config` with the storage of the run that is in `folder`. Raises RunFolderError where it is another.

    The one that `config` states may be asked: the study is this user's, or a run's whose code was allowed.
    """
    if config.storage is not None:
        own_storage(config.storage)
    if not (folder / LOCK_FILE).exists():
        return config
    own = read_config(folder).get("storage")
    if config.storage not in (None, own):
        what = f"its trials are kept in {own or 'the folder'}, not in {config.storage}"
        raise RunFolderError(Problem(str(folder), what))
    return config.model_copy(update={"storage": own})


def _is_current(run: RunRecord, observe: Observer) -> bool:
    """Whether report and export were made from the record as it is, the export as the study now wants it, and are all
    there still; `observe` gets a note on each that is not.
    """
    losses = [*lost_products(run, "report"), *lost_products(run, "export")]
    for loss in losses:
        observe(Note(f"{loss.path} {loss.words}: it is written anew"))
    return not losses and is_current(run, "report") and is_current(run, "export", wanted_export(run))


def _export(opened: Opened, run: RunRecord, on_skip: Callable[[str], None]) -> list[Path]:
    """Export the student that the study's `export` section picks, where there are students with weights.

    That is done where data and teachers are. `on_skip` gets each wanted export that it lacks, with the reason.
    """
    wants = run.trains and bool(run.config.export.formats)
    if not wants or not any(member.trial.repeats for member in front(run)):
        note_products(run, "export", (), wanted_export(run))
        return []
    places, skipped = opened.evaluator.done("exporting the student", partial(_exported, run))
    for why in skipped:
        on_skip(why)
    if opened.site is not None:
        opened.files.have_anew(export_folder(run).name)
    written = [run.folder / place for place in places]
    note_products(run, "export", written, wanted_export(run))
    return written


def _exported(run: RunRecord, evaluator: Evaluator) -> tuple[list[Path], list[str]]:
    """Export the student of `run` that its study picks; return the files, relative to the run folder, and what has not
    been written and why.
    """
    context, skipped = evaluator.context, list[str]()
    here, member = dataclasses.replace(run, folder=context.folder), pick(run, run.config.export.pick)
    context.files.have(str(checkpoint_path(run, best_repeat(run, member.trial)).relative_to(run.folder)))
    out = export_folder(here)
    written = write_student(
        here,
        member,
        run.config.export.formats,
        out,
        data_root=context.data_root,
        cache=context.cache,
        on_skip=skipped.append,
    )
    context.files.share(out.name)
    return [path.relative_to(context.folder) for path in written], skipped
