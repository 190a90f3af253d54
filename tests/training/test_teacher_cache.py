"""The teacher cache: exact, shared, and safe to kill."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.nn.taps import Outputs, OutputShapes, Taps
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import Trained, distil
from kdnas.training.recipe import Augmentation, Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache, ViewsKey
from kdnas.training.teaching import Teaching, views_key

CPU = torch.device("cpu")
KEY = ViewsKey(
    teacher="t",
    data="d",
    augmentation="{}",
    view_seed=0,
    precision="float32",
    device="cpu",
    samples=10,
    classes=3,
    embedding=0,
)
VIEWS = Augmentation(crop_padding=1, cutout=2)


class Counting(nn.Module):
    """A teacher that counts the images it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(48, 10)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.head(self.body(images / 255))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("digits")
    return DATASETS.build("digits", folder, folder)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher("counting", Counting().eval(), ("body.1",), "head", fingerprint="one")


def batches(data: ImageData, count: int = 300) -> Batches:
    return Batches(data.train, np.arange(0, 2 * count, 2), num_classes=10, device=CPU)


class Student(nn.Module):
    """A small network with the student families' contract."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images).mean(dim=(2, 3)))


def student() -> nn.Module:
    torch.manual_seed(0)
    return Student()


def train(
    data: ImageData,
    teacher: Teacher,
    cache: TeacherCache | None,
    *,
    losses: tuple[str, ...] = ("kd",),
    count: int = 300,
    augmentation: Augmentation = VIEWS,
    view_seed: int = 4,
    **training: Any,
) -> tuple[Trained, int]:
    """Train, and return what came of it and for how many images the teacher was run."""
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", "augmentation": augmentation, **training}
    terms = tuple(LossTerm(type=name, weight=0.5) for name in losses)
    recipe = Recipe(training=Training(**settings), distillation=Distillation(losses=terms))
    before = teacher.module.asked
    options: dict[str, Any] = {"data": data, "seed": 1, "device": CPU, "view_seed": view_seed, "teacher_cache": cache}
    result = distil(student(), teacher, batches(data, count), None, recipe, **options)
    asked = teacher.module.asked - before
    return result, asked - 2 if asked else asked  # two images tell the shapes


def same(a: Trained, b: Trained) -> bool:
    pairs = zip(a.network.parameters(), b.network.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and [r.loss for r in a.history] == [r.loss for r in b.history]


@pytest.mark.parametrize("losses", [("kd",), ("kd", "cosine"), ("rkd",)])
def test_a_second_training_never_asks_the_teacher_and_is_the_same_to_the_bit(data, teacher, tmp_path, losses) -> None:
    plain, asked = train(data, teacher, None, losses=losses)
    assert asked == 600
    first, asked = train(data, teacher, TeacherCache(tmp_path), losses=losses)
    assert asked == 600
    second, asked = train(data, teacher, TeacherCache(tmp_path), losses=losses)
    assert asked == 0
    assert same(plain, first)
    assert same(plain, second)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_cached_rows_equal_the_teacher_on_the_same_view(data, teacher, tmp_path, bfloat16) -> None:
    shapes = OutputShapes(10, embedding=48)
    key = views_key(
        teacher,
        shapes,
        data,
        needs=frozenset({"logits", "embedding"}),
        augmentation=VIEWS,
        view_seed=4,
        bfloat16=bfloat16,
        device=CPU,
    )
    images = batches(data)
    options = {"batch_size": 64, "augmentation": VIEWS, "fill": data.channel_mean, "seed": 4}
    answers: list[list[Outputs]] = []
    with Taps(teacher.module, (), "head") as tapped:
        for _ in range(2):
            cache = (TeacherCache(tmp_path), key)
            teaching = Teaching(tapped, device=CPU, bfloat16=bfloat16, samples=images.indices, cache=cache)
            teaching.begin(1)
            answers.append([teaching(batch.images, batch.samples) for batch in images.epoch(1, **options)])
            teaching.end()
        for online, cached, batch in zip(*answers, images.epoch(1, **options), strict=True):
            assert torch.equal(online.logits.float(), cached.logits)
            assert torch.equal(online.embedding.float(), cached.embedding)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                again = teacher.module(batch.images)
                alone = teacher.module(batch.images[:1])
            assert torch.equal(again.float(), cached.logits)
            # In another batch the last bits may differ: float32 rounding, or bfloat16's eight bits.
            assert torch.allclose(alone.float(), cached.logits[:1], atol=0.02 if bfloat16 else 1e-5)


def test_a_half_written_cache_is_completed(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    whole, _ = train(data, teacher, cache)
    masks = sorted(tmp_path.glob("*/*.mask"))
    assert [mask.name for mask in masks] == ["view00000.mask", "view00001.mask"]
    # Killed between the rows and the mask of view 1: its rows are there, garbled, and nothing says that they are good.
    masks[1].unlink()
    rows = masks[1].with_suffix(".rows")
    rows.write_bytes(b"\xff" * rows.stat().st_size)
    resumed, asked = train(data, teacher, cache)
    assert asked == 300
    assert same(whole, resumed)
    assert train(data, teacher, cache)[1] == 0


def test_files_of_a_wrong_size_are_not_read(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    whole, _ = train(data, teacher, cache)
    rows = min(tmp_path.glob("*/*.rows"))
    rows.write_bytes(rows.read_bytes()[:1000])
    resumed, asked = train(data, teacher, cache)
    assert asked == 300
    assert same(whole, resumed)
    assert train(data, teacher, cache)[1] == 0


def test_a_larger_data_fraction_asks_only_for_what_is_new(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    train(data, teacher, cache, count=100, epochs=1)
    result, asked = train(data, teacher, cache, count=300, epochs=1)
    plain, _ = train(data, teacher, None, count=300, epochs=1)
    assert asked <= 300
    assert result.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-5)
    assert train(data, teacher, cache, count=300, epochs=1)[1] == 0


def test_a_sample_that_an_epoch_leaves_out_does_not_spoil_the_view(data, teacher, tmp_path) -> None:
    # 257 = 4 * 64 + 1: the last batch of one is dropped, so a view never has all rows.
    cache = TeacherCache(tmp_path)
    first, asked = train(data, teacher, cache, count=257)
    assert asked == 512
    second, asked = train(data, teacher, cache, count=257)
    assert asked == 0
    assert same(first, second)


def test_anything_that_changes_the_answers_changes_the_key(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    train(data, teacher, cache)
    changes: list[dict[str, Any]] = [
        {"view_seed": 5},
        {"augmentation": Augmentation(crop_padding=1)},
        {"precision": "bfloat16"},
        {"losses": ("cosine",)},
    ]
    for change in changes:
        assert train(data, teacher, cache, **change)[1] == 600, change
    other = replace(teacher, fingerprint="two")
    assert train(data, other, cache)[1] == 600
    assert train(replace(data, fingerprint="other"), teacher, cache)[1] == 600
    assert train(data, teacher, cache)[1] == 0


def test_mixup_and_stage_losses_are_not_cached(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    for _ in range(2):
        assert train(data, teacher, cache, augmentation=Augmentation(mixup=0.3))[1] == 600
    needs = frozenset({"logits", "stages"})
    options: dict[str, Any] = {"augmentation": VIEWS, "view_seed": 0, "bfloat16": False, "device": CPU}
    assert views_key(teacher, OutputShapes(10), data, needs=needs, **options) is None
    assert not list(tmp_path.iterdir())


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    assert cache.read(KEY, 0) is None
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert cache.write(KEY, 0, np.array([7, 2, 9, 0]), values)
    assert cache.write(KEY, 0, np.array([5]), values[:1])
    rows, filled = cache.read(KEY, 0)
    assert np.flatnonzero(filled).tolist() == [0, 2, 5, 7, 9]
    assert np.array_equal(rows[[7, 2, 9, 0, 5]], values[[0, 1, 2, 3, 0]])
    assert cache.read(KEY, 1) is None
    assert cache.read(replace(KEY, view_seed=1), 0) is None
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_rows_cut_short_are_not_trusted_again(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    values = np.ones((3, 3), dtype=np.float32)
    cache.write(KEY, 0, np.array([1, 2, 3]), values)
    next(tmp_path.glob("*/*.rows")).write_bytes(b"")
    assert cache.read(KEY, 0) is None
    cache.write(KEY, 0, np.array([5]), values[:1])
    assert np.flatnonzero(cache.read(KEY, 0)[1]).tolist() == [5]


def test_a_folder_that_cannot_be_written_only_costs_time(data, teacher, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    plain, _ = train(data, teacher, None)
    result, asked = train(data, teacher, TeacherCache(blocked / "cache"))
    assert asked == 600
    assert same(plain, result)


def test_answers_that_are_not_finite_are_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        TeacherCache(tmp_path).write(KEY, 0, np.array([1]), np.array([[0.0, np.nan, 1.0]], dtype=np.float32))
    assert not list(tmp_path.iterdir())


def _write_share(folder: Path, share: int) -> None:
    samples = np.arange(share, 1000, 4)
    key = replace(KEY, samples=1000)
    for view in range(5):
        values = (samples[:, None] + np.array([0.0, 0.25, 0.5]) + view).astype(np.float32)
        for part in np.array_split(np.arange(len(samples)), 10):
            assert TeacherCache(folder).write(key, view, samples[part], values[part])


def test_several_processes_fill_one_view(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_share, args=(tmp_path, share)) for share in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for view in range(5):
        rows, filled = TeacherCache(tmp_path).read(replace(KEY, samples=1000), view)
        assert filled.all()
        expected = np.arange(1000)[:, None] + np.array([0.0, 0.25, 0.5]) + view
        assert np.array_equal(rows, expected.astype(np.float32))
