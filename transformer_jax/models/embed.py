"""What the first block is given: embeddings of tokens or of patches, with their positions."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.embeddings import Embedding
from transformer_jax.layers.linear import Linear
from transformer_jax.layers.norms import NORMS
from transformer_jax.layers.parameters import parameter
from transformer_jax.layers.positions import PositionEncoding
from transformer_jax.models.config import TransformerConfig
from transformer_jax.sharding.placement import constrain


def token_embedding(config: TransformerConfig, name: str | None = None) -> Embedding:
    """The table of the vocabulary that ``config`` asks for."""
    is_scaled = config.embedding_scale == "inputs"
    # Looked-up rows have unit variance, unless a family draws all weights alike.
    stddev = config.initial_stddev or (config.d_model**-0.5 if is_scaled else 1.0)
    dtype = jnp.dtype(config.dtype)
    return Embedding(config.vocab_size, config.d_model, is_scaled, dtype, stddev, name=name)


class EmbedTokens(nn.Module):
    """Token embeddings plus positions plus token types, normalised where the family does so.

    Dropout is on the result (sections 3.4, 3.5 and 5.4 of Vaswani et al. 2017; Devlin et al. 2019, Figure 2).
    """

    config: TransformerConfig
    embedding: Embedding

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "#B L"] | None,
        types: Int[Array, "B L"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B L D"]:
        """``positions`` None is 0, 1, 2, ...; ``types`` None is 0 everywhere.

        Raises:
          ValueError: more tokens than ``config.max_length``, or types for a model that has none.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        check_length(tokens.shape[1], config)
        x = self.embedding(tokens)
        if config.positions != "relative":
            encoding = PositionEncoding(
                config.positions, config.max_length, config.d_model, dtype, name="positions"
            )
            x += encoding(tokens.shape[1] if positions is None else positions)
        if config.num_token_types:
            table = Embedding(
                config.num_token_types,
                config.d_model,
                False,
                dtype,
                config.initial_stddev or 1.0,
                "types",
                name="types",
            )
            x += table(jnp.zeros_like(tokens) if types is None else types)
        elif types is not None:
            raise ValueError("inputs_types are for a model with num_token_types above 0: leave them out")
        return _normalise_and_drop(config, x, train)


class EmbedPatches(nn.Module):
    """A linear map of each square of pixels, after one learned vector, plus positions.

    Dosovitskiy et al. 2021, section 3.1, equation 1: the learned vector is their class token.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B height width C"], *, train: bool) -> Float[Array, "B L D"]:
        """Raises ValueError where an image has not the shape of ``config.image_shape``."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if images.shape[1:] != config.image_shape:
            raise ValueError(
                f"images of shape {images.shape[1:]} do not fit a model of {config.image_shape} "
                "(height, width, channels): resize them, or build the model for their size"
            )
        rows, (height, width, channels), size = len(images), config.image_shape, config.patch_size
        x = images.astype(dtype).reshape(rows, height // size, size, width // size, size, channels)
        x = x.swapaxes(2, 3).reshape(rows, config.num_patches, size, size, channels)
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
        encoding = PositionEncoding(
            config.positions, config.max_length, config.d_model, dtype, name="positions"
        )
        x += encoding(x.shape[1])
        return _normalise_and_drop(config, x, train)


def _normalise_and_drop(
    config: TransformerConfig, x: Float[Array, "B L D"], train: bool
) -> Float[Array, "B L D"]:
    """The end of both embeddings; called within their compact methods."""
    if config.embedding_norm:
        x = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype), name="norm")(x)
    return constrain(Dropout(config.dropout)(x, train=train), "batch", "sequence", None)


def check_length(length: int, config: TransformerConfig) -> None:
    """Raises ValueError for a sequence of more tokens than the model has positions."""
    if length > config.max_length:
        raise ValueError(
            f"a sequence of {length} tokens is longer than the model's {config.max_length}: shorten it, or "
            "use a model with a larger max_length"
        )
