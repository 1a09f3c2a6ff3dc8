"""Reads images and labels in MNIST's file format (LeCun et al. 1998), and single image files."""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax.data.examples import DataError, MemorySource
from transformer_jax.data.text_files import Features, read_file, slice_of, split_name

_UNSIGNED_BYTES = 8  # the type in the third byte of a file
_DIMENSIONS = {"images": 3, "labels": 1}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels


def read_idx(names: Sequence[str], features: Features) -> MemorySource:
    """Reads one idx file per feature: ``images`` (count, h, w) and ``labels`` (count,).

    An idx file has two zero bytes, the type, the number of dimensions, the size of each dimension as four
    big-endian bytes, and then the values.

    Args:
      names: one file per feature, in the order of ``features``; a name may end in a slice.
      features: "images" and "labels", in any order.

    Returns:
      A source with images of shape (h, w, 1), uint8, and labels of type int.

    Raises:
      DataError: a file is missing, in another format, truncated, or has another number of examples than the
        first.
    """
    paths = [split_name(name)[0] for name in names]
    arrays = [
        _read_values(path, _DIMENSIONS[feature]) for path, (feature, _) in zip(paths, features, strict=True)
    ]
    columns: dict[str, np.ndarray | list[int]] = {}
    for name, path, (feature, _), array in zip(names, paths, features, arrays, strict=True):
        if len(array) != len(arrays[0]):
            raise DataError(
                f"misaligned files: {paths[0]} has {len(arrays[0]):,} examples but {path} has {len(array):,}"
            )
        part = array[slice_of(name, len(array))]
        columns[feature] = part[..., None] if feature == "images" else part.tolist()
    return MemorySource(columns)


def _read_values(path: str, dimensions: int) -> np.ndarray:
    content = read_file(path)
    expected = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if content[:4] != expected:
        raise DataError(
            f"{path} is not an idx file of {dimensions} dimension(s): it begins with the bytes "
            f"{content[:4].hex(' ') or 'of nothing'}, not {expected.hex(' ')}; are images and labels in the "
            "order of config.data.source.features?"
        )
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} should have {math.prod(shape):,} bytes after its header, for the shape {shape}, but has "
            f"{max(0, len(content) - start):,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def decode_image(content: bytes, channels: int) -> np.ndarray:
    """Decodes an image file (PNG, JPEG, ...) to an array (height, width, channels) of uint8.

    Args:
      content: the bytes of the file.
      channels: 1, 3 or 4; the image is converted to so many.

    Raises:
      OSError: the bytes are not an image, or its pixels are 32-bit numbers.
    """
    import PIL.Image  # imported here, so that only programs with images pay for it

    with PIL.Image.open(io.BytesIO(content)) as image:
        return _as_array(image, channels)


def read_image(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Reads an image file like ``decode_image``, and rotates it upright as its EXIF orientation says.

    Raises:
      DataError: the file is missing, broken or not an image, or ``channels`` is not 1, 3 or 4.
    """
    import PIL.Image
    import PIL.ImageOps

    if channels not in _MODES:
        raise DataError(f"{path} cannot be read with {channels} channels: files have 1, 3 or 4")
    try:
        with PIL.Image.open(path) as image:
            return _as_array(PIL.ImageOps.exif_transpose(image), channels)
    # Pillow's decoders raise these types too, not only OSError, for broken files.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read as an image: {error}") from error


def _as_array(image: Any, channels: int) -> np.ndarray:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the values at 255, to white
        import PIL.Image

        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise OSError(f"its pixels are 32-bit numbers (mode {image.mode}): convert it to 8 bits")
    array = np.asarray(image.convert(_MODES[channels]), np.uint8)
    return array[..., None] if channels == 1 else array
