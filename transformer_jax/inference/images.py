"""Prepares a user's images, which are arrays or files, for an image model."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from transformer_jax.data import read_image
from transformer_jax.models import TransformerConfig

# Resizes an image (height, width, channels), uint8, to the model's size.
Sizing: TypeAlias = Callable[[np.ndarray], np.ndarray]


def model_image(config: TransformerConfig, image: Any, number: int, sizing: Sizing | None) -> np.ndarray:
    """Returns an image of the model's size, as an array (height, width, channels) of uint8.

    Args:
      config: config of the model.
      image: an array, or the path of an image file, which is converted to the model's number of channels.
      number: number of the image, counted from 1, for error messages.
      sizing: resizes an image to the model's size; if None, the image must already have this size.

    Raises:
      DataError: the file is missing, broken or not an image.
      ValueError: ``image`` is neither an array nor a path, or has another shape or dtype than the model
        needs.
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
            f"input {number} is {found}, but this model needs images: arrays of dtype uint8 of shape "
            f"{wanted}, or paths of image files"
        )
    return image
