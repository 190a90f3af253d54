"""The subnets of a supernet as its training sees them: drawn, priced, trained in a step, scored.

A subnet is an arch at a size (resolution, sequence length). Its cost is the MACs of one sample.

In a step the largest subnet learns from the labels and the fixed teacher by every loss of the recipe, taps included.
The others learn from the labels and the teacher by those losses that read logits alone; where the recipe has only other
losses, by `kd` at weight 1. With in-place distillation the step's largest subnet takes the teacher's place for the
others. Feature losses are for the largest alone because their adapters are made for one width.

Shapes: B batch.

Sources: sandwich rule and in-place distillation, Yu and Huang (ICCV 2019) and Yu et al., "BigNAS" (ECCV 2020).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.data import Data
from kdnas.core.route import Corner
from kdnas.core.shrinking import RESOLUTION, Domains, Ladders
from kdnas.core.space import Assignment, Choice, SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.nn.elastic import Supernet
from kdnas.nn.folding import folded
from kdnas.nn.recalibration import recalibrate
from kdnas.nn.rows import Batch
from kdnas.nn.strided import thinned_first
from kdnas.nn.taps import Outputs, OutputShapes, Taps, example_samples, mask_place, output_shapes, stage_names
from kdnas.students import StudentFamily
from kdnas.tasks import task_of
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import evaluate
from kdnas.training.fused_norm import fused_norms
from kdnas.training.loss import TrainingLoss, needs_of, task_loss
from kdnas.training.numerics import in_bfloat16
from kdnas.training.recipe import Distillation, LossTerm, Training

_DRAWS = 16
"""Assignments looked at for one front-aware subnet."""
_LEARNED_FROM = 256
"""Last observations that the ranking of subnets is learned from."""
_RIDGE = 1.0


@dataclass(frozen=True)
class SubnetSpec:
    """An arch at a size: samples are brought to `side` (pixels high, tokens long) before it gets them."""

    arch: Arch
    side: int


class ElasticSpace:
    """A search space, with the resolution as one more choice where there is more than one, and its ladders.

    Args:
        space: The space of archs.
        family: Its student family, for samples of full size.
        resolutions: Sizes that samples may be brought to, an image's side or a text's length; empty: the full one only.

    Raises ConfigError where a resolution exceeds the samples', or a network of the space cannot be built.
    """

    def __init__(self, space: SearchSpace, family: StudentFamily, resolutions: Sequence[int] = ()):
        size = family.task.size
        sides = tuple(dict.fromkeys([*resolutions])) or (size,)
        if max(sides) > size:
            raise ConfigError(Problem("resolutions", f"{resolutions} exceed the samples' size", f"1..{size}"))
        self.family = family
        self._at = {side: family.at(side) for side in sides}
        self.space = replace(space, choices=(*space.choices, Choice(RESOLUTION, sides)))
        self.ladders = Ladders.of(self.space, self.price)
        self.price(self.ladders.smallest(self.ladders.values))  # refused where every stage may be left out

    def spec(self, assignment: Mapping[str, Scalar]) -> SubnetSpec:
        """Return the subnet that `assignment` stands for."""
        choices = self.space.active(assignment)
        side = choices.pop(RESOLUTION)
        return SubnetSpec(self.family.canonical(choices), int(side))

    def macs(self, spec: SubnetSpec) -> int:
        """Return the MACs of one sample."""
        return self._at[spec.side].price(spec.arch).macs

    def price(self, assignment: Assignment) -> int:
        """Return the MACs of one sample for the subnet that `assignment` stands for."""
        return self.macs(self.spec(assignment))

    @property
    def largest(self) -> SubnetSpec:
        """The largest subnet."""
        return self.spec(self.ladders.largest)

    @property
    def smallest(self) -> SubnetSpec:
        """The smallest subnet."""
        return self.spec(self.ladders.smallest(self.ladders.values))

    def corner(self, which: Corner) -> SubnetSpec:
        """Return the smallest or the largest subnet."""
        return self.smallest if which == "smallest" else self.largest

    def draw(self, allowed: Domains, rng: np.random.Generator) -> Assignment:
        """Draw an assignment, every choice uniform over its allowed values."""
        return {name: values[rng.integers(len(values))] for name, values in allowed.items()}

    def within(
        self, assignment: Assignment, most_macs: float, smallest: Assignment, rng: np.random.Generator
    ) -> Assignment:
        """Return `assignment` with as many choices, in random order, set to `smallest`'s as the bound asks for."""
        fitting = dict(assignment)
        for name in map(str, rng.permutation(list(fitting))):
            if self.price(fitting) <= most_macs:
                break
            fitting[name] = smallest[name]
        return fitting


class FrontSampler:
    """Draws subnets evenly over the logarithm of their MACs, some of them near the front of score and cost.

    Which subnets are near the front is learned from the losses of those that were trained: a ridge regression of the
    excess loss over the step's largest subnet on the values of the choices. Half of the subnets (`share`) are the best
    predicted of several of their MACs bin, the others any of the bin. After AttentiveNAS (Wang et al., CVPR 2021),
    which picks by the loss of several forward passes instead.
    """

    def __init__(self, space: ElasticSpace, *, bins: int = 8, share: float = 0.5):
        self._space = space
        self._bins = bins
        self._share = share
        self.observations: list[tuple[Assignment, float]] = []

    def observe(self, assignment: Assignment, excess_loss: float) -> None:
        """Note how much larger than the largest subnet's loss this one's was."""
        self.observations = [*self.observations[1 - _LEARNED_FROM :], (assignment, excess_loss)]

    def draw(self, allowed: Domains, bounds: tuple[int, int], rng: np.random.Generator) -> Assignment:
        """Draw an assignment; `bounds` are the MACs of the smallest and of the largest subnet in `allowed`."""
        low, high = math.log(bounds[0]), math.log(max(bounds))
        width = max((high - low) / self._bins, 1e-9)
        goal = int(rng.integers(self._bins))
        drawn = [self._space.draw(allowed, rng) for _ in range(_DRAWS)]
        away = [
            abs(min(int((math.log(self._space.price(item)) - low) / width), self._bins - 1) - goal) for item in drawn
        ]
        near = [item for item, distance in zip(drawn, away, strict=True) if distance == min(away)]
        if len(near) > 1 and rng.random() < self._share and len(self.observations) >= _LEARNED_FROM // 8:
            predict = self._learn(allowed)
            return min(near, key=predict)
        return near[0]

    def _learn(self, allowed: Domains) -> Callable[[Assignment], float]:
        columns = {pair: i for i, pair in enumerate((name, value) for name in allowed for value in allowed[name])}

        def encode(assignment: Assignment) -> np.ndarray:
            row = np.zeros(len(columns))
            row[[columns[pair] for pair in assignment.items() if pair in columns]] = 1.0
            return row

        rows = np.stack([encode(assignment) for assignment, _ in self.observations])
        losses = np.array([loss for _, loss in self.observations])
        gram = rows.T @ rows + _RIDGE * np.eye(len(columns))
        weights = np.linalg.solve(gram, rows.T @ (losses - losses.mean()))
        return lambda assignment: float(encode(assignment) @ weights)


class SubnetScorer:
    """Scores subnets on the validation split, each with batch-norm statistics of its own.

    Args:
        train: Samples for the statistics: `recalibration_samples` of them, always the same, as they are.
        validation: Samples for the score: all of them, or always the same `validation_samples`.
        training: The supernet's, which decides the precision.
        recalibration_samples: At most so many.
        validation_samples: At most so many, None for all.
    """

    def __init__(
        self,
        train: Batches,
        validation: Batches,
        training: Training,
        *,
        recalibration_samples: int = 512,
        validation_samples: int | None = None,
    ):
        self._train = train
        self._validation = validation
        self._recalibration_samples = min(recalibration_samples, len(train))
        self._validation_samples = min(validation_samples or len(validation), len(validation))
        self._training = training
        self._bfloat16 = in_bfloat16(training, train.device)

    @property
    def samples(self) -> int:
        """The samples that one score takes through the subnet."""
        return self._recalibration_samples + self._validation_samples

    def share(self, score: float) -> float:
        """Return a score as policies compare them (`Quantity.as_share`)."""
        return self._validation.task.spec.score.as_share(score)

    def __call__(self, supernet: Supernet, spec: SubnetSpec) -> float:
        """Return the validation score of the subnet cut out of `supernet`, which stays as it is."""
        if self._validation_samples < len(self._validation):
            return self.score_and_loss(supernet, spec)[0]
        return evaluate(self._recalibrated(supernet, spec), self._validation, self._training)

    def score_and_loss(self, supernet: Supernet, spec: SubnetSpec) -> tuple[float, float]:
        """Return the validation score and the mean cross entropy, in nats, of the subnet cut out."""
        network, task = self._recalibrated(supernet, spec).eval(), self._validation.task
        tallies, loss, seen = [], 0.0, 0
        with folded(network), torch.inference_mode():
            for batch in self._some(self._validation, self._validation_samples):
                with self._precision():
                    rows = task.rows(network(*batch.inputs).float(), batch.inputs, batch.targets)
                tallies.append(task.tally(rows))
                loss += float(task_loss(rows, 0.0)) * len(batch)
                seen += len(batch)
        return task.score(task.together(tallies).cpu()), loss / seen

    def cut(self, supernet: Supernet, spec: SubnetSpec) -> torch.nn.Module:
        """Return the subnet cut out of `supernet` with batch-norm statistics of its own, in eval mode.

        It is without its entrance.
        """
        student = supernet.subnet(spec.arch)
        self._recalibrate(student, spec)
        return student.eval()

    def _recalibrated(self, supernet: Supernet, spec: SubnetSpec) -> nn.Module:
        return self._recalibrate(supernet.subnet(spec.arch), spec)

    def _recalibrate(self, student: nn.Module, spec: SubnetSpec) -> nn.Module:
        """Give `student` batch-norm statistics of its own, and return it behind its entrance."""
        train = self._train
        network = train.task.entrance(student, train.data, spec.side).to(train.device)
        with self._precision():
            recalibrate(network, (batch.inputs for batch in self._some(train, self._recalibration_samples)))
        return network

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._train.device.type, dtype=torch.bfloat16, enabled=self._bfloat16)

    def _some(self, batches: Batches, count: int) -> Iterator[Batch]:
        """Yield about `count` samples, always the same, drawn over all of `batches`: data may be sorted by class."""
        steps = math.ceil(count / 256)
        size = math.ceil(count / steps)
        return itertools.islice(batches.epoch(0, batch_size=size, seed=0), steps)


class SubnetStep:
    """Losses and gradients of a step's subnets. Taps stay hooked into the largest subnet until `stack` closes.

    Args:
        stack: Keeps the taps.
        supernet: The shared weights.
        largest: The supernet's largest subnet, which feature losses read.
        teachers: The shapes of their outputs, by name.
        distillation: The recipe's losses.
        data: The data set, for its task and its statistics.
        in_place: Whether the step's largest subnet teaches the others.
        bfloat16: The precision of the forward passes.
        device: Where all of it is.
        seed: Starts the adapters.
        positions: Of all samples that the training sees at least: whether fused norms pay.
    """

    def __init__(
        self,
        stack: ExitStack,
        supernet: Supernet,
        largest: SubnetSpec,
        teachers: Mapping[str, OutputShapes],
        distillation: Distillation,
        *,
        data: Data,
        in_place: bool,
        bfloat16: bool,
        device: torch.device,
        seed: int,
        positions: float = 0.0,
    ):
        self._positions = positions
        self._supernet, self._largest, self._distillation = supernet, largest, distillation
        self._task, self._in_place, self._bfloat16, self.device = task_of(data.task), in_place, bfloat16, device
        self._data = data
        self._entrances: dict[int, nn.Module] = {}
        view = supernet.running(largest.arch)
        stages, classifier = stage_names(view.student)
        inside = "network.student."
        names = [inside + stage for stage in stages], classifier and inside + classifier
        entrance = self._task.entrance(view, data, largest.side).to(device)
        shapes = output_shapes(entrance, *names, *example_samples(data.task, device), heads=data.task.heads)
        mask = mask_place(data.task)
        self._tapped = stack.enter_context(Taps(entrance, *names, needs=needs_of(distillation), mask=mask))
        self._tapped_view = view
        self.criteria = nn.ModuleDict()
        terms = [term for term in distillation.losses if term.weight > 0]
        if terms:
            logits_only = [term for term in terms if LOSSES.get(term.type).needs == {"logits"}]
            for name, chosen in (("largest", terms), ("others", logits_only or [LossTerm(type="kd")])):
                losses = Distillation(task_weight=0.0, losses=tuple(chosen), ensemble=distillation.ensemble)
                self.criteria[name] = TrainingLoss(losses, shapes, teachers, seed=seed)
        self.criteria.to(device)

    def at(self, progress: float) -> None:
        """Set the weights of losses that warm up for a step that ends at the share `progress` of the training."""
        for criterion in self.criteria.values():
            criterion.at(progress)  # type: ignore[operator]

    def backward(
        self,
        subnets: Sequence[SubnetSpec],
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        theirs: OutputsByTeacher | None,
        kd_weight: float,
    ) -> Tensor:
        """Add the gradients of each of `subnets` on a batch and return their losses [len(subnets)], detached.

        Args:
            subnets: The largest first, where it is among them.
            inputs: Plain inputs [B, ...].
            targets: Theirs.
            theirs: The teachers' outputs, None where the recipe has no distillation loss.
            kd_weight: Factor of all distillation losses.
        """
        losses, guide = [], theirs
        for position, spec in enumerate(subnets):
            largest = position == 0 and spec == self._largest  # drawn again it learns as the others do
            ours = self._outputs(spec, inputs, tapped=largest)
            rows = self._task.rows(ours.logits, inputs, targets)
            loss = ours.logits.new_zeros((), dtype=torch.float32)
            if self._distillation.task_weight > 0:
                weight, smoothing = self._distillation.task_weight, self._distillation.label_smoothing
                loss = loss + weight * task_loss(rows, smoothing)
            if self.criteria and guide is not None:
                loss = loss + kd_weight * self.criteria["largest" if largest else "others"](ours, guide, rows)
            loss.backward()
            losses.append(loss.detach())
            if largest and self._in_place and guide is not None:
                logits = ours.logits.detach()
                guide = guide.map(lambda _, logits=logits: Outputs(logits))  # type: ignore[misc]
        return torch.stack(losses)

    def _outputs(self, spec: SubnetSpec, inputs: tuple[Tensor, ...], *, tapped: bool) -> Outputs:
        view = self._tapped_view if tapped else self._supernet.running(spec.arch)
        view.train(self._supernet.training)
        with (
            fused_norms(view.student, self.device, pixels=self._positions),
            thinned_first(view.student),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16),
        ):
            if tapped:
                return self._tapped(*inputs)
            if spec.side not in self._entrances:
                self._entrances[spec.side] = self._task.entrance(view, self._data, spec.side).to(self.device)
            entrance = self._entrances[spec.side]
            entrance.network = view
            return Outputs(entrance(*inputs).flatten(0, -2))
