"""Crops and resizes images of any size to one size, on the host."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import UInt8

EVALUATED_SHARE = 0.875  # fraction of the shorter side: 224 of 256 pixels, as is customary on ImageNet
WIDEST = 4 / 3  # the largest width / height of a crop; the smallest is 1 / WIDEST

_TRIALS = 10  # random crops that are tried before the largest one in the middle is used

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def centre_box(height: int, width: int, share: float = EVALUATED_SHARE) -> Box:
    """Returns the square in the middle whose side is ``share`` times the image's shorter side."""
    side = share * min(height, width)
    return _box((width - side) / 2, (height - side) / 2, side, side)


def random_box(height: int, width: int, least_area: float, rng: np.random.Generator) -> Box:
    """Returns a random part of an image, as in the training of Szegedy et al. 2015 (section 6).

    Its area is a fraction drawn uniformly from ``least_area`` to 1, its width over its height is log-uniform
    from 3/4 to 4/3, and all places for it are equally likely. If ten such parts are higher or wider than the
    image, the largest part in the middle with a ratio within these bounds is returned.
    """
    for _ in range(_TRIALS):
        area = rng.uniform(least_area, 1.0) * height * width
        ratio = math.exp(rng.uniform(-math.log(WIDEST), math.log(WIDEST)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(0, width - box_width + 1))
            top = int(rng.integers(0, height - box_height + 1))
            return _box(left, top, box_width, box_height)
    box_width, box_height = min(width, height * WIDEST), min(height, width * WIDEST)
    return _box((width - box_width) / 2, (height - box_height) / 2, box_width, box_height)


def _box(left: int | float, top: int | float, width: int | float, height: int | float) -> Box:
    return float(left), float(top), float(left + width), float(top + height)


def resized(
    image: UInt8[np.ndarray, "height width channels"], box: Box, side: int
) -> UInt8[np.ndarray, "side side channels"]:
    """Returns the part ``box`` of an image as a square of ``side`` pixels, by bilinear interpolation.

    If the part becomes smaller, each new pixel is a weighted mean of all pixels that it covers, as in
    Pillow's ``resize``.
    """
    return _resized(image, (side, side), _pillow().Resampling.BILINEAR, box)


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Resizes images of any size and crops them, as the image processors of ``transformers`` do.

    Attributes:
      whole: height and width in pixels that the whole image is resized to; or one number, the new length of
        the shorter side, which keeps the image's proportions.
      middle: height and width of the part in the middle that is kept.
      resample: Pillow's number of the filter: 2 is bilinear, 3 is bicubic.
    """

    whole: tuple[int, int] | int
    middle: tuple[int, int]
    resample: int

    def __call__(
        self, image: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "new_height new_width channels"]:
        """Returns the image resized and cropped."""
        if isinstance(self.whole, int):
            short = min(image.shape[:2])
            size = tuple(int(self.whole * side / short) for side in image.shape[:2])
        else:
            size = self.whole
        found = _resized(image, (size[0], size[1]), self.resample)
        top, left = ((side - part) // 2 for side, part in zip(size, self.middle, strict=True))
        return np.ascontiguousarray(found[top : top + self.middle[0], left : left + self.middle[1]])


def _resized(image: np.ndarray, size: tuple[int, int], resample: int, box: Box | None = None) -> np.ndarray:
    """Returns the part ``box`` of an image, by default all of it, resized to ``size`` (height, width)."""
    channels = image.shape[-1]
    # Pillow has modes for 1, 3 and 4 channels, and decoded images have one of these numbers.
    picture = _pillow().fromarray(image[..., 0] if channels == 1 else image)
    found = np.asarray(picture.resize((size[1], size[0]), resample, box=box), np.uint8)
    return found[..., None] if channels == 1 else found


@functools.cache
def _pillow():
    import PIL.Image  # imported here, because only programs with images need it

    return PIL.Image
