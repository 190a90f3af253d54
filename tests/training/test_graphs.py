"""Whole-step graphs: what the host does around a capture, on a CPU; the captures themselves, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import trainings
from torch import Tensor, nn
from torch.nn import functional
from trainings import CPU, KD, Tape, batches, net, recipe, same

import kdnas.training.step
from kdnas.core.data import ImageData
from kdnas.core.task import image_classification
from kdnas.nn.taps import Outputs
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.graphs import (
    WARM_UP_STEPS,
    CudaRecorder,
    GraphedStep,
    batches_together,
    epoch_of_views,
    recorder_for,
)
from kdnas.training.loop import Trained, distil
from kdnas.training.recipe import LossTerm, Training
from kdnas.training.step import build_optimizer, learning_rate, set_learning_rate
from kdnas.training.teacher_cache import TeacherCache

CUDA = torch.device("cuda")
SMALL = image_classification((3, 32, 32), 10)


@pytest.fixture
def teacher(data: ImageData) -> Teacher:
    return trainings.teacher(data)


def recorded(seen: list[Any]) -> Callable[[Tensor, Tensor, OutputsByTeacher | None], Tensor]:
    def step(inputs: tuple[Tensor, ...], labels: Tensor, theirs: OutputsByTeacher | None) -> Tensor:
        (images,) = inputs
        seen.append((images.clone(), labels.clone(), None if theirs is None else theirs.by["one"].logits.clone()))
        return images.sum()

    return step


def batch(
    number: int, size: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, ...], Tensor, OutputsByTeacher]:
    images = torch.full((size, 1, 2, 2), float(number)).contiguous(memory_format=torch.channels_last)
    return (images,), torch.full((size,), number), by_one(torch.full((size, 3), float(number), dtype=dtype))


def by_one(*tensors: Any) -> OutputsByTeacher:
    """What one of two teachers says; the other one always says the same."""
    return OutputsByTeacher({"other": Outputs(torch.full((len(tensors[0]), 2), 7.0)), "one": Outputs(*tensors)})


def test_every_call_trains_once_on_its_own_batch() -> None:
    seen: list[Any] = []
    tape = Tape()
    step = GraphedStep(recorded(seen), tape)
    for number in range(8):
        assert step(*batch(number)).item() == 16.0 * number
        assert step.captured == (number >= WARM_UP_STEPS)
    assert (tape.ran, tape.captures, tape.replays) == (WARM_UP_STEPS, 1, 8 - WARM_UP_STEPS)
    for number, (images, labels, logits) in enumerate(seen):
        assert (images.unique().item(), labels.unique().item(), logits.unique().item()) == (number, number, number)


def test_batches_of_another_shape_run_eagerly_and_change_nothing() -> None:
    seen: list[Any] = []
    tape = Tape()
    step = GraphedStep(recorded(seen), tape)
    for number, size in enumerate([4, 4, 3, 4, 4, 3, 4]):
        step(*batch(number, size))
    assert [len(images) for images, _, _ in seen] == [4, 4, 3, 4, 4, 3, 4]
    assert [int(labels[0]) for _, labels, _ in seen] == list(range(7))
    assert (tape.ran, tape.replays) == (5, 2)


def test_a_teacher_that_turns_from_live_to_cached_feeds_one_graph() -> None:
    """Live outputs may be bfloat16, cached rows are float32: neither is rounded on the way into the graph."""
    seen: list[Any] = []
    tape = Tape()
    step = GraphedStep(recorded(seen), tape)
    for number in range(5):
        step(*batch(number, dtype=torch.bfloat16))
    images, labels, _ = batch(5)
    precise = torch.full((4, 3), 1.0 + 2.0**-20)
    step(images, labels, by_one(precise))
    assert tape.captures == 1
    assert torch.equal(seen[-1][2], precise)


def test_stages_and_embeddings_reach_the_captured_step() -> None:
    seen: list[Outputs] = []

    def step(inputs: tuple[Tensor, ...], labels: Tensor, theirs: OutputsByTeacher | None) -> Tensor:
        (images,) = inputs
        assert theirs is not None
        assert theirs.by["other"].logits.unique().item() == 7.0
        seen.append(theirs.by["one"].map(Tensor.clone))
        return images.sum()

    graphed = GraphedStep(step, Tape())
    for number in range(6):
        images, labels, theirs = batch(number)
        stages = (torch.full((4, 2, 3, 3), number + 0.25), torch.full((4, 5, 1, 1), number + 0.5))
        graphed(images, labels, by_one(theirs.by["one"].logits, stages, torch.full((4, 7), number + 0.75)))
    for number, outputs in enumerate(seen):
        assert outputs.embedding is not None
        parts = (outputs.logits, *outputs.stages, outputs.embedding)
        assert [part.unique().item() for part in parts] == [number, number + 0.25, number + 0.5, number + 0.75]
        assert [tuple(stage.shape) for stage in outputs.stages] == [(4, 2, 3, 3), (4, 5, 1, 1)]


def test_a_failed_capture_is_told_and_training_goes_on_eagerly() -> None:
    seen: list[Any] = []
    tape = Tape(fail="operation not permitted when stream is capturing\nmore")
    step = GraphedStep(recorded(seen), tape)
    for number in range(6):
        assert step(*batch(number)).item() == 16.0 * number
    assert step.failure == "operation not permitted when stream is capturing"
    assert not step.captured
    assert (tape.ran, tape.captures, tape.replays) == (6, 1, 0)
    assert len(seen) == 6


LEARNING = (LossTerm(type="kd", of="peers"), LossTerm(type="hint", of="ema"), LossTerm(type="exits", of="self"))
"""Losses whose source is trained in the step itself."""


@pytest.mark.parametrize("losses", [(), (KD, LossTerm(type="rkd", weight=0.01)), (LossTerm(type="hint"),), LEARNING])
@pytest.mark.parametrize("fail", [None, "no"])
def test_a_training_through_graphs_is_the_same_training(data, teacher, tmp_path, monkeypatch, losses, fail) -> None:
    """Bit for bit: static inputs, warm-up, the smaller last batch, the teacher live and cached."""
    given = recipe(*losses, clip_norm=0.5, augmentation=Augmentation(crop_padding=1))

    def trained() -> Trained:
        return distil(
            net(8, 16), teacher, batches(data, 0, 300), None, given,
            data=data, seed=3, device=CPU, teacher_cache=TeacherCache(tmp_path),
            peers=[net(8, 16, seed=4) for _ in range(given.distillation.further_peers)],
        )  # fmt: skip

    eager = trained()
    tape = Tape(fail)
    monkeypatch.setattr(kdnas.training.step, "recorder_for", lambda device: tape)
    graphed = trained()
    assert same(eager.network, graphed.network)
    assert [record.loss for record in eager.history] == [record.loss for record in graphed.history]
    assert graphed.graph_failure == fail
    assert tape.replays == (0 if fail else 2 * 4 - WARM_UP_STEPS)
    assert eager.graph_failure is None


def test_distil_is_the_plain_loop(data) -> None:
    """The loop written out, with nothing of kdnas but the optimizer, the schedule and the batches."""
    given = recipe(clip_norm=0.5, learning_rate=0.05)
    result = distil(net(8, 16), None, batches(data, 0, 200), None, given, data=data, seed=3, device=CPU)

    network = net(8, 16).to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.channel_mean, data.channel_std))
    optimizer = build_optimizer((network,), given.training)
    losses = []
    for epoch in range(2):
        train = batches(data, 0, 200)
        for batch in train.epoch(epoch, batch_size=64, seed=3):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(len(losses), 8, given.training)
            (images,) = batch.laid_out
            loss = 0.5 * functional.cross_entropy(network((images - mean) / std), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.5)
            optimizer.step()
            losses.append(loss.detach())
    assert same(result.network, network)
    assert [record.loss for record in result.history] == [
        float(torch.stack(losses[:4]).mean()),
        float(torch.stack(losses[4:]).mean()),
    ]


@pytest.mark.parametrize(("count", "batch_size"), [(100, 16), (97, 16), (33, 32), (1, 8), (5, 1), (64, 64), (3, 8)])
@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_views_made_together_are_the_same_batches(data, count, batch_size, together, mixup) -> None:
    train = batches(data, 10, 10 + count)
    options: dict[str, Any] = {
        "views": Augmentation(flip=True, crop_padding=1, mixup=mixup),
        "seed": 5,
    }
    wanted = list(train.epoch(1, batch_size=batch_size, **options))
    found = list(epoch_of_views(train, 1, batch_size=batch_size, together=together, **options))
    assert len(found) == len(wanted) == train.steps(batch_size)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert torch.equal(one.targets, other.targets)


def test_how_many_views_are_made_together() -> None:
    assert batches_together(128, SMALL, CPU) == 1
    assert batches_together(128, SMALL, CUDA) == 16
    assert batches_together(1024, SMALL, CUDA) == 5  # 12 MiB each
    assert batches_together(4096, image_classification((3, 224, 224), 10), CUDA) == 1


def test_a_cpu_captures_nothing() -> None:
    assert recorder_for(CPU) is None


def test_a_rate_held_as_a_tensor_stays_where_it_is() -> None:
    parameter = nn.Parameter(torch.ones(3))
    held = torch.tensor(0.1)
    optimizer = torch.optim.SGD([parameter], lr=held)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is held
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert parameter.detach().tolist() == [0.75] * 3
    plain = build_optimizer([nn.Linear(2, 2)], Training())
    set_learning_rate(plain, 0.25)
    assert [group["lr"] for group in plain.param_groups] == [0.25, 0.25]


# On a GPU


def trained_on(device: torch.device, data: ImageData, *, graphs: bool = True, **options: Any) -> Trained:
    settings = {"clip_norm": 1.0, "learning_rate": 0.02, "epochs": 3, **options.pop("training", {})}
    given = recipe(*options.pop("losses", (KD,)), **settings)
    train, scored = batches(data, 0, 500, device), batches(data, 500, 900, device)
    teacher = trainings.teacher(data)
    options |= {"peers": [net(8, 16, seed=4).to(device) for _ in range(given.distillation.further_peers)]}
    return distil(net(8, 16), teacher, train, scored, given, data=data, seed=3, device=device, graphs=graphs, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_captured_training_is_the_eager_one(cuda, data, optimizer, precision) -> None:
    settings = {"optimizer": optimizer, "precision": precision}
    captured = trained_on(cuda, data, training=settings)
    eager = trained_on(cuda, data, graphs=False, training=settings)
    assert captured.graph_failure is None
    for one, other in zip(captured.history, eager.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-3 if precision == "float32" else 2e-2)
    assert captured.score == pytest.approx(eager.score, abs=0.03)


@pytest.mark.gpu
def test_students_that_learn_of_each_other_are_captured(cuda, data) -> None:
    captured, eager = (trained_on(cuda, data, losses=LEARNING, graphs=graphs) for graphs in (True, False))
    assert captured.graph_failure is None
    for one, other in zip(captured.history, eager.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kd", "dkd", "cosine", "hint", "attention", "rkd", "similarity"])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_every_loss_can_be_captured(cuda, data, name, mixup) -> None:
    settings = {"epochs": 1, "augmentation": Augmentation(mixup=mixup)}
    result = trained_on(cuda, data, losses=(LossTerm(type=name, weight=0.01),), training=settings)
    assert result.graph_failure is None


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(cuda, data) -> None:
    here, there = trained_on(CPU, data), trained_on(cuda, data)
    assert there.history[0].loss == pytest.approx(here.history[0].loss, rel=5e-3)


@pytest.mark.gpu
def test_a_replay_reads_rate_and_batch_anew(cuda) -> None:
    """Against the closed form: w <- w - rate * images, for rates and images that change from call to call."""
    weight = nn.Parameter(torch.zeros(4, 1, 2, 2, device=cuda))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(0.0, device=cuda), fused=True)

    def step(inputs: tuple[Tensor, ...], labels: Tensor, theirs: OutputsByTeacher | None) -> Tensor:
        (images,) = inputs
        loss = (weight * images).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    graphed = GraphedStep(step, CudaRecorder(cuda))
    expected = torch.zeros(4, 1, 2, 2)
    for number in range(1, 12):
        images = torch.full((4, 1, 2, 2), float(number))
        set_learning_rate(optimizer, 1.0 / number)
        loss = graphed((images.to(cuda),), torch.zeros(4, dtype=torch.int64, device=cuda), None)
        assert loss.item() == pytest.approx(float((expected * images).sum()), rel=1e-5)
        expected -= images / number
    assert graphed.captured
    torch.testing.assert_close(weight.detach().cpu(), expected)


@pytest.mark.gpu
def test_a_step_that_waits_for_the_device_falls_back(cuda) -> None:
    weight = nn.Parameter(torch.zeros(1, device=cuda))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    calls = []

    def step(inputs: tuple[Tensor, ...], labels: Tensor, theirs: OutputsByTeacher | None) -> Tensor:
        (images,) = inputs
        calls.append(torch.cuda.current_stream())
        loss = (weight * images.mean()).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if loss.item() > 1e9:  # forbidden in a capture
            raise AssertionError
        optimizer.step()
        return loss.detach()

    graphed = GraphedStep(step, CudaRecorder(cuda))
    before = torch.cuda.current_stream()
    for _ in range(8):
        graphed((torch.ones(2, 1, 2, 2, device=cuda),), torch.zeros(2, device=cuda), None)
    assert graphed.failure
    assert torch.cuda.current_stream() == before
    assert weight.item() == -8.0  # every call trained once, the failed capture not at all
    assert len(calls) == 9


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_captured_training_resumes(cuda, data, tmp_path, optimizer) -> None:
    settings = {"optimizer": optimizer}
    whole = trained_on(cuda, data, training=settings)

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained_on(cuda, data, training=settings, checkpoint=path, on_epoch=stop)
    resumed = trained_on(cuda, data, training=settings, checkpoint=path)
    assert resumed.graph_failure is None
    assert resumed.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=5e-3)
