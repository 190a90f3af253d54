"""A run's supernet: trained once before the first trial, kept in RUN/supernet/, read by whoever shares its weights.

The folder holds `weights.safetensors`, `shrinking.yaml` (what the training unlocked when, and why) and, as long as it
is being trained, `checkpoint.safetensors`, which whoever shares no disk has from the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Quantity
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.core.words import progress_bar
from kdnas.errors import ConfigError, Problem, RunError, RunFolderError, TrialError
from kdnas.faults import reach
from kdnas.nn.elastic import Supernet
from kdnas.nn.teacher import by_name
from kdnas.nn.weights import load_weights, save_weights, weights_metadata
from kdnas.record.lock import SupernetRecord
from kdnas.study.config import StudyConfig, SupernetConfig
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import discard_damaged
from kdnas.training.numerics import computing, settled_recipe
from kdnas.training.recipe import Recipe
from kdnas.training.step import open_teacher_outputs
from kdnas.training.supernet.shrinking_file import SHRINKING_FILE, write_shrinking
from kdnas.training.supernet.subnets import ElasticSpace, SubnetScorer, SubnetSpec
from kdnas.training.supernet.training import Tick, train_supernet
from kdnas.training.teacher_cache import TeacherCache
from kdnas.workshop.opening import Workshop, first_samples
from kdnas.workshop.run_files import CHECKPOINT_FILE, SUPERNET_FOLDER, RunFiles

WEIGHTS_FILE = "weights.safetensors"
_CHECKPOINT = f"{SUPERNET_FOLDER}/{CHECKPOINT_FILE}"
_VIEW = ".supernet_view"
"""Holds the view that the training is at, while it goes on."""
_AHEAD = 3
"""Views that are computed before the training comes to them, at most: it may end before."""
_GLANCE_S = 0.2
_SHARING = 0.05
"""The share of a training's time in which its checkpoint goes to the store, at most."""
_FACTS = "supernet"
INHERITED_BY = 256
"""Training samples by which the change made by each of the teacher's blocks is measured."""


@dataclass(frozen=True)
class SharedWeights:
    """A trained supernet, and what scores and cuts its subnets, each with batch-norm statistics of its own.

    Subnets take samples of the `size` of the data. Scores of students as they are cut out: Guo et al.,
    "Single path one-shot neural architecture search with uniform sampling" (ECCV 2020).
    """

    supernet: Supernet
    scorer: SubnetScorer
    size: int

    def score(self, arch: Arch) -> float:
        """Return the validation score of `arch` with the shared weights as they are."""
        return self.scorer(self.supernet, SubnetSpec(arch, self.size))

    def cut(self, arch: Arch) -> nn.Module:
        """Return the student of `arch` with copies of the shared weights, in eval mode. It is without its entrance."""
        return self.scorer.cut(self.supernet, SubnetSpec(arch, self.size))


class RunSupernet:
    """The supernet of the run of `files`, whose study `config` asks for one.

    Raises ConfigError where the space has none, or the teacher's weights are asked for and cannot be inherited.
    """

    def __init__(self, files: RunFiles, config: StudyConfig, workshop: Workshop):
        self._files, self._folder, self._config, self._workshop = files, files.folder, config, workshop
        self._settings = config.supernet or SupernetConfig()
        self._largest = self._largest_student()
        self._inherits = self._is_to_inherit()

    def prepare(self, *, teacher_cache: TeacherCache, notify: Callable[[str], None]) -> SupernetRecord:
        """Return the trained supernet: trained now, or on from where an earlier call stopped, unless it is there.

        Raises RunError where the training fails, RunFolderError where the folder is damaged.
        """
        saved = saved_supernet(self._folder)
        if saved is None:
            self._train(teacher_cache, notify)
            saved = saved_supernet(self._folder)
        assert saved is not None  # it has just been written
        return saved

    def load(self, fingerprint: str) -> SharedWeights:
        """Return the weights. Raises RunFolderError where they are not those of `fingerprint`."""
        workshop = self._workshop
        return load_supernet(
            self._folder, self._settings, workshop.space, workshop, self._samples(), fingerprint=fingerprint
        )

    def fill_ahead(self, teacher_cache: TeacherCache) -> None:
        """Compute the teacher's outputs on the views that come next, where the cache lacks them.

        Keeps some views ahead of the training, which another process does, and ends with the last one or never.
        """
        workshop = self._workshop
        recipe = settled_recipe(self._recipe, workshop.device)
        with ExitStack() as stack:
            stack.enter_context(computing(recipe.training, workshop.device))
            outputs, _ = open_teacher_outputs(
                stack,
                by_name(workshop.teachers),
                self._samples(),
                recipe,
                data=workshop.data,
                device=workshop.device,
                view_seed=self._view_seed,
                teacher_cache=teacher_cache,
            )
            if outputs is None:
                return
            for view in itertools.count() if self._settings.views is None else range(self._settings.views):
                while view > self._furthest_view() + _AHEAD:
                    time.sleep(_GLANCE_S)
                outputs.begin(view)
                outputs.end()

    def _tell_view(self, view: int | None) -> None:
        """Tell companions which view the training is at, None: that it is at none. A full disk ends no training."""
        with contextlib.suppress(OSError):
            if view is None:
                (self._folder / _VIEW).unlink(missing_ok=True)
            else:
                (self._folder / _VIEW).write_text(f"{view}\n", encoding="utf-8")

    def _furthest_view(self) -> int:
        """Return which view the training has come to, as far as it has told."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / _VIEW).read_text(encoding="utf-8"))
        return 0

    def _train(self, teacher_cache: TeacherCache, notify: Callable[[str], None]) -> None:
        """Train the supernet with the teacher, whose outputs the trials share, and write its folder: weights last."""
        config, settings, workshop = self._config, self._settings, self._workshop
        folder = self._folder / SUPERNET_FOLDER
        checkpoint = folder / CHECKPOINT_FILE
        self._files.have_latest(_CHECKPOINT)  # another machine may have begun it
        if damaged := discard_damaged(checkpoint):
            notify(f"{damaged}: the supernet is trained anew")
        train = self._samples()
        torch.manual_seed(derive_seed(config.seed, "supernet init"))
        supernet = workshop.family.supernet(workshop.space).to(workshop.device)
        inherited = None
        if self._inherits:
            inputs, _ = first_samples(train, INHERITED_BY)
            inherited = workshop.family.inherit_supernet(supernet, self._largest, inputs)
        notify(
            f"{'going on with' if checkpoint.exists() else 'training'} the supernet, once: the work of "
            f"{Fidelity(settings.epochs).words} of its largest student on {len(train):,} {workshop.data.task.samples}"
            + ("" if inherited is None else f"; {100 * inherited:.0f} % of that student's weights are the teacher's")
            + ("" if config.training.ema is None else "; training.ema is for students, not for it")
        )
        self._tell_view(None)  # that of a training that was killed
        teacher_cache.on_view = self._tell_view
        try:
            trained = train_supernet(
                supernet,
                workshop.space,
                workshop.family,
                workshop.teachers,
                train,
                workshop.validation,
                self._recipe,
                settings,
                data=workshop.data,
                seed=derive_seed(config.seed, "supernet"),
                view_seed=self._view_seed,
                device=workshop.device,
                on_tick=_announce(notify, workshop.data.task.score, _Sharing(self._files, notify)),
                checkpoint=checkpoint,
                teacher_cache=teacher_cache,
            )
        except TrialError as error:
            what = f"the training of the supernet failed: {error}; a lower training.learning_rate may help"
            raise RunError(what) from error
        finally:
            teacher_cache.on_view = lambda view: None
            self._tell_view(None)
        write_shrinking(folder / SHRINKING_FILE, trained.shrinking)
        made = SupernetRecord("", settings.epochs, self._fraction, trained.train_seconds, inherited)
        save_supernet(trained.supernet, self._folder, made)
        self._files.forget(_CHECKPOINT)

    @property
    def _recipe(self) -> Recipe:
        """The run's, with the length and the share of the samples of the supernet's training."""
        training = self._config.training
        update = {"epochs": self._settings.epochs, "data_fraction": self._fraction}
        return self._config.recipe.model_copy(update={"training": training.model_copy(update=update)})

    @property
    def _view_seed(self) -> int:
        return derive_seed(self._config.seed, "views")

    @property
    def _fraction(self) -> float:
        return self._settings.data_fraction or self._config.training.data_fraction

    def _samples(self) -> Batches:
        """Return the samples that the supernet is trained on."""
        return self._workshop.share(self._fraction, self._config.training.proxy)

    def _largest_student(self) -> Arch:
        workshop, sizes = self._workshop, self._settings.resolutions
        elastic = ElasticSpace(workshop.space, workshop.family, sizes)
        own = workshop.data.task.size
        if sizes and own not in sizes:
            what = f"students are scored at {own}, the data's own size, which is not among them"
            raise ConfigError(Problem("supernet.resolutions", what))
        return elastic.largest.arch

    def _is_to_inherit(self) -> bool:
        teacher, family, wanted = self._workshop.teacher, self._workshop.space.family, self._settings.inherit_teacher
        fitting = self._workshop.family.ancestor() is not None
        if wanted and not fitting:
            assert teacher is not None  # a study that shares weights has one
            of = "of no student family" if teacher.arch is None else f"a {teacher.arch.family}"
            what = f"the teacher {teacher.name} is {of}, the students are {family}: no weights can be inherited"
            raise ConfigError(Problem("supernet.inherit_teacher", what, f"false, or a {family} as the teacher"))
        return fitting and wanted is not False


class _Sharing:
    """Lets other machines have the checkpoint of a training that goes on, in so little of its time as it costs."""

    def __init__(self, files: RunFiles, notify: Callable[[str], None]):
        self._files, self._notify = files, notify
        self._next, self._is_told = 0.0, False

    def __call__(self) -> None:
        """Share it, unless that was done a while ago. A store that takes nothing ends no training."""
        began = time.monotonic()
        if began < self._next or not self._files.travels:
            return
        try:
            self._files.share_latest(_CHECKPOINT)
        except RunFolderError as error:
            if not self._is_told:
                self._notify(f"the supernet's checkpoint is not shared, so no other machine can go on with it: {error}")
            self._is_told = True
        now = time.monotonic()
        self._next = now + (now - began) / _SHARING


def _announce(notify: Callable[[str], None], score: Quantity, share: Callable[[], None]) -> Callable[[Tick], None]:
    """Return what reports a training's progress as a line, and has its checkpoint shared."""

    def announce(tick: Tick) -> None:
        share()
        reach("supernet")
        line = f"supernet  {progress_bar(tick.spent)}  {100 * min(tick.spent, 1.0):.0f} %  {tick.stage}"
        line += f"  loss {tick.loss:.3f}"
        if tick.check is not None:
            largest, smallest = (
                score.shown(score.from_share(seen)) for seen in (tick.check.largest, tick.check.smallest)
            )
            line += f"  largest {largest}, smallest {smallest}"
        notify(line)

    return announce


def load_supernet(
    folder: Path,
    settings: SupernetConfig | None,
    space: SearchSpace,
    workshop: Workshop,
    train: Batches,
    *,
    fingerprint: str,
) -> SharedWeights:
    """Return the supernet of the run in `folder`, on the workshop's device.

    Args:
        folder: The run folder.
        settings: Those of its supernet; None: the defaults.
        space: The space whose students it holds.
        workshop: Its data and family.
        train: Samples that batch-norm statistics are estimated on: the first few of a drawing that is always the same.
        fingerprint: The weights' record in the run's lock file (`RunRecord.supernet`).

    Raises RunFolderError where the weights are missing, damaged or not those of the lock file.
    """
    check_supernet(folder, fingerprint)
    settings = settings or SupernetConfig()
    supernet = workshop.family.supernet(space)
    load_weights(supernet, _weights(folder))
    scorer = SubnetScorer(
        train,
        workshop.validation,
        workshop.sources.training,
        recalibration_samples=settings.recalibration_samples,
        validation_samples=settings.score_samples,
    )
    return SharedWeights(supernet.to(workshop.device).eval(), scorer, workshop.data.task.size)


def save_supernet(supernet: Supernet, folder: Path, made: SupernetRecord) -> None:
    """Write the weights into the run folder, and how they were `made` into the file's header.

    Its fingerprint, which is the file's, is not written. Raises RunFolderError.
    """
    facts = asdict(made)
    del facts["fingerprint"]
    save_weights(supernet, _weights(folder), {_FACTS: json.dumps(facts)})


def saved_supernet(folder: Path) -> SupernetRecord | None:
    """Return the supernet whose weights are in the run folder; None while there are none.

    Raises RunFolderError where the file is damaged.
    """
    path = _weights(folder)
    if not path.exists():
        return None
    facts = weights_metadata(path).get(_FACTS)
    if facts is None:
        raise RunFolderError(f"{path} is no supernet that kdnas saved; remove it and the supernet is trained anew")
    return SupernetRecord(**json.loads(facts), fingerprint=_fingerprint(path))


def check_supernet(folder: Path, fingerprint: str) -> None:
    """Raise RunFolderError where the run's weights are missing or not those that its lock file names."""
    path = _weights(folder)
    if not path.is_file():
        raise RunFolderError(f"the run's supernet {path} is missing; restore it, or begin another run")
    if (now := _fingerprint(path)) != fingerprint:
        raise RunFolderError(
            f"{path} is not the supernet that this run's students were scored with: its hash is {now}, the lock file "
            f"states {fingerprint}; restore it, or begin another run"
        )


def _weights(folder: Path) -> Path:
    return folder / SUPERNET_FOLDER / WEIGHTS_FILE


def _fingerprint(path: Path) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of a file. Raises RunFolderError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
