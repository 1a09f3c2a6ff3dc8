"""``preprocessor_config.json`` of ``transformers``: what becomes of an image before the model sees it."""

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

# What transformers takes for a key that is not there: 0 to 1 of pixels from 0 to 255, as always here, and of
# these -1 to 1, as usual.
_FIXED = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_MEAN, _STD = 0.5, 0.5
_USUAL = (("image_mean", _MEAN), ("image_std", _STD))
# The same of sizes; what the processor of DeiT (Touvron et al. 2021) has otherwise.
_SIZES = {"do_resize": True, "size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224}
_DEIT_SIZES = _SIZES | {"size": 256, "resample": 3, "do_center_crop": True}
_KNOWN_KINDS = re.compile(r"(ViT|DeiT)(ImageProcessor\w*|FeatureExtractor)")  # of which this is so
_CHANNELS = (1, 3, 4)  # of the pictures that Pillow resizes
_FILTERS = range(6)  # Pillow's


class ImagePreprocessor(NamedTuple):
    """What becomes of an image before a checkpoint's model sees it.

    Attributes:
      sizing: how it gets the model's size; None where it must have it.
      mean: what is subtracted from pixels between 0 and 1, of each channel.
      std: what they are divided by then.
    """

    sizing: Resizing | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_usual(self) -> bool:
        """Whether pixels become -1 to 1, which is what a model is given here."""
        return {*self.mean} == {_MEAN} and {*self.std} == {_STD}

    def pixels(self, images: Float[np.ndarray, "B height width C"]) -> Float[np.ndarray, "B height width C"]:
        """What the checkpoint's model is given for ``images`` from -1 to 1."""
        found = (images / 2 + 0.5 - np.array(self.mean)) / np.array(self.std)
        return images if self.is_usual else found.astype(images.dtype)

    def their_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the inputs of the checkpoint's model for those of ours."""
        return {"images": self.pixels(inputs["images"])}

    def merged(self, params: PyTree) -> PyTree:
        """Returns parameters that give for pixels from -1 to 1 what ``params`` give for the checkpoint's.

        The embedding of patches is linear, and the checkpoint's pixels are a multiple of those plus a number.
        """
        if self.is_usual:
            return params
        say(
            f"image_mean={self.mean} and image_std={self.std} become part of the embedding of "
            "patches: pixels are from -1 to 1"
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
    """How images of any size become those of a model, by the ``preprocessor_config.json`` beside it.

    Args:
      folder: of the checkpoint. Where it has no such file, images have the model's size and are from -1 to 1.
      config: of the model. Where its images are to have another size than the checkpoint's, they are resized
        and cut in the same proportion.

    Raises:
      ConfigError: it is broken; or it makes numbers of pixels, or resizes images, in a way that is not known
        here.
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
            f"{path} has {', '.join(differing)}: here pixels become 0 to 1 by a rescale_factor of 1/255, and "
            f"an image_mean and an image_std, a number or {channels}, are all that may differ from what "
            "makes -1 to 1." + (f" To have the same pixels, {', '.join(advice)}" if advice else "")
        )
    try:
        return ImagePreprocessor(_resizing(content, config.front_end.input_shape), mean, std)
    except ValueError as error:
        raise ConfigError(
            f"{path} has {error}. To read the model all the same, for images of its size alone, write "
            "do_resize: false there"
        ) from error


def _kind(content: Mapping[str, Any]) -> str:
    return str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")


def _check_complete(content: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises ConfigError for a processor whose own values are not known here, where it leaves one out."""
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
            f"{path} lacks {', '.join(missing)}: what a {kind} takes for them is not known here, and must be "
            "written there"
        )


def _advice(content: Mapping[str, Any], channels: int) -> list[str]:
    """How to write what ``content`` makes of pixels as it is known here, where that can be."""
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
    """One number for each channel, of which there may be one for all; () where there is something else."""
    numbers = value if isinstance(value, list) else [value] * channels
    are_numbers = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    return tuple(map(float, numbers)) if are_numbers and len(numbers) == channels else ()


def _resizing(content: Mapping[str, Any], shape: tuple[int, ...]) -> Resizing | None:
    """What ``content`` says of sizes; raises ValueError for what it does not say as it should."""
    kind = _kind(content)
    content = {**(_DEIT_SIZES if kind.startswith("DeiT") else _SIZES), **content}
    height, width, channels = shape
    if not content["do_resize"] or channels not in _CHANNELS:
        return None
    resample = content["resample"]
    if type(resample) is not int or resample not in _FILTERS:
        raise ValueError(f"resample={resample!r}, which must be the number of a filter of Pillow, 0 to 5")
    if isinstance(content["size"], int) and kind and not _KNOWN_KINDS.fullmatch(kind):
        raise ValueError(f"size={content['size']}, of which a {kind} makes something that is not known here")
    is_cut = bool(content["do_center_crop"])
    whole = _sides(content, "size")
    if not is_cut and isinstance(whole, tuple):
        return Resizing((height, width), (height, width), resample)
    cut = _sides(content, "crop_size")
    is_square = isinstance(cut, tuple) and cut[0] == cut[1] and height == width
    if not is_cut or not isinstance(cut, tuple) or (isinstance(whole, int) and not is_square):
        raise ValueError(
            f"size={content['size']!r}, whose shortest_edge needs do_center_crop and a square crop_size"
        )
    pairs = zip(whole if isinstance(whole, tuple) else (whole, whole), cut, (height, width), strict=True)
    scaled = [(round(side * wanted / part), wanted) for side, part, wanted in pairs]
    if any(side < wanted for side, wanted in scaled):
        raise ValueError(f"crop_size={content['crop_size']!r}, which must be within size={content['size']!r}")
    sides = (scaled[0][0], scaled[1][0])
    return Resizing(sides if isinstance(whole, tuple) else sides[0], (height, width), resample)


def _sides(content: Mapping[str, Any], key: str) -> tuple[int, int] | int:
    """Height and width in pixels, written as one number or as an object; or what the shorter side becomes."""
    value = content[key]
    found = [value, value] if isinstance(value, int) else []
    for names in (("height", "width"), ("shortest_edge",)):
        if isinstance(value, dict) and set(value) == set(names):
            found = [value[name] for name in names]
    if not found or any(type(side) is not int or side < 1 for side in found):
        raise ValueError(
            f"{key}={value!r}, which must be pixels: a number, height and width, or shortest_edge"
        )
    return (found[0], found[1]) if len(found) == 2 else found[0]


def image_preprocessor_content(config: TransformerConfig, sizing: Any) -> dict[str, Any]:
    """Returns the keys of ``preprocessor_config.json`` for a model of images.

    Args:
      config: the model's config.
      sizing: a ``Resizing``; anything else stands for one that resizes whole images, bilinear.
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
    # Not every version of ViT's processor cuts.
    kind = "CLIPImageProcessor" if isinstance(resizing.whole, int) else "DeiTImageProcessor"
    cut = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return content | {"image_processor_type": kind, **cut}
