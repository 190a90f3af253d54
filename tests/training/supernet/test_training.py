"""Supernets trained on the digits by every policy: budget, resuming, replaying, losses, in-place distillation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.data import ImageData
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import image_classification
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, RunFolderError, TrialError
from kdnas.losses import LOSSES
from kdnas.nn.elastic import Supernet
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import Outputs, output_shapes
from kdnas.students import StudentFamily, family_for, stated_arch
from kdnas.students._inheriting import inherit_supernet
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import evaluate
from kdnas.training.fused_norm import FusedNorm, library
from kdnas.training.loop import distil
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies import POLICIES, ShrinkingSettings
from kdnas.training.supernet.shrinking_file import read_shrinking, write_shrinking
from kdnas.training.supernet.subnets import ElasticSpace, FrontSampler, SubnetScorer, SubnetSpec, SubnetStep
from kdnas.training.supernet.training import Tick, TrainedSupernet, train_supernet
from kdnas.training.teacher_cache import TeacherCache

CPU = torch.device("cpu")
FLOAT32 = Training(precision="float32")
RESNET = SearchSpace(
    "tiny_resnet",
    "resnet",
    (
        Choice("stage1.depth", (1, 2)),
        Choice("stage1.width", (8, 16)),
        Choice("stage1.bottleneck", ("plain", 0.5)),
        Choice("stage2.depth", (0, 1)),
    ),
    fixed={"stem_width": 8, "stage1.skip": "identity", "stage2.width": 16}
    | {"stage2.bottleneck": "plain", "stage2.skip": "identity"},
)
MOBILENET = SearchSpace(
    "tiny_mobilenet",
    "mobilenet",
    (Choice("stage1.depth", (1, 2)), Choice("stage1.kernel", (3, 5)), Choice("stage1.expand", (2, 3))),
    fixed={"stem_width": 8, "stage1.width": 8, "stage1.squeeze_excite": False, "stage1.skip": "identity"},
)
TEACHER = {"stem_width": 8, "stage1.depth": 2, "stage1.width": 16, "stage1.bottleneck": "plain"} | {
    "stage1.skip": "identity",
    **{"stage2.depth": 1, "stage2.width": 16, "stage2.bottleneck": "plain", "stage2.skip": "identity"},
}
ARCH = stated_arch("resnet", TEACHER)
"""The teacher's, and the largest of the tiny residual space."""
KD = LossTerm(type="kd", weight=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("digits")
    return DATASETS.build("digits", folder, folder)


def batches(data: ImageData, start: int, stop: int) -> Batches:
    return Batches(data, np.arange(start, stop), device=CPU)


def normalised(data: ImageData, count: int) -> Tensor:
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.channel_mean, data.channel_std))
    return (torch.tensor(np.asarray(data.train.inputs["pixels"][:count])).float() - mean) / std


def recipe(*losses: LossTerm, task_weight: float = 0.1, **training: Any) -> Recipe:
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", "learning_rate": 0.1, **training}
    return Recipe(training=Training(**settings), distillation=Distillation(task_weight=task_weight, losses=losses))


def family(data: ImageData) -> StudentFamily:
    return family_for("resnet", data.task)


@pytest.fixture(scope="module")
def teacher(data: ImageData) -> Teacher:
    torch.manual_seed(0)
    network = family(data).build(ARCH)
    given = recipe(epochs=8, batch_size=32, learning_rate=0.05)
    distil(network, None, batches(data, 0, 1000), None, given, data=data, seed=0, device=CPU)
    module = Normalised(network, data.channel_mean, data.channel_std).eval()
    return Teacher("small", module, ("network.stages.0", "network.stages.1"), "network.classifier", "teacher-1")


def supernet_of(space: SearchSpace, data: ImageData, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return family_for(space.family, data.task).supernet(space)


def run(
    data: ImageData,
    teacher: Teacher,
    given: Recipe | None = None,
    *,
    space: SearchSpace = RESNET,
    supernet: Supernet | None = None,
    policy: str = "sandwich",
    images: int = 256,
    settings: dict[str, Any] | None = None,
    shrinking: dict[str, Any] | None = None,
    **options: Any,
) -> TrainedSupernet:
    few = {"recalibration_samples": 24, "check_samples": 24, **(settings or {})}
    return train_supernet(
        supernet or supernet_of(space, data),
        space,
        family_for(space.family, data.task),
        teacher,
        batches(data, 0, images),
        batches(data, 1000, 1300),
        given or recipe(KD),
        SupernetSettings(shrinking=ShrinkingSettings(policy=policy, **(shrinking or {})), **few),
        data=data,
        seed=3,
        device=CPU,
        **options,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("space", [RESNET, MOBILENET], ids=lambda space: space.family)
def test_subnets_learn_together(data, teacher, space):
    """From the teacher's weights where it is of the family, else from none: chance is 0.1."""
    supernet, seen = supernet_of(space, data), 400
    if space is RESNET:
        inherit_supernet(family(data), supernet, ARCH, teacher.module.network, ARCH, normalised(data, seen))
    scorer = SubnetScorer(batches(data, 0, seen), batches(data, 1000, 1300), FLOAT32)
    given = recipe(KD, task_weight=1.0, epochs=10, batch_size=32, learning_rate=0.05, clip_norm=5.0)
    elastic = ElasticSpace(space, family_for(space.family, data.task))
    ladders = elastic.ladders
    largest, smallest = elastic.largest, elastic.smallest
    untrained = scorer(supernet, smallest)
    trained = run(data, teacher, given, space=space, supernet=supernet, images=seen)
    assert not trained.supernet.training
    assert trained.space.ladders == ladders
    before = {name: value.clone() for name, value in trained.supernet.state_dict().items()}
    scores = {spec: trained.scorer(trained.supernet, spec) for spec in (largest, smallest)}
    assert scores[largest] > (0.6 if space is RESNET else 0.3)
    assert scores[smallest] > max(0.2, untrained)
    assert all(torch.equal(value, before[name]) for name, value in trained.supernet.state_dict().items())
    # What is cut has the score's batch-norm statistics.
    cut = trained.scorer.cut(trained.supernet, smallest)
    score = evaluate(Normalised(cut, data.channel_mean, data.channel_std).eval(), batches(data, 1000, 1300), FLOAT32)
    assert score == scores[smallest]


RACE = {"race_share": 0.5, "race_steps": 0.0}
"""A race that the tiny budgets here are not too small for, with few images to score subnets on."""


FEW = {"check_samples": 8}


@pytest.fixture
def unlocking_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the race of the adaptive policy measures, the largest first and unlocking later wins it."""
    monkeypatch.setattr(
        "kdnas.training.supernet.policies.adaptive.gains", lambda history: {"in turn": 1.0, "largest first": 2.0}
    )


@pytest.mark.parametrize("policy", POLICIES.names())
def test_every_policy_spends_the_same_budget(data, teacher, policy, monkeypatch):
    space = ElasticSpace(RESNET, family_for("resnet", data.task))
    passes: list[tuple[int, list[int]]] = []
    scored: list[int] = []
    backward, score = SubnetStep.backward, SubnetScorer.score_and_loss

    def counting_backward(self, subnets, inputs, *others):
        passes.append((len(inputs[0]), [space.macs(spec) for spec in subnets]))
        return backward(self, subnets, inputs, *others)

    def counting_score(self, supernet, spec):
        scored.append(space.macs(spec) * (8 + 4))
        return score(self, supernet, spec)

    monkeypatch.setattr(SubnetStep, "backward", counting_backward)
    monkeypatch.setattr(SubnetScorer, "score_and_loss", counting_score)
    shrinking = {"check_share": 0.05, **RACE}
    given = recipe(KD, epochs=3, batch_size=16)
    trained = run(data, teacher, given, policy=policy, shrinking=shrinking, settings=FEW)
    largest = space.macs(space.largest)
    assert trained.shrinking.budget_macs == 3 * 3 * 256 * largest
    spent = sum(3 * images * sum(macs) for images, macs in passes) + sum(scored)
    assert sum(stage.spent for stage in trained.shrinking.stages) == pytest.approx(
        spent / trained.shrinking.budget_macs, rel=1e-9
    )
    last_step = 3 * passes[-1][0] * sum(passes[-1][1])
    assert spent - last_step < trained.shrinking.budget_macs <= spent  # not a step more than needed
    assert sum(stage.steps for stage in trained.shrinking.stages) == trained.steps == len(passes)
    assert bool(scored) == (policy == "adaptive")
    assert max(len(macs) for _, macs in passes) == (1 if policy in ("random", "growing") else 4)
    assert trained.shrinking.stages[-1].stage.allowed == trained.space.ladders.values


@pytest.mark.parametrize(("epochs", "batch_size", "share"), [(2, 16, 0.5), (3, 32, 0.4), (3, 16, 0.3)])
def test_a_race_keeps_within_its_share(data, teacher, epochs, batch_size, share):
    given = recipe(KD, epochs=epochs, batch_size=batch_size)
    shrinking = {"race_share": share, "race_steps": 0.0}
    trained = run(data, teacher, given, policy="adaptive", shrinking=shrinking, settings=FEW)
    race = [finished for finished in trained.shrinking.stages if finished.stage.name.startswith("race")]
    assert len(race) >= 5
    assert all(finished.steps for finished in race)
    assert sum(finished.spent for finished in race) <= share
    assert sum(finished.spent for finished in race) > 0.8 * share


class Stop(Exception):
    pass


def stopping_after(count: int) -> Callable[[Tick], None]:
    seen: list[Tick] = []

    def on_tick(tick: Tick) -> None:
        seen.append(tick)
        if len(seen) == count:
            raise Stop

    return on_tick


@pytest.mark.parametrize("policy", POLICIES.names())
def test_an_interrupted_training_continues_exactly(data, teacher, policy, tmp_path):
    given = recipe(KD, LossTerm(type="hint"), epochs=3 if policy == "adaptive" else 1, batch_size=16)
    shrinking = {"check_share": 0.05, **RACE}
    options: dict[str, Any] = {"policy": policy, "shrinking": shrinking, "settings": FEW, "view_seed": 5}
    whole = run(data, teacher, given, **options)
    assert len(whole.shrinking.stages) > (10 if policy == "adaptive" else 0)
    path = tmp_path / "supernet.checkpoint"
    cached = {**options, "checkpoint": path, "teacher_cache": TeacherCache(tmp_path / "cache")}
    for count in (3, 4):
        with pytest.raises(Stop):
            run(data, teacher, given, supernet=supernet_of(RESNET, data, seed=8 if path.exists() else 0),
                on_tick=stopping_after(count), **cached)  # fmt: skip
    resumed = run(data, teacher, given, supernet=supernet_of(RESNET, data, seed=9), **cached)
    assert same(resumed.supernet, whole.supernet)
    assert resumed.shrinking == whole.shrinking
    with pytest.raises(RunFolderError, match="another training"):
        run(data, teacher, recipe(KD), **cached)


def test_a_recorded_shrinking_followed_again_gives_the_same_stages(data, teacher, tmp_path, unlocking_wins):
    shrinking = {"shortest_share": 0.02, "first_share": 0.1, "final_share": 0.05, "check_share": 0.05}
    shrinking |= {"race_share": 0.3, "race_steps": 0.0}
    given = recipe(KD, epochs=5, batch_size=16)
    first = run(data, teacher, given, policy="adaptive", shrinking=shrinking, settings=FEW)
    write_shrinking(tmp_path / "shrinking.yaml", first.shrinking)
    recorded = read_shrinking(tmp_path / "shrinking.yaml")
    again = run(data, teacher, given, recorded=recorded, shrinking=shrinking, settings=FEW)
    assert [(f.stage, f.first_step, f.steps, f.ended) for f in again.shrinking.stages] == [
        (f.stage, f.first_step, f.steps, f.ended) for f in first.shrinking.stages
    ]
    assert again.shrinking == first.shrinking
    assert same(again.supernet, first.supernet)
    unlocking = [finished for finished in first.shrinking.stages if not finished.stage.name.startswith("race")]
    assert len(unlocking) >= 3
    assert unlocking[0].stage.gains == {"in turn": 1.0, "largest first": 2.0}
    for finished in unlocking[1:]:
        assert finished.stage.gap is not None
        assert finished.stage.probes
        assert {probe.dimension for probe in finished.stage.probes} <= {"depth", "width", "bottleneck"}
        assert all(0 < probe.macs_saved < 1 for probe in finished.stage.probes)


OF_CLASSIFIERS = ("cat_kd", "sim_kd")
"""Losses that ask for a classifier of the last maps, which shared weights have none of."""
TAKEN = [name for name in LOSSES.names() if "attention" not in LOSSES.get(name).needs and name not in OF_CLASSIFIERS]


def test_shared_weights_have_no_classifier_of_the_last_maps(data, teacher):
    with pytest.raises(ConfigError, match="cat_kd: the student has no linear classifier of its last maps"):
        run(data, teacher, recipe(LossTerm(type="cat_kd", weight=0.1), epochs=1), images=64)


@pytest.mark.parametrize("name", TAKEN)
def test_every_loss_trains(data, teacher, name):
    given = recipe(LossTerm(type=name, weight=0.1), epochs=1)
    ticks: list[Tick] = []
    run(data, teacher, given, images=64, on_tick=ticks.append)
    assert ticks
    assert np.isfinite(ticks[-1].loss)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in teacher.module.modules())


def test_labels_alone_and_mixup(data, teacher):
    ticks: list[Tick] = []
    mixed = recipe(KD, LossTerm(type="attention"), augmentation=Augmentation(mixup=0.4))
    for given in (recipe(task_weight=1.0), mixed):
        run(data, teacher, given, images=64, on_tick=ticks.append)
    assert all(np.isfinite(tick.loss) for tick in ticks)


def step_of(stack: ExitStack, supernet: Supernet, data: ImageData, teacher: Teacher, largest: SubnetSpec,
              *losses: LossTerm, in_place: bool, positions: float = 0.0) -> SubnetStep:  # fmt: skip
    shapes = output_shapes(teacher.module, teacher.stages, teacher.classifier, torch.zeros(2, *data.task.image_shape))
    distillation = Distillation(task_weight=0.3, losses=losses)
    return SubnetStep(stack, supernet, largest, {"teacher": shapes}, distillation, data=data, in_place=in_place,
                        bfloat16=False, device=CPU, seed=0, positions=positions)  # fmt: skip


@pytest.mark.parametrize("in_place", [True, False])
def test_losses_and_gradients_of_a_step(data, teacher, in_place):
    """Against the losses written out: Hinton's at temperature 4, from the largest subnet or from the teacher."""
    space = ElasticSpace(RESNET, family_for("resnet", data.task))
    specs = [space.largest, space.smallest]
    supernet = supernet_of(RESNET, data).train()
    batch = next(batches(data, 0, 32).ordered(batch_size=32))
    (images,), labels = batch.inputs, batch.targets
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.channel_mean, data.channel_std))
    with torch.no_grad():
        theirs = Outputs(teacher.module(images))

    def kd(ours: Tensor, guide: Tensor) -> Tensor:
        p = F.softmax(guide.detach() / 4, dim=1)
        return 16 * (p * (p.log() - F.log_softmax(ours / 4, dim=1))).sum(dim=1).mean()

    logits = [supernet((images - mean) / std, spec.arch) for spec in specs]
    guides = [theirs.logits, logits[0] if in_place else theirs.logits]
    expected = [
        0.3 * F.cross_entropy(own, labels) + 0.5 * 0.9 * kd(own, guide)
        for own, guide in zip(logits, guides, strict=True)
    ]
    sum(expected).backward()
    gradients = {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    with ExitStack() as stack:
        step = step_of(stack, supernet, data, teacher, specs[0], KD, in_place=in_place)
        losses = step.backward(specs, (images,), labels, OutputsByTeacher({"teacher": theirs}), 0.5)
    torch.testing.assert_close(losses, torch.stack(expected).detach())
    for name, parameter in supernet.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(library() is None, reason="there is no C compiler here")
@pytest.mark.parametrize("space", [RESNET, MOBILENET], ids=lambda space: space.family)
def test_fused_norms_change_nothing_but_the_time(data, teacher, space, monkeypatch):
    elastic = ElasticSpace(space, family_for(space.family, data.task))
    ladders = elastic.ladders
    specs = [elastic.spec(assignment) for assignment in ladders.panel]
    images, labels = torch.rand(16, *data.task.image_shape) * 255, torch.arange(16) % 10
    supernets = [supernet_of(space, data).train() for _ in range(2)]
    threads, fused = torch.get_num_threads(), []
    apply = FusedNorm.forward
    monkeypatch.setattr(FusedNorm, "forward", lambda *arguments: fused.append(1) or apply(*arguments))
    torch.set_num_threads(1)
    try:
        losses, guide = [], Outputs(torch.randn(16, 10))
        for supernet, pixels in zip(supernets, (0.0, 1e9), strict=True):
            with ExitStack() as stack:
                step = step_of(stack, supernet, data, teacher, specs[-1], KD, in_place=True, positions=pixels)
                losses.append(step.backward(specs[::-1], (images,), labels, OutputsByTeacher({"teacher": guide}), 0.0))
            assert bool(fused) == (pixels > 0)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for (name, plain), (_, ours) in zip(*(net.named_parameters() for net in supernets), strict=True):
        if plain.grad is not None:
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-2, atol=1e-4, msg=name)
    for (name, plain), (_, ours) in zip(*(net.named_buffers() for net in supernets), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5, msg=name)


def test_feature_losses_are_for_the_largest_subnet_alone(data, teacher):
    space = ElasticSpace(RESNET, family_for("resnet", data.task))
    largest, smallest = space.largest, space.smallest
    with ExitStack() as stack:
        step = step_of(
            stack, supernet_of(RESNET, data), data, teacher, largest, KD, LossTerm(type="hint"), in_place=True
        )
        assert [type(term).__name__ for term in step.criteria["largest"].terms] == ["HintonKD", "Hint"]
        assert [type(term).__name__ for term in step.criteria["others"].terms] == ["HintonKD"]
        images, labels = torch.rand(8, *data.task.image_shape) * 255, torch.arange(8)
        with torch.no_grad():
            module = teacher.module
            stage = module.network.stages[0](module.network.stem((images - module.mean) / module.std))
            theirs = Outputs(module(images), (stage, module.network.stages[1](stage)), None)
        printed = OutputsByTeacher({"teacher": theirs})
        step.backward([smallest], (images,), labels, printed, 1.0)
        assert all(p.grad is None for p in step.criteria.parameters())
        step.backward([largest], (images,), labels, printed, 1.0)
        assert all(p.grad is not None for p in step.criteria.parameters())


def test_weights_of_losses_warm_up_with_what_is_spent(data, teacher, monkeypatch):
    printed: list[tuple[float, list[float]]] = []
    at = SubnetStep.at

    def telling(self, progress):
        at(self, progress)
        printed.append((progress, [float(criterion.warmth[0]) for criterion in self.criteria.values()]))

    monkeypatch.setattr(SubnetStep, "at", telling)
    warming = LossTerm(type="dkd", warmup_fraction=0.5)
    trained = run(data, teacher, recipe(warming, epochs=1, batch_size=32), policy="random")
    progresses = [progress for progress, _ in printed]
    assert len(printed) == trained.steps
    assert progresses == sorted(progresses)
    assert progresses[-1] == 1.0
    for progress, weights in printed:
        assert weights == pytest.approx([min(1.0, progress / 0.5)] * 2)


def test_resolution_is_one_more_dimension(data, teacher):
    settings = {"resolutions": (8, 4), **FEW}
    given = recipe(KD, epochs=4, batch_size=16)
    trained = run(data, teacher, given, policy="adaptive", settings=settings, shrinking=RACE)
    assert trained.space.ladders.values["resolution"] == (8, 4)
    unlocks = trained.space.ladders.unlocks(trained.space.ladders.only_largest, "dimension")
    assert "resolution" in {unlock.dimension for unlock in unlocks}
    smallest = trained.space.smallest
    assert smallest.side == 4
    quarter = family_for("resnet", image_classification((1, 4, 4), 10)).price(smallest.arch).macs
    assert trained.space.macs(smallest) == quarter < family(data).price(smallest.arch).macs
    assert 0 <= trained.scorer(trained.supernet, smallest) <= 1


def test_front_sampling_is_even_over_macs_and_prefers_what_was_good(data):
    space = ElasticSpace(RESNET, family_for("resnet", data.task))
    ladders = space.ladders
    bounds = (space.price(ladders.smallest(ladders.values)), space.price(ladders.largest))
    rng = np.random.default_rng(0)
    edges = np.exp(np.linspace(*np.log(bounds), 5))

    def shares(draw: Callable[[], Any]) -> np.ndarray:
        counts = np.histogram([space.price(draw()) for _ in range(300)], bins=edges * np.array([0.99, 1, 1, 1, 1.01]))
        return counts[0] / 300

    sampler = FrontSampler(space)
    uniform = shares(lambda: space.draw(ladders.values, rng))
    even = shares(lambda: sampler.draw(ladders.values, bounds, rng))
    assert even.std() < uniform.std()
    for _ in range(60):
        drawn = space.draw(ladders.values, rng)
        sampler.observe(drawn, 1.0 if drawn["stage1.bottleneck"] == "plain" else 0.0)

    def plain_share(sampler: FrontSampler) -> float:
        drawn = [sampler.draw(ladders.values, bounds, rng) for _ in range(200)]
        return sum(assignment["stage1.bottleneck"] == "plain" for assignment in drawn) / 200

    assert plain_share(sampler) < plain_share(FrontSampler(space)) - 0.05
    limited = {**ladders.values, "stage1.width": (16,)}
    assert all(sampler.draw(limited, bounds, rng)["stage1.width"] == 16 for _ in range(20))
    for _ in range(500):
        sampler.observe(drawn, 0.0)
    assert len(sampler.observations) == 256


def test_an_assignment_is_made_as_small_as_a_bound_asks_for(data):
    space = ElasticSpace(RESNET, family_for("resnet", data.task))
    ladders = space.ladders
    smallest, rng = ladders.smallest(ladders.values), np.random.default_rng(0)
    low, high = space.price(smallest), space.price(ladders.largest)
    for most in np.linspace(low, high, 7):
        drawn = [space.draw(ladders.values, rng) for _ in range(40)]
        fitting = [space.within(one, most, smallest, rng) for one in drawn]
        assert all(space.price(one) <= most for one in fitting)
        assert all(now == one for one, now in zip(drawn, fitting, strict=True) if space.price(one) <= most)
        kept = [{name for name in one if now[name] == one[name]} for one, now in zip(drawn, fitting, strict=True)]
        assert most in (low, high) or len({tuple(sorted(names)) for names in kept}) > 1  # not always the same choices
    assert fitting == drawn


def test_growing_subnets_are_small_at_first(data, teacher, monkeypatch):
    """On a budget too small for a race, adaptive trains subnets that grow."""
    elastic = ElasticSpace(RESNET, family_for("resnet", data.task))
    ladders = elastic.ladders
    sizes: list[int] = []
    backward = SubnetStep.backward

    def noted(self, specs, *rest):
        sizes.extend(map(elastic.macs, specs))
        return backward(self, specs, *rest)

    monkeypatch.setattr(SubnetStep, "backward", noted)
    (only,) = run(data, teacher, policy="adaptive", shrinking={"race_steps": 1e6}).shrinking.stages
    assert only.stage.mode == "growing"
    low, high = elastic.price(ladders.smallest(ladders.values)), elastic.price(ladders.largest)
    spent = np.cumsum([0, *sizes[:-1]]) / sum(sizes)
    assert sizes[0] == low
    assert all(size <= low + (high - low) * done * 1.2 + 1 for size, done in zip(sizes, spent, strict=True))
    assert np.mean(sizes[: len(sizes) // 3]) < 0.7 * np.mean(sizes[-len(sizes) // 3 :])


def test_inherited_supernets_start_as_the_teacher(data, teacher):
    supernet = supernet_of(RESNET, data)
    report = inherit_supernet(family(data), supernet, ARCH, teacher.module.network, ARCH, normalised(data, 300))
    assert report.share == 1.0
    scorer = SubnetScorer(batches(data, 0, 300), batches(data, 1000, 1300), FLOAT32)
    taught = evaluate(teacher.module, batches(data, 1000, 1300), FLOAT32)
    assert scorer(supernet, SubnetSpec(ARCH, 8)) > taught - 0.05


def test_what_does_not_fit_is_refused(data, teacher):
    with pytest.raises(ConfigError, match=r"resolutions: \(8, 9\) exceed"):
        run(data, teacher, settings={"resolutions": (8, 9)})
    depths = tuple(Choice(f"stage{i}.depth", (0, 1)) for i in (1, 2))
    space = SearchSpace("removable", "resnet", depths, fixed={**RESNET.fixed, "stage1.width": 4} | {
        "stage1.bottleneck": "plain"})  # fmt: skip
    with pytest.raises(ConfigError, match="at least one stage must remain"):
        run(data, teacher, space=space)
    with pytest.raises(ConfigError, match="no loss is called"):
        run(data, teacher, recipe(LossTerm(type="magic")))
    with pytest.raises(TrialError, match="loss became (nan|infinite) at step"):
        run(data, teacher, recipe(KD, learning_rate=100.0, optimizer="sgd", warmup_fraction=0.0, epochs=4))


def test_a_damaged_checkpoint_is_refused(data, teacher, tmp_path):
    path: Path = tmp_path / "supernet.checkpoint"
    path.write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match="damaged"):
        run(data, teacher, checkpoint=path)
