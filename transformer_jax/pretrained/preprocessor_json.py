"""Reads and writes ``preprocessor_config.json`` of ``transformers``, the preprocessing of image models."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from transformer_jax.config import ConfigError
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives.image_crops import Resizing
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.reporting.progress import say
from transformer_jax.types import PyTree

PREPROCESSOR_FILE = "preprocessor_config.json"

# The defaults of transformers for missing keys. Pixels from 0 to 255 are rescaled to 0 to 1, which is the
# only supported rescaling, and then normalized to -1 to 1.
_FIXED = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_MEAN, _STD = 0.5, 0.5
_USUAL = (("image_mean", _MEAN), ("image_std", _STD))
# The defaults for sizes, and those of the processor of DeiT (Touvron et al. 2021).
_SIZES = {"do_resize": True, "size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224}
_DEIT_SIZES = _SIZES | {"size": 256, "resample": 3, "do_center_crop": True}
_KNOWN_KINDS = re.compile(r"(ViT|DeiT)(ImageProcessor\w*|FeatureExtractor)")  # processors with these defaults
_CHANNELS = (1, 3, 4)  # numbers of channels for which Pillow can resize images
_FILTERS = range(6)  # the numbers of Pillow's resampling filters


class ImagePreprocessor(NamedTuple):
    """Describes how a checkpoint's images are preprocessed.

    Attributes:
      sizing: how images are resized to the model's size; None if they must already have it.
      mean: per channel, the number that is subtracted from pixels between 0 and 1.
      std: per channel, the number by which the difference is divided.
    """

    sizing: Resizing | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_usual(self) -> bool:
        """Whether pixels are normalized to -1 to 1, as for the models of this library."""
        return {*self.mean} == {_MEAN} and {*self.std} == {_STD}

    def pixels(self, images: Float[np.ndarray, "B height width C"]) -> Float[np.ndarray, "B height width C"]:
        """Returns the inputs of the checkpoint's model for ``images`` with pixels from -1 to 1."""
        found = (images / 2 + 0.5 - np.array(self.mean)) / np.array(self.std)
        return images if self.is_usual else found.astype(images.dtype)

    def their_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the inputs of the checkpoint's model for those of ours."""
        return {"images": self.pixels(inputs["images"])}

    def merged(self, params: PyTree) -> PyTree:
        """Returns parameters for pixels from -1 to 1 with the outputs of ``params`` for ``self.pixels``.

        This is possible because the embedding of patches is linear and ``self.pixels`` is affine.
        """
        if self.is_usual:
            return params
        say(
            f"image_mean={self.mean} and image_std={self.std} are merged into the embedding of patches; the "
            "model takes pixels from -1 to 1"
        )
        mean, std = (jnp.array(numbers, jnp.float32) for numbers in (self.mean, self.std))
        patches = params["embed_patches"]["patches"]

        def changed(patches: PyTree) -> PyTree:
            kernel = patches["kernel"]  # (height, width, channels, d_model)
            more = jnp.sum(kernel * ((0.5 - mean) / std)[None, None, :, None], axis=(0, 1, 2))
            return {"kernel": kernel * (0.5 / std)[None, None, :, None], "bias": patches["bias"] + more}

        shardings = jax.tree.map(lambda leaf: leaf.sharding, patches)
        patches = jax.jit(changed, out_shardings=shardings)(patches)
        return params | {"embed_patches": params["embed_patches"] | {"patches": patches}}


def read_image_preprocessor(folder: CheckpointFolder, config: TransformerConfig) -> ImagePreprocessor:
    """Returns the preprocessing of images that ``preprocessor_config.json`` of a checkpoint describes.

    Args:
      folder: folder of the checkpoint. If it has no such file, images must have the model's size, and their
        pixels are from -1 to 1.
      config: config of the model. If its image size differs from the checkpoint's, the sizes of resizing and
        cropping are scaled in proportion.

    Raises:
      ConfigError: the file is broken, or it rescales, normalizes or resizes images in an unsupported way.
    """
    path = folder.path / PREPROCESSOR_FILE
    channels = config.front_end.input_shape[2]
    if not folder.has(PREPROCESSOR_FILE):
        return ImagePreprocessor(None, (_MEAN,) * channels, (_STD,) * channels)
    content = {
        key: value for key, value in folder.read_object(PREPROCESSOR_FILE).items() if value is not None
    }
    _check_complete(content, path)
    differing = [
        f"{key}={content[key]!r}"
        for key, wanted in _FIXED.items()
        if key in content and not _is_same(content[key], wanted)
    ]
    mean, std = (_of_channels(content.get(key, usual), channels) for key, usual in _USUAL)
    differing += [
        f"{key}={content[key]!r}"
        for (key, _), numbers in zip(_USUAL, (mean, std), strict=True)
        if not numbers or (key == "image_std" and min(numbers) <= 0)
    ]
    if differing:
        advice = _advice(content, channels)
        raise ConfigError(
            f"{path} has {', '.join(differing)}: this is not supported. The rescale_factor must be 1/255, "
            f"and image_mean and image_std must each be a number or {channels} numbers, with image_std above "
            "0." + (f" To get the same pixels, {', '.join(advice)}" if advice else "")
        )
    try:
        return ImagePreprocessor(_resizing(content, config.front_end.input_shape), mean, std)
    except ValueError as error:
        raise ConfigError(
            f"{path} has {error}. To read the model without resizing, for images of its own size only, write "
            "do_resize: false in this file"
        ) from error


def _kind(content: Mapping[str, Any]) -> str:
    return str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")


def _check_complete(content: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises ConfigError if the file lacks a key and the defaults of its processor are not known."""
    kind = _kind(content)
    if not kind or _KNOWN_KINDS.fullmatch(kind):
        return
    needed = ["image_mean", "image_std"]
    if content.get("do_resize", True):
        cut = ["crop_size"] if content.get("do_center_crop") else []
        needed = ["size", "resample", "do_center_crop", *cut, *needed]
    missing = [key for key in needed if key not in content]
    if missing:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)}; the defaults of a {kind} are not known to this library, so "
            "add their values to the file"
        )


def _advice(content: Mapping[str, Any], channels: int) -> list[str]:
    """Returns changes of the file that give the same pixels in a supported way, if there are any."""
    found = []
    if content.get("do_normalize") is False:
        found.append(
            f"write do_normalize: true, image_mean: {[0.0] * channels}, image_std: {[1.0] * channels}"
        )
    factor = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1
    if type(factor) in (int, float) and factor > 0 and not _is_same(factor, 1 / 255):
        found.append(
            "write do_rescale: true, leave rescale_factor out, and divide image_mean and image_std by "
            f"{255 * factor:.9g}"
        )
    return found


def _is_same(value: Any, wanted: bool | float) -> bool:
    if isinstance(wanted, bool):
        return value is wanted
    # 1/255 is sometimes stored as float32.
    return isinstance(value, int | float) and math.isclose(value, wanted, rel_tol=1e-6)


def _of_channels(value: Any, channels: int) -> tuple[float, ...]:
    """Returns one number per channel; ``value`` may be one number for all. Returns () for any other value."""
    numbers = value if isinstance(value, list) else [value] * channels
    are_numbers = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    return tuple(map(float, numbers)) if are_numbers and len(numbers) == channels else ()


def _resizing(content: Mapping[str, Any], shape: tuple[int, ...]) -> Resizing | None:
    """Returns the resizing that ``content`` describes, or None; raises ValueError if it is unsupported."""
    kind = _kind(content)
    content = {**(_DEIT_SIZES if kind.startswith("DeiT") else _SIZES), **content}
    height, width, channels = shape
    if not content["do_resize"] or channels not in _CHANNELS:
        return None
    resample = content["resample"]
    if type(resample) is not int or resample not in _FILTERS:
        raise ValueError(
            f"resample={resample!r}; it must be the number of a resampling filter of Pillow, 0 to 5"
        )
    if isinstance(content["size"], int) and kind and not _KNOWN_KINDS.fullmatch(kind):
        raise ValueError(
            f"size={content['size']}; how a {kind} interprets a single number is not known to this library, "
            "so give height and width, or shortest_edge"
        )
    is_cut = bool(content["do_center_crop"])
    whole = _sides(content, "size")
    if not is_cut and isinstance(whole, tuple):
        return Resizing((height, width), (height, width), resample)
    cut = _sides(content, "crop_size")
    is_square = isinstance(cut, tuple) and cut[0] == cut[1] and height == width
    if not is_cut or not isinstance(cut, tuple) or (isinstance(whole, int) and not is_square):
        raise ValueError(
            f"size={content['size']!r}; a shortest_edge needs do_center_crop and a square crop_size"
        )
    pairs = zip(whole if isinstance(whole, tuple) else (whole, whole), cut, (height, width), strict=True)
    scaled = [(round(side * wanted / part), wanted) for side, part, wanted in pairs]
    if any(side < wanted for side, wanted in scaled):
        raise ValueError(
            f"crop_size={content['crop_size']!r}; it must not be larger than size={content['size']!r}"
        )
    sides = (scaled[0][0], scaled[1][0])
    return Resizing(sides if isinstance(whole, tuple) else sides[0], (height, width), resample)


def _sides(content: Mapping[str, Any], key: str) -> tuple[int, int] | int:
    """Returns the height and width in pixels at ``key``, or the length of the shorter side.

    The value is a number, an object with height and width, or an object with shortest_edge.
    """
    value = content[key]
    found = [value, value] if isinstance(value, int) else []
    for names in (("height", "width"), ("shortest_edge",)):
        if isinstance(value, dict) and set(value) == set(names):
            found = [value[name] for name in names]
    if not found or any(type(side) is not int or side < 1 for side in found):
        raise ValueError(
            f"{key}={value!r}; it must be a number of pixels, or an object with height and width, or one "
            "with shortest_edge"
        )
    return (found[0], found[1]) if len(found) == 2 else found[0]


def image_preprocessor_content(config: TransformerConfig, sizing: Any) -> dict[str, Any]:
    """Returns the keys of ``preprocessor_config.json`` for a model of images.

    Args:
      config: the model's config.
      sizing: a ``Resizing``; any other value means that whole images are resized with a bilinear filter.
    """
    height, width, channels = config.front_end.input_shape
    resizing = (
        sizing
        if isinstance(sizing, Resizing)
        else Resizing((height, width), (height, width), _SIZES["resample"])
    )
    whole: dict[str, int] = {"shortest_edge": resizing.whole} if isinstance(resizing.whole, int) else {}
    if isinstance(resizing.whole, tuple):
        whole = dict(zip(("height", "width"), resizing.whole, strict=True))
    content = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": whole,
        "resample": resizing.resample,
        **_FIXED,
        **{key: [usual] * channels for key, usual in _USUAL},
    }
    if resizing.whole == resizing.middle:
        return content
    # Some versions of ViT's processor cannot crop.
    kind = "CLIPImageProcessor" if isinstance(resizing.whole, int) else "DeiTImageProcessor"
    cut = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return content | {"image_processor_type": kind, **cut}
