import math

import numpy as np
import pytest
import torch
from scipy import stats

from kdnas.tasks import _draws
from kdnas.tasks._draws import Draws
from kdnas.tasks._image_views import augment, mix, mixup_shares
from kdnas.tasks.image_classification import Augmentation

FILL = (125.4, 0.0, 254.6)
FILLED = (125, 0, 255)


def images(count: int = 40, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def splitmix64(key: int, counter: int) -> int:
    """The published generator in plain integers, at its counter-th step from the state `key`."""
    mask = (1 << 64) - 1
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_plain_reference_gives_splitmix64s_published_numbers():
    assert [splitmix64(1234567, i) for i in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_hash_is_splitmix64_at_a_counter(monkeypatch):
    for key in (0, 1234567, 2**63 - 1):
        monkeypatch.setattr(_draws, "derive_seed", lambda *path, key=key: key)
        samples = torch.tensor([0, 1, 2, 59_999, 10**12])
        bits = Draws(samples, 0, 0).bits("x")
        assert [int(value) % 2**64 for value in bits] == [splitmix64(key, int(sample)) for sample in samples]


def test_every_bit_and_every_byte_is_uniform():
    bits = Draws(torch.arange(100_000), 5, 3).bits("flip").numpy().view(np.uint64)
    ones = np.array([((bits >> np.uint64(i)) & np.uint64(1)).mean() for i in range(64)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(100_000)
    counts = np.bincount(bits.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_samples_views_seeds_and_streams_are_independent():
    samples = torch.arange(20_000)
    base = Draws(samples, 0, 0).uniform("a").numpy()
    others = [
        Draws(samples, 1, 0).uniform("a"),
        Draws(samples, 0, 1).uniform("a"),
        Draws(samples, 0, 0).uniform("b"),
        Draws(samples + 1, 0, 0).uniform("a"),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other.numpy())[0, 1]) < 5 / math.sqrt(20_000)
    assert stats.kstest(base, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("limit", [1, 2, 9, 33])
def test_integers_are_uniform_below_the_limit(limit):
    drawn = Draws(torch.arange(50_000), 1, 0).below("s", limit)
    counts = torch.bincount(drawn, minlength=limit).numpy()
    assert len(counts) == limit
    assert limit == 1 or stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("beta", [0.2, 1.0, 4.0])
def test_mixup_shares_follow_the_beta_distribution(beta):
    shares = mixup_shares(Draws(torch.arange(20_000), 1, 2), beta).numpy()
    edges = stats.beta(beta, beta).ppf(np.linspace(0.1, 0.9, 9))
    assert stats.chisquare(np.bincount(np.searchsorted(edges, shares), minlength=10)).pvalue > 1e-4
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.05)


def naive(image: np.ndarray, sample: int, augmentation: Augmentation, seed: int, view: int) -> np.ndarray:
    """One image, pixel by pixel, from the stated meaning of the draws."""
    one = torch.tensor([sample])

    def below(limit: int, stream: str) -> int:
        return int(Draws(one, seed, view).below(stream, limit))

    channels, height, width = image.shape
    padding = augmentation.crop_padding
    mirrored = augmentation.flip and int(Draws(one, seed, view).bits("flip")) < 0
    top = below(2 * padding + 1, "crop-top") - padding
    left = below(2 * padding + 1, "crop-left") - padding
    row0 = below(height, "cutout-row") - augmentation.cutout // 2
    column0 = below(width, "cutout-column") - augmentation.cutout // 2
    result = np.empty(image.shape, dtype=np.float32)
    for channel in range(channels):
        for row in range(height):
            for column in range(width):
                y, x = row + top, column + left
                value = FILLED[channel]
                if 0 <= y < height and 0 <= x < width:
                    value = image[channel, y, width - 1 - x if mirrored else x]
                inside = 0 <= row - row0 < augmentation.cutout and 0 <= column - column0 < augmentation.cutout
                result[channel, row, column] = FILLED[channel] if inside else value
    return result


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(crop_padding=2),
        Augmentation(crop_padding=12),
        Augmentation(cutout=3),
        Augmentation(cutout=4),
        Augmentation(cutout=100),
        Augmentation(flip=True, crop_padding=3, cutout=5),
    ],
)
def test_views_equal_a_loop_over_pixels(augmentation):
    source, samples = images(), torch.arange(40) * 7 + 3
    views = augment(source, Draws(samples, 4, 6), augmentation, FILL)
    assert views.dtype == torch.float32
    expected = [naive(source[i].numpy(), int(samples[i]), augmentation, 4, 6) for i in range(40)]
    np.testing.assert_array_equal(views.numpy(), expected)


ALL = Augmentation(flip=True, crop_padding=2, cutout=3)


def test_a_view_depends_on_no_order_and_no_batch():
    source, samples = images(), torch.arange(40)
    whole = augment(source, Draws(samples, 1, 2), ALL, FILL)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = augment(source[order], Draws(samples[order], 1, 2), ALL, FILL)
    assert torch.equal(shuffled, whole[order])
    alone = [augment(source[i : i + 1], Draws(samples[i : i + 1], 1, 2), ALL, FILL) for i in range(40)]
    assert torch.equal(torch.cat(alone), whole)


def test_views_and_seeds_differ_and_repeat():
    source, samples = images(), torch.arange(40)

    def views(seed, view):
        return augment(source, Draws(samples, seed, view), ALL, FILL)

    assert torch.equal(views(1, 2), views(1, 2))
    for other in (views(1, 3), views(2, 2)):
        assert (views(1, 2) != other).flatten(1).any(1).float().mean() > 0.9


def test_half_of_the_images_are_mirrored_and_all_shifts_occur():
    source = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    source[:, 0, 2, 1] = 255
    views = augment(source, Draws(torch.arange(4000), 0, 0), Augmentation(flip=True), [0])
    assert (views[:, 0, 2, 3] == 255).float().mean() == pytest.approx(0.5, abs=0.04)
    source = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    source[:, 0, 2, 2] = 255
    views = augment(source, Draws(torch.arange(4000), 0, 0), Augmentation(crop_padding=1), [0])
    places = views[:, 0, 1:4, 1:4].reshape(4000, 9).argmax(1)
    assert (views.flatten(1).sum(1) == 255).all()
    assert stats.chisquare(torch.bincount(places, minlength=9).numpy()).pvalue > 1e-4


def test_the_source_is_left_as_it_was():
    source = images()
    before = source.clone()
    augment(source, Draws(torch.arange(40), 0, 0), ALL, FILL)
    assert torch.equal(source, before)


def test_mix_is_the_weighted_mean():
    first, second = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    mixed = mix(first, second, torch.tensor([1.0, 0.0, 0.25]))
    assert torch.equal(mixed[0], first[0])
    assert torch.equal(mixed[1], second[1])
    torch.testing.assert_close(mixed[2], 0.25 * first[2] + 0.75 * second[2])


@pytest.mark.gpu
def test_views_are_the_same_on_a_cuda_device():
    source, samples = images(), torch.arange(40)
    here = augment(source, Draws(samples, 1, 2), ALL, FILL)
    there = augment(source.cuda(), Draws(samples.cuda(), 1, 2), ALL, FILL)
    assert torch.equal(there.cpu(), here)
