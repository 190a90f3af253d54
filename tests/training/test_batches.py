import numpy as np
import pytest
import torch

from kdnas.core.data import ImageData, Samples
from kdnas.tasks._draws import Draws
from kdnas.tasks._image_views import augment
from kdnas.tasks.image_classification import Augmentation
from kdnas.training.batches import Batches, available_memory

CPU = torch.device("cpu")
FILL = (100.0, 50.0)
ALL = Augmentation(flip=True, crop_padding=2, cutout=3)
INDICES = np.array([3, 50, 7, 8, 21, 40, 41, 42, 1, 59, 30])


def arrays(count: int = 60) -> Samples:
    rng = np.random.default_rng(0)
    return Samples({"pixels": rng.integers(0, 256, (count, 2, 6, 5), dtype=np.uint8)}, rng.integers(0, 4, count))


def of(source: Samples) -> ImageData:
    return ImageData("some", ("a", "b", "c", "d"), source, source, "f", FILL, (1.0, 1.0))


def batches(source: Samples | None = None, indices: np.ndarray = INDICES, **options) -> Batches:
    return Batches(of(source or arrays()), indices, device=CPU, **options)


def epoch(source: Batches, number: int = 0, *, batch_size: int = 4, augmentation: Augmentation = ALL, seed: int = 9):
    return list(source.epoch(number, batch_size=batch_size, views=augmentation, seed=seed))


def by_sample(found) -> dict[int, bytes]:
    return {
        int(sample): image.numpy().tobytes() + label.numpy().tobytes()
        for batch in found
        for image, label, sample in zip(batch.inputs[0], batch.targets, batch.samples, strict=True)
    }


def test_ordered_gives_everything_once_as_it_is():
    source = arrays()
    found = list(batches(source).ordered(batch_size=4))
    assert [len(batch.targets) for batch in found] == [4, 4, 3]
    assert torch.cat([batch.samples for batch in found]).tolist() == INDICES.tolist()
    images = torch.cat([batch.inputs[0] for batch in found])
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images, source.inputs["pixels"][INDICES])
    np.testing.assert_array_equal(torch.cat([batch.targets for batch in found]), source.targets[INDICES])


def test_an_epoch_is_a_shuffle_of_the_samples_in_their_views():
    source = arrays()
    found = epoch(batches(source), 5)
    samples = torch.cat([batch.samples for batch in found])
    assert sorted(samples.tolist()) == sorted(INDICES.tolist())
    assert samples.tolist() != INDICES.tolist()
    np.testing.assert_array_equal(torch.cat([batch.targets for batch in found]), source.targets[samples])
    expected = augment(torch.from_numpy(source.inputs["pixels"][samples]), Draws(samples, 9, 5), ALL, FILL)
    assert torch.equal(torch.cat([batch.inputs[0] for batch in found]), expected)


def test_epochs_and_seeds_differ_and_repeat():
    source = batches()

    def order(**options):
        return torch.cat([batch.samples for batch in epoch(source, **options)]).tolist()

    assert order(number=1) == order(number=1)
    assert order(number=1) != order(number=2)
    assert order(number=1) != order(number=1, seed=10)


@pytest.mark.parametrize("augmentation", [ALL, Augmentation(flip=True, mixup=0.4)])
def test_streaming_from_a_memory_map_equals_holding_in_memory(tmp_path, augmentation):
    source = arrays()
    np.save(tmp_path / "images.npy", source.inputs["pixels"])
    mapped = Samples({"pixels": np.load(tmp_path / "images.npy", mmap_mode="r")}, source.targets)
    needed = len(INDICES) * 2 * 6 * 5
    held, streamed = batches(mapped, memory_limit_bytes=needed), batches(mapped, memory_limit_bytes=needed - 1)
    assert held.is_resident
    assert not streamed.is_resident
    for first, second in zip(
        epoch(held, augmentation=augmentation), epoch(streamed, augmentation=augmentation), strict=True
    ):
        assert torch.equal(first.inputs[0], second.inputs[0])
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.samples, second.samples)
    for first, second in zip(held.ordered(batch_size=3), streamed.ordered(batch_size=3), strict=True):
        assert torch.equal(first.inputs[0], second.inputs[0])


@pytest.mark.parametrize("augmentation", [ALL, Augmentation(flip=True, mixup=0.4)])
def test_a_view_depends_on_no_batch_size(augmentation):
    source = batches()
    small, large = (by_sample(epoch(source, batch_size=size, augmentation=augmentation)) for size in (2, 11))
    assert set(small) < set(large)  # 11 = 5 * 2 + 1: the last batch of one is left out
    assert all(large[sample] == view for sample, view in small.items())


def test_views_are_those_of_a_larger_selection_too():
    few, all_of_them = batches(), batches(indices=np.arange(60))
    theirs = by_sample(epoch(all_of_them, batch_size=60))
    assert all(theirs[sample] == view for sample, view in by_sample(epoch(few, batch_size=11)).items())


def test_mixup_mixes_two_views_and_their_labels_alike():
    source = arrays(8)
    source = Samples({"pixels": source.inputs["pixels"]}, np.arange(8) % 4)
    one = batches(source, np.arange(8))
    (plain,) = epoch(one, batch_size=8, augmentation=Augmentation(flip=True))
    (mixed,) = epoch(one, batch_size=8, augmentation=Augmentation(flip=True, mixup=1.0))
    assert torch.equal(plain.samples, mixed.samples)
    assert mixed.targets.shape == (8, 4)
    assert mixed.targets.dtype == torch.float32
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(8))
    assert (mixed.targets >= 0).all()
    views = dict(zip(plain.samples.tolist(), plain.inputs[0], strict=True))
    mixtures = 0
    for image, label, sample in zip(mixed.inputs[0], mixed.targets, mixed.samples.tolist(), strict=True):
        own = sample % 4
        others = [other for other in range(8) if other % 4 != own and label[other % 4] > 0]
        if not others:  # the partner has the same label
            continue
        share = label[own]
        fits = [
            torch.allclose(image, share * views[sample] + (1 - share) * views[other], atol=1e-3) for other in others
        ]
        assert any(fits)
        mixtures += 1
    assert mixtures >= 3


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(11, 4, [4, 4, 3]), (9, 4, [4, 4]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (3, 8, [3]), (0, 4, [])],
)
def test_steps_are_the_batches_of_an_epoch(count, batch_size, sizes):
    source = batches(indices=np.arange(count))
    assert len(source) == count
    assert [len(batch.samples) for batch in epoch(source, batch_size=batch_size)] == sizes
    assert source.steps(batch_size) == len(sizes)
    assert sum(len(batch.samples) for batch in source.ordered(batch_size=batch_size)) == count


def test_the_memory_of_this_machine_is_known():
    assert 10 << 20 < available_memory(CPU) < 1 << 50
    assert batches().is_resident


@pytest.mark.gpu
def test_a_cuda_device_gives_the_same_batches():
    here = batches()
    there = Batches(of(arrays()), INDICES, device=torch.device("cuda"))
    for augmentation in (ALL, Augmentation(flip=True, mixup=0.4)):
        for first, second in zip(
            epoch(here, augmentation=augmentation), epoch(there, augmentation=augmentation), strict=True
        ):
            assert second.inputs[0].is_cuda
            torch.testing.assert_close(second.inputs[0].cpu(), first.inputs[0])
            torch.testing.assert_close(second.targets.cpu(), first.targets)
