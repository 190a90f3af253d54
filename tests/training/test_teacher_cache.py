"""The teacher cache: exact, shared, and safe to kill."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted_teacher import CPU, VIEWS, Counting, batches, counting_teacher, train, train_at_once
from torch import Tensor

from kdnas.errors import TrialError
from kdnas.nn.taps import OutputShapes, Taps
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import Trained
from kdnas.training.recipe import Distillation, LossTerm
from kdnas.training.teacher_cache import TeacherCache, ViewsKey
from kdnas.training.teacher_outputs import BatchPlan, TeacherOutputs, views_key, why_live

KEY = ViewsKey(
    teacher="t",
    data="d",
    augmentation="{}",
    view_seed=0,
    precision="float32",
    device="cpu",
    samples=10,
    outputs=3,
    embedding=0,
)


@pytest.fixture
def teacher() -> Teacher:
    return counting_teacher()


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


def key_of(teacher, images: Batches, *, bfloat16: bool = False, top_k: int | None = None) -> ViewsKey:
    key = views_key(
        teacher,
        OutputShapes(10, embedding=48),
        plan_of(images),
        needs=frozenset({"logits", "embedding"}),
        bfloat16=bfloat16,
        top_k=top_k,
    )
    assert key is not None
    return key


def plan_of(images: Batches) -> BatchPlan:
    return BatchPlan(images, 64, VIEWS, 4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_cached_rows_equal_the_teacher_on_the_same_view(data, teacher, tmp_path, bfloat16) -> None:
    images = batches(data)
    key, plan = key_of(teacher, images, bfloat16=bfloat16), plan_of(images)
    with Taps(teacher.module, (), "head") as tapped:
        outputs = TeacherOutputs(tapped, device=CPU, bfloat16=bfloat16, cache=(TeacherCache(tmp_path), key), plan=plan)
        outputs.begin(1)
        before = teacher.module.asked
        cached = [outputs(batch.inputs, batch.samples) for batch in plan.batches(1, range(5))]
        assert teacher.module.asked == before
        online = TeacherOutputs(tapped, device=CPU, bfloat16=bfloat16, cache=None)
        online.begin(1)
        for batch, read in zip(plan.batches(1, range(5)), cached, strict=True):
            live = online(batch.laid_out, batch.samples)
            assert read.logits.dtype == live.logits.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
            assert torch.equal(read.logits, live.logits)
            assert live.embedding is not None
            assert torch.equal(read.embedding, live.embedding)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                alone = teacher.module(batch.inputs[0][:1])
            # In another batch the last bits may differ: float32 rounding, or bfloat16's eight bits.
            assert torch.allclose(alone.float(), read.logits[:1].float(), atol=0.02 if bfloat16 else 1e-5)
    size = next(tmp_path.glob("*/*.rows")).stat().st_size
    assert size == len(data.train) * 58 * (2 if bfloat16 else 4)


def test_finer_parts_of_a_row_keep_all_of_it_fine(data, teacher, tmp_path) -> None:
    class InFloat32(Counting):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).float() / 3

    mixed = replace(teacher, module=InFloat32().eval())
    images = batches(data)
    key, plan = key_of(mixed, images, bfloat16=True), plan_of(images)
    with Taps(mixed.module, (), "head") as tapped:
        outputs = TeacherOutputs(tapped, device=CPU, bfloat16=True, cache=(TeacherCache(tmp_path), key), plan=plan)
        outputs.begin(0)
        for batch in plan.batches(0, range(5)):
            read = outputs(batch.inputs, batch.samples)
            live = TeacherOutputs(tapped, device=CPU, bfloat16=True, cache=None)(batch.inputs, batch.samples)
            assert live.logits.dtype == torch.float32
            assert torch.equal(read.logits, live.logits)
            assert torch.equal(read.embedding, live.embedding.float())


@pytest.mark.parametrize("top_k", [1, 4, 10, 99])
def test_the_largest_logits_alone_may_be_kept(data, teacher, tmp_path, top_k) -> None:
    images = batches(data)
    key, plan = key_of(teacher, images, top_k=top_k), plan_of(images)
    assert key.top_k == min(top_k, 10)
    with Taps(teacher.module, (), "head") as tapped:
        cache = TeacherCache(tmp_path, top_k=top_k)
        outputs = TeacherOutputs(tapped, device=CPU, bfloat16=False, cache=(cache, key), plan=plan)
        outputs.begin(0)
        for batch in plan.batches(0, range(5)):
            read = outputs(batch.inputs, batch.samples)
            live = TeacherOutputs(tapped, device=CPU, bfloat16=False, cache=None)(batch.inputs, batch.samples)
            assert torch.equal(read.embedding, live.embedding)
            kept = read.logits.topk(key.top_k).values
            assert torch.equal(kept, live.logits.topk(key.top_k).values)
            assert torch.allclose(read.logits.logsumexp(1), live.logits.logsumexp(1), atol=1e-5)
            assert torch.equal(read.logits, live.logits) == (top_k >= 9)


def test_parts_that_others_have_claimed_are_waited_for(data, teacher, tmp_path) -> None:
    """Two trainings meet an empty cache at once: together they run the teacher once on each image."""
    context = multiprocessing.get_context("spawn")  # torch may refuse to train in a fork of a process that has trained
    asked = context.Queue()
    start = context.Barrier(2)
    processes = [context.Process(target=train_at_once, args=(start, asked, data, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    shares = [asked.get() for _ in processes]
    assert sum(share - 2 * (share == 0) for share in shares) in (600, 598)
    assert train(data, teacher, TeacherCache(tmp_path))[1] == 0


def _claim_and_hang(folder: Path, claimed: Any, key: ViewsKey = KEY, part: str = "part") -> None:
    with TeacherCache(folder).claim(key, part, patience_s=0) as ours:
        assert ours
        claimed.set()
        time.sleep(60)


def test_a_killed_process_gives_its_claim_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    claimed = context.Event()
    process = context.Process(target=_claim_and_hang, args=(tmp_path, claimed))
    process.start()
    assert claimed.wait(10)
    cache = TeacherCache(tmp_path)
    with cache.claim(KEY, "part", patience_s=0.1) as ours:
        assert not ours
    with cache.claim(KEY, "other", patience_s=0) as ours:
        assert ours
    process.kill()
    process.join()
    with cache.claim(KEY, "part", patience_s=5) as ours:
        assert ours


def test_a_process_that_hangs_is_not_waited_for_for_ever(data, teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kdnas.training.teacher_outputs._PATIENCE_S", 0.2)
    images = batches(data)
    key, plan = key_of(teacher, images), plan_of(images)
    context = multiprocessing.get_context("fork")
    claimed = context.Event()
    part = f"0 0 {plan.digest}"
    process = context.Process(target=_claim_and_hang, args=(tmp_path, claimed, key, part))
    process.start()
    try:
        assert claimed.wait(10)
        with Taps(teacher.module, (), "head") as tapped:
            outputs = TeacherOutputs(tapped, device=CPU, bfloat16=False, cache=(TeacherCache(tmp_path), key), plan=plan)
            begun = time.monotonic()
            outputs.begin(0)
        assert time.monotonic() - begun >= 0.2
        assert TeacherCache(tmp_path).filled(key, 0)[images.indices].all()
    finally:
        process.kill()
        process.join()


def test_filling_tells_how_far_it_is_and_goes_on_where_it_stopped(data, teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kdnas.training.teacher_outputs._PART_SAMPLES", {"cpu": 128})
    printed: list[tuple[int, int, int]] = []

    def stop_at_the_second(view: int, part: int, parts: int) -> None:
        printed.append((view, part, parts))
        if part == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, teacher, TeacherCache(tmp_path, on_fill=stop_at_the_second), epochs=1)
    assert printed == [(0, 1, 3), (0, 2, 3)]
    _, asked = train(data, teacher, TeacherCache(tmp_path, on_fill=lambda *part: printed.append(part)), epochs=1)
    assert asked == 300 - 256
    assert printed[2:] == [(0, 3, 3)]


def test_a_half_written_cache_is_completed(data, teacher, tmp_path) -> None:
    cache = TeacherCache(tmp_path)
    whole, _ = train(data, teacher, cache)
    sums = sorted(tmp_path.glob("*/*.sums"))
    assert [one.name for one in sums] == ["view00000.sums", "view00001.sums"]
    # Killed between the rows and the sums of view 1: its rows are there, garbled, and nothing says that they are good.
    sums[1].unlink()
    rows = sums[1].with_suffix(".rows")
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


def test_mixtures_are_views_like_any_other(data, teacher, tmp_path) -> None:
    mixup = Augmentation(mixup=0.3)
    plain, _ = train(data, teacher, None, augmentation=mixup)
    for expected in (600, 0):
        mixed, asked = train(data, teacher, TeacherCache(tmp_path), augmentation=mixup)
        assert asked == expected
        assert same(plain, mixed)
    # Other samples to draw partners from make other mixtures of the same images.
    assert train(data, teacher, TeacherCache(tmp_path), augmentation=mixup, count=200, epochs=1)[1] == 200


def test_stage_maps_are_not_cached(data, teacher) -> None:
    needs = frozenset({"logits", "stages"})
    assert views_key(teacher, OutputShapes(10), plan_of(batches(data)), needs=needs, bfloat16=False) is None


def test_why_a_teacher_is_run_live_is_told() -> None:
    terms = tuple(LossTerm(type=name, weight=0.5) for name in ("kd", "hint", "attention"))
    shapes = OutputShapes(10, ((64, 32, 32), (128, 16, 16)))
    printed = why_live(Distillation(losses=terms), shapes, 2**20)
    assert printed == "hint, attention read the teacher's stage maps, which are not kept: 384 GiB a view"
    assert "0.00191 GiB" in why_live(Distillation(losses=terms[1:2]), OutputShapes(10, ((8, 8, 8),)), 1000)
    assert why_live(Distillation(losses=terms[:1]), shapes, 2**20) is None
    unweighted = (terms[0], terms[1].model_copy(update={"weight": 0.0}))
    assert why_live(Distillation(losses=unweighted), shapes, 2**20) is None


def test_a_training_says_whether_its_teacher_was_live(data, teacher, tmp_path) -> None:
    kept, _ = train(data, teacher, TeacherCache(tmp_path), epochs=1)
    live, _ = train(data, teacher, None, epochs=1)
    assert (kept.live_teacher, live.live_teacher) == (False, True)
    for trained in (kept, live):
        assert set(trained.phases) == {"teacher", "data", "student"}
        assert sum(trained.phases.values()) == pytest.approx(trained.train_seconds)
        assert trained.phases["teacher"] == pytest.approx(trained.teacher_seconds)
        assert min(trained.phases.values()) > 0


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    assert cache.read(KEY, 0) is None
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert cache.write(KEY, 0, np.array([7, 2, 9, 0]), values)
    assert cache.write(KEY, 0, np.array([5]), values[:1])
    view = cache.read(KEY, 0)
    assert np.flatnonzero(view.filled).tolist() == [0, 2, 5, 7, 9]
    assert np.array_equal(view.rows[[7, 2, 9, 0, 5]], values[[0, 1, 2, 3, 0]])
    assert cache.read(KEY, 1) is None
    assert cache.read(replace(KEY, view_seed=1), 0) is None
    with pytest.raises(ValueError, match="read-only"):
        view.rows[0] = 0


def test_rows_cut_short_are_not_trusted_again(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    values = np.ones((3, 3), dtype=np.float32)
    cache.write(KEY, 0, np.array([1, 2, 3]), values)
    next(tmp_path.glob("*/*.rows")).write_bytes(b"")
    assert cache.read(KEY, 0) is None
    cache.write(KEY, 0, np.array([5]), values[:1])
    assert np.flatnonzero(cache.read(KEY, 0).filled).tolist() == [5]


def test_a_folder_that_cannot_be_written_only_costs_time(data, teacher, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    plain, _ = train(data, teacher, None)
    result, asked = train(data, teacher, TeacherCache(blocked / "cache"))
    assert asked == 600
    assert same(plain, result)


def test_answers_that_are_not_finite_are_not_remembered(data, teacher, tmp_path: Path) -> None:
    torch.nn.init.constant_(teacher.module.head.bias, torch.nan)
    with pytest.raises(TrialError, match="teacher gave outputs that are not finite"):
        train(data, teacher, TeacherCache(tmp_path))
    assert not list(tmp_path.glob("*/*.rows"))


def test_a_cache_keeps_at_least_one_logit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        TeacherCache(tmp_path, top_k=0)


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
        found = TeacherCache(tmp_path).read(replace(KEY, samples=1000), view)
        assert found.filled.all()
        expected = np.arange(1000)[:, None] + np.array([0.0, 0.25, 0.5]) + view
        assert np.array_equal(found.rows, expected.astype(np.float32))
