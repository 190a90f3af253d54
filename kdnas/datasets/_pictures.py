"""One encoded picture as pixels, the way a viewer shows it, with account kept of what had to be converted."""

from __future__ import annotations

import functools
import importlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageColor
from pydantic import AfterValidator

from kdnas.core.words import counted
from kdnas.datasets._inputs import Size, height_width
from kdnas.picture import eight_bits, fitted, opaque, upright


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise ValueError("must be a colour, such as white, black or '#808080'") from None
    return text


Background = Annotated[str, AfterValidator(_colour)]
"""A colour as CSS spells it: a name, or '#rrggbb'."""

Conversion = Literal["turned", "transparent", "frames", "sixteen_bits", "cmyk"]
"""What had to be done to a picture beyond decoding it."""

# Formats recognised by a file's first bytes, of those that Pillow decodes by itself: EPS, for one, starts Ghostscript.
_BY_CONTENT = (
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"),
    *("AVIF", "JPEG2000", "ICO", "QOI", "DDS"),
)
# Formats with too weak a mark: any file might pass for one, so that the suffix has to match too.
_BY_SUFFIX = ("TGA", "PCX", "DIB", "SGI", "SUN", "ICNS", "PSD")
_HEIF_SUFFIXES = (".heic", ".heif")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_READABLE = "JPEG, PNG, BMP, GIF, WebP, TIFF, PPM, AVIF, JPEG 2000, HEIC and others that Pillow reads"
HEAD_BYTES = 32
"""So many first bytes decide whether a file of another suffix may be a picture."""


class NotAPictureError(ValueError):
    """The content is of no picture format."""


class Picture(NamedTuple):
    """Pixels, uint8 [C, H, W], and what was converted on the way."""

    pixels: np.ndarray
    conversions: tuple[Conversion, ...]


class PictureReader:
    """Decodes pictures upright, opaque and with 8 bits a channel: 3 channels, or 1 where `grayscale`.

    `size` is (height, width) or a side to resize to, bilinearly; `background` the colour behind what is transparent.
    """

    def __init__(self, size: Size | None, grayscale: bool, background: str):
        self._size = height_width(size)
        self._grayscale = grayscale
        self._background = background
        self._brightest = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What decides how a picture is decoded, plain."""
        return {"size": self._size, "grayscale": self._grayscale, "background": self._background}

    def read(self, content: bytes, name: str) -> Picture:
        """Return the picture in `content`; `name` is the file's, whose suffix may decide the format.

        Raises NotAPictureError for another kind of file, and ValueError with the reason why a picture cannot be read.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return self._decoded(_opened(content, name))
        except ValueError:
            raise
        except Image.UnidentifiedImageError:
            raise NotAPictureError(f"is not an image that can be read (allowed: {_READABLE})") from None
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise ValueError(f"cannot be read: {error}") from error

    def _decoded(self, image: Image.Image) -> Picture:
        conversions: list[Conversion] = []
        kind = image.format
        if kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF") and getattr(image, "n_frames", 1) > 1:
            conversions.append("frames")  # a camera's JPEG may hold previews with its one picture
        image.load()
        turned = upright(image)
        shallow = eight_bits(turned, kind)
        shown = opaque(shallow, self._background)
        steps: list[tuple[Conversion, bool]] = [
            ("turned", turned is not image),
            ("sixteen_bits", shallow is not turned),
            ("transparent", shown is not shallow),
            ("cmyk", shown.mode == "CMYK"),
        ]
        conversions += [name for name, done in steps if done]
        if shallow is not turned:
            self._brightest = max(self._brightest, int(np.asarray(turned).max()))
        return Picture(fitted(shown, self._size, 1 if self._grayscale else 3), tuple(conversions))

    def notes(self, conversions: Sequence[Sequence[Conversion]]) -> list[str]:
        """Return in words what was converted, given the conversions of every picture of the data set."""
        tally = {kind: sum(kind in one for one in conversions) for kind in get_args(Conversion)}
        meanings = {
            "turned": "stored turned or mirrored, shown upright by EXIF orientation",
            "transparent": f"partly transparent, shown on {self._background} (option `background`)",
            "frames": "animated or of several pages: the first frame of each is used",
            "sixteen_bits": f"of 16 bits a channel, of which the upper 8 are kept; {self._brightness()}",
            "cmyk": "CMYK, converted to RGB without a colour profile",
        }
        return [
            f"{count:,} of {counted(len(conversions), 'picture')} {'is' if count == 1 else 'are'} {meanings[kind]}"
            for kind, count in tally.items()
            if count
        ]

    def _brightness(self) -> str:
        words = f"the brightest value is {self._brightest} of 65535"
        dark = self._brightest < 1 << 13
        return f"{words}, so that they are nearly black: scale them to the full range first" if dark else words


def has_picture_suffix(name: str) -> bool:
    """Return whether a file's name is that of a picture, so that it has to be readable as one."""
    return _suffix(name) in _suffixes()


def may_be_picture(head: bytes) -> bool:
    """Return whether a file that begins with `head`, `HEAD_BYTES` of it, may be a picture whatever its name."""
    Image.init()
    for name in _BY_CONTENT:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(head[:16]):
            return True
    return _is_heif(head)


def _suffix(name: str) -> str:
    return PurePosixPath(os.fspath(name)).suffix.lower()


@functools.cache
def _suffixes() -> dict[str, str]:
    """Return the format that each suffix of a picture stands for."""
    read = {*_BY_CONTENT, *_BY_SUFFIX, "MPO"}
    known = {suffix: name for suffix, name in Image.registered_extensions().items() if name in read}
    return {**known, **dict.fromkeys(_HEIF_SUFFIXES, "HEIF")}


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _opened(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ValueError("is an empty file, not an image")
    by_suffix = _suffixes().get(_suffix(name))
    formats = (*_BY_CONTENT, by_suffix) if by_suffix in _BY_SUFFIX else _BY_CONTENT
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except Image.UnidentifiedImageError:
        if not _is_heif(content[:HEAD_BYTES]):
            raise
    except (OSError, ValueError):
        if content[:1] in b"BP" and not has_picture_suffix(name):  # a text may begin as BMP and PPM do
            raise Image.UnidentifiedImageError from None
        raise
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise ValueError("is a HEIC picture, which needs one more package: pip install pillow-heif") from None
    return Image.open(io.BytesIO(content), formats=("HEIF",))
