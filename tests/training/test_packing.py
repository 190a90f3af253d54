"""Students trained together, and how many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainings
from trainings import CPU, KD, Tape, batches, net, recipe, same

import kdnas.training.step
from kdnas.core.data import ImageData
from kdnas.errors import TrialError
from kdnas.tasks.image_classification import Augmentation
from kdnas.training.loop import Course, Pupil, Trained, distil, share_batches, train
from kdnas.training.packing import Packing, choose_size, measured_rate
from kdnas.training.recipe import LossTerm, Recipe
from kdnas.training.teacher_cache import TeacherCache

WIDTHS = ((8, 16), (4,), (6, 12, 24))
BURSTING = LossTerm(type="kd", weight=1e39)


def given(losses: tuple[LossTerm, ...] = (KD,), **settings: Any) -> list[Recipe]:
    """Recipes that differ in the optimizer's settings only."""
    return [recipe(*losses, learning_rate=rate, **settings) for rate in (0.1, 0.05, 0.02)]


def together(data: ImageData, recipes: list[Recipe], device: torch.device = CPU, **options: Any) -> list[Any]:
    images, held_out = batches(data, 0, 300, device), batches(data, 300, 500, device)
    course = Course(data, images, held_out, trainings.teacher(data), 5, device, **options)
    given_each = zip(WIDTHS, recipes, strict=True)
    return train(course, [Pupil(net(*widths, seed=k), one, 10 + k) for k, (widths, one) in enumerate(given_each)])


def alone(data: ImageData, recipes: list[Recipe], number: int, device: torch.device = CPU, **options: Any) -> Trained:
    return distil(
        net(*WIDTHS[number], seed=number),
        trainings.teacher(data),
        batches(data, 0, 300, device),
        batches(data, 300, 500, device),
        recipes[number],
        data=data,
        seed=10 + number,
        view_seed=5,
        device=device,
        **options,
    )


@pytest.mark.parametrize("losses", [(KD,), (LossTerm(type="hint"), LossTerm(type="rkd", weight=0.01))])
@pytest.mark.parametrize("graphs", [False, True])
def test_each_student_learns_what_it_would_alone(data, tmp_path, monkeypatch, losses, graphs) -> None:
    """Bit for bit, adapters included, through the cache and through (played) graphs."""
    recipes = given(losses, augmentation=Augmentation(crop_padding=1))
    expected = [alone(data, recipes, number) for number in range(3)]
    if graphs:
        monkeypatch.setattr(kdnas.training.step, "recorder_for", lambda device: Tape())
    found = together(data, recipes, teacher_cache=TeacherCache(tmp_path))
    for one, other in zip(found, expected, strict=True):
        assert same(one.network, other.network)
        assert one.score == other.score
        assert [record.loss for record in one.history] == [record.loss for record in other.history]
        assert one.fidelity == other.fidelity
        assert not one.network.training
        assert 0 < one.teacher_seconds < one.train_seconds
    assert len({one.train_seconds for one in found}) == 1


def test_each_student_tells_where_its_share_of_the_time_went(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kdnas.training.step, "recorder_for", lambda device: Tape(fail="not permitted while capturing"))
    kept = together(data, given(), teacher_cache=TeacherCache(tmp_path))
    live = together(data, given())
    for one in kept + live:
        phases = dict(one.phases)
        assert phases.pop("evaluation") > 0
        assert set(phases) == {"teacher", "data", "student"}
        assert min(phases.values()) > 0
        assert sum(phases.values()) == pytest.approx(one.train_seconds)
        assert phases["teacher"] == one.teacher_seconds
        assert one.graph_failure == "not permitted while capturing"
    assert not any(one.live_teacher for one in kept)
    assert all(one.live_teacher for one in live)
    assert [len(one.notes) for one in (kept[0], live[0])] == [1, 2]
    # Their shares add up to what was spent, and no more: all but the evaluation is shared evenly.
    assert len({one.train_seconds for one in kept}) == len({one.teacher_seconds for one in kept}) == 1


def test_what_a_failed_student_no_longer_spends_its_neighbours_do(data) -> None:
    recipes = given(epochs=3)
    recipes[1] = recipe(BURSTING, epochs=3)
    first, _, third = together(data, recipes)
    for one in (first, third):
        assert one.train_seconds == pytest.approx(sum(one.phases[name] for name in ("teacher", "data", "student")))
        assert one.phases["teacher"] == one.teacher_seconds > 0


def test_a_student_that_fails_does_not_disturb_the_others(data) -> None:
    recipes = given()
    recipes[1] = recipe(BURSTING)
    first, second, third = together(data, recipes)
    with pytest.raises(TrialError) as alone_too:
        alone(data, recipes, 1)
    assert isinstance(second, TrialError)
    assert str(second) == str(alone_too.value)
    assert same(first.network, alone(data, recipes, 0).network)
    assert same(third.network, alone(data, recipes, 2).network)


def test_memory_that_runs_out_in_one_student_is_its_own_failure(data) -> None:
    class Full(trainings.Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
            return super().forward(images)

    course = Course(data, batches(data, 0, 100), None, None, 0, CPU)
    found = train(course, [Pupil(net(4), recipe(), 1), Pupil(Full(4), recipe(), 2)])
    assert isinstance(found[0], Trained)
    assert str(found[1]) == "out of memory: CUDA out of memory. Tried to allocate 2 GiB"


def test_only_trainings_that_share_their_batches_go_together(data) -> None:
    assert share_batches([])
    assert share_batches(given())
    base = given()[0]
    assert not share_batches([base, recipe(KD, batch_size=32)])
    assert not share_batches([base, recipe(KD, epochs=3)])
    assert not share_batches([base, recipe(KD, augmentation=Augmentation(flip=True))])
    assert not share_batches([base, recipe(LossTerm(type="hint"))])
    assert share_batches([base, recipe(LossTerm(type="kd", weight=0.5, temperature=2.0), optimizer="adamw")])
    with pytest.raises(ValueError, match="differ"):
        together(data, [*given()[:2], recipe(KD, batch_size=32)])


def test_nothing_to_train_is_no_error(data) -> None:
    assert train(Course(data, batches(data, 0, 9), None, None, 0, CPU), []) == []


@pytest.mark.parametrize(
    ("rates", "size", "tried"),
    [
        ({1: 100, 2: 190, 4: 300, 8: 400, 16: 500}, 16, [1, 2, 4, 8, 16]),
        ({1: 100, 2: 190, 4: 199, 8: 400}, 2, [1, 2, 4]),  # 4.7 % more is not worth it
        ({1: 100, 2: 190, 4: 200, 8: 205}, 4, [1, 2, 4, 8]),
        ({1: 100, 2: 80}, 1, [1, 2]),
    ],
)
def test_students_are_added_while_they_pay(rates, size, tried) -> None:
    asked: list[int] = []

    def rate(count: int) -> float:
        asked.append(count)
        return float(rates[count])

    assert choose_size(rate) == Packing(size, {count: rates[count] for count in tried})
    assert asked == tried


def test_what_was_measured_is_told_in_words() -> None:
    assert Packing(1).words == ""
    assert Packing(1, {1: 1234.5, 2: 900.0}).words == (
        "one student at a time on each device, as measured (samples a second by students at a time: 1: 1,234, 2: 900)"
    )
    assert Packing(4, {1: 1.0, 4: 3.0}).words.startswith("4 students at a time on each device")


def test_a_full_memory_ends_the_trying() -> None:
    def rate(count: int) -> float:
        if count > 2:
            raise TrialError("out of memory")
        return 100.0 * count

    assert choose_size(rate) == Packing(2, {1: 100.0, 2: 200.0})

    def never(count: int) -> float:
        raise TrialError("out of memory")

    with pytest.raises(TrialError):
        choose_size(never)


def test_the_rate_counts_the_images_of_all_students(data, monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("kdnas.training.loop.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    train = batches(data, 0, 200)
    # An epoch takes one tick of this clock, however many students share it.
    assert measured_rate(lambda: net(4), 3, train, recipe(KD, epochs=9), data=data, device=CPU) == pytest.approx(600.0)


@pytest.mark.gpu
def test_students_on_streams_learn_what_they_would_alone(cuda, data) -> None:
    recipes = given(epochs=3)
    found = together(data, recipes, cuda)
    for number, one in enumerate(found):
        assert one.graph_failure is None
        expected = alone(data, recipes, number, cuda)
        for record, wanted in zip(one.history, expected.history, strict=True):
            assert record.loss == pytest.approx(wanted.loss, rel=5e-3)


@pytest.mark.gpu
def test_a_failing_student_leaves_its_neighbours_on_a_gpu(cuda, data) -> None:
    recipes = given(epochs=3)
    recipes[1] = recipe(BURSTING, epochs=3)
    first, second, third = together(data, recipes, cuda)
    assert isinstance(second, TrialError)
    for one, number in ((first, 0), (third, 2)):
        wanted = alone(data, recipes, number, cuda)
        assert one.history[-1].loss == pytest.approx(wanted.history[-1].loss, rel=5e-3)


@pytest.mark.gpu
def test_a_size_is_chosen_on_a_gpu(cuda, data) -> None:
    train = batches(data, 0, 1200, cuda)

    def rate(size: int) -> float:
        return measured_rate(lambda: net(8, 16), size, train, recipe(KD), data=data, device=cuda)

    packing = choose_size(rate, sizes=(1, 2, 4))
    assert packing.size in (1, 2, 4)
    assert all(value > 0 for value in packing.rates.values())


def test_students_go_on_together_from_their_own_checkpoints(data, tmp_path) -> None:
    """Each is interrupted at another epoch; together they end as they would have alone."""
    recipes = given(epochs=3)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    images, held_out = batches(data, 0, 300), batches(data, 300, 500)
    course = Course(data, images, held_out, trainings.teacher(data), 5, CPU)

    def pupil(number: int, stop: int | None = None) -> Pupil:
        def on_epoch(record: Any) -> None:
            if record.epoch == stop:
                raise KeyboardInterrupt

        return Pupil(net(*WIDTHS[number], seed=number), recipes[number], 10 + number, on_epoch, paths[number])

    for number, stop in ((0, 2), (1, 1)):
        with pytest.raises(KeyboardInterrupt):
            train(course, [pupil(number, stop)])
    seen: list[int] = []
    resumed = train(course, [pupil(number) for number in range(3)])
    for number, one in enumerate(resumed):
        whole = alone(data, recipes, number)
        assert isinstance(one, Trained)
        assert same(one.network, whole.network)
        assert [record.loss for record in one.history] == [record.loss for record in whole.history]
    again = train(course, [Pupil(net(*WIDTHS[0]), recipes[0], 10, lambda record: seen.append(1), paths[0])])
    assert seen == []  # all its epochs were done
    assert isinstance(again[0], Trained)
    assert isinstance(resumed[0], Trained)
    assert same(again[0].network, resumed[0].network)
