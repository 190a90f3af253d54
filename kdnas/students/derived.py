"""Students cut out of the study's own teacher: which sizes they may have, what they cost, and how they are cut.

The teacher's network is read once (`kdnas.nn.anatomy`), its units and blocks are ranked by what they matter on training
samples, and every student keeps what ranks first: a smaller one is a part of every larger one.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas import atomic
from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Price
from kdnas.core.operator import OperatorGroup
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem, TeacherError
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cut_costs import CutCosts
from kdnas.nn.cut_supernet import CutSupernet, Cutting
from kdnas.nn.cutting import Anatomy, Example, Kept, Uncut, in_order, inside, outputs, part_of, sound_part
from kdnas.nn.elastic import Supernet
from kdnas.nn.importance import Batch, DepthMethod, Method, Ranking, passes, rank, ranked
from kdnas.nn.origin import Cut
from kdnas.nn.recalibration import has_batch_norms, recalibrate
from kdnas.nn.reconstruction import Reconstruction
from kdnas.nn.starting import initialise_anew
from kdnas.nn.taps import mask_place, with_taps
from kdnas.nn.teacher import Teacher
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.students import STUDENTS, FamilyContext, StudentFamily
from kdnas.students._cut_choices import Bounds, CutChoices, Granularity, Options

_SAMPLES = 512
"""More change no order (Muralidharan et al., "Minitron", NeurIPS 2024)."""
_MACS = 1_000_000_000_000
"""Unless stated, the teacher multiplies no more often to read them all: some 10 to 30 seconds of one core."""
_COMPARED, _COMPARED_MACS = (8, 32), 10 * _MACS
"""Samples of which answers are compared, block by block, at least and at most; within so many multiplications."""
_BATCH = 64
_FEWEST, _VALUES = 64, 1 << 24
"""Unless stated, no fewer samples. Those that are run at once have no more values than that, but are so many: large
images have many places each."""
_EMBEDDED = 1024
"""A token counts as so many values."""
_EXAMPLES = 2


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was found out once about a teacher: what of it can be cut, and how much every unit and block matters."""

    teacher: str
    """Its fingerprint."""
    parts: tuple[str, ...]
    """The axes and depths that can be cut, by name."""
    uncut: tuple[Uncut, ...]
    method: str
    scores: Mapping[str, tuple[float, ...]]

    @property
    def text(self) -> str:
        """The file that holds it."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """A hash of its content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Return what the file at `path` holds. Raises ValueError where it is damaged."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            scores = {name: tuple(map(float, values)) for name, values in plain.pop("scores").items()}
            uncut = tuple(Uncut(**part) for part in plain.pop("uncut"))
            return cls(**{**plain, "parts": tuple(plain["parts"])}, uncut=uncut, scores=scores)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


@dataclasses.dataclass(frozen=True)
class Outline:
    """What spells and prices the students of a teacher that is open elsewhere."""

    anatomy: Anatomy
    """Without the places of its tensors."""
    costs: CutCosts


@dataclasses.dataclass(frozen=True)
class OpenedUp:
    """A student with what is inside it; in eval mode."""

    student: nn.Module
    """Takes the task's inputs."""
    network: nn.Module
    """The one of the teacher's kind inside."""
    anatomy: Anatomy
    """What can be cut of the network, its parts called as in the teacher."""


@STUDENTS.register
class Derived(StudentFamily):
    """Networks cut out of the study's own teacher, whatever that is: depth, width, inner width and heads.

    Each of `depth`, `width` (what flows from block to block), `inner` (bottlenecks, expansions, MLPs) and `heads` is a
    list of shares of the teacher's (`[0.5, 1]`), of sizes (`[96, 128]`), or a range of either (`0.25..1`).

    Args:
        context: What the study has opened.
        granularity: Whether a choice rules the whole network, a stage or a block; None: the whole network of a
            transformer of one stage, the stages of others.
        depth: How many blocks stay.
        width: How wide what flows from block to block is.
        inner: How wide blocks are inside.
        heads: How many heads of attention stay, with all queries that share keys and values.
        round_to: Widths are multiples of it, but for the teacher's own.
        freeze: What stays whole: modules, choices or parts by name; `*` stands for anything.
        importance: How units are ranked (`kdnas spaces anatomy --importance`).
        block_importance: How blocks are ranked: by how little the answers change as one after the other goes
            (`divergence`), by how far each turns what flows through it in the whole teacher (`influence`), or evenly
            spaced. Beside `importance: l1`, which looks at no samples, evenly.
        reconstruct: Whether what stays of a layer's weights makes up for what is gone, as well as it can; else batch
            norms alone are estimated anew.
        samples: How many training samples are used for that and to rank units and blocks; None: 512, and fewer, at
            least 64, where the teacher takes more than 1e12 multiply-accumulates to read so many.
    """

    derived = True
    optimizer = "adamw"
    learning_rate = 1e-3
    """Larger steps would undo what was inherited in a score of few updates."""
    learning_rates = (1e-4, 1e-2)
    """Wide, since the teacher and what is left of it decide: 3e-3 suits small parts of a CNN."""

    def __init__(
        self,
        context: FamilyContext,
        *,
        granularity: Granularity | None = None,
        depth: Options = "0.25..1",
        width: Options = (0.25, 0.5, 0.75, 1.0),
        inner: Options = (0.25, 0.5, 0.75, 1.0),
        heads: Options = (0.25, 0.5, 0.75, 1.0),
        round_to: Annotated[int, Field(ge=1, le=1024)] = 8,
        freeze: tuple[str, ...] = (),
        importance: Method = "activation",
        block_importance: DepthMethod = "divergence",
        reconstruct: bool = True,
        samples: Annotated[int, Field(ge=8)] | None = None,
    ):
        super().__init__(context)
        stated = {"depth": depth, "width": width, "inner": inner, "heads": heads}
        self._bounds = {role: Bounds.of(options) for role, options in stated.items()}
        self._granularity = granularity
        self._round_to = round_to
        self._freeze = freeze
        self._method: Method = importance
        self._block_importance: DepthMethod = block_importance
        self._reconstruct = reconstruct
        self._stated_samples = samples
        self._sizes_of = lru_cache(maxsize=4096)(self._sizes)
        if isinstance(context.outline, Outline):
            self.anatomy, self._costs = context.outline.anatomy, context.outline.costs

    @property
    def outline(self) -> Outline:
        """Its anatomy and its costs in closed form."""
        return Outline(self.anatomy.outline, self._costs)

    # -- what the teacher is ---------------------------------------------------------------------------------------

    def ancestor(self) -> Teacher:
        """Return the teacher that students are cut out of. Raises ConfigError where none is open."""
        teacher = next(iter(self.context.teachers.values()), None)
        if teacher is None:
            raise ConfigError(Problem("space.derive", "students are cut out of a teacher, and none is open"))
        return teacher

    @cached_property
    def _opened(self) -> tuple[nn.Module, Example]:
        """The network that is cut, behind what the teacher expects, and what it is given."""
        module = self.ancestor().module
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        example: list[Tensor] = []
        if self.task.inputs[0].kind == "tokens" and self.context.samples is not None:
            length = self.task.inputs[0].shape[0]
            texts, _ = self.context.samples(_EXAMPLES)  # not any tokens, for some look for a text's end
            # a batch is as long as its own texts, and costs are those of the task's length
            example = [
                part.flatten(0, -2).repeat(1, -(-length // part.shape[-1]))[:_EXAMPLES, :length].to(device)
                for part in texts
            ]
        for taken in self.task.inputs[len(example) :]:
            drawn = torch.randint(0, taken.levels, (_EXAMPLES, *taken.shape), generator=generator)
            plain = drawn.float() if taken.kind == "pixels" else drawn
            example.append((torch.ones_like(plain) if taken.kind == "mask" else plain).to(device))
        try:
            return inside(module, example[0] if len(example) == 1 else tuple(example))
        except ValueError as error:
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", str(error))) from None

    @property
    def network(self) -> nn.Module:
        """The network that is cut, inside the teacher's module."""
        return self._opened[0]

    @cached_property
    def _place(self) -> str:
        """Where that is in the teacher's module, and in every student's."""
        return next(name for name, part in self.ancestor().module.named_modules() if part is self.network)

    @cached_property
    def _samples(self) -> int:
        """How many training samples the teacher is shown."""
        if self._stated_samples is not None:
            return self._stated_samples
        return min(max(_MACS // self._macs, _FEWEST), _SAMPLES)

    @cached_property
    def _macs(self) -> int:
        """The multiply-accumulates of one sample."""
        network, example = self._opened
        return max(traced_macs(network, *in_order(example, 1)), 1)

    @cached_property
    def calibration(self) -> Calibration:
        """What is known of the teacher: read from the run folder, else found out now."""
        teacher, kept = self.ancestor(), self.context.kept
        if kept is not None and kept.is_file():
            try:
                found = Calibration.read(kept)
            except ValueError as error:
                raise ConfigError(Problem(str(kept), str(error), "remove it: it is made anew")) from None
            if found.teacher == teacher.fingerprint:
                return found
        anatomy = self._sound()
        method = f"{self._method}, blocks by {self._block_importance}"
        scores = self._ranking(anatomy).scores
        return Calibration(teacher.fingerprint, tuple(anatomy.by_name), anatomy.uncut, method, scores)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The hash of what is known of the teacher."""
        return {"calibration": self.calibration.fingerprint}

    def keep(self) -> None:
        """Write what is known of the teacher where the family finds it when it is opened again."""
        path = self.context.kept
        if path is not None and not path.is_file():
            atomic.write_text(path, self.calibration.text)

    @cached_property
    def _read(self) -> Anatomy:
        """What goes together in the network, before any of it was cut. Raises TeacherError where nothing is known."""
        try:
            return read_anatomy(*self._opened)
        except ValueError as error:
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", str(error))) from None

    def _sound(self) -> Anatomy:
        """Return what can be cut, every part of which has been. Raises TeacherError where nothing can."""
        anatomy = sound_part(self._read, *self._opened)
        if not anatomy.axes and not anatomy.depths:
            why = "; ".join(f"{part.what}: {part.why}" for part in anatomy.uncut[:3])
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", f"nothing of it can be cut ({why})"))
        return anatomy

    def _ranking(self, anatomy: Anatomy) -> Ranking:
        batches: list[Batch] = []
        if self._method != "l1":
            if self.context.samples is None:
                return Ranking({})
            inputs, targets = self.context.samples(self._samples)
            parts = zip(*(taken.split(_BATCH) for taken in inputs), strict=True)
            batches = list(zip(parts, targets.split(_BATCH), strict=True))
        module = self.ancestor().module
        compared = min(max(_COMPARED_MACS // (passes(anatomy) * self._macs), _COMPARED[0]), _COMPARED[1])
        return rank(
            self.network,
            anatomy,
            batches,
            method=self._method,
            depth=self._block_importance,
            compared=max(2, compared // self.task.runs),
            through=module,
            mask=mask_place(self.task),
        )

    @cached_property
    def anatomy(self) -> Anatomy:
        """What can be cut, ranked."""
        calibration = self.calibration
        if gone := [name for name in calibration.parts if name not in self._read.by_name]:
            what = f"parts of it that the run's students were cut in are not found any more: {', '.join(gone[:3])}"
            fix = "the version of kdnas that began the run, or a new run"
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", what, fix))
        found = part_of(self._read, calibration.parts)
        return ranked(dataclasses.replace(found, uncut=calibration.uncut), Ranking(dict(calibration.scores)))

    @cached_property
    def choices(self) -> CutChoices:
        """The choices of its students."""
        heads, stages = any(axis.role == "heads" for axis in self.anatomy.axes), len(self.anatomy.depths)
        granularity: Granularity = self._granularity or ("network" if heads and stages < 2 else "stage")
        return CutChoices(
            self.anatomy,
            granularity=granularity,
            bounds=self._bounds,
            round_to=self._round_to,
            freeze=self._freeze,
        )

    @cached_property
    def _costs(self) -> CutCosts:
        network, example = self._opened
        try:
            return CutCosts(self.anatomy, network, example)
        except ValueError as error:
            what = f"its students have no price in closed form: {error}"
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", what)) from None

    # -- the contract of a family ----------------------------------------------------------------------------------

    def space(self, stated: SearchSpace) -> SearchSpace:
        """Return the space of the teacher's students. Its smallest and its largest are built, run and counted.

        Raises TeacherError where one of them cannot be had as it is spelled.
        """
        choices = self.choices
        space = dataclasses.replace(
            stated, choices=choices.searched, conditions=choices.conditions, fixed=choices.fixed
        )
        for corner in space.corners:
            self._try_out(self.canonical(space.active(corner)))
        return space

    def _try_out(self, arch: Arch) -> None:
        _, example = self._opened
        spelled = ", ".join(f"{name} {value}" for name, value in arch.items)
        where = f"teacher {self.ancestor().name}"
        try:
            cut = self._cut(arch)
            logits = outputs(cut, example)
            macs, params = traced_macs(cut, *in_order(example, 1)), parameter_count(cut)
        except Exception as error:  # the teacher's own code runs, which may raise anything
            why = str(error).partition("\n")[0][:120]
            what = f"its student of {spelled} does not run: {type(error).__name__}: {why}"
            raise TeacherError(Problem(where, what, "other bounds")) from None
        if not bool(torch.isfinite(logits).all()):
            raise TeacherError(Problem(where, f"its student of {spelled} gives outputs that are not finite"))
        if self.price(arch) != Price(macs=macs, params=params):
            counted = f"costs {macs:,} MACs and {params:,} parameters"
            what = f"its student of {spelled} {counted}, in closed form {self.price(arch)}"
            raise TeacherError(Problem(where, what))

    def canonical(self, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell; what they do not speak of stays whole.

        Sizes are brought to the nearest that can be, broken numbers are shares. Raises ConfigError.
        """
        return Arch.of("derived", self.choices.canonical(choices))

    def price(self, arch: Arch) -> Price:
        """Return the closed-form MACs and parameters of `arch`."""
        return self._costs.price(self._sizes_of(arch))

    def price_at(self, sizes: Mapping[str, int]) -> Price:
        """Return the closed-form costs of the network cut to `sizes`, by the name of an axis or depth."""
        return self._costs.price(sizes)

    def groups(self, arch: Arch) -> Sequence[OperatorGroup]:
        """Return nothing: what a teacher consists of is its own."""
        return ()

    def build(self, arch: Arch) -> nn.Module:
        """Return the student with the teacher's architecture cut to `arch`, freshly initialised."""
        network = self._cut(arch)
        initialise_anew(network)
        return self._student(network, arch)

    def inherit(self, arch: Arch) -> nn.Module:
        """Return the student cut out of the teacher, what is left made up for what is gone; whole it is the teacher."""
        network = self._cut(arch)
        student = self._student(network, arch)
        if self._sizes_of(arch) != self._whole:
            self._mend(student, lambda: self._reconstruction.mend(network, self._kept(arch), student))
        return student

    def _mend(self, student: nn.Module, reconstruct: Callable[[], None]) -> None:
        """Make what stays of a student that was cut anew make up for what is gone, where there are samples to do so."""
        if self.context.samples is None:
            return
        if self._reconstruct:
            reconstruct()
        else:
            self._recalibrate(student)

    def _recalibrate(self, student: nn.Module) -> None:
        """Estimate the batch norms of a student that was cut anew, where there are samples to do so."""
        if has_batch_norms(student) and self.context.samples is not None:
            inputs, _ = self.context.samples(self._samples)
            recalibrate(student, zip(*(one.split(_BATCH) for one in inputs), strict=True))

    def opened_up(self, arch: Arch) -> OpenedUp:
        """Return the student as it inherits, with the network inside it and what can be cut of that further."""
        student = self.inherit(arch).eval()
        left = self.anatomy.left(self.network, self._kept(arch))
        return OpenedUp(student, student.get_submodule(self._place), left)

    def is_part(self, arch: Arch, larger: Arch) -> bool:
        """Return whether `arch` has no more units and blocks of anything than `larger`: they rank alike in both."""
        ours, theirs = self._sizes_of(arch), self._sizes_of(larger)
        return all(size <= theirs[name] for name, size in ours.items() if name in theirs)

    def cut_on(self, arch: Arch, larger: Arch, trained: nn.Module) -> nn.Module:
        """Return `arch` cut out of `trained`, a student of `larger`, as it would be out of the teacher.

        Raises ConfigError where it is no part of that.
        """
        if arch == larger or not self.is_part(arch, larger):
            return super().cut_on(arch, larger, trained)
        trained = copy.deepcopy(trained).eval()
        whole = trained.get_submodule(self._place)
        left = self.anatomy.left(self.network, self._kept(larger))
        kept = left.prefix({name: size for name, size in self._sizes_of(arch).items() if name in left.by_name})
        network = left.cut(whole, kept).requires_grad_(True)
        student = self._student(network, arch)
        self._mend(student, lambda: self._reconstructing(whole, left, trained).mend(network, kept, student))
        return student

    def supernet(self, space: SearchSpace) -> CutSupernet:
        """Return the teacher's network freshly initialised, whose subnets are its students."""
        return CutSupernet(self.build(self.canonical({})), self._cutting)

    def inherit_supernet(self, supernet: Supernet, largest: Arch, inputs: tuple[Tensor, ...]) -> float:
        """Give the supernet the teacher's weights, all of them."""
        whole = self.canonical({})
        supernet.adopt(whole, self.inherit(whole))
        return 1.0

    @property
    def _cutting(self) -> Cutting:
        return Cutting(self.anatomy, self._place, self._kept, self._student, self._tapped)

    def at(self, size: int) -> Self:
        """Return the family of the same students for samples brought to `size`: they are cut alike, and cost less.

        Raises TeacherError where the teacher takes no samples of that size.
        """
        if size == self.task.size:
            return self
        _ = self.choices
        smaller = copy.copy(self)  # with all that was found out
        smaller.task = self.task.at(size)
        smaller.context = dataclasses.replace(self.context, task=smaller.task)
        for counted in ("_opened", "_costs"):
            smaller.__dict__.pop(counted, None)
        try:
            _ = smaller._costs
        except Exception as error:  # the teacher's own code runs, which may raise anything
            why = str(error).partition("\n")[0][:120]
            what = f"takes no samples of size {size}: {type(error).__name__}: {why}"
            raise TeacherError(Problem(f"teacher {self.ancestor().name}", what, f"{self.task.size}")) from None
        return smaller

    @cached_property
    def _reconstruction(self) -> Reconstruction:
        """What the layers of the teacher are fed."""
        return self._reconstructing(self.network, self.anatomy, self.ancestor().module)

    def _reconstructing(self, network: nn.Module, anatomy: Anatomy, through: nn.Module) -> Reconstruction:
        """Return what the layers of `network`, inside `through`, are fed."""
        assert self.context.samples is not None  # asked for by the one caller
        first = self.task.inputs[0]
        values = math.prod(first.shape) * (_EMBEDDED if first.kind == "tokens" else 1)
        inputs, _ = self.context.samples(min(self._samples, max(_FEWEST, _VALUES // values)))
        return Reconstruction(network, anatomy, through, inputs, mask=mask_place(self.task))

    def cut(self, arch: Arch, student: nn.Module) -> tuple[nn.Module, Cut] | None:
        """Return the teacher's kind of network inside `student`, and what that was cut from.

        None where it is not known how the teacher's is made.
        """
        teacher = self.ancestor()
        if teacher.origin is None:
            return None
        own = student.get_submodule(self._place)
        return own, Cut(teacher.origin, self.network, self.anatomy, self._kept(arch), self._opened[1])

    # -- cutting ---------------------------------------------------------------------------------------------------

    @cached_property
    def _whole(self) -> dict[str, int]:
        return self._sizes(self.canonical({}))

    def _sizes(self, arch: Arch) -> dict[str, int]:
        return self.choices.sizes(arch.choices)

    def _kept(self, arch: Arch) -> Kept:
        """Return what of the teacher's network is left in `arch`."""
        return self.anatomy.prefix(self._sizes_of(arch))

    def _cut(self, arch: Arch) -> nn.Module:
        """Return what stays of the teacher's network, to be trained."""
        return self.anatomy.cut(self.network, self._kept(arch)).requires_grad_(True)

    def _student(self, network: nn.Module, arch: Arch) -> nn.Module:
        """Return `network` in the place of the teacher's, behind the same preparation of inputs and answers."""
        student: nn.Module = copy.deepcopy(self.ancestor().module, {id(self.network): network})
        return self._tapped(student, arch)

    def _tapped(self, student: nn.Module, arch: Arch) -> nn.Module:
        """Return `student`, a module of `arch`, which from now on holds the names of its stages and classifier."""
        teacher, path, kept = self.ancestor(), self._place, self._kept(arch)

        def there(name: str) -> str:
            inside_it = name.removeprefix(f"{path}.") if path else name
            left = self.anatomy.renamed(self.network, inside_it, kept)
            return f"{path}.{left}" if path else left

        stages = tuple(dict.fromkeys(map(there, teacher.stages)))
        student.takes_raw = True  # type: ignore[assignment]
        return with_taps(student, stages, teacher.classifier and there(teacher.classifier))
