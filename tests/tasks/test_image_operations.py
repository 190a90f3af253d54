"""The usual augmentations equal those of Pillow and torchvision, and are functions of (seed, view, sample)."""

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from kdnas.tasks import _image_operations as operations
from kdnas.tasks import _image_views as views
from kdnas.tasks._draws import Draws
from kdnas.tasks._image_operations import OPERATIONS, apply
from kdnas.tasks._image_settings import Augmentation, RandomErasing, RandomResizedCrop
from kdnas.tasks._image_views import augment

FILL = (125.4, 60.0, 254.6)
COLOUR = torch.tensor([125, 60, 255], dtype=torch.uint8)[None, :, None, None]
EVERYTHING = {
    "random_resized_crop": {},
    "color_jitter": {"hue": 0.1},
    "rand_augment": {"ops": 3},
    "random_erasing": {},
}


def photos(count: int = 12, channels: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    """Smooth scenes with noise on them, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    noise = 0.1 * torch.rand(count, channels, height, width, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def back(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def gap(ours: torch.Tensor, theirs: list[Image.Image]) -> int:
    return int((ours.int() - torch.stack([back(one) for one in theirs]).int()).abs().max())


FACTORS = torch.linspace(0.1, 1.9, 12, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (operations.brightness, ImageEnhance.Brightness),
        (operations.contrast, ImageEnhance.Contrast),
        (operations.saturation, ImageEnhance.Color),
        (operations.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_blends_are_pillows(ours, theirs):
    images = photos()
    expected = [theirs(pillow(image)).enhance(float(factor)) for image, factor in zip(images, FACTORS, strict=True)]
    assert gap(ours(images, FACTORS), expected) <= 1  # Pillow cuts where this rounds
    assert torch.equal(ours(images, torch.ones(12, dtype=torch.float64)), images)


def test_what_takes_no_strength_or_a_level_is_pillows():
    images = photos()
    level = torch.full((12,), 3.0, dtype=torch.float64)
    assert gap(operations.equalize(images, level), [ImageOps.equalize(pillow(image)) for image in images]) == 0
    assert gap(operations.autocontrast(images, level), [ImageOps.autocontrast(pillow(image)) for image in images]) <= 1
    assert gap(operations.posterize(images, level), [ImageOps.posterize(pillow(image), 3) for image in images]) == 0
    level = torch.full((12,), 100.0, dtype=torch.float64)
    assert gap(operations.solarize(images, level), [ImageOps.solarize(pillow(image), 100) for image in images]) == 0
    plain = torch.full((2, 3, 5, 5), 77, dtype=torch.uint8)
    for change in (operations.equalize, operations.autocontrast):
        assert torch.equal(change(plain, level[:2]), plain)


def test_a_turned_hue_is_that_of_colorsys():
    import colorsys

    images = photos(3, height=6, width=5)
    shifts = torch.tensor([-0.3, 0.0, 0.45], dtype=torch.float64)
    turned = operations.hue(images, shifts)
    for image, shift, result in zip(images, shifts.tolist(), turned, strict=True):
        for place in np.ndindex(6, 5):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, place[0], place[1]] / 255.0).tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)) * 255.0
            assert (result[:, place[0], place[1]] - expected).abs().max() <= 0.51
    assert torch.equal(turned[1], images[1])


@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(0, 0, 24, 32), (3, 5, 20, 11), (10, 20, 4, 9), (23, 0, 1, 1)]
)
def test_a_resized_crop_is_pillows(top, left, height, width):
    images = photos(2)
    place = [torch.full((2,), value) for value in (top, left, height, width)]
    rows, columns = views._resizing(place[0], place[2], 24), views._resizing(place[1], place[3], 32)
    assert torch.allclose(rows.sum(2) / views._ONE, torch.ones(2, 24), atol=2e-3)
    known = views.Boxes(*place, torch.ones(2, dtype=torch.bool))
    original = views.random_boxes
    try:
        views.random_boxes = lambda *arguments: known
        ours = views.random_resized_crop(images, Draws(torch.arange(2), 0, 0), RandomResizedCrop())
    finally:
        views.random_boxes = original
    box = (left, top, left + width, top + height)
    theirs = [pillow(image).crop(box).resize((32, 24), Image.Resampling.BILINEAR) for image in images]
    assert gap(ours, theirs) <= 1
    assert columns.shape == (2, 32, 32)


def test_boxes_have_the_areas_and_aspects_that_are_asked_for():
    samples = torch.arange(4000)
    drawn = views.random_boxes(Draws(samples, 0, 0), (64, 64), (0.08, 1.0), (3 / 4, 4 / 3), "resized-crop")
    assert drawn.found.float().mean() > 0.99
    kept = drawn.found
    area = (drawn.height * drawn.width)[kept] / 64**2
    aspect = (drawn.width / drawn.height)[kept]
    assert 0.07 < area.min() < 0.1
    assert 0.95 < area.max() <= 1.0
    assert aspect.min() > 0.70
    assert aspect.max() < 1.43
    assert bool((drawn.top >= 0).all())
    assert int((drawn.top + drawn.height).max()) <= 64
    assert int((drawn.left + drawn.width).max()) == 64


def test_erasing_hides_boxes_in_its_share_of_the_views():
    images = torch.zeros(3000, 3, 16, 16, dtype=torch.uint8)
    erased = views.random_erasing(images, Draws(torch.arange(3000), 0, 0), RandomErasing(probability=0.25), COLOUR)
    changed = (erased != images).any(1)
    assert 0.2 < float(changed.any(2).any(1).float().mean()) < 0.3
    assert set(map(tuple, erased.permute(0, 2, 3, 1)[changed].tolist())) == {(125, 60, 255)}
    some = changed[changed.any(2).any(1)]
    area = some.sum((1, 2))
    full = some.any(1).sum(1) * some.any(2).sum(1)
    assert torch.equal(area, full)  # a box
    assert float(area.max()) <= 0.38 * 256  # whole pixels


MOVES = {
    "shear_x": lambda level, w, h: (1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda level, w, h: (1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda level, w, h: (1, 0, int(150 / 331 * w * level), 0, 1, 0),
    "translate_y": lambda level, w, h: (1, 0, 0, 0, 1, int(150 / 331 * h * level)),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", [*MOVES, "rotate"])
def test_moves_are_pillows(name, sign):
    images = photos()
    chosen = torch.full((12,), OPERATIONS.index(name))
    ours = apply(images, chosen, torch.full((12,), sign, dtype=torch.float64), 0.3, COLOUR)
    fill = tuple(COLOUR.flatten().tolist())
    for image, result in zip(images, ours, strict=True):
        if name == "rotate":
            expected = pillow(image).rotate(sign * 9.0, Image.Resampling.NEAREST, fillcolor=fill)
        else:
            coefficients = MOVES[name](0.3 * sign, 32, 24)
            expected = pillow(image).transform((32, 24), Image.Transform.AFFINE, coefficients, fillcolor=fill)
        different = (result != back(expected)).any(0).float().mean()
        assert different < 0.01  # a pixel whose source lies on an edge may be the neighbour


def test_every_operation_is_drawn_alike_and_a_magnitude_of_zero_moves_nothing():
    counts = torch.bincount(Draws(torch.arange(14_000), 0, 0).below("rand-augment-0", len(OPERATIONS)))
    assert len(counts) == 14
    assert int((counts - 1000).abs().max()) < 150
    images = photos(14)
    still = apply(images, torch.arange(14), torch.ones(14, dtype=torch.float64), 0.0, COLOUR)
    changed = {OPERATIONS[place] for place in range(14) if not torch.equal(still[place], images[place])}
    assert changed <= {"autocontrast", "equalize", "solarize"}


def test_large_images_are_cropped_a_few_at_a_time_and_alike(monkeypatch):
    images, samples = photos(), torch.arange(12)
    settings = Augmentation(random_resized_crop={})
    whole = augment(images, Draws(samples, 0, 1), settings, FILL)
    monkeypatch.setattr(views, "_WEIGHTS", 5 * 32 * 32)
    assert torch.equal(augment(images, Draws(samples, 0, 1), settings, FILL), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_nothing_but_seed_view_and_sample(channels):
    images, fill = photos(40, channels), FILL[:channels]
    settings = Augmentation(flip=True, crop_padding=2, cutout=4, **EVERYTHING)
    samples = torch.arange(100, 140)
    whole = augment(images, Draws(samples, 3, 5), settings, fill)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    assert torch.equal(whole, whole.round())
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    other = augment(images[mixed], Draws(samples[mixed], 3, 5), settings, fill)
    assert torch.equal(other, whole[mixed])
    for place in (0, 17, 39):
        part = slice(place, place + 1)
        assert torch.equal(augment(images[part], Draws(samples[part], 3, 5), settings, fill), whole[part])
    for seed, view in ((4, 5), (3, 6)):
        another = augment(images, Draws(samples, seed, view), settings, fill)
        assert (another != whole).flatten(1).any(1).float().mean() > 0.9


def test_colour_jitter_is_torchvisions():
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = photos(4)
    for ours, theirs in (
        (operations.brightness, functional.adjust_brightness),
        (operations.saturation, functional.adjust_saturation),
        (operations.contrast, functional.adjust_contrast),
    ):
        expected = torch.stack([theirs(image, 1.3) for image in images])
        assert (ours(images, torch.full((4,), 1.3).double()).int() - expected.int()).abs().max() <= 2
    expected = torch.stack([functional.adjust_hue(image, 0.2) for image in images])
    assert (operations.hue(images, torch.full((4,), 0.2).double()).int() - expected.int()).abs().max() <= 1


def test_settings_are_spelled_as_users_know_them_and_old_records_stay():
    assert Augmentation(random_erasing=True).random_erasing == RandomErasing()
    assert Augmentation(random_erasing=False) == Augmentation()
    assert set(Augmentation(flip=True).model_dump()) == {"flip", "crop_padding", "cutout", "mixup"}
    given = Augmentation(random_resized_crop={"scale": [0.5, 1], "ratio": [1, 1]})
    assert Augmentation.model_validate(given.model_dump(mode="json")) == given
    for wrong in ({"scale": [0.9, 0.1]}, {"scale": [0, 1]}, {"ratio": [2, 1]}, {"size": 3}):
        with pytest.raises(pydantic.ValidationError):
            Augmentation(random_resized_crop=wrong)
