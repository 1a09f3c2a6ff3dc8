"""Images and labels in the files of MNIST (LeCun et al. 1998), and images in files of their own."""

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
    """One idx file a feature: ``images`` (count, h, w), ``labels`` (count,).

    Such a file is two bytes of 0, the type, the number of dimensions, each dimension in four bytes, the
    highest first, and then the values.

    Returns:
      Images as (h, w, 1) uint8, labels as int.

    Raises:
      DataError: a file is missing, no such file, cut off, or has more examples than another.
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
    """An image file (PNG, JPEG, ...) as (height, width, channels) uint8, converted to 1, 3 or 4 channels.

    Raises:
      OSError: it is not an image, or its pixels are numbers of 32 bits.
    """
    import PIL.Image  # here, so that only those who have images wait for it

    with PIL.Image.open(io.BytesIO(content)) as image:
        return _as_array(image, channels)


def read_image(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """A file as ``decode_image`` gives it, but upright: turned as its camera noted that it must be (EXIF).

    Raises:
      DataError: the file is missing or broken, is no image, or images have not so many channels.
    """
    import PIL.Image
    import PIL.ImageOps

    if channels not in _MODES:
        raise DataError(f"{path} cannot be read with {channels} channels: files have 1, 3 or 4")
    try:
        with PIL.Image.open(path) as image:
            return _as_array(PIL.ImageOps.exif_transpose(image), channels)
    # Pillow's decoders raise these of what is broken, beside OSError.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read as an image: {error}") from error


def _as_array(image: Any, channels: int) -> np.ndarray:
    if image.mode.startswith("I;16"):  # which Pillow would cut off at 255, to white
        import PIL.Image

        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise OSError(f"its pixels are numbers of 32 bits (mode {image.mode}): make 8 bits of them")
    array = np.asarray(image.convert(_MODES[channels]), np.uint8)
    return array[..., None] if channels == 1 else array
