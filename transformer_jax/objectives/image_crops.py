"""Images of any size brought to one size, on the host."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import UInt8

EVALUATED_SHARE = 0.875  # of the shorter side: the middle 224 pixels of 256, as is customary on ImageNet
WIDEST = 4 / 3  # width / height of a crop, at most; 1 / WIDEST at least

_TRIALS = 10  # crops that may fall outside, before the largest one in the middle is taken

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def centre_box(height: int, width: int, share: float = EVALUATED_SHARE) -> Box:
    """The square in the middle whose side is ``share`` of the image's shorter one."""
    side = share * min(height, width)
    return _box((width - side) / 2, (height - side) / 2, side, side)


def random_box(height: int, width: int, least_area: float, rng: np.random.Generator) -> Box:
    """A random part of an image, as Szegedy et al. 2015 (section 6) trained on.

    Its area is a share drawn uniformly from ``least_area`` to 1, its width over its height is log-uniform
    from 3/4 to 4/3, and all places for it are equally likely. Where ten such parts in turn are higher or
    wider than the image, it is the largest one in the middle whose shape is within these bounds.
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
    """The part ``box`` of an image as a square of ``side`` pixels, by bilinear interpolation.

    Where it becomes smaller, each pixel is a weighted mean of all that it stands for, as Pillow's ``resize``
    has it.
    """
    return _resized(image, (side, side), _pillow().Resampling.BILINEAR, box)


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Images of any size as the processors of ``transformers`` bring them to a model's: resized, then cut.

    Attributes:
      whole: height and width, in pixels, that a whole image gets; or one number, which its shorter side gets
        while it keeps its proportions.
      middle: height and width of the part in its middle that is taken.
      resample: Pillow's number of the filter: 2 is bilinear, 3 bicubic.
    """

    whole: tuple[int, int] | int
    middle: tuple[int, int]
    resample: int

    def __call__(
        self, image: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "new_height new_width channels"]:
        """The image at its new size."""
        if isinstance(self.whole, int):
            short = min(image.shape[:2])
            size = tuple(int(self.whole * side / short) for side in image.shape[:2])
        else:
            size = self.whole
        found = _resized(image, (size[0], size[1]), self.resample)
        top, left = ((side - part) // 2 for side, part in zip(size, self.middle, strict=True))
        return np.ascontiguousarray(found[top : top + self.middle[0], left : left + self.middle[1]])


def _resized(image: np.ndarray, size: tuple[int, int], resample: int, box: Box | None = None) -> np.ndarray:
    """The part ``box`` of an image, or all of it, at a ``size`` of height and width."""
    channels = image.shape[-1]
    # Pillow has modes for 1, 3 and 4 channels, which are those that images are decoded to.
    picture = _pillow().fromarray(image[..., 0] if channels == 1 else image)
    found = np.asarray(picture.resize((size[1], size[0]), resample, box=box), np.uint8)
    return found[..., None] if channels == 1 else found


@functools.cache
def _pillow():
    import PIL.Image  # here, so that only those who have images wait for it

    return PIL.Image
