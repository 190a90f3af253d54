"""One student's training, batch by batch: what a step is, eager or captured, its optimizer, and the batches it gets.

Nothing in a step waits for the device. Losses are float32 whatever the networks run in.

Shapes: B batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdnas.core.data import Data
from kdnas.core.seeds import derive_seed
from kdnas.core.task import TaskSpec
from kdnas.errors import TrialError
from kdnas.nn.rows import Rows
from kdnas.nn.strided import thinned_first
from kdnas.nn.taps import (
    Outputs,
    OutputShapes,
    Taps,
    example_samples,
    mask_place,
    output_shapes,
    stage_names,
    taught_head,
)
from kdnas.tasks import Task, task_of
from kdnas.teachers import Teacher
from kdnas.training.averaging import Average
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import all_scores
from kdnas.training.fused_norm import fused_norms, library, pay
from kdnas.training.graphs import GraphedStep, Recorder, batches_together, epoch_of_views, recorder_for
from kdnas.training.loss import TrainingLoss, needs_by_teacher, needs_of
from kdnas.training.numerics import in_bfloat16
from kdnas.training.on_policy import Writer
from kdnas.training.recipe import EMA, PEERS, SELF, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache
from kdnas.training.teacher_outputs import TeacherOutputs, plan_of, views_key

_STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 100}
"""Looking at the loss makes a CUDA device wait, and costs a CPU nothing."""

TaughtBatch = tuple[tuple[Tensor, ...], Tensor, OutputsByTeacher | None]
"""Plain inputs [B, ...], targets, and the teachers' outputs."""
Learnt = Mapping[str, Sequence[Outputs]]
"""The outputs of those of `LEARNING`, by their name."""


@dataclass(frozen=True)
class Member:
    """One network that a step trains, behind its entrance, with its taps and its loss.

    `average` is the moving average of its weights that losses `of: ema` learn of, and `averaged` its taps.
    """

    network: nn.Module
    tapped: Taps
    criterion: TrainingLoss
    average: Average | None = None
    averaged: Taps | None = None

    def learnt_of(self, inputs: tuple[Tensor, ...], ours: Outputs, others: Sequence[Outputs]) -> Learnt:
        """Return the outputs for the same batch of those that change as the student does, where its losses use them."""
        learnt: dict[str, list[Outputs]] = {}
        if SELF in self.criterion.learns_of:
            learnt[SELF] = [ours.learning]
        if PEERS in self.criterion.learns_of:
            learnt[PEERS] = list(others)
        if self.averaged is not None:
            with torch.no_grad():
                learnt[EMA] = [self.averaged(*inputs)]
        return {name: [outputs.detach().float() for outputs in every] for name, every in learnt.items()}


class Step:
    """The student with its taps, its loss and its optimizer, trained by `learn` one batch after the other.

    `members` are the student and the peers that learn with it, all by one optimizer and one backward pass. With a
    `recorder` its steps are captured and replayed (`kdnas.training.graphs`).
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[Member],
        optimizer: torch.optim.Optimizer,
        training: Training,
        *,
        bfloat16: bool,
        device: torch.device,
        recorder: Recorder | None = None,
        unfused: bool = False,
        average: Average | None = None,
        writer: Writer | None = None,
    ):
        self.task = task
        self.members = tuple(members)
        self.student = members[0].network
        self.criterion = members[0].criterion
        self.optimizer = optimizer
        self.training = training
        self.bfloat16 = bfloat16
        self.device = device
        self.unfused = unfused
        """Whether norms were to be fused and are not: nothing here compiles them."""
        self.graph = None if recorder is None else GraphedStep(self.run, recorder)
        self.average = average
        """Of the weights, where the recipe has it scored and kept in their place."""
        self._writer = writer
        self._check_every = _STEPS_BETWEEN_CHECKS.get(device.type, 1)
        self._epoch = 0
        self._done = 0
        self._checked = 0
        self._losses = torch.empty(0)

    def run(
        self,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        theirs: OutputsByTeacher | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Train on one batch at the optimizer's present rate and return the loss, detached. All of a step is here.

        Where a student wrote the batch, `counted` float [B, T] marks which places count; targets are then none to
        learn.
        """
        # Casts are not kept on a GPU: a graph must make its own from the weights of the moment.
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16, cache_enabled=self.device.type != "cuda"
        ):
            own_outputs = [member.tapped(*inputs) for member in self.members]
            learnt = [
                member.learnt_of(inputs, ours, own_outputs[:place] + own_outputs[place + 1 :])
                for place, (member, ours) in enumerate(zip(self.members, own_outputs, strict=True))
            ]
        losses = [
            member.criterion(
                ours, theirs, self._rows(ours.logits, inputs, targets, counted), of, labelled=counted is None
            )
            for member, ours, of in zip(self.members, own_outputs, learnt, strict=True)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses[1:], losses[0]).backward()
        update(self.optimizer, self.training, [(member.network, member.criterion) for member in self.members])
        return losses[0].detach()

    def _rows(self, logits: Tensor, inputs: tuple[Tensor, ...], targets: Tensor, counted: Tensor | None) -> Rows:
        rows = self.task.rows(logits, inputs, targets)
        return rows if counted is None else replace(rows, weights=counted.flatten())

    def begin(self, epoch: int, steps: int) -> None:
        """Get ready for the `steps` batches of `epoch`, counted from 0."""
        self._epoch, self._done, self._checked = epoch, 0, 0
        self._losses = torch.zeros(steps, device=self.device)
        for member in self.members:
            member.network.train()
            member.criterion.train()

    def learn(self, inputs: tuple[Tensor, ...], targets: Tensor, theirs: OutputsByTeacher | None) -> None:
        """Train on the next batch of the epoch. Raises TrialError where a loss is seen that is not finite."""
        steps = len(self._losses)
        number, total = self._epoch * steps + self._done, self.training.epochs * steps
        set_learning_rate(self.optimizer, learning_rate(number, total, self.training))
        for member in self.members:
            member.criterion.at((number + 1) / total)
        written = None if self._writer is None else self._writer(number, self.student, inputs)
        if written is not None:
            loss = self.run(written.inputs, written.targets, written.theirs, written.counted)
        else:
            loss = (self.run if self.graph is None else self.graph)(inputs, targets, theirs)
        self._losses[self._done] = loss
        self._done += 1
        for average in (self.average, *(member.average for member in self.members)):
            if average is not None:
                average.update(self._epoch * steps + self._done)
        if self._done % self._check_every == 0:
            self._refuse_non_finite()

    def end(self) -> float:
        """Return the epoch's mean loss, waiting for the device. Raises TrialError where one is not finite."""
        self._refuse_non_finite()
        return float(self._losses.mean())

    def finish(self) -> str | None:
        """Free gradients and graph, put the student into eval mode, and return why a capture failed, if one did.

        Where an average is kept, the student's weights are that from now on.
        """
        failure = None if self.graph is None else self.graph.failure
        self.graph = None
        if self.average is not None:
            self.average.exchange()
            self.average = None
        self.optimizer.zero_grad(set_to_none=True)
        self.student.eval()
        return failure

    def auxiliary(self) -> dict[str, nn.Module]:
        """Return by name what is trained with the student and its loss, or averaged: checkpoints keep it too."""
        kept: dict[str, nn.Module] = {}
        for place, member in enumerate(self.members):
            if place:
                kept |= {f"peer{place}": member.network, f"peer{place}_losses": member.criterion}
            if member.average is not None:
                kept[f"ema{place}"] = member.average.module
        return kept

    def shown(self) -> AbstractContextManager[None]:
        """Let the student be what would be kept if the training ended now, until the context ends."""
        return nullcontext() if self.average is None else self.average.shown()

    def _refuse_non_finite(self) -> None:
        values = self._losses[self._checked : self._done]
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            what = "nan" if bool(torch.isnan(values[first])) else "infinite"
            raise TrialError(f"loss became {what} at epoch {self._epoch + 1}, step {self._checked + first + 1}")
        self._checked = self._done


class TeachersOutputs:
    """The outputs of all teachers of a training, batch by batch and view by view: `TeacherOutputs` has those of one."""

    def __init__(self, by: Mapping[str, TeacherOutputs]):
        self._by = by

    @property
    def is_live(self) -> bool:
        """Whether one of them has been run on a batch that could not be read."""
        return any(outputs.is_live for outputs in self._by.values())

    def begin(self, view: int) -> None:
        """Get ready for the batches of `view`. Raises TrialError where outputs are not finite."""
        for outputs in self._by.values():
            outputs.begin(view)

    def __call__(self, inputs: tuple[Tensor, ...], samples: Tensor) -> OutputsByTeacher:
        """Return their outputs for the plain `inputs` of `samples` [B], without gradients."""
        return OutputsByTeacher({name: outputs(inputs, samples) for name, outputs in self._by.items()})

    def live(self, inputs: tuple[Tensor, ...]) -> OutputsByTeacher:
        """Return their outputs for plain `inputs` that are none of the data's samples, without gradients."""
        return OutputsByTeacher({name: outputs.live(inputs) for name, outputs in self._by.items()})

    def end(self) -> float:
        """Return their seconds in this view."""
        return sum(outputs.end() for outputs in self._by.values())


def open_teacher_outputs(
    stack: ExitStack,
    teachers: Mapping[str, Teacher],
    train: Batches,
    recipe: Recipe,
    *,
    data: Data,
    device: torch.device,
    view_seed: int,
    teacher_cache: TeacherCache | None,
) -> tuple[TeachersOutputs | None, Mapping[str, OutputShapes]]:
    """Return the teachers' side, None where no loss asks for it, and the shapes of those that are asked.

    Taps stay hooked into the teachers until `stack` closes.
    """
    opened, shapes = {}, {}
    training = recipe.training
    bfloat16 = in_bfloat16(training, device)
    for name, needs in needs_by_teacher(recipe.distillation, teachers).items():
        teacher = teachers[name]
        module = teacher.module.to(device).eval()
        task = teacher.given(data).task
        example, heads = example_samples(task, device), teacher.heads(data)
        shapes[name] = output_shapes(module, teacher.stages, teacher.classifier, *example, heads=heads)
        plan = plan_of(teacher, train, training, view_seed)
        cache = None
        if teacher_cache is not None:
            top_k, drawn = teacher_cache.top_k, teacher_cache.drawn
            key = views_key(teacher, shapes[name], plan, needs=needs, bfloat16=bfloat16, top_k=top_k, drawn=drawn)
            cache = None if key is None else (teacher_cache, key)
        taps = Taps(module, teacher.stages, teacher.classifier, needs=needs, mask=mask_place(task))
        tapped = stack.enter_context(taps)
        own = None if teacher.data is None else plan.train
        opened[name] = TeacherOutputs(tapped, device=device, bfloat16=bfloat16, cache=cache, plan=plan, own=own)
    return TeachersOutputs(opened) if opened else None, shapes


def open_step(
    stack: ExitStack,
    networks: Sequence[nn.Module],
    teacher_shapes: Mapping[str, OutputShapes],
    recipe: Recipe,
    *,
    data: Data,
    device: torch.device,
    seed: int,
    graphs: bool,
    outputs: TeachersOutputs | None = None,
) -> Step:
    """Return the step of the student, the first of `networks`, and of the peers that learn with it.

    `teacher_shapes` are those of the teachers by name; without one no loss may ask for it. `seed` starts the adapters.
    `outputs` are asked about what the student writes, where the recipe has it write.
    Their taps stay hooked in until `stack` closes. Students bring the samples that they are given to the recipe's size
    themselves: teachers see them whole.
    """
    task, reduced = task_of(data.task), data.task.at_share(recipe.training.resolution_fraction)
    students = [task.entrance(network, data, reduced.size) for network in networks]
    for student in students:
        student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = None if recipe.training.ema is None else Average(networks[0], recipe.training.ema)
    positions = recipe.training.epochs * recipe.training.data_fraction * len(data.train) * reduced.positions
    wanted = recipe.training.fused_norms is True
    members = []
    for place, (network, student) in enumerate(zip(networks, students, strict=True)):
        own = derive_seed(seed, "peer", place) if place else seed
        members.append(_open_member(stack, network, student, teacher_shapes, recipe, data.task, device, own))
        stack.enter_context(fused_norms(network, device, pixels=positions, wanted=wanted))
        stack.enter_context(thinned_first(network))
    writer, on_policy = None, recipe.distillation.on_policy
    if on_policy is not None and outputs is not None:
        bfloat16 = in_bfloat16(recipe.training, device)
        writer = Writer(on_policy, outputs, seed=seed, device=device, bfloat16=bfloat16)
    trained = [module for pair in zip(networks, members, strict=True) for module in (pair[0], pair[1].criterion)]
    return Step(
        task,
        members,
        build_optimizer(trained, recipe.training),
        recipe.training,
        bfloat16=in_bfloat16(recipe.training, device),
        device=device,
        recorder=recorder_for(device) if graphs else None,
        unfused=wanted and pay(device, positions) and library() is None,
        average=average,
        writer=writer,
    )


def _open_member(
    stack: ExitStack,
    network: nn.Module,
    student: nn.Module,
    teacher_shapes: Mapping[str, OutputShapes],
    recipe: Recipe,
    spec: TaskSpec,
    device: torch.device,
    seed: int,
) -> Member:
    """Return `student`, which is `network` behind its entrance, with its taps and its loss."""
    distillation = recipe.distillation
    average = None
    if distillation.average_decay is not None:
        average = Average(student, distillation.average_decay)
    stages, classifier = stage_names(network)
    stages = tuple(f"network.{name}" for name in stages)
    classifier = None if classifier is None else f"network.{classifier}"
    shapes = output_shapes(student, stages, classifier, *example_samples(spec, device), heads=spec.heads)
    needs, mask = needs_of(distillation), mask_place(spec)
    # Where one of two classifiers would learn nothing, both learn by their mean, which is the network's answer.
    head = taught_head(network) if "logits" in needs and distillation.task_weight > 0 else None
    taps = Taps(student, stages, classifier, needs=needs, mask=mask, taught=head and f"network.{head}")
    tapped = stack.enter_context(taps)
    averaged = None
    if average is not None:
        read = needs_of(distillation, EMA)
        averaged = stack.enter_context(Taps(average.module, stages, classifier, needs=read, mask=mask))
    criterion = TrainingLoss(distillation, shapes, teacher_shapes, seed=seed).to(device)
    return Member(student, tapped, criterion, average, averaged)


def taught_batches(
    train: Batches,
    outputs: TeachersOutputs | None,
    training: Training,
    *,
    epoch: int,
    view_seed: int,
) -> Iterator[TaughtBatch]:
    """Yield the batches of view `epoch` as students are given them, with the teachers' outputs for each."""
    if outputs is not None:
        outputs.begin(epoch)
    views = epoch_of_views(
        train,
        epoch,
        batch_size=training.batch_size,
        views=training.augmentation,
        seed=view_seed,
        together=batches_together(training.batch_size, train.task.spec, train.device),
    )
    for batch in views:
        inputs = batch.laid_out
        yield inputs, batch.targets, None if outputs is None else outputs(inputs, batch.samples)


def build_optimizer(modules: Iterable[nn.Module], training: Training) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum or AdamW over the trainable parameters of `modules`.

    Biases and norm parameters (one dimension or none) get no weight decay. `momentum` 0 gives plain SGD.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One fused kernel for all parameters instead of several launches for each.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    # On a GPU the rate is a tensor there, which a captured step reads anew each time.
    on_cuda = bool(parameters) and all(p.device.type == "cuda" for p in parameters)
    rate: float | Tensor = training.learning_rate
    if on_cuda:
        rate = torch.tensor(training.learning_rate, dtype=torch.float32, device=parameters[0].device)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused, capturable=on_cuda)
    return torch.optim.SGD(
        groups,
        lr=rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        fused=fused,
    )


def update(optimizer: torch.optim.Optimizer, training: Training, members: Sequence[Sequence[nn.Module]] = ()) -> None:
    """Take a step of `optimizer` by the gradients that are there, clipped where `training` states a bound.

    Of several `members`, the modules of each, each one's gradients are clipped by themselves.
    """
    if training.clip_norm is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if len(members) < 2:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        else:
            for modules in members:
                nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], training.clip_norm)
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group of `optimizer`, where it is a tensor in its place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(step: int, total_steps: int, training: Training) -> float:
    """Return the learning rate of `step` in 0..total_steps-1: a linear warm-up, then a cosine to zero.

    The warm-up takes `warmup_fraction` of the steps and ends at the full rate; the cosine starts there and would reach
    zero one step after the last.
    """
    warmup = round(training.warmup_fraction * total_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


class TimedBatches:
    """Batches, and the `seconds` that their maker took for those taken so far."""

    def __init__(self, batches: Iterable[TaughtBatch]):
        self._batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[TaughtBatch]:
        return self

    def __next__(self) -> TaughtBatch:
        begun = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - begun


def seconds_by_phase(device: torch.device, whole: float, teacher: float, fetching: float) -> dict[str, float]:
    """Return the seconds of an epoch by phase: of its `whole`, the teacher's and those of fetching what is learnt from.

    Fetching holds the teacher's seconds. The time of making the batches is separated on a CPU only: a GPU makes them
    concurrently.
    """
    data = max(0.0, fetching - teacher) if device.type == "cpu" else 0.0
    return {"teacher": teacher, "data": data, "student": whole - teacher - data}


def scored(step: Step, validation: Batches, phases: dict[str, float]) -> dict[str, float]:
    """Return the student's scores on the validation split (`TaskSpec.scores`), and put its seconds into `phases`."""
    started = time.perf_counter()
    scores = all_scores(step.student, validation, step.training)
    phases["evaluation"] = time.perf_counter() - started
    return scores


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) and give the caller's states back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def memory_failures_as_trial_errors() -> Iterator[None]:
    """Raise TrialError instead of what torch raises when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise TrialError(f"out of memory: {text.partition(chr(10))[0]}") from error
        raise
