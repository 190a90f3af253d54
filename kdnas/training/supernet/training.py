"""The training of a supernet: all students of a space at once, with their teacher, by a shrinking policy.

A step takes one batch through one or several subnets, adds up their gradients and updates the shared weights once: what
each of them learns from stands in `subnets`, which subnets there are is decided in `policies`.

The budget is counted in multiply-accumulates: 3 x MACs of the subnet for each sample trained on (forward, and twice
that backward), 1 x for each sample of a score that a policy asks for, batch-norm statistics included. The teacher is
not counted, nor is what is scored after the training.

Shapes: B batch, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.data import Data
from kdnas.core.seeds import derive_seed
from kdnas.core.shrinking import Check, FinishedStage, Panel, Probe, ShrinkingRecord, Stage, Unlock
from kdnas.core.space import Assignment, SearchSpace
from kdnas.errors import TrialError
from kdnas.nn.elastic import Supernet
from kdnas.nn.teacher import Teaching, by_name, fingerprint_of
from kdnas.students import StudentFamily
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import load_checkpoint, save_checkpoint
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import evaluate
from kdnas.training.numerics import computing, in_bfloat16, settled_recipe
from kdnas.training.recipe import Recipe, Training
from kdnas.training.step import (
    TaughtBatch,
    TeachersOutputs,
    build_optimizer,
    learning_rate,
    memory_failures_as_trial_errors,
    open_teacher_outputs,
    own_randomness,
    set_learning_rate,
    update,
)
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies import Policy, ShrinkingSettings, Situation, open_policy
from kdnas.training.supernet.policies._recorded import Recorded
from kdnas.training.supernet.subnets import ElasticSpace, FrontSampler, SubnetScorer, SubnetSpec, SubnetStep
from kdnas.training.teacher_cache import TeacherCache

_PANEL_SHARE = 0.005
"""Scoring the three subnets of the panel takes so many samples that it spends about this of the budget, at most."""
_FEWEST_SAMPLES = 64


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained supernet, in eval mode, the record of its shrinking, and what scores and cuts its subnets.

    `train_seconds` include the measuring that the policy asked for, and what came before a resume.
    """

    supernet: Supernet
    space: ElasticSpace
    scorer: SubnetScorer
    shrinking: ShrinkingRecord
    teacher_score: float
    steps: int
    train_seconds: float


def train_supernet(
    supernet: Supernet,
    space: SearchSpace,
    family: StudentFamily,
    teaching: Teaching,
    train: Batches,
    validation: Batches,
    recipe: Recipe,
    settings: SupernetSettings,
    *,
    data: Data,
    seed: int,
    device: torch.device,
    recorded: ShrinkingRecord | None = None,
    on_tick: Callable[[Tick], None] = lambda tick: None,
    checkpoint: Path | None = None,
    view_seed: int | None = None,
    teacher_cache: TeacherCache | None = None,
    budget_macs: int | None = None,
) -> TrainedSupernet:
    """Train `supernet`, which holds the networks of `space`, of `family`, in place: return it with its shrinking.

    The budget is `budget_macs`, by default the work of `recipe.training.epochs` epochs of the largest subnet alone.
    The stages of `recorded` are followed instead of the policy of `settings`. `seed` draws subnets and starts
    adapters, `view_seed` (default: `seed`) orders and augments the samples. `checkpoint` is rewritten at every check,
    and a training that finds its own there continues exactly. `on_tick` is called after that; what it raises ends the
    training.

    Raises ConfigError where space, losses, recorded stages or resolutions do not fit, TrialError when the loss is not
    finite or memory runs out, RunFolderError when the checkpoint is damaged or another training's.
    """
    view_seed = seed if view_seed is None else view_seed
    elastic = ElasticSpace(space, family, settings.resolutions)
    ladders, shrinking = elastic.ladders, settings.shrinking
    policy = open_policy(shrinking, ladders) if recorded is None else Recorded(ladders, shrinking, recorded)
    recipe = settled_recipe(recipe, device)
    bfloat16 = in_bfloat16(recipe.training, device)
    budget_macs = budget_macs or 3 * elastic.price(ladders.largest) * len(train) * recipe.training.epochs
    panel_macs = sum(map(elastic.price, ladders.panel))
    scorer, checker = _scorers(
        train, validation, settings, recipe.training, int(_PANEL_SHARE * budget_macs / panel_macs)
    )
    identity = _identity(supernet, space, teaching, train, recipe, settings, data, recorded, [seed, view_seed])
    identity += f"-{budget_macs}"
    supernet.to(device)
    teachers = by_name(teaching)
    with ExitStack() as stack:
        stack.enter_context(memory_failures_as_trial_errors())
        positions = recipe.training.epochs * len(train) * data.task.positions
        stack.enter_context(computing(recipe.training, device))
        stack.enter_context(own_randomness(derive_seed(seed, "training"), device))
        outputs, shapes = open_teacher_outputs(
            stack, teachers, train, recipe, data=data, device=device, view_seed=view_seed, teacher_cache=teacher_cache
        )
        subnet_step = SubnetStep(
            stack, supernet, elastic.largest, shapes, recipe.distillation,
            data=data, in_place=settings.in_place, bfloat16=bfloat16, device=device, seed=seed,
            positions=positions if recipe.training.fused_norms is True else 0.0,
        )  # fmt: skip
        taught = evaluate(next(iter(teachers.values())).module.to(device), validation, recipe.training)
        run = SupernetRun(
            supernet, elastic, policy, subnet_step, checker, recipe.training, shrinking,
            budget_macs=budget_macs, teacher=checker.share(taught), seed=seed,
        )  # fmt: skip
        if checkpoint is not None and checkpoint.exists():
            run.resume(checkpoint, identity)
        batches = stack.enter_context(closing(_stream(run, train, outputs, recipe, view_seed, settings.views)))
        run.train(batches, lambda: None if checkpoint is None else run.save(checkpoint, identity), on_tick)
    supernet.eval().zero_grad(set_to_none=True)
    record = ShrinkingRecord(policy.name, space.name, space.family, run.budget_macs, tuple(run.history))
    return TrainedSupernet(supernet, elastic, scorer, record, taught, run.step, run.train_seconds)


def _scorers(
    train: Batches, validation: Batches, settings: SupernetSettings, training: Training, affordable: int
) -> tuple[SubnetScorer, SubnetScorer]:
    """Return what scores subnets on the whole validation split, and on as much of it as the training's checks take.

    `affordable` samples are what a check may take altogether, a third of them for the statistics.
    """
    scored = min(settings.check_samples, max(_FEWEST_SAMPLES, 2 * affordable // 3))
    counts = (settings.recalibration_samples, None), (min(settings.recalibration_samples, -(-scored // 2)), scored)
    return tuple(  # type: ignore[return-value]
        SubnetScorer(train, validation, training, recalibration_samples=few, validation_samples=count)
        for few, count in counts
    )


def _stream(
    run: SupernetRun,
    train: Batches,
    outputs: TeachersOutputs | None,
    recipe: Recipe,
    view_seed: int,
    views: int | None,
) -> Generator[TaughtBatch, None, None]:
    """Yield batches for ever, view after view, from where `run` stands, and keep its place."""
    while True:
        view = run.epoch if views is None else run.epoch % views
        training = recipe.training
        batches = train.epoch(view, batch_size=training.batch_size, views=training.augmentation, seed=view_seed)
        if outputs is not None:
            outputs.begin(view)
        try:
            for index, batch in enumerate(batches):
                if index >= run.batch:
                    inputs = batch.laid_out
                    theirs = None if outputs is None else outputs(inputs, batch.samples)
                    run.batch = index + 1
                    yield inputs, batch.targets, theirs
        finally:
            if outputs is not None:
                outputs.end()
        run.epoch, run.batch = run.epoch + 1, 0


def _identity(
    supernet: Supernet,
    space: SearchSpace,
    teaching: Teaching,
    train: Batches,
    recipe: Recipe,
    settings: SupernetSettings,
    data: Data,
    recorded: ShrinkingRecord | None,
    seeds: list[int],
) -> str:
    """Return a hash of all that decides a training but the initial weights and the machine."""
    record = {
        "supernet": [(name, list(value.shape)) for name, value in supernet.state_dict().items()],
        "space": dataclasses.asdict(space),
        "teacher": fingerprint_of(teaching),
        "data": data.fingerprint,
        "samples": hashlib.sha256(train.indices.astype("<i8").tobytes()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "schedule": None if recorded is None else recorded.as_dict(),
        "seeds": seeds,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


_RATE_STEPS = 1_000_000
"""The learning rate's curve is read at so many places of a budget."""


@dataclass(frozen=True)
class Tick:
    """News of a training: `loss` is the last step's mean over its subnets, `check` there where a policy checks."""

    step: int
    spent: float
    stage: str
    loss: float
    check: Check | None


@dataclass
class _Running:
    """The stage that is going on. `bounds` are the MACs of its smallest and its largest subnet."""

    plan: Stage
    first_step: int
    spent_before: float
    bounds: tuple[int, int]
    checks: list[Check] = field(default_factory=list)

    def finished(self, step: int, spent: float, ended: str) -> FinishedStage:
        """Return its record."""
        steps, share = step - self.first_step, spent - self.spent_before
        return FinishedStage(self.plan, self.first_step, steps, share, ended, tuple(self.checks))


class SupernetRun:
    """One training as it goes. Its state is what `_progress` writes, and the weights."""

    def __init__(
        self,
        supernet: Supernet,
        space: ElasticSpace,
        policy: Policy,
        subnet_step: SubnetStep,
        scorer: SubnetScorer,
        training: Training,
        shrinking: ShrinkingSettings,
        *,
        budget_macs: int,
        teacher: float,
        seed: int,
    ):
        self._supernet, self._space, self._ladders, self._policy = supernet, space, space.ladders, policy
        self._subnet_step, self._scorer, self._training = subnet_step, scorer, training
        self._shrinking, self._teacher, self._seed = shrinking, teacher, seed
        self._sampler = FrontSampler(space, share=shrinking.front_share)
        self._optimizer = self._new_optimizer()
        self.budget_macs = budget_macs
        self.step = self.epoch = self.batch = self.spent_macs = self.measured_macs = self.ticked_macs = 0
        self.train_seconds = 0.0
        self.history: list[FinishedStage] = []
        self._stage: _Running | None = None

    @property
    def spent(self) -> float:
        """The share of the budget that is spent."""
        return self.spent_macs / self.budget_macs

    def train(self, batches: Iterator[TaughtBatch], save: Callable[[], None], on_tick: Callable[[Tick], None]) -> None:
        """Train until the budget is spent or the policy has no further stage."""
        if self.step == 0:
            self._next_stage()
        started = time.perf_counter()
        while self._stage is not None:
            loss = self._step(self._stage, *next(batches))
            self.step += 1
            stage, check = self._stage, None
            ticks = self.spent_macs - self.ticked_macs >= self._shrinking.check_share * self.budget_macs
            if ticks:
                self.ticked_macs = self.spent_macs
                measured_little = self.measured_macs <= self._shrinking.measuring_share * self.spent_macs
                check = self._check() if stage.plan.watched and measured_little else None
            if ticks or self._subnet_step.device.type == "cpu":  # looking makes a CUDA device wait
                _refuse_non_finite(loss, self.step)
            steps, spent = self.step - stage.first_step, self.spent - stage.spent_before
            ended = self._policy.ends_because(stage.plan, steps, spent, stage.checks, self._teacher)
            if ended is None and self.spent >= 1.0:
                ended = "the budget is spent"
            if ended is not None:
                self._end_stage(ended)
            now = time.perf_counter()
            self.train_seconds, started = self.train_seconds + now - started, now
            if ticks or self._stage is None:
                save()
                on_tick(Tick(self.step, self.spent, stage.plan.name, float(loss.mean()), check))

    def _step(
        self, stage: _Running, inputs: tuple[Tensor, ...], targets: Tensor, theirs: OutputsByTeacher | None
    ) -> Tensor:
        """Train a step's subnets on one batch and return their losses."""
        plan, rng = stage.plan, np.random.default_rng(derive_seed(self._seed, "subnets", self.step))
        drawn = self._draw(stage, rng)
        specs = [self._space.spec(assignment) for assignment in drawn]
        whole = plan.annealing == "training"
        position = self.spent if whole else (self.spent - stage.spent_before) / plan.share
        rate = learning_rate(min(int(position * _RATE_STEPS), _RATE_STEPS - 1), _RATE_STEPS, self._training)
        set_learning_rate(self._optimizer, rate * plan.learning_rate)
        self._supernet.train()
        self._subnet_step.criteria.train()
        self._optimizer.zero_grad(set_to_none=True)
        self.spent_macs += 3 * len(targets) * sum(self._space.macs(spec) for spec in specs)
        self._subnet_step.at(min(1.0, self.spent))
        losses = self._subnet_step.backward(specs, inputs, targets, theirs, plan.kd_weight)
        update(self._optimizer, self._training)
        if plan.sandwich and not plan.in_turn and plan.sampling == "front":
            for assignment, excess in zip(drawn[2:], (losses[2:] - losses[0]).tolist(), strict=True):
                self._sampler.observe(assignment, excess)
        return losses

    def _draw(self, stage: _Running, rng: np.random.Generator) -> list[Assignment]:
        """Return the step's assignments: with the sandwich rule the largest, the smallest, then the others."""
        plan = stage.plan
        places = [(self.step - stage.first_step) % plan.subnets] if plan.in_turn else range(plan.subnets)
        return [self._at(place, stage, rng) for place in places]

    def _at(self, place: int, stage: _Running, rng: np.random.Generator) -> Assignment:
        plan, allowed = stage.plan, stage.plan.allowed
        if plan.sandwich and place < 2:
            return self._ladders.smallest(allowed) if place else self._ladders.largest
        smallest, largest = stage.bounds
        most = plan.most_macs(smallest, largest, (self.spent - stage.spent_before) / plan.share)
        if plan.sampling == "front":
            drawn = self._sampler.draw(allowed, (smallest, int(most)), rng)
        else:
            drawn = self._space.draw(allowed, rng)
        return drawn if most >= largest else self._space.within(drawn, most, self._ladders.smallest(allowed), rng)

    def _check(self) -> Check:
        """Score the stage's largest and smallest subnet."""
        assert self._stage is not None
        largest = self._score(self._ladders.largest)
        smallest_one = self._ladders.smallest(self._stage.plan.allowed)
        smallest = largest if smallest_one == self._ladders.largest else self._score(smallest_one)
        check = Check(self.step, self.spent, largest, smallest)
        self._stage.checks.append(check)
        return check

    def _score(self, assignment: Assignment) -> float:
        spec = self._space.spec(assignment)
        self._spend_on_measuring(spec)
        return self._scorer.share(self._scorer(self._supernet, spec))

    def _panel(self) -> Panel:
        """Score the panel's subnets."""
        scores = []
        for assignment in self._ladders.panel:
            spec = self._space.spec(assignment)
            self._spend_on_measuring(spec)
            scores.append(self._scorer.score_and_loss(self._supernet, spec))
        values, losses = zip(*scores, strict=True)
        smallest, middle, largest = map(self._scorer.share, values)
        return Panel(smallest, middle, largest, sum(losses) / len(losses))

    def _spend_on_measuring(self, spec: SubnetSpec) -> None:
        cost = self._scorer.samples * self._space.macs(spec)
        self.spent_macs, self.measured_macs = self.spent_macs + cost, self.measured_macs + cost

    def _end_stage(self, ended: str) -> None:
        """Close the stage, and open the next one while there is budget."""
        assert self._stage is not None
        over, plan, checks = self.spent >= 1.0, self._stage.plan, self._stage.checks
        if plan.watched and not over and (not checks or checks[-1].step != self.step):
            self._check()
        panel = self._panel() if plan.judged and not over else None
        finished = self._stage.finished(self.step, self.spent, ended)
        self.history.append(dataclasses.replace(finished, panel=panel))
        self._stage = None
        if not over:
            self._next_stage()

    def _next_stage(self) -> None:
        if self._policy.sorts_channels(self.history):
            self._supernet.sort_channels()
        last = self.history[-1].checks[-1] if self.history and self.history[-1].checks else None
        before = self.spent
        probes: tuple[Probe, ...] = ()
        if last is not None:
            probes = tuple(self._probe(unlock, last.largest) for unlock in self._policy.unlocks_to_probe(self.history))
        smallest, middle, largest = map(self._space.price, self._ladders.panel)
        step = 3 * self._training.batch_size * (smallest + (self._shrinking.subnets - 2) * middle + largest)
        panel = self._scorer.samples * (smallest + middle + largest)
        situation = Situation(
            tuple(self.history),
            self.spent,
            self._teacher,
            probes,
            panel_share=panel / self.budget_macs,
            step_share=step / self.budget_macs,
            largest_share=3 * self._training.batch_size * largest / self.budget_macs,
        )
        plan = self._policy.next_stage(situation)
        if plan is not None:
            self._stage = self._running(plan, self.step, before)
            if plan.sort_channels or plan.annealing == "stage":  # momentum is of channels elsewhere, or of another rate
                self._optimizer = self._new_optimizer()

    def _probe(self, unlock: Unlock, score_of_largest: float) -> Probe:
        smaller, largest = {**self._ladders.largest, **unlock.adds}, self._space.price(self._ladders.largest)
        score = self._score(smaller)
        saved = 1.0 - self._space.price(smaller) / largest
        return Probe(unlock.dimension, unlock.adds, score, score_of_largest - score, saved)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer((self._supernet, self._subnet_step.criteria), self._training)
        for group in optimizer.param_groups:
            if group.get("momentum"):
                # A step moves some weights only, and the fused kernel takes no weight that has no momentum yet.
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def _running(self, plan: Stage, first_step: int, spent_before: float) -> _Running:
        bounds = self._space.price(self._ladders.smallest(plan.allowed)), self._space.price(self._ladders.largest)
        return _Running(plan, first_step, spent_before, bounds)

    def save(self, path: Path, identity: str) -> None:
        """Write a checkpoint. Raises RunFolderError."""
        stage, running = self._stage, []
        if stage is not None:
            running = [dataclasses.replace(stage.finished(self.step, self.spent, ""), spent=stage.spent_before)]
        progress = {
            **{name: getattr(self, name) for name in _COUNTERS},
            "stages": [finished.as_dict() for finished in (*self.history, *running)],
            "is_running": bool(running),
            "observations": self._sampler.observations,
        }
        save_checkpoint(
            path, self._modules, self._optimizer, identity=identity, progress=progress, device=self._subnet_step.device
        )

    def resume(self, path: Path, identity: str) -> None:
        """Continue from the checkpoint at `path`. Raises RunFolderError where it is damaged or another training's."""
        progress = load_checkpoint(
            path, self._modules, self._optimizer, identity=identity, device=self._subnet_step.device
        )
        for name in _COUNTERS:
            setattr(self, name, progress[name])
        self.history = [FinishedStage.from_dict(record) for record in progress["stages"]]
        if progress["is_running"]:
            last = self.history.pop()
            self._stage = self._running(last.stage, last.first_step, last.spent)
            self._stage.checks.extend(last.checks)
        self._sampler.observations = [(assignment, excess) for assignment, excess in progress["observations"]]

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"supernet": self._supernet, "losses": self._subnet_step.criteria}


_COUNTERS = ("step", "epoch", "batch", "spent_macs", "measured_macs", "ticked_macs", "train_seconds")


def _refuse_non_finite(losses: Tensor, step: int) -> None:
    if not bool(torch.isfinite(losses).all()):
        what = "nan" if bool(torch.isnan(losses).any()) else "infinite"
        raise TrialError(f"loss became {what} at step {step}")
