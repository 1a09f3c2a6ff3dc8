"""A decoder alone: a language model (GPT-2, Radford et al. 2019)."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.models.cache import DecoderCache, PromptContext, empty_cache
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.front_ends.tokens import EmbedTokens
from transformer_jax.models.heads import HEADS, PerToken
from transformer_jax.models.stack import Stack
from transformer_jax.types import PyTree


class DecoderOnly(nn.Module):
    """Predicts each next token from those before it."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.embed_inputs = cast(EmbedTokens, config.front_end.build(config))  # by the checks of the config
        self.embedding = self.embed_inputs.embedding
        self.decoder = Stack(config, config.num_decoder_layers, cross_attention=False)
        self.logits = HEADS[config.head].module(config)

    def __call__(
        self,
        inputs: Int[Array, "B L"],
        *,
        inputs_positions: Int[Array, "B L"] | None = None,
        inputs_segments: Int[Array, "B L"] | None = None,
        train: bool = False,
        per_token: PerToken | None = None,
    ) -> Float[Array, "B L V"] | PyTree:
        """Logits of the token after each one: ``logits[:, i]`` sees ``inputs[:, : i + 1]``.

        Args:
          inputs: tokens.
          inputs_segments: 0 on padding, else the document's number in its row; None means one document and
            no padding, for a language model may have no token for it.
          inputs_positions: places within the document; None means 0, 1, 2, …
          train: whether dropout is on; it needs ``rngs={"dropout": key}``.
          per_token: makes of the logits of some tokens, and the slice that says which, what is returned
            instead, arrays (B, L', ...) such as losses: training makes large logits a stretch at a time then.

        Raises:
          ValueError: a sequence is longer than ``config.max_length``.
        """
        x = self.embed_inputs(inputs, inputs_positions, train=train)
        mask = Mask(Causal())
        if inputs_segments is not None:
            mask &= Segments(inputs_segments, inputs_segments)
        x, _ = self.decoder(x, mask=mask, train=train)
        return self.logits.per_token(x, self.embedding, per_token, train=train)

    def init_cache(self, batch_size: int, max_length: int) -> DecoderCache:
        """An empty cache for ``batch_size`` rows of up to ``max_length`` places; needs no parameters.

        Places before a prompt count too, so there may be more of them than the model has positions.
        """
        return empty_cache(self.config, batch_size, max_length)

    def read_prompt(
        self, inputs: Int[Array, "B L"], context: PromptContext, cache: DecoderCache
    ) -> DecoderCache:
        """Writes the tokens of prompts into the cache, all at once.

        Args:
          inputs: prompts that end in the last column; what is before them is ignored.
          context: how many places of each row that is.
          cache: of ``init_cache``, or of an earlier call.
        """
        return self._advance(inputs, context, cache)[1]

    def decode_step(
        self, tokens: Int[Array, "B"], context: PromptContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """One step of cached decoding.

        Args:
          tokens: the last token of each row.
          context: as for ``read_prompt``.
          cache: of ``read_prompt``, or of the step before.

        Returns:
          Logits of the next token, and the cache to give to the next step. Past the cache's length
          the result is meaningless: decoding loops must stop at it.
        """
        x, cache = self._advance(tokens[:, None], context, cache)
        return self.logits(x, self.embedding)[:, 0], cache

    def _advance(
        self, tokens: Int[Array, "B L"], context: PromptContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B L D"], DecoderCache]:
        padding = context.padding[:, None]
        places = cache.index + jnp.arange(tokens.shape[1])[None, :]
        x = self.embed_inputs(tokens, jnp.maximum(places - padding, 0), train=False)
        length = jax.tree.leaves(cache.layers)[0].shape[-3]
        is_real = (jnp.arange(length)[None, :] >= padding).astype(jnp.int32)
        x, layers = self.decoder(
            x,
            mask=Mask(Causal(cache.index), Segments(None, is_real)),
            cache=cache.layers,
            position=cache.index,
            train=False,
        )
        assert layers is not None  # a stack that is given a cache returns one
        return x, DecoderCache(layers, cache.index + tokens.shape[1])
