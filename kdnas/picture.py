"""How a picture becomes pixels, defined once: data sets read it so, and exported scripts carry the text of `READING`.

The functions import what they need themselves: an exported script needs Pillow and numpy for pictures alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture


def upright(picture: Picture) -> Picture:
    """Return a picture as a viewer shows it, by its EXIF orientation; itself where it is upright or has none."""
    from PIL import ExifTags, Image

    try:
        turn = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF fails in any way at all, and viewers pass over it
        return picture
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return picture.transpose(turns[turn]) if turn in turns else picture


def eight_bits(picture: Picture, kind: str | None) -> Picture:
    """Return a picture of the format `kind` with 8 bits a channel: of 16 the upper ones. Raises ValueError."""
    import numpy as np
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
        values, hidden = np.asarray(picture), picture.info.get("transparency")
        shallow = Image.fromarray((values >> 8).astype(np.uint8))  # as Pillow itself reads 16 bits of colour
        if isinstance(hidden, int):  # a PNG's value that is transparent, all its 16 bits
            shallow.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        return shallow
    if picture.mode in ("F", "I"):
        raise ValueError(f"has pixels of mode {picture.mode}, more than 16 bits a channel, on an unknown scale")
    return picture


def opaque(picture: Picture, background: str) -> Picture:
    """Return a picture with what is transparent shown on the colour `background`; itself where nothing is."""
    from PIL import Image, ImageColor

    if not picture.has_transparency_data:
        return picture
    seen = picture.convert("RGBA")
    if seen.getchannel("A").getextrema() == (255, 255):
        return picture
    ground = Image.new("RGBA", seen.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(ground, seen)


def fitted(picture: Picture, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Return uint8 [C, H, W], C 1 or 3, resized to `size` (height, width): the whole picture, its aspect not kept."""
    import numpy as np
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)


READING: tuple[Callable[..., Any], ...] = (upright, eight_bits, opaque, fitted)
"""In the order in which a picture goes through them."""


def reading_source() -> str:
    """Return the Python text of `READING`."""
    return "\n\n".join(inspect.getsource(function) for function in READING)
