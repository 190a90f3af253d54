import numpy as np
import pytest

from kdnas.core.data import ImageData, Samples, stratified_split


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_class_gives_its_share(fraction):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 20]))
    kept, carved = stratified_split(labels, fraction, seed=1)
    assert np.array_equal(np.sort(np.concatenate([kept, carved])), np.arange(160))
    assert np.bincount(labels[carved]).tolist() == [round(fraction * n) for n in (100, 40, 20)]
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(carved) > 0)


def test_small_classes_keep_a_sample_on_both_sides_where_they_have_two():
    labels = np.array([0, 0, 1, 1, 1, 2])
    for fraction in (0.01, 0.99):
        kept, carved = stratified_split(labels, fraction, seed=0)
        assert {0, 1} <= set(labels[kept])
        assert {0, 1} <= set(labels[carved])


def test_the_seed_decides():
    labels = np.repeat(np.arange(5), 50)
    draw = [stratified_split(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_image_data_knows_its_task():
    arrays = Samples({"pixels": np.zeros((4, 3, 5, 6), np.uint8)}, np.array([0, 1, 0, 1]))
    data = ImageData("d", ("a", "b"), arrays, arrays, "f", (0.0,) * 3, (1.0,) * 3)
    assert len(arrays) == 4
    assert (data.task.image_shape, data.task.outputs) == ((3, 5, 6), 2)
