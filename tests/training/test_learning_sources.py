"""Losses whose source learns too: peers, the moving average, and the student's own outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import CPU, batches, net, same

from kdnas.core.data import ImageData
from kdnas.errors import ConfigError, RunFolderError
from kdnas.losses import LOSSES
from kdnas.nn.normalise import Normalised
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.training.batches import Batches
from kdnas.training.loop import Course, EpochRecord, Pupil, Trained, distil, train
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training

T, WEIGHT, TASK, RATE, CLIP = 3.0, 0.8, 0.4, 0.05, 0.7


def recipe(*losses: LossTerm, epochs: int = 2, ema: float | None = None, peers: int | None = None) -> Recipe:
    training = Training(
        epochs=epochs,
        batch_size=64,
        precision="float32",
        learning_rate=RATE,
        warmup_fraction=0.0,
        clip_norm=CLIP,
        weight_decay=0.0,
        fused_norms=False,
    )
    distillation = Distillation(task_weight=TASK, losses=losses, peers=peers, ema_teacher=ema)
    return Recipe(training=training, distillation=distillation)


def kd(of: str) -> LossTerm:
    return LossTerm(type="kd", weight=WEIGHT, temperature=T, of=of)


@pytest.fixture(scope="module")
def few(data: ImageData) -> Batches:
    return batches(data, 0, 320)


def trained(data: ImageData, few: Batches, given: Recipe, **options: object) -> Trained:
    options = {"data": data, "seed": 3, "view_seed": 5, "device": CPU, **options}
    network = options.pop("network", None) or net(6, 10, seed=1)
    return distil(network, None, few, None, given, **options)  # type: ignore[arg-type]


def softer(of: Tensor, by: Tensor) -> Tensor:
    """T^2 * KL(of || by) at temperature T, by its definition."""
    p, q = (of / T).softmax(1), (by / T).softmax(1)
    return T**2 * (p * (p / q).log()).sum(1).mean()


def steps_of(few: Batches, epochs: int) -> list[tuple[Tensor, Tensor, float]]:
    """All batches with the rate of their step: a cosine without warm-up."""
    every = [batch for epoch in range(epochs) for batch in few.epoch(epoch, batch_size=64, views=None, seed=5)]
    rates = (1 + torch.cos(torch.pi * torch.arange(len(every)) / len(every))) / 2 * RATE
    return [(batch.laid_out[0], batch.targets, float(rate)) for batch, rate in zip(every, rates, strict=True)]


def plain_step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()


def close(ours: nn.Module, plain: nn.Module) -> None:
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=2e-4, atol=2e-5, msg=name)


def test_mutual_learning_at_once_is_what_a_plain_loop_does_one_after_the_other(data: ImageData, few: Batches) -> None:
    """Deep mutual learning of three, each with an optimizer, gradients and clipping of its own."""
    starts = [net(6, 10, seed=1), net(4, 7, seed=2), net(6, 10, seed=3)]
    networks = [Normalised(copy.deepcopy(each), data.channel_mean, data.channel_std).train() for each in starts]
    optimizers = [torch.optim.SGD(each.parameters(), RATE, momentum=0.9, nesterov=True) for each in networks]
    for images, labels, rate in steps_of(few, 2):
        printed = [network(images) for network in networks]
        losses = []
        for place, ours in enumerate(printed):
            apart = [softer(other.detach(), ours) for other in printed[:place] + printed[place + 1 :]]
            losses.append(TASK * F.cross_entropy(ours, labels) + WEIGHT * sum(apart) / 2)
        for network, optimizer, loss in zip(networks, optimizers, losses, strict=True):
            plain_step(network, optimizer, loss, rate)
    result = trained(data, few, recipe(kd("peers"), peers=3), network=starts[0], peers=starts[1:])
    close(result.network, networks[0].network)


def test_a_mean_teacher_is_the_average_of_the_weights(data: ImageData, few: Batches) -> None:
    start = net(6, 10, seed=1)
    student = Normalised(copy.deepcopy(start), data.channel_mean, data.channel_std).train()
    mean = copy.deepcopy(student).eval()
    optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, nesterov=True)
    for number, (images, labels, rate) in enumerate(steps_of(few, 2), 1):
        with torch.no_grad():
            theirs = mean(images)
        ours = student(images)
        plain_step(student, optimizer, TASK * F.cross_entropy(ours, labels) + WEIGHT * softer(theirs, ours), rate)
        decay = min(0.9, (1 + number) / (10 + number))
        for averaged, now in zip(mean.state_dict().values(), student.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.mul_(decay).add_((1 - decay) * now)
    result = trained(data, few, recipe(kd("ema"), ema=0.9), network=start)
    close(result.network, student.network)


def test_exits_learn_of_the_networks_own_end(data: ImageData, few: Batches) -> None:
    shapes = OutputShapes(4, ((3, 2, 2), (5, 1, 1)), 5)
    loss = LOSSES.build("exits", shapes, shapes, share=0.3, temperature=2.0)
    generator = torch.Generator().manual_seed(0)
    logits, stage = torch.randn(6, 4, generator=generator), torch.randn(6, 3, 2, 2, generator=generator)
    given = Outputs(logits, (stage, torch.zeros(6, 5, 1, 1)))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    exit_logits = loss.exits[0](stage.mean((2, 3)))
    p, q = (logits / 2).softmax(1), (exit_logits / 2).softmax(1)
    expected = 0.7 * F.cross_entropy(exit_logits, labels) + 0.3 * 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss(given, given, Rows(logits, labels)), expected)
    result = trained(data, few, recipe(LossTerm(type="exits", of="self"), epochs=6))
    assert not any("exit" in name for name in result.network.state_dict())
    plain = trained(data, few, recipe(epochs=6))
    assert not same(result.network, plain.network)  # the exits' gradient reaches the stages before them
    assert result.history[-1].loss < result.history[0].loss


def test_exits_refuse_a_single_stage_and_tokens_that_each_ask() -> None:
    with pytest.raises(ConfigError, match="one"):
        LOSSES.build("exits", OutputShapes(4, ((3, 2, 2),)), OutputShapes(4, ((3, 2, 2),)))
    shapes = OutputShapes(4, ((7, 3), (7, 3)))
    loss = LOSSES.build("exits", shapes, shapes)
    given = Outputs(torch.zeros(14, 4), (torch.zeros(2, 7, 3), torch.zeros(2, 7, 3)))
    with pytest.raises(ConfigError, match="once for a sample"):
        loss(given, given, Rows(given.logits, torch.zeros(14, dtype=torch.int64)))


@pytest.mark.parametrize("source", ["peers", "ema"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    data: ImageData, few: Batches, tmp_path: Path, source: str
) -> None:
    given = recipe(kd(source), LossTerm(type="hint", of=source), epochs=4)

    def neighbours(seed: int) -> list[nn.Module]:
        return [net(6, 10, seed=seed)] if source == "peers" else []

    class Killed(Exception):
        pass

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    whole = trained(data, few, given, peers=neighbours(2))
    kept = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        trained(data, few, given, peers=neighbours(2), checkpoint=kept, on_epoch=kill)
    resumed = trained(data, few, given, network=net(6, 10, seed=8), peers=neighbours(9), checkpoint=kept)
    assert same(whole.network, resumed.network)
    assert [record.loss for record in whole.history] == [record.loss for record in resumed.history]
    further = trained(data, few, given, peers=neighbours(2), begin_from=kept)
    assert not same(further.network, whole.network)
    with pytest.raises(RunFolderError):
        trained(data, few, recipe(epochs=4), checkpoint=kept)


@pytest.mark.parametrize("others", [(6, 10), (4, 7)])
def test_students_with_peers_train_beside_each_other_as_alone(
    data: ImageData, few: Batches, others: tuple[int, int]
) -> None:
    given = recipe(kd("peers"))
    alone = [trained(data, few, given, network=net(6, 10, seed=s), peers=[net(*others, seed=s + 5)]) for s in (1, 2)]
    course = Course(data, few, None, None, 5, CPU)
    together = train(course, [Pupil(net(6, 10, seed=s), given, 3, peers=[net(*others, seed=s + 5)]) for s in (1, 2)])
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Trained)
        assert same(one.network, other.network)


def test_as_many_peers_as_the_losses_ask_for(data: ImageData, few: Batches) -> None:
    with pytest.raises(ValueError, match="peers"):
        trained(data, few, recipe(kd("peers")))
    with pytest.raises(ValueError, match="peers"):
        trained(data, few, recipe(kd("ema")), peers=[net(6, 10)])


@pytest.mark.parametrize(("settings", "source"), [({"peers": 3}, "peers"), ({"ema_teacher": 0.9}, "ema")])
def test_settings_of_sources_that_nobody_learns_of_are_refused(settings: dict, source: str) -> None:
    with pytest.raises(ValueError, match=f"none has `of: {source}`"):
        Distillation(losses=(LossTerm(type="kd"),), **settings)
