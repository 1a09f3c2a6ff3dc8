"""Images that a user has, arrays or files, made ready for a model of images."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from transformer_jax.data import read_image
from transformer_jax.models import TransformerConfig

# From an image (height, width, channels), uint8, of any size to one of the model's.
Sizing: TypeAlias = Callable[[np.ndarray], np.ndarray]


def model_image(config: TransformerConfig, image: Any, number: int, sizing: Sizing | None) -> np.ndarray:
    """An image of the model's size.

    Args:
      config: of the model.
      image: an array, or the path of a file, whose channels become the model's.
      number: of the image, from 1 on, for messages.
      sizing: brings an image of any size to the model's; None takes images of that size alone.

    Raises:
      DataError: the file is missing or broken, or is no image.
      ValueError: it is neither, or an image that the model does not take.
    """
    shape = config.front_end.input_shape
    if isinstance(image, str | os.PathLike):
        image = read_image(image, shape[2])
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if is_image and image.shape[2] == shape[2] and sizing is not None and image.size:
        image = sizing(image)
    if not is_image or image.shape != shape:
        is_array = isinstance(image, np.ndarray)
        found = f"{image.dtype} of shape {image.shape}" if is_array else type(image).__name__
        wanted = f"{shape} (height, width, channels)"
        if sizing is not None:
            wanted = f"(height, width, {shape[2]}), of any height and width"
        raise ValueError(
            f"input {number} is {found}, but this is a model of images, uint8 of shape {wanted}, or paths of "
            "their files"
        )
    return image
