"""A moving average of the weights: what it is, when it is seen, and that it is continued exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from trainings import CPU, KD, Tape, batches, net, recipe, teacher

import kdnas.training.step
from kdnas.training.averaging import Average
from kdnas.training.loop import Course, EpochRecord, Pupil, Trained, distil
from kdnas.training.recipe import Training
from kdnas.training.step import Step

DECAY = 0.95


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def train(data, student: nn.Module, seed: int = 3, **options: Any) -> Trained:
    settings = {"epochs": 3, "ema": DECAY, **options.pop("training", {})}
    given = recipe(KD, **settings)
    train, validation = batches(data, 0, 300), batches(data, 300, 500)
    return distil(student, teacher(data), train, validation, given, data=data, seed=seed, device=CPU, **options)


def test_it_is_torchs_average_with_a_warmed_up_decay():
    network = net(4, 8)
    average = Average(network, DECAY)

    def blend(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        step = int(count)  # torch takes over the first weights and counts from there
        decay = min(DECAY, (1 + step) / (10 + step))
        return decay * mean + (1 - decay) * value

    theirs = AveragedModel(network, avg_fn=blend, use_buffers=True)
    theirs.update_parameters(network)
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            network.stages[0][1].running_mean.add_(1.0)
        average.update(step)
        theirs.update_parameters(network)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, theirs.module.state_dict()[name], atol=1e-5), name


def test_the_student_that_is_given_back_is_the_average_of_what_each_step_left(data, monkeypatch):
    left: list[dict[str, torch.Tensor]] = []
    learn = Step.learn

    def watched(self: Step, *batch: Any) -> None:
        learn(self, *batch)
        left.append(state(self.student.network))

    monkeypatch.setattr(Step, "learn", watched)
    plain_student = net(4, 8)
    mean = {name: value.double() for name, value in state(plain_student).items()}
    plain = train(data, plain_student, training={"ema": None})
    for step, weights in enumerate(left, 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        mean = {name: decay * value + (1 - decay) * weights[name].double() for name, value in mean.items()}
    averaged = train(data, net(4, 8))
    assert averaged.history[-1].loss == plain.history[-1].loss  # the training itself is the same
    for name, value in averaged.network.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), mean[name], atol=1e-5), name
        else:
            assert torch.equal(value, left[-1][name]), name
    assert not equal(state(averaged.network), state(plain.network))


def test_looks_on_the_way_see_the_average_and_change_nothing(data):
    seen: list[dict[str, torch.Tensor]] = []
    student = net(4, 8)
    watched = train(data, student, on_epoch=lambda record: seen.append(state(student)))
    assert equal(seen[-1], state(watched.network))
    assert equal(state(watched.network), state(train(data, net(4, 8)).network))


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(data, tmp_path: Path):
    class Killed(Exception):
        pass

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    checkpoint = tmp_path / "student.safetensors"
    with pytest.raises(Killed):
        train(data, net(4, 8), checkpoint=checkpoint, on_epoch=kill)
    resumed = train(data, net(4, 8, seed=9), checkpoint=checkpoint)
    whole = train(data, net(4, 8))
    assert equal(state(resumed.network), state(whole.network))
    assert resumed.score == whole.score
    again = train(data, net(4, 8, seed=5), checkpoint=checkpoint)
    assert equal(state(again.network), state(whole.network))
    assert again.score == whole.score


def test_a_warm_restart_goes_on_from_the_weights_and_begins_its_average_anew(data, tmp_path: Path):
    first = tmp_path / "first.safetensors"
    train(data, net(4, 8), checkpoint=first)
    averaged = train(data, net(4, 8, seed=9), begin_from=first, view_seed=5)
    plain = tmp_path / "plain.safetensors"
    train(data, net(4, 8), checkpoint=plain, training={"ema": None})
    unaveraged = train(data, net(4, 8, seed=9), begin_from=plain, view_seed=5, training={"ema": None})
    assert [record.loss for record in averaged.history] == [record.loss for record in unaveraged.history]


@pytest.mark.parametrize("graphs", [False, True])
def test_students_trained_together_have_the_averages_that_they_have_alone(data, monkeypatch, graphs):
    train_images, validation = batches(data, 0, 300), batches(data, 300, 500)
    recipes = [recipe(KD, epochs=2, ema=decay) for decay in (DECAY, None, 0.5)]
    options: dict[str, Any] = {"data": data, "device": CPU}
    alone = [
        distil(net(4, 8, seed=k), teacher(data), train_images, validation, one, seed=k, view_seed=0, **options)
        for k, one in enumerate(recipes)
    ]
    if graphs:
        monkeypatch.setattr(kdnas.training.step, "recorder_for", lambda device: Tape())
    course = Course(data, train_images, validation, teacher(data), 0, CPU)
    pupils = [Pupil(net(4, 8, seed=k), one, k, on_epoch=lambda record: None) for k, one in enumerate(recipes)]
    together = kdnas.training.loop.train(course, pupils)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Trained)
        assert equal(state(one.network), state(other.network))
        assert one.score == other.score


def test_old_records_do_not_know_it():
    assert "ema" not in Training().model_dump()
    assert Training(ema=0.9).model_dump()["ema"] == 0.9
