"""What a study works with, opened in one place: data and their split, teachers, students, costs, on one device.

Every part is opened when it is first asked for, and once: whoever needs the data alone opens no teacher.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.answers import what_differs
from kdnas.core.arch import Arch
from kdnas.core.data import Data, ImageData
from kdnas.core.fidelity import Start
from kdnas.core.measurement import Calibration, Measurement, Price
from kdnas.core.objective import Quantity, refuse_unmeasurable, score_named
from kdnas.core.pairing import paired
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.core.text import CorpusData
from kdnas.core.words import counted
from kdnas.costs import COSTS, CheapCost, MeasuredCost
from kdnas.datasets import DATASETS
from kdnas.datasets._kept import fetched_folder, kept_data, kept_folder
from kdnas.datasets._text_files import find_text_files
from kdnas.errors import ConfigError, DataError, Problem, TeacherError
from kdnas.nn.ruling import LABEL_RULES
from kdnas.nn.taps import OutputShapes, example_samples, output_shapes, stage_names
from kdnas.nn.weights import load_weights
from kdnas.outlets import Notify, silent
from kdnas.record.lock import DataDescription
from kdnas.store import NO_STORE, Store
from kdnas.students import StudentFamily, family_for, sibling_family
from kdnas.study.config import Completions, DataConfig, Member, PairedData, StudyConfig, TeacherConfig
from kdnas.tasks import Task, task_of
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.tokenizing import Tokenizer
from kdnas.training.batches import Batches
from kdnas.training.completions import Item, read_items, share_completed
from kdnas.training.evaluation import all_scores, evaluate, tally_and_ruled
from kdnas.training.recipe import Distillation, Training
from kdnas.workshop.proxy import proxy_places
from kdnas.workshop.run_files import FAMILY_FILE
from kdnas.workshop.split import check_score, check_split, split_notes
from kdnas.workshop.teacher_training import TeacherTraining

TEACHER = "teacher"
"""What the one teacher of a study is called that states no name."""
_CALLED = frozenset({"module", "text_module"})
"""The data sets that are a function of the user's: whether it changed cannot be seen but by calling it."""
_COMPLETED = "files of texts to be completed (.jsonl)"


def cache_dir() -> Path:
    """Return where decoded data and trained teachers are kept: KDNAS_CACHE, else ~/.cache/kdnas."""
    stated = os.environ.get("KDNAS_CACHE")
    return Path(stated).expanduser() if stated else Path.home() / ".cache" / "kdnas"


def data_root(option: Path | None) -> Path:
    """Return the folder that data is named relative to: `option`, else KDNAS_DATA, else ./data.

    Raises DataError when `option` is no folder. The others may be missing: some data needs no folder.
    """
    if option is not None:
        root = option.expanduser()
        if not root.is_dir():
            raise DataError(Problem("--data-root", f"there is no folder {root}"))
        return root
    stated = os.environ.get("KDNAS_DATA")
    return Path(stated).expanduser() if stated else Path("data")


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` (auto, cpu, cuda or cuda:N) means here. Raises ConfigError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(Problem("device", f"there is no device {name!r}", "auto, cpu, cuda"))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            raise ConfigError(Problem("device", f"cuda: torch {torch.__version__} ({build}) finds no GPU", "auto, cpu"))
        if (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(Problem("device", f"there is no {name}: {found} GPUs are here", "auto, cpu, cuda"))
    return device


@dataclass(frozen=True)
class Sources:
    """What a study or a train.yaml names that is to be opened."""

    data: DataConfig
    teachers: Mapping[str, TeacherConfig]
    family: str
    seed: int
    """Draws the split, and a teacher that is trained here."""
    training: Training
    """Of the students: its precision and threads are the teacher's, too, which is trained here."""
    space: SearchSpace | None = None
    """As it is stated; None where one student is all."""
    costs: Mapping[str, Member] = field(default_factory=dict)
    """By the names of their quantities."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Those of the family."""
    task: str | None = None
    """The kind of work; None: the one that the data pose."""
    score: Quantity | None = None
    """What students are scored by; None: what the task usually is."""
    completions: Sequence[Completions] = ()
    """What retrained language models are to complete."""
    kept: Path | None = None
    """Where the family keeps what it finds out once; None where there is no run folder."""

    @classmethod
    def of_study(cls, config: StudyConfig, space: SearchSpace, folder: Path | None = None) -> Sources:
        """Return what a study names; `folder` is its run's. Raises ConfigError where it trains nothing itself."""
        costs = {name: config.cost(name) for name in _named_costs(config)}
        kept = None if folder is None else folder / FAMILY_FILE
        return cls(
            config.training_data,
            config.teachers,
            space.family,
            config.seed,
            config.training,
            space,
            costs,
            space.options,
            config.task,
            config.score,
            config.final.completions,
            kept,
        )


def _named_costs(config: StudyConfig) -> list[str]:
    """Return the costs a study reports: macs, params, and every one that it names, in a fixed order."""
    named = {"macs", "params", *config.costs, *config.objectives, *config.bounded}
    named -= {one.name for one in config.completed}
    costs = (name for name in named if score_named(name) is None)
    return sorted(costs, key=lambda name: (name not in ("macs", "params"), name))


@dataclass(frozen=True)
class MadeOn:
    """What a run that has begun was made on, by hash; empty where that is not known or not to be compared."""

    data: str = ""
    teacher: str = ""
    answers: tuple[float, ...] = ()
    """A sketch of the teacher's outputs for a few fixed samples."""
    further: Mapping[str, str] = field(default_factory=dict)
    """The hashes of the teachers after the first, by name."""
    reader: Literal["controller", "worker", "afterwards"] = "controller"
    """Who opens its data. A user's function (`data: {type: module}`) may give others at each call, and is called once a
    run: a controller that resumes finds out whether it does, its workers get the very data that it has opened, and
    whoever does something with its students afterwards gets those that the run has kept. Files are read as they are."""


class Workshop:
    """What a study works with, on one device.

    `train_indices` and `validation_indices` are sorted places in the data's training samples. Whatever is wrong is
    reported by the part that is opened: DataError, TeacherError, ConfigError.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        data_root: Path,
        cache: Path,
        device: torch.device,
        made_on: MadeOn = MadeOn(),
        notify: Notify = silent,
        store: Store = NO_STORE,
    ):
        self.sources = sources
        self.store = store
        self.data_root = data_root
        self.cache = cache
        self.device = device
        self.notify = notify
        self._made_on = made_on
        self._shares: dict[tuple[float, str | None], Batches] = {}
        self._trainings: list[TeacherTraining] = []
        self._samples: dict[int, tuple[tuple[Tensor, ...], Tensor]] = {}

    def opened(self) -> Workshop:
        """Return this workshop with everything open that a worker needs; notes on the data are reported.

        They are reported before a teacher is trained on them, or refused for what is wrong with them. The space is not
        opened: the controller does that, and what it tries out of it once need not be tried by every worker.
        """
        for note in self.data_notes:
            self.notify(f"note: {note}")
        _ = self.completions, list(self.teachers.values()), self.costs
        return self

    @cached_property
    def data(self) -> Data:
        """The data set; of a run that has begun, its own."""
        known, reader = self._made_on.data, self._made_on.reader
        called = self.sources.data.type in _CALLED
        if known and (reader == "worker" or (called and reader == "afterwards")):
            return self._kept_data(known)
        data = self._load_data()
        if not (known and called) or data.fingerprint == known:
            return data
        with _other_random_states():
            again = self._load_data()
        if again.fingerprint == data.fingerprint:
            return data  # it gives one thing, which is not what it was: the caller compares
        kept = self._kept_data(known)
        self.notify(
            f"note: {self.sources.data.options['function']} gives other data whenever it is called, as without a seed; "
            f"the run goes on with its own, kept in {self.cache}"
        )
        return kept

    def _load_data(self) -> Data:
        data = load_data(self.sources.data, self.data_root, self.cache)
        if self.store.is_shared and not self.store.has(f"data/{data.fingerprint}"):
            folder = kept_folder(self.cache, data.fingerprint)
            if folder is not None:  # data of a user's own kind may be kept otherwise
                self.store.put(f"data/{data.fingerprint}", folder)
        return self._put_to_work(data)

    def _put_to_work(self, data: Data) -> Data:
        """Return the data with the study's task and score. Raises DataError where they are not scored so."""
        score = self.sources.score
        put = replace(data, kind=self.sources.task or "", scored_by=score if score in data.scores else None)
        check_score(put)
        one_label_each = not (put.task.partly or put.task.heads)
        if not one_label_each and task_of(put.task).mixes(self.sources.training.augmentation):
            what = f"mixes samples with their labels, and those of {put.name} have none, or several"
            raise ConfigError(Problem("training.augmentation", what, "mixup: 0"))
        return put

    def _kept_data(self, fingerprint: str) -> Data:
        """Return the very data that the run's controller has opened. Raises DataError where they are gone."""
        config, reader = self.sources.data, self._made_on.reader
        kept = self._kept(fingerprint)
        if kept is None:
            kept = self._load_data()
        elif reader == "afterwards":
            called = f"{config.options['function']} is not called again"
            self.notify(f"note: the data are those of the run, kept in {self.cache}: {called}")
        if kept.fingerprint != fingerprint:
            what = (
                f"gives other data (content hash {kept.fingerprint}) than those that the run is made on "
                f"({fingerprint}), which are no longer in {self.cache}"
            )
            often = ": the function draws without a seed, or was changed" if config.type in _CALLED else ""
            raise DataError(Problem(f"data: {kept.name}", what + often, "the same data whenever they are loaded"))
        return kept

    def _kept(self, fingerprint: str) -> Data | None:
        data = kept_data(self.cache, fingerprint)
        if data is None and self.store.get(f"data/{fingerprint}", fetched_folder(self.cache, fingerprint)):
            data = kept_data(self.cache, fingerprint)
        return None if data is None else self._put_to_work(data)

    @cached_property
    def task(self) -> Task:
        """The kind of work that the data pose."""
        return task_of(self.data.task)

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        data, fraction = self.data, self.sources.data.validation_fraction
        if data.stated_validation:
            places = np.arange(len(data.train))
            return places[: -data.stated_validation], places[-data.stated_validation :]
        parts = self.task.split(data.train.targets, fraction, derive_seed(self.sources.seed, "validation split"))
        check_split(data, parts[1], fraction)
        return parts

    @property
    def train_indices(self) -> np.ndarray:
        """The places of the training split: stratified, a function of the seed."""
        return self._split[0]

    @property
    def validation_indices(self) -> np.ndarray:
        """The places of the validation split: search scores are made on it."""
        return self._split[1]

    @property
    def data_notes(self) -> tuple[str, ...]:
        """What the user should know of the data and of its split."""
        return (*self.data.notes, *split_notes(self.data, self.train_indices, self.validation_indices))

    def batches(self, indices: np.ndarray) -> Batches:
        """Return batches of some of the data's training samples."""
        return Batches(self.data, indices, device=self.device)

    def share(self, fraction: float, proxy: Member | None = None) -> Batches:
        """Return the share `fraction` in (0, 1] of the training split that `proxy` chooses; None: a random one.

        One is kept: a search has one, its retrainings another. Raises ConfigError where the proxy fails.
        """
        key = fraction, None if proxy is None else proxy.model_dump_json()
        if key not in self._shares:
            self._shares.clear()  # its memory is free before the next is made
            self._shares[key] = self.batches(self._share_indices(fraction, proxy))
        return self._shares[key]

    def _share_indices(self, fraction: float, proxy: Member | None) -> np.ndarray:
        if proxy is None or fraction >= 1.0:
            return self._drawn(self.data, self.train_indices, fraction)
        seed = derive_seed(self.sources.seed, "data fraction")
        return self.train_indices[proxy_places(self, proxy, fraction, seed)]

    def _drawn(self, data: Data, places: np.ndarray, fraction: float) -> np.ndarray:
        """Return a random share in (0, 1] of the `places` in the training samples of `data`."""
        if fraction >= 1.0:
            return places
        seed = derive_seed(self.sources.seed, "data fraction")
        return places[task_of(data.task).draw(data.train.targets[places], fraction, seed)]

    @property
    def train(self) -> Batches:
        """The share of the training split that the study's own training uses."""
        return self.share(self.sources.training.data_fraction, self.sources.training.proxy)

    @cached_property
    def validation(self) -> Batches:
        """The validation split."""
        return self.batches(self.validation_indices)

    @cached_property
    def test(self) -> Batches:
        """The test split: only for final evaluations."""
        return Batches(self.data, np.arange(len(self.data.test)), device=self.device, split="test")

    def samples(self, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return (inputs, targets) of at most `count` training samples, raw, on the device: the same each time."""
        if count not in self._samples:
            self._samples[count] = first_samples(self.batches(self.train_indices), count)
        return self._samples[count]

    @cached_property
    def teachers(self) -> Mapping[str, Teacher]:
        """The teachers by name, each opened when it is first asked for."""
        return _Teachers(self)

    def keep(self) -> None:
        """Write into the run folder what was found out or trained once: a family's facts, a teacher made here.

        Raises RunFolderError.
        """
        self.family.keep()
        for training in self._trainings:
            training.keep()

    @property
    def teacher(self) -> Teacher | None:
        """The first teacher; None where no loss learns of one."""
        return next(iter(self.teachers.values()), None)

    def _open_teacher(self, name: str) -> Teacher:
        sources, made_on, member = self.sources, self._made_on, self.sources.teachers[name]
        given = self._asked(name, member.task) if member.task else self._given(name, member)
        learnt = self._learnt(name, member)
        training = TeacherTraining(
            learnt or given or self.data,
            self.train_indices if learnt is None else np.arange(len(learnt.train) - learnt.stated_validation),
            functools.partial(self._share_of, learnt or given or self.data),
            self.cache / "teachers",
            self.device,
            sources.seed,
            sources.training,
            None if sources.kept is None else sources.kept.parent,
            bool(made_on.data),
            self.store,
        )
        self._trainings.append(training)
        from kdnas.workshop.afterwards import earlier_student  # which opens workshops itself

        earlier = functools.partial(earlier_student, data_root=self.data_root)
        taught = given or self.data
        context = TeacherContext(
            taught, self.data_root, self.device, training.network, self.notify, earlier, self._asks_once, learnt
        )
        teacher: Teacher = TEACHERS.build(member.type, context, **member.options)
        if learnt is not None:
            if not training.has_trained:
                what = f"none: nothing is trained here, and a teacher of type {member.type} learns from no samples"
                raise ConfigError(Problem(f"teachers.{name}.data.pair", what, "order, key, label"))
            note = f"learnt from {learnt.name}, {counted(len(training.train_indices), 'sample')}"
            teacher = replace(teacher, notes=(note, *teacher.notes))
        if member.task:
            told = f"answers the task {member.task} alone, and its score is that of it"
            teacher = replace(teacher, task=member.task, notes=(told, *teacher.notes))
        if given is not None and member.data is not None:  # paired
            note = f"is given samples of {given.name}, one for each of {self.data.name}, paired by {member.data.pair}"
            whole = hashlib.sha256(f"{teacher.fingerprint} {given.fingerprint}".encode()).hexdigest()[:16]
            teacher = replace(teacher, data=given, fingerprint=whole, notes=(note, *teacher.notes))
        where = f"teacher {teacher.name}"
        first = name == next(iter(sources.teachers))
        was = made_on.teacher if first else made_on.further.get(name, "")
        if was and teacher.fingerprint != was:
            what = (
                f"is another network (content hash {teacher.fingerprint}) than that of the run ({was}): "
                "the function that builds it draws weights, or a file was changed while the run went on"
            )
            raise TeacherError(Problem(where, what, "the same weights whenever it is built, as from a file"))
        if first and (differs := what_differs(made_on.answers, teacher.answers)):
            raise TeacherError(Problem(where, differs, "the teacher that the run began with"))
        return teacher

    def _asked(self, name: str, task: str) -> Data:
        """Return the study's samples with the labels of `task` alone. Raises ConfigError where there is none."""
        names = [head.name for head in self.data.task.heads]
        if not isinstance(self.data, ImageData) or task not in names:
            what = f"the data {self.data.name} ask no {task!r}"
            allowed = ", ".join(names) or "no `task`: they ask one thing"
            raise ConfigError(Problem(f"teachers.{name}.task", what, allowed))
        return self.data.asking(task)

    def _given(self, name: str, member: TeacherConfig) -> Data | None:
        """Return the samples that the teacher `name` is given; None: the study's own. Raises DataError, ConfigError."""
        if member.data is None or member.data.pair == "none":
            return None
        if self.task.mixes(self.sources.training.augmentation):
            what = f"mixes samples, and the teacher {name} is given others, which are not mixed so"
            raise ConfigError(Problem("training.augmentation", what, "mixup: 0"))
        theirs = self._theirs(name, member.data)
        parts = (self.train_indices, self.validation_indices)
        return paired(theirs, self.data, member.data.pair, parts, derive_seed(self.sources.seed, "pairs", name))

    def _learnt(self, name: str, member: TeacherConfig) -> Data | None:
        """Return the samples that the teacher `name` alone learns from; None: it has none. Raises DataError."""
        if member.data is None or member.data.pair != "none":
            return None
        theirs = self._theirs(name, member.data)
        if (theirs.task.inputs, theirs.class_names) != (self.data.task.inputs, self.data.class_names):
            what = f"its samples or classes are not those of {self.data.name}, about which the teacher is asked"
            raise DataError(Problem(f"data: {theirs.name}", what, "the same shape, and the same classes in one order"))
        return theirs

    def _theirs(self, name: str, stated: PairedData) -> Data:
        """Return the data set of the teacher `name`, with what is to be known of it told. Raises DataError."""
        theirs = load_data(stated, self.data_root, self.cache)
        for note in theirs.notes:
            self.notify(f"note: {theirs.name}, of the teacher {name}: {note}")
        return theirs

    @property
    def _asks_once(self) -> bool:
        """Whether teachers are asked about each sample in one view alone, and about no others."""
        training = self.sources.training
        views = training.augmentation
        return training.proxy is None and not (self.task.varies(views) or self.task.mixes(views))

    def _share_of(self, data: Data, places: np.ndarray, fraction: float) -> Batches:
        """Return a random share of the training samples at `places` of `data`, which a teacher learns from."""
        return Batches(data, self._drawn(data, places, fraction), device=self.device)

    def teacher_shapes(self, name: str) -> OutputShapes:
        """Return the shapes of a teacher's outputs for a sample."""
        teacher = self.teachers[name]
        example = example_samples(teacher.given(self.data).task, self.device)
        heads = teacher.heads(self.data)
        return output_shapes(teacher.module, teacher.stages, teacher.classifier, *example, heads=heads)

    @cached_property
    def family(self) -> StudentFamily:
        """The students' family; it opens a teacher where it asks for one."""
        sources = self.sources
        return family_for(
            sources.family, self.data.task, self.teachers, self.samples, kept=sources.kept, options=sources.options
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The space as it is searched. Raises ConfigError where there is none."""
        if self.sources.space is None:
            raise ConfigError(Problem("space", "one student is trained here: there is no search space"))
        return self.family.space(self.sources.space)

    @cached_property
    def costs(self) -> Mapping[str, CheapCost | MeasuredCost]:
        """The study's costs by name."""

        def cost(stated: Member) -> CheapCost | MeasuredCost:
            objects = (self.device,) if issubclass(COSTS.get(stated.type), MeasuredCost) else ()
            built: CheapCost | MeasuredCost = COSTS.build(stated.type, *objects, **stated.options)
            return built

        return {name: cost(stated) for name, stated in self.sources.costs.items()}

    @property
    def measured_costs(self) -> dict[str, MeasuredCost]:
        """The costs that need a built student."""
        return {name: cost for name, cost in self.costs.items() if isinstance(cost, MeasuredCost)}

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the cheap costs of `arch`."""
        return self.cheap_costs(self.family.price(arch))

    def cheap_costs(self, price: Price) -> dict[str, float]:
        """Return the costs that follow from a `price` alone."""
        return {name: cost.value(price) for name, cost in self.costs.items() if isinstance(cost, CheapCost)}

    def measure(
        self, module: nn.Module, calibrations: Mapping[str, Calibration], wanted: Collection[str]
    ) -> dict[str, Measurement]:
        """Return the `wanted` of the measured costs on a built student. Raises TrialError on no finite number."""
        measured = {
            name: cost.measure(module, self.data.task, calibrations.get(name, Calibration()))
            for name, cost in self.measured_costs.items()
            if name in wanted
        }
        refuse_unmeasurable({name: measurement.value for name, measurement in measured.items()})
        return measured

    def build(self, arch: Arch) -> nn.Module:
        """Return the student on the device, initialised from torch's global generator."""
        return self.family.build(arch).to(self.device)

    def begin(self, arch: Arch, start: Start, seed: int) -> nn.Module:
        """Return the student as its training begins, on the device: drawn by `seed`, or cut out of its teacher.

        It may be of another family than the study's. A nested one is the largest. Raises ConfigError where it has
        nothing to inherit.
        """
        torch.manual_seed(seed)
        family = sibling_family(self.family, arch.family)
        return (family.inherit(arch) if start in ("inherited", "nested") else family.build(arch)).to(self.device)

    def peers(self, arch: Arch, distillation: Distillation, start: Start, seed: int) -> list[nn.Module]:
        """Return those that learn with a student of `arch`, which `seed` began at `start`: of its kind unless stated.

        Others of its family begin where it does; its equals are drawn anew, which else would stay equal.
        """
        archs = [arch] * distillation.further_peers
        if archs and isinstance(distillation.peers, tuple):
            archs = [sibling_family(self.family, peer.family).canonical(peer.choices) for peer in distillation.peers]
        peers = []
        for place, each in enumerate(archs, 1):
            begun: Start = start if each.family == arch.family and each != arch else "random"
            peers.append(self.begin(each, begun, derive_seed(seed, "peer", place)))
        return peers

    def cut_on(self, arch: Arch, larger: Arch, weights: Path, seed: int) -> nn.Module:
        """Return the student cut out of one of `larger`, whose trained weights a file holds, on the device.

        What is drawn is drawn by `seed`. Raises RunFolderError where the file is not that student's.
        """
        torch.manual_seed(seed)
        trained = self.family.build(larger)
        load_weights(trained, weights)
        return self.family.cut_on(arch, larger, trained.to(self.device)).to(self.device)

    def entered(self, network: nn.Module) -> nn.Module:
        """Return `network`, a built student, behind the task's entrance, on the device."""
        return self.task.entrance(network, self.data).to(self.device)

    def as_teacher(self, name: str, network: nn.Module) -> Teacher:
        """Return `network`, a trained student, as the fixed teacher of others."""
        module = self.entered(network).eval().requires_grad_(False)
        stages, classifier = stage_names(network)
        content = hashlib.sha256()
        for key, value in network.state_dict().items():
            content.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        inside = tuple(f"network.{stage}" for stage in stages)
        return Teacher(name, module, inside, classifier and f"network.{classifier}", content.hexdigest()[:16])

    def validation_score(self, network: nn.Module) -> float:
        """Return the score of `network`, a student, on the validation split, computed as its training is."""
        return self.validation_scores(network)[0]

    def validation_scores(self, network: nn.Module) -> tuple[float, dict[str, float]]:
        """Return what `validation_score` does, and the scores of each of several tasks by name."""
        scores = all_scores(self.entered(network), self.validation, self.sources.training)
        return scores.pop(self.task.spec.score.name), scores

    def test_score(self, module: nn.Module) -> float:
        """Return the score of `module`, which takes plain samples, on the test split."""
        return evaluate(module, self.test, self.sources.training)

    def test_scores(self, module: nn.Module, given: Data | None = None) -> dict[str, float]:
        """Return all that is known of how good `module` is on the test split, and of what it completes, by name.

        `given` are the samples of a teacher that has its own.
        """
        test = self.test if given is None else Batches(given, self.test.indices, device=self.device, split="test")
        stated = {} if given is not None else self.sources.teachers
        rules = {name: self.teachers[name].module for name, one in stated.items() if one.type == LABEL_RULES}
        tally, ruled = tally_and_ruled(module, rules, test, self.sources.training)
        found = {**test.task.scores(tally), **self.completed(module, self.completions)}
        for name, one in ruled.items():
            score = f"{self.task.spec.score.name}_by_{name}"
            found |= {score: self.task.score(one.tally), f"changed_by_{name}": one.changed}
        return found

    def completed(self, module: nn.Module, names: Iterable[str]) -> dict[str, float]:
        """Return the share of the items that `module` completes rightly, of those completions that are named."""
        return {name: self._completed(module, self.completions[name]) for name in names}

    @cached_property
    def completions(self) -> Mapping[str, Sequence[Item]]:
        """What language models are to complete, by name. Raises DataError where that cannot be read, or has no use."""
        stated = self.sources.completions
        if stated and not isinstance(self.data, CorpusData):
            what = f"texts are completed by language models, and the task is {self.task.spec.kind}"
            raise DataError(Problem("final.completions", what, "a language_modelling study"))
        files = ((one, find_text_files(self.data_root, one.file, _COMPLETED)) for one in stated)
        return {one.name: read_items(found[0], skip=one.skip, first=one.first) for one, found in files}

    def _completed(self, module: nn.Module, items: Sequence[Item]) -> float:
        assert isinstance(self.data, CorpusData)
        tokenizer = Tokenizer(self.data.tokenizer)
        return share_completed(module, tokenizer, items, length=self.data.length, device=self.device)

    def worst_scores(self) -> dict[str, float]:
        """Return the scores on the validation split of the best answer that looks at no sample, by name."""
        worst = self.task.worsts(self.data.train.targets[self.validation_indices])
        return {score.name: worst[score.name] for score in self.task.spec.scores}

    def describe_data(self) -> DataDescription:
        """Return the data's part of a lock file."""
        return DataDescription(
            name=self.data.name,
            class_names=tuple(self.data.class_names),
            task=self.data.task,
            training_samples=len(self.train_indices),
            validation_samples=len(self.validation_indices),
            test_samples=len(self.data.test),
            validation_stated=self.data.stated_validation > 0,
            statistics=self.data.statistics,
            notes=self.data_notes,
        )


class _Teachers(Mapping[str, Teacher]):
    """Opens each teacher of a workshop when it is first asked for."""

    def __init__(self, workshop: Workshop):
        self._workshop = workshop
        self._open: dict[str, Teacher] = {}

    def __getitem__(self, name: str) -> Teacher:
        if name not in self._open and name in self._workshop.sources.teachers:
            self._open[name] = self._workshop._open_teacher(name)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._workshop.sources.teachers)

    def __len__(self) -> int:
        return len(self._workshop.sources.teachers)


def load_data(config: Member, data_root: Path, cache: Path) -> Data:
    """Return the data set that `config` names. Raises DataError, ConfigError."""
    data: Data = DATASETS.build(config.type, data_root, cache, **config.options)
    return data


def first_samples(train: Batches, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return (inputs, targets) of at most `count` of `train`, plain, always the same; of lists so many candidates."""
    wanted = max(1, count // train.task.spec.runs)
    batch = next(train.epoch(0, batch_size=min(wanted, len(train)), seed=0))
    return batch.inputs, batch.targets


@contextmanager
def _other_random_states() -> Iterator[None]:
    """Give the generators that a program shares other states within, so that what draws from them shows."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed()
    np.random.seed()
    torch.seed()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
