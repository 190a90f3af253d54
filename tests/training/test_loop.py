"""The distillation loop on the real digits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainings import CPU, FLOAT32, Net, batches, net

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError, RunFolderError, TrialError
from kdnas.losses import LOSSES
from kdnas.nn.normalise import Normalised
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.loop import EpochRecord, Trained, distil
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.step import build_optimizer, learning_rate

OF_OTHER_STUDENTS = "sim_kd"
"""Asks for students that end in their teacher's classifier: tests/controller/test_reused_classifier.py trains them."""
EVERY_LOSS = tuple(
    name for name in LOSSES.names() if "attention" not in LOSSES.get(name).needs and name != OF_OTHER_STUDENTS
)


@pytest.fixture(scope="module")
def train(data: ImageData) -> Batches:
    return batches(data, 0, 1000)


@pytest.fixture(scope="module")
def validation(data: ImageData) -> Batches:
    return batches(data, 1000, len(data.train))


@pytest.fixture(scope="module")
def teacher(data: ImageData, train: Batches) -> Teacher:
    network = distil(net(12, 24, 32), None, train, None, recipe(epochs=8), data=data, seed=0, device=CPU).network
    module = Normalised(network, data.channel_mean, data.channel_std).eval()
    stages = tuple(f"network.stages.{i}" for i in range(3))
    return Teacher("small", module, stages, "network.classifier", fingerprint="teacher-1")


def recipe(*losses: LossTerm, task_weight: float = 0.5, label_smoothing: float = 0.0, **training: Any) -> Recipe:
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", **training}
    distillation = Distillation(task_weight=task_weight, label_smoothing=label_smoothing, losses=losses)
    return Recipe(training=Training(**settings), distillation=distillation)


KD = LossTerm(type="kd", weight=0.9)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def losses_of(trained: Trained) -> list[float]:
    return [record.loss for record in trained.history]


def test_a_student_learns_from_its_teacher(data, train, validation, teacher) -> None:
    seen: list[EpochRecord] = []
    given = recipe(KD, task_weight=0.1, epochs=8, data_fraction=0.7)
    result = distil(net(8, 16), teacher, train, validation, given, data=data, seed=1, device=CPU, on_epoch=seen.append)
    assert result.score is not None
    assert result.score > 0.85  # chance is 0.1
    assert tuple(seen) == result.history
    assert [record.epoch for record in seen] == list(range(1, 9))
    assert result.history[-1].loss < 0.3 * result.history[0].loss
    assert result.fidelity == Fidelity(epochs=8, data_fraction=0.7)
    assert 0 < result.teacher_seconds < result.train_seconds
    assert not result.network.training
    assert all(p.is_contiguous() for p in result.network.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in result.network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in teacher.module.modules())


def test_every_loss_trains_and_leaves_no_adapter_behind(data, train, teacher) -> None:
    losses = tuple(LossTerm(type=name, weight=0.01) for name in EVERY_LOSS)
    student = net(8, 16)
    names = set(student.state_dict())
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    for mixup in (0.0, 0.4):
        given = recipe(*losses, epochs=1, augmentation=Augmentation(mixup=mixup))
        result = distil(student, teacher, train, None, given, data=data, seed=1, device=CPU)
        assert math.isfinite(result.history[0].loss)
        assert result.score is None
    assert set(result.network.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert not teacher.module.training


def test_the_weight_of_a_loss_warms_up_by_steps(data, train, teacher) -> None:
    """At no learning rate the losses of the steps tell the weights that they had."""

    def mean_losses(*losses: LossTerm) -> np.ndarray:
        given = recipe(*losses, learning_rate=1e-12, weight_decay=0.0)
        return np.array(losses_of(distil(net(8, 16), teacher, train, None, given, data=data, seed=1, device=CPU)))

    warming = LossTerm(type="dkd", weight=50.0, warmup_fraction=0.75)
    task, whole = mean_losses(), mean_losses(LossTerm(type="dkd", weight=50.0))
    steps = train.steps(64)
    factors = np.minimum((np.arange(2 * steps) + 1) / (2 * steps) / 0.75, 1.0).reshape(2, steps).mean(axis=1)
    assert mean_losses(warming) == pytest.approx(task + factors * (whole - task), rel=0.02)


def test_adapters_are_trained(data, train, teacher, monkeypatch) -> None:
    built: list[nn.Module] = []
    import kdnas.training.step as module

    original = module.TrainingLoss

    def record(*arguments: Any, **options: Any) -> nn.Module:
        built.append(original(*arguments, **options))
        built.append(original(*arguments, **options))
        return built[-2]

    monkeypatch.setattr(module, "TrainingLoss", record)
    given = recipe(LossTerm(type="hint"), LossTerm(type="cosine"), epochs=1)
    distil(net(8, 16), teacher, train, None, given, data=data, seed=1, device=CPU)
    trained, fresh = built
    assert list(fresh.parameters())
    for now, then in zip(trained.parameters(), fresh.parameters(), strict=True):
        assert not torch.equal(now, then)


def test_the_first_loss_is_the_recipes_weighted_sum(data, train, teacher) -> None:
    """One step over all images: the loss of the initial student, computed apart with numpy."""
    student = net(8, 16)
    images = torch.from_numpy(np.array(data.train.inputs["pixels"][:1000])).float()
    labels = data.train.targets[:1000]
    normalised = (images - data.channel_mean[0]) / data.channel_std[0]
    with torch.no_grad():
        ours = copy.deepcopy(student).train()(normalised).double().numpy()
        theirs = teacher.module(images).double().numpy()

    def log_softmax(z: np.ndarray) -> np.ndarray:
        return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))

    ours_log, soft, hard = log_softmax(ours), log_softmax(ours / 3), log_softmax(theirs / 3)
    smoothed = 0.9 * np.eye(10)[labels] + 0.1 / 10
    expected = -0.25 * (smoothed * ours_log).sum(1).mean()
    expected += 0.75 * 9 * (np.exp(hard) * (hard - soft)).sum(1).mean()
    term = LossTerm(type="kd", weight=0.75, temperature=3.0)
    given = recipe(term, task_weight=0.25, label_smoothing=0.1, epochs=1, batch_size=1000)
    result = distil(student, teacher, train, None, given, data=data, seed=1, device=CPU)
    assert result.history[0].loss == pytest.approx(expected, rel=1e-4)


def test_a_loss_without_a_teacher_is_refused_and_not_left_out(data, train) -> None:
    with pytest.raises(ConfigError, match="no teacher that kd could learn from"):
        distil(net(8, 16), None, train, None, recipe(KD, task_weight=0.1), data=data, seed=1, device=CPU)
    unweighted = LossTerm(type="kd", weight=0.0)
    alone = [
        distil(net(8, 16), None, train, None, recipe(*terms), data=data, seed=1, device=CPU)
        for terms in ((), (unweighted,))
    ]
    assert same(alone[0].network, alone[1].network)
    assert alone[0].teacher_seconds == 0.0


def test_the_same_seed_gives_the_same_student_whatever_the_callers_generator(data, train, teacher) -> None:
    given = recipe(KD, LossTerm(type="hint"), epochs=1, augmentation=Augmentation(crop_padding=1, cutout=2))
    students = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        student = net(8, 16, dropout=0.2)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        students.append(distil(student, teacher, train, None, given, data=data, seed=seed, device=CPU).network)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(students[0], students[1])
    assert not same(students[0], students[2])


def test_view_seed_decides_the_views_and_seed_the_rest(data, train, teacher) -> None:
    given = recipe(KD, epochs=1, augmentation=Augmentation(crop_padding=1))

    def run(seed: int, view_seed: int | None) -> list[float]:
        student = net(8, 16)
        options = {"data": data, "seed": seed, "device": CPU, "view_seed": view_seed}
        return losses_of(distil(student, teacher, train, None, given, **options))

    assert run(1, 7) == run(2, 7)  # no dropout and no adapters: nothing else is random
    assert run(1, 7) != run(1, 8)
    assert run(1, None) == run(2, 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    data, train, validation, teacher, tmp_path: Path, optimizer: str
) -> None:
    rate = 0.1 if optimizer == "sgd" else 0.003
    given = recipe(
        KD,
        LossTerm(type="hint"),
        epochs=4,
        optimizer=optimizer,
        learning_rate=rate,
        clip_norm=5.0,
        augmentation=Augmentation(crop_padding=1),
    )
    options: dict[str, Any] = {"data": data, "seed": 3, "device": CPU}
    whole = distil(net(8, 16, dropout=0.1), teacher, train, validation, given, **options)

    class Killed(Exception):
        pass

    def kill_after(last: int) -> Callable[[EpochRecord], None]:
        def on_epoch(record: EpochRecord) -> None:
            if record.epoch == last:
                raise Killed

        return on_epoch

    checkpoint = tmp_path / "student.ckpt.safetensors"
    for last, weights in ((1, 0), (3, 9)):  # from the second on the checkpoint's weights count, not the network's
        network = net(8, 16, seed=weights, dropout=0.1)
        stop = kill_after(last)
        with pytest.raises(Killed):
            distil(network, teacher, train, validation, given, on_epoch=stop, checkpoint=checkpoint, **options)
    options["checkpoint"] = checkpoint
    resumed = distil(net(8, 16, seed=8, dropout=0.1), teacher, train, validation, given, **options)
    assert same(whole.network, resumed.network)
    assert losses_of(whole) == losses_of(resumed)
    assert whole.score == resumed.score
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name]
    again = distil(net(8, 16, seed=7, dropout=0.1), teacher, train, validation, given, **options)
    assert again.history == resumed.history  # a finished training is not run again
    assert same(whole.network, again.network)


def test_foreign_and_damaged_checkpoints_are_refused(data, train, teacher, tmp_path: Path) -> None:
    checkpoint = tmp_path / "student.safetensors"
    options: dict[str, Any] = {"data": data, "device": CPU, "checkpoint": checkpoint}
    given = recipe(KD, epochs=1)
    distil(net(8, 16), teacher, train, None, given, seed=1, **options)
    for change in ({"seed": 2}, {"seed": 1, "view_seed": 2}):
        with pytest.raises(RunFolderError, match="another training"):
            distil(net(8, 16), teacher, train, None, given, **{**options, **change})
    with pytest.raises(RunFolderError, match="another training"):
        distil(net(8, 24), teacher, train, None, given, seed=1, **options)
    with pytest.raises(RunFolderError, match="another training"):
        distil(net(8, 16), replace(teacher, fingerprint="other"), train, None, given, seed=1, **options)
    with pytest.raises(RunFolderError, match="another training"):
        distil(net(8, 16), teacher, train, None, recipe(KD, epochs=2), seed=1, **options)
    whole = checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x04not a checkpoint"):
        checkpoint.write_bytes(damaged)
        with pytest.raises(RunFolderError, match="damaged"):
            distil(net(8, 16), teacher, train, None, given, seed=1, **options)
        assert checkpoint.read_bytes() == damaged
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, checkpoint)
    with pytest.raises(RunFolderError, match="not the checkpoint of a training"):
        distil(net(8, 16), teacher, train, None, given, seed=1, **options)


def test_an_unwritable_checkpoint_is_a_run_folder_error(data, train, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    options: dict[str, Any] = {"data": data, "seed": 1, "device": CPU, "checkpoint": blocked / "x.safetensors"}
    with pytest.raises(RunFolderError, match="cannot be written"):
        distil(net(4), None, train, None, recipe(epochs=1), **options)


def test_a_loss_that_is_not_finite_ends_the_trial_at_once(data, train, teacher) -> None:
    class Poisoned(Net):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            self.calls += self.training
            return logits * float("nan") if self.calls == 20 else logits

    torch.manual_seed(0)
    student = Poisoned(8, 16)
    # 1000 images at batch size 64: 16 steps an epoch, so the 20th is the 4th of epoch 2.
    with pytest.raises(TrialError, match=r"^loss became nan at epoch 2, step 4$"):
        distil(student, teacher, train, None, recipe(KD, epochs=3), data=data, seed=1, device=CPU)
    assert student.calls == 20
    assert not any(part._forward_hooks for part in teacher.module.modules())


def test_a_diverging_learning_rate_is_a_trial_error(data, train) -> None:
    given = recipe(epochs=3, learning_rate=100.0, warmup_fraction=0.0, weight_decay=10.0)
    with pytest.raises(TrialError, match="loss became"):
        distil(net(8, 16), None, train, None, given, data=data, seed=1, device=CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_a_trial_error(data, train, error: Exception) -> None:
    class Greedy(Net):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise error
            return super().forward(images)

    with pytest.raises(TrialError, match=r"^out of memory: [^\n]*$"):
        distil(Greedy(8), None, train, None, recipe(), data=data, seed=1, device=CPU)


def test_other_errors_stay_what_they_are(data, train) -> None:
    class Broken(Net):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("shapes do not match")
            return super().forward(images)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        distil(Broken(8), None, train, None, recipe(), data=data, seed=1, device=CPU)


def test_losses_that_do_not_fit_are_refused_before_training(data, train, teacher) -> None:
    tokens = replace(teacher, stages=(), classifier=None)
    for name in ("hint", "cosine"):
        given = recipe(LossTerm(type=name))
        with pytest.raises(ConfigError, match=name):
            distil(net(8, 16), tokens, train, None, given, data=data, seed=1, device=CPU)
    given = recipe(LossTerm(type="kd", weight=0.0), task_weight=0.0)
    with pytest.raises(ConfigError, match="nothing to learn"):
        distil(net(8, 16), teacher, train, None, given, data=data, seed=1, device=CPU)
    torch.manual_seed(0)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    narrow = Teacher("seven", other, (), "1", fingerprint="seven")
    with pytest.raises(ConfigError, match="10 outputs and the teacher 7"):
        distil(net(8, 16), narrow, train, None, recipe(KD), data=data, seed=1, device=CPU)


def test_bfloat16_learns_as_well(data, train, validation, teacher) -> None:
    given = recipe(KD, task_weight=0.1, epochs=8, precision="bfloat16")
    result = distil(net(8, 16), teacher, train, validation, given, data=data, seed=1, device=CPU)
    assert result.score > 0.85
    assert all(p.dtype == torch.float32 for p in result.network.parameters())


def test_norms_and_biases_do_not_decay() -> None:
    network = net(8, 16)
    optimizer = build_optimizer((network,), Training(weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        is_weight = name == "classifier.weight" or name.endswith(".0.weight")
        assert decay[id(parameter)] == (0.01 if is_weight else 0.0), name


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    training = Training(learning_rate=0.4, warmup_fraction=0.2)
    rates = [learning_rate(step, 20, training) for step in range(20)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    # 16 steps of cosine after 4 of warm-up: half way at step 4 + 8; at the last (1 + cos(pi * 15/16)) / 2 = 0.009607.
    assert rates[12] == pytest.approx(0.2)
    assert rates[19] == pytest.approx(0.4 * 0.009607, rel=1e-3)
    assert learning_rate(0, 1, Training(learning_rate=0.4, warmup_fraction=1.0)) == 0.4


def test_accuracy_is_that_of_the_returned_network(data, train, validation) -> None:
    result = distil(net(8, 16), None, train, validation, recipe(epochs=1), data=data, seed=1, device=CPU)
    module = Normalised(result.network, data.channel_mean, data.channel_std)
    assert evaluate(module, validation, FLOAT32) == result.score
