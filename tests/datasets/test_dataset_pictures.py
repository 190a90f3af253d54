"""What a picture is decoded to: that which a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdnas.datasets._pictures import NotAPictureError, PictureReader, has_picture_suffix, may_be_picture

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
PHOTO = Image.fromarray(RGB)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(content: bytes, name: str = "x.png", **options) -> np.ndarray:
    """The decoded picture as [H, W, C]."""
    settings = {"size": None, "grayscale": False, "background": "white", **options}
    return PictureReader(**settings).read(content, name).pixels.transpose(1, 2, 0)


def conversions(content: bytes) -> tuple[str, ...]:
    return PictureReader(None, False, "white").read(content, "x").conversions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_turned_picture_is_shown_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTO, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(shown(content), np.asarray(upright))
    assert shown(content).shape == ((6, 4, 3) if orientation > 4 else (4, 6, 3))
    if kind != "TIFF":  # there Pillow turns it itself
        assert conversions(content) == (("turned",) if orientation > 1 else ())


def test_damaged_exif_is_passed_over():
    content = encoded(PHOTO, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(shown(content), RGB)
    assert conversions(content) == ()


@pytest.mark.parametrize("background", ["white", "black", "#ff8000"])
def test_transparent_parts_stand_on_the_background(background):
    alpha = np.random.default_rng(1).integers(0, 256, (4, 6, 1), dtype=np.uint8)
    content = encoded(Image.fromarray(np.concatenate([RGB, alpha], axis=2)))
    ground = {"white": (255, 255, 255), "black": (0, 0, 0), "#ff8000": (255, 128, 0)}[background]
    share = alpha / 255
    expected = RGB * share + np.array(ground) * (1 - share)
    assert np.abs(shown(content, background=background) - expected).max() <= 1
    assert conversions(content) == ("transparent",)


def test_every_kind_of_transparency_is_seen():
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1:3, 2:4] = 255
    glyph = Image.fromarray(mask)
    black = Image.new("L", (6, 4), 0)
    palette = glyph.point(lambda value: value // 255).convert("P")
    palette.putpalette([0, 0, 0] * 256)
    contents = [
        encoded(Image.merge("LA", (black, glyph))),
        encoded(Image.merge("RGBA", (black, black, black, glyph))),
        encoded(palette, transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(Image.merge("RGBA", (black, black, black, glyph)), "WEBP", lossless=True),
    ]
    for content in contents:
        np.testing.assert_array_equal(shown(content)[..., 0], 255 - mask)
        np.testing.assert_array_equal(shown(content, grayscale=True)[..., 0], 255 - mask)


def test_an_opaque_alpha_channel_changes_nothing():
    content = encoded(PHOTO.convert("RGBA"))
    np.testing.assert_array_equal(shown(content, background="black"), RGB)
    assert conversions(content) == ()


def test_sixteen_bits_keep_their_upper_eight_and_the_brightest_is_told():
    values = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
    reader = PictureReader(None, True, "white")
    picture = reader.read(encoded(Image.fromarray(values)), "x.png")
    np.testing.assert_array_equal(picture.pixels[0], values >> 8)
    assert reader.notes([picture.conversions]) == [
        "1 of 1 picture is of 16 bits a channel, of which the upper 8 are kept; the brightest value is 65472 of 65535"
    ]
    dark = PictureReader(None, True, "white")
    note = dark.notes([dark.read(encoded(Image.fromarray(values // 16), "TIFF"), "x.tif").conversions])[0]
    assert "brightest value is 4092 of 65535, so that they are nearly black" in note


def test_the_transparent_value_of_sixteen_bits_is_that_of_all_bits():
    values = np.array([[1000, 1001], [65535, 0]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), transparency=1000)
    np.testing.assert_array_equal(shown(content, grayscale=True)[..., 0], [[255, 3], [255, 0]])
    assert set(conversions(content)) == {"transparent", "sixteen_bits"}


def test_cmyk_and_animations_are_converted_and_said():
    cmyk = PHOTO.convert("CMYK")
    content = encoded(cmyk, "TIFF")
    np.testing.assert_array_equal(shown(content), np.asarray(cmyk.convert("RGB")))
    assert conversions(content) == ("cmyk",)
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert conversions(content) == ("frames",)
        assert np.abs(shown(content)[0, 0].astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO"])
def test_a_picture_is_known_by_its_content(kind):
    content = encoded(PHOTO.resize((16, 16)), kind)
    assert may_be_picture(content[:32])
    assert shown(content, "no-suffix").shape == (16, 16, 3)


def test_other_files_are_no_pictures():
    for content in (b"label,path\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89HDF\r\n\x1a\n", bytes(64), b"#define x\n"):
        assert not may_be_picture(content)
        with pytest.raises(NotAPictureError, match="not an image"):
            shown(content)
    for text in (b"BM, as a text may begin", b"P3 is the third phase\n"):
        with pytest.raises(NotAPictureError):
            shown(text, "notes.txt")
    assert all(map(has_picture_suffix, ("a.JPG", "b.jfif", "c.jpe", "d.avif", "e.HEIC", "f.tga")))
    assert not any(map(has_picture_suffix, ("a", "b.txt", "c.eps", "d.jpg-large", "e.pdf", ".png")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_cut_picture_is_refused(kind):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind)
    with pytest.raises(ValueError, match=r"cannot be read|not an image"):
        shown(content[: len(content) * 2 // 3])


def test_what_is_empty_huge_or_needs_another_package_is_refused_in_words():
    with pytest.raises(ValueError, match="empty file"):
        shown(b"")
    bomb = encoded(Image.new("1", (20_000, 9_000)))
    with pytest.raises(ValueError, match="exceeds limit"):
        shown(bomb)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert may_be_picture(heic)
    with pytest.raises(ValueError, match=r"pip install pillow-heif|cannot be read"):
        shown(heic, "x.heic")
