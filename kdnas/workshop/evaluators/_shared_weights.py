"""What the evaluators share whose students get their weights from the run's supernet."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, Problem, RunError, RunFolderError, TrialError
from kdnas.nn.elastic import Supernet
from kdnas.record.lock import SupernetRecord
from kdnas.study.config import SupernetConfig
from kdnas.training.batches import Batches
from kdnas.training.recipe import Recipe
from kdnas.training.supernet.shrinking_file import SHRINKING_FILE, write_shrinking
from kdnas.training.supernet.subnets import ElasticSpace
from kdnas.training.supernet.training import Tick, TrainedSupernet, train_supernet
from kdnas.workshop.evaluators import EvaluatorContext
from kdnas.workshop.evaluators._training import TrainingEvaluator
from kdnas.workshop.opening import first_samples
from kdnas.workshop.supernets import (
    CHECKPOINT_FILE,
    SUPERNET_FOLDER,
    SharedWeights,
    check_supernet,
    load_supernet,
    save_supernet,
    saved_supernet,
)

_BAR = 20
"""Characters of a progress bar."""
_INHERITING = 256
"""Training images that tell which of the teacher's blocks change most."""


class SharingEvaluator(TrainingEvaluator):
    """Takes students' weights from the run's supernet, which the controller trains before the first trial."""

    def __init__(self, context: EvaluatorContext):
        super().__init__(context)
        self._settings = context.config.supernet or SupernetConfig()
        self._largest = self._largest_student()
        self._inherits()

    @functools.cached_property
    def shared(self) -> SharedWeights:
        """The trained supernet. Raises RunFolderError where it is not that of the run's lock file."""
        context, workshop = self.context, self.workshop
        known = self.supernet
        if known is None:
            raise RunFolderError(f"{context.folder} has no trained supernet yet: `kdnas search` trains it")
        return load_supernet(
            context.folder,
            context.config,
            self.space,
            workshop.family,
            workshop.data,
            self._images(),
            workshop.validation,
            fingerprint=known.fingerprint,
        )

    def prepare(self) -> SupernetRecord:
        """Train the run's supernet, or continue where that was stopped; check it where it is done."""
        if self.supernet is not None:
            check_supernet(self.context.folder, self.supernet.fingerprint)
            return self.supernet
        if saved_supernet(self.context.folder) is None:
            self._train_supernet()
        self.supernet = saved_supernet(self.context.folder)
        assert self.supernet is not None
        return self.supernet

    def _train_supernet(self) -> None:
        """Train the supernet and write its folder: the weights last. Raises RunError where the training fails."""
        config, settings, workshop = self.context.config, self._settings, self.workshop
        folder = self.context.folder / SUPERNET_FOLDER
        checkpoint = folder / CHECKPOINT_FILE
        train = self._images()
        torch.manual_seed(derive_seed(config.seed, "supernet init"))
        supernet = workshop.family.supernet(self.space).to(workshop.device)
        inherited = self._inherit(supernet, train)
        update = {"epochs": settings.epochs, "data_fraction": self._fraction}
        recipe = config.recipe.model_copy(update={"training": config.training.model_copy(update=update)})
        self.say(
            f"{'going on with' if checkpoint.exists() else 'training'} the supernet, once: the work of "
            f"{Fidelity(settings.epochs).words} of its largest student on {len(train):,} images"
            + ("" if inherited is None else f"; {100 * inherited:.0f} % of that student's weights are the teacher's")
            + ("" if config.training.ema is None else "; training.ema is for students, not for it")
        )
        try:
            trained = self._trained(supernet, train, recipe)
        except TrialError as error:
            what = f"the training of the supernet failed: {error}; a lower training.learning_rate may help"
            raise RunError(what) from error
        write_shrinking(folder / SHRINKING_FILE, trained.shrinking)
        facts = {**update, "train_seconds": trained.train_seconds, "inherited": inherited}
        save_supernet(trained.supernet, self.context.folder, facts)
        checkpoint.unlink(missing_ok=True)

    def _trained(self, supernet: Supernet, train: Batches, recipe: Recipe) -> TrainedSupernet:
        """Return `supernet`, trained by `recipe` beside the teacher, whose outputs on these views the trials share."""
        config, workshop = self.context.config, self.workshop
        return train_supernet(
            supernet,
            self.space,
            workshop.family,
            workshop.teacher,
            train,
            workshop.validation,
            recipe,
            self._settings,
            data=workshop.data,
            seed=derive_seed(config.seed, "supernet"),
            view_seed=derive_seed(config.seed, "views"),
            device=workshop.device,
            on_tick=_told(self.say),
            checkpoint=self.context.folder / SUPERNET_FOLDER / CHECKPOINT_FILE,
            teacher_cache=self.teacher_cache,
        )

    @property
    def _fraction(self) -> float:
        return self._settings.data_fraction or self.context.config.training.data_fraction

    def _images(self) -> Batches:
        """Return the images that the supernet is trained on."""
        return self.workshop.share(self._fraction)

    def _largest_student(self) -> Arch:
        """Return the largest student of the space. Raises ConfigError where it has no supernet, or none of it."""
        space, workshop = self.space, self.workshop
        elastic = ElasticSpace(space, workshop.family, self._settings.resolutions)
        sides, own = self._settings.resolutions, workshop.data.task.size
        if sides and own not in sides:
            what = f"students are scored on images of {own} pixels, the data's own, which are not among them"
            raise ConfigError(Problem("supernet.resolutions", what))
        return elastic.largest.arch

    def _inherits(self) -> bool:
        """Whether the supernet begins with the teacher's weights. Raises ConfigError where it is to and cannot."""
        teacher, family, wanted = self.workshop.teacher, self.space.family, self._settings.inherit_teacher
        fitting = self.workshop.family.ancestor() is not None
        if wanted and not fitting:
            of = "of no student family" if teacher.arch is None else f"a {teacher.arch.family}"
            what = f"the teacher {teacher.name} is {of}, the students are {family}: no weights can be inherited"
            raise ConfigError(Problem("supernet.inherit_teacher", what, f"false, or a {family} as the teacher"))
        return fitting and wanted is not False

    def _inherit(self, supernet: Supernet, train: Batches) -> float | None:
        """Begin `supernet` with the teacher's weights, and return the share of its largest student's that they are."""
        if not self._inherits():
            return None
        (images,), _ = first_samples(train, _INHERITING)
        return self.workshop.family.inherit_supernet(supernet, self._largest, images)


def _told(say: Callable[[str], None]) -> Callable[[Tick], None]:
    """Return what tells the news of a training as a line."""

    def tell(tick: Tick) -> None:
        done = min(round(_BAR * tick.spent), _BAR)
        line = f"supernet  {'█' * done}{'░' * (_BAR - done)}  {100 * min(tick.spent, 1.0):.0f} %  {tick.stage}"
        line += f"  loss {tick.loss:.3f}"
        if tick.check is not None:
            line += f"  largest {100 * tick.check.largest:.1f} %, smallest {100 * tick.check.smallest:.1f} %"
        say(line)

    return tell
