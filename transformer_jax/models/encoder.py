"""An encoder alone, of tokens (BERT) or of images (ViT), with one of several heads."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.masks import Mask, Segments
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.embed import EmbedPatches, EmbedTokens, token_embedding
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.heads import HEADS
from transformer_jax.models.stack import Stack
from transformer_jax.types import PyTree


class EncoderOnly(nn.Module):
    """BERT (Devlin et al. 2019) or the Vision Transformer (Dosovitskiy et al. 2021), by config."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        if config.image_shape:
            self.embed_patches = EmbedPatches(config)
        else:
            self.embedding = token_embedding(config)
            self.embed_inputs = EmbedTokens(config, self.embedding)
        self.encoder = Stack(config, config.num_encoder_layers, cross_attention=False)
        self.head = HEADS[config.head].module(config)

    def __call__(
        self,
        inputs: Int[Array, "B L"] | None = None,
        *,
        images: Float[Array, "B height width C"] | None = None,
        inputs_positions: Int[Array, "B L"] | None = None,
        inputs_segments: Int[Array, "B L"] | None = None,
        inputs_types: Int[Array, "B L"] | None = None,
        train: bool = False,
    ) -> PyTree:
        """Returns what the head returns, see ``models.heads.HEADS``.

        Args:
          inputs: tokens, of a model of text.
          images: pixels in [-1, 1], of a model of images; nothing else is given then.
          inputs_segments: 0 on padding, else the example's number in its row; None means that what equals
            ``config.pad_id`` is padding and the rest is one example.
          inputs_positions: places within the example; None means 0, 1, 2, …
          inputs_types: which of several texts a token is of; None means 0.
          train: whether dropout is on; it needs ``rngs={"dropout": key}``.

        Raises:
          ValueError: tokens for a model of images or images for one of text, a sequence that is longer than
            ``config.max_length``, an image of another size.
        """
        wanted, other = (images, inputs) if self.config.image_shape else (inputs, images)
        if wanted is None or other is not None:
            kind = "images: give it images" if self.config.image_shape else "text: give it inputs, tokens"
            raise ValueError(f"this is a model of {kind}, and nothing else")
        if images is not None:
            x = self.embed_patches(images, train=train)
            embedded = Embedded(x, None, None, {"images": images})
            return self.head(self.encoder(x, mask=Mask(), train=train)[0], embedded, train=train)
        assert inputs is not None
        if inputs_segments is None:
            inputs_segments = (inputs != self.config.pad_id).astype(jnp.int32)
        x = self.embed_inputs(inputs, inputs_positions, inputs_types, train=train)
        embedded = Embedded(x, inputs_segments, self.embedding, {"inputs": inputs})
        x, _ = self.encoder(x, mask=Mask(Segments(inputs_segments, inputs_segments)), train=train)
        return self.head(x, embedded, train=train)
