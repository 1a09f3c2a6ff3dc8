"""The front end of images: a linear map of each patch (Dosovitskiy et al. 2021)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from transformer_jax.config import ConfigError, check_types
from transformer_jax.layers.linear import Linear
from transformer_jax.layers.parameters import parameter
from transformer_jax.layers.positions import PositionEncoding
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.front_ends.base import FrontEnd, normalise_and_drop
from transformer_jax.types import PyTree

if TYPE_CHECKING:  # the config has a front end as a field
    from transformer_jax.models.config import TransformerConfig


class EmbedPatches(nn.Module):
    """Maps each square of pixels to a vector and puts a learned vector, the class token, before them.

    Dosovitskiy et al. 2021, section 3.1, equation 1.
    """

    config: "TransformerConfig"
    image_shape: tuple[int, int, int]
    patch_size: int
    embedding: None = None

    @nn.compact
    def embed(self, arguments: Mapping[str, Array], *, train: bool) -> Embedded:
        """Returns the input of the first block.

        Args:
          arguments: ``images``, floats from -1 to 1, or uint8 from 0 to 255, which are scaled to -1 to 1.
          train: whether dropout is on.

        Raises:
          ValueError: an image has another shape than those of the model.
        """
        config, dtype, images = self.config, jnp.dtype(self.config.dtype), arguments["images"]
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images of shape {images.shape[1:]} do not fit a model of {self.image_shape} "
                "(height, width, channels): resize them, or build the model for their size"
            )
        if images.dtype == jnp.uint8:
            images = scaled_pixels(images)
        rows, (height, width, channels), size = len(images), self.image_shape, self.patch_size
        x = images.astype(dtype).reshape(rows, height // size, size, width // size, size, channels)
        x = x.swapaxes(2, 3).reshape(rows, -1, size, size, channels)
        x = Linear(
            (size, size, channels),
            (config.d_model,),
            ("patch", "patch", "channels", "embed"),
            True,
            dtype,
            initial_stddev=config.initial_stddev,
            name="patches",
        )(x)
        first = parameter(self, "class", nn.initializers.zeros_init(), (config.d_model,), ("embed",))
        first = jnp.broadcast_to(first.astype(dtype), (rows, 1, config.d_model))
        x = jnp.concatenate([first, x], axis=1)
        encoding = PositionEncoding(config.positions, x.shape[1], config.d_model, dtype, name="positions")
        x += encoding(x.shape[1])
        return Embedded(normalise_and_drop(config, x, train), None, None, arguments)


def scaled_pixels(images: UInt8[Array, "B height width C"]) -> Float[Array, "B height width C"]:
    """Returns pixels from -1 to 1, given pixels from 0 to 255."""
    return images.astype(jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class Patches(FrontEnd):
    """Images of one size, cut into square patches.

    Attributes:
      image_shape: (height, width, channels).
      patch_size: the side of a patch in pixels.
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("images",)
    FEATURE: ClassVar[str] = "images"
    UNIT: ClassVar[str] = "images"
    RESIZABLE: ClassVar[str] = "the height and width of images"

    kind: str = dataclasses.field(default="patches", kw_only=True)
    image_shape: tuple[int, ...] = (224, 224, 3)
    patch_size: int = 16

    def __post_init__(self) -> None:
        check_types(self, "model.front_end")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1 or self.patch_size < 1:
            raise ConfigError(
                f"model.front_end.image_shape={self.image_shape} must be (height, width, channels), with "
                f"model.front_end.patch_size={self.patch_size} above 0"
            )
        height, width, _ = self.image_shape
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"model.front_end.patch_size={self.patch_size} must divide the height and width of "
                f"model.front_end.image_shape={self.image_shape}"
            )

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        height, width, _ = self.image_shape
        return (height // self.patch_size) * (width // self.patch_size)

    def build(self, config: "TransformerConfig") -> EmbedPatches:
        """Returns the module ``embed_patches``."""
        height, width, channels = self.image_shape
        return EmbedPatches(config, (height, width, channels), self.patch_size, name="embed_patches")

    def check(self, config: "TransformerConfig") -> None:
        """Raises ConfigError for an unread vocabulary, relative positions, or another number of them."""
        if config.positions == "relative":
            raise ConfigError(
                "model.positions='relative' does not go with images, whose patches lie in a plane: use "
                "'learned', for the encoder alone in model.encoder_changes"
            )
        if config.num_token_types or (config.is_encoder_only and config.vocab_size):
            raise ConfigError(
                f"model.vocab_size={config.vocab_size} and model.num_token_types={config.num_token_types} "
                "must be 0 in an encoder of images"
            )
        if config.is_encoder_only and config.max_length != self.max_length:
            raise ConfigError(
                f"model.max_length={config.max_length} must be {self.max_length}: one for each patch of an "
                "image, and one more"
            )

    def example_inputs(self, config: "TransformerConfig") -> dict[str, Array]:
        """Returns one grey image."""
        return {"images": jnp.zeros((1, *self.image_shape), jnp.float32)}

    def draw_inputs(
        self, config: "TransformerConfig", rng: np.random.Generator, lengths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Returns images of uniformly drawn pixels."""
        shape = (len(lengths), *self.image_shape)
        return {"images": rng.uniform(-1, 1, shape).astype(np.float32)}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an image."""
        return self.image_shape

    def length(self, config: "TransformerConfig", batch: Mapping[str, Any]) -> int:
        """Returns the number of patches and one more."""
        return self.max_length

    def operations(self, config: "TransformerConfig") -> int:
        """Returns the operations of the linear map of the patches."""
        return 2 * self.num_patches * self.patch_size**2 * self.image_shape[2] * config.d_model

    @property
    def max_length(self) -> int:
        """One position for each patch, and one for the class token."""
        return self.num_patches + 1

    def is_alike(self, other: FrontEnd) -> bool:
        """Returns whether both are patches, of whatever size."""
        return type(self) is type(other)

    def changed(self, **changes: Any) -> "Patches":
        """Returns patches of images of another size.

        Raises:
          ConfigError: ``image_shape`` is no shape of an image.
        """
        shape = changes.get("image_shape", self.image_shape)
        if not isinstance(shape, tuple) or len(shape) != 3 or any(type(size) is not int for size in shape):
            raise ConfigError(
                f"image_shape={shape!r} does not fit this model of images of {self.image_shape}: it must "
                "be a tuple (height, width, channels)"
            )
        return dataclasses.replace(self, **changes)

    def resizable(self, other: FrontEnd) -> tuple[str, ...]:
        """Returns ``image_shape`` if the images have as many channels."""
        is_same = isinstance(other, Patches) and other.image_shape[2] == self.image_shape[2]
        return ("image_shape",) if is_same else ()

    def resized(self, params: PyTree, other: FrontEnd) -> PyTree:
        """Interpolates the positions of the patches as a picture, bicubic (Dosovitskiy et al. 2021, 3.2)."""
        assert isinstance(other, Patches)  # what ``resizable`` checks
        table = params["embed_patches"]["positions"]["embedding"]
        old, new = (
            (shape[0] // self.patch_size, shape[1] // self.patch_size)
            for shape in (other.image_shape, self.image_shape)
        )
        grid = table[1:].reshape(*old, -1)
        pictures = jax.image.resize(grid, (*new, grid.shape[-1]), "bicubic", antialias=False)
        table = jnp.concatenate([table[:1], pictures.reshape(-1, grid.shape[-1])])
        return params | {"embed_patches": params["embed_patches"] | {"positions": {"embedding": table}}}

    @staticmethod
    def upgrade(model: dict[str, Any]) -> None:
        """Moves ``image_shape`` and ``patch_size``, once keys of the model section, into the front end."""
        old = {name: model.pop(name) for name in ("image_shape", "patch_size") if name in model}
        if old.get("image_shape"):
            model["front_end"] = {"kind": "patches", **old}
