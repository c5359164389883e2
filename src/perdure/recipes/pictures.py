"""Encoded images as pixels: of named formats, up to a size, and grey where they are grey."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perdure.recipes.recipe import column
from perdure.recipes.tables import TableError, optional
from perdure.recipes.values import named

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # pillow would run programs for others
MOST_PIXELS = 50_000_000
Pixels = npt.NDArray[np.uint8]


def decode(content: object, name: str, row: int) -> Pixels:
    """Pixels, uint8 [1, h, w] where the image is grey, however it was stored, else [3, h, w]; turned as the camera was.

    Transparency is dropped, of several frames the first is taken. Raises TableError for what cannot be decoded, and
    for more than 50 million pixels.
    """
    content = content.get("bytes") if isinstance(content, dict) else content
    if content is None:
        raise TableError(f"row {row} has no image in column {name!r}; drop the row")
    if not isinstance(content, bytes):
        raise TableError(f"row {row} holds {named(content)} in column {name!r}, which is no image: {{bytes, path}}")
    pillow, turn = optional("PIL.Image"), optional("PIL.ImageOps").exif_transpose
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise TableError(f"the image of row {row} is {width} x {height}, more than {MOST_PIXELS} pixels")
            return _channels_first(turn(picture))
    except TableError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise TableError(
            f"the image of row {row} in column {name!r} cannot be read ({error}); known are {', '.join(FORMATS)}"
        ) from error


def decoded(table: pa.Table, name: str) -> Iterator[Pixels]:
    """The pixels of each row, one at a time."""
    for row, content in enumerate(column(table, name)):  # one at a time: a list would hold all of them twice
        yield decode(content.as_py(), name, row)


def is_image(kind: Any) -> bool:
    """Whether a column of this type holds encoded images: {bytes, path}, or bytes."""
    types = optional("pyarrow").types
    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def resized(pixels: Pixels, shape: Sequence[int]) -> Pixels:
    """Pixels brought to [channels, height, width]: stretched, grey made of colours, colours made of grey."""
    channels, height, width = shape
    if pixels.shape == (channels, height, width):
        return pixels
    pillow = optional("PIL.Image")
    picture = pillow.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), pillow.Resampling.BILINEAR)
    found: Pixels = np.array(picture, dtype=np.uint8)
    return found[None] if channels == 1 else np.ascontiguousarray(found.transpose(2, 0, 1))


def _channels_first(picture: Any) -> Pixels:
    if picture.mode.startswith("I"):  # 16 bits a pixel: pillow would cut them off at 255
        wide = np.asarray(picture).astype(np.int64).clip(0, 65_535)
        deep: Pixels = (wide >> 8 if wide.max(initial=0) > 255 else wide).astype(np.uint8)
        return deep[None]
    if picture.mode in ("1", "L", "LA"):
        grey: Pixels = np.array(picture.convert("L"), dtype=np.uint8)
        return grey[None]
    colours: Pixels = np.array(picture.convert("RGB"), dtype=np.uint8)
    is_grey = (colours == colours[:, :, :1]).all()
    return colours[None, :, :, 0] if is_grey else np.ascontiguousarray(colours.transpose(2, 0, 1))
