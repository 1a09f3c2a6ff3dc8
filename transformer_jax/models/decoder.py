"""A decoder-only model: a language model, such as GPT-2 (Radford et al. 2019)."""

from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.models.cache import DecoderCache, PromptContext, empty_cache, is_real
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.front_ends.tokens import EmbedTokens
from transformer_jax.models.heads import HEADS, PerToken
from transformer_jax.models.stack import Stack
from transformer_jax.types import PyTree


class DecoderOnly(nn.Module):
    """Predicts each token from those before it."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        # The checks of the config see to it that a decoder-only model reads tokens.
        self.embed_inputs = cast(EmbedTokens, config.front_end.build(config.part("decoder")))
        self.embedding = self.embed_inputs.embedding
        self.decoder = Stack(config.decoder)
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
        """Returns the logits of the token after each one; ``logits[:, i]`` depend on ``inputs[:, : i + 1]``.

        Args:
          inputs: tokens.
          inputs_segments: 0 on padding, else the number of the document in its row. None means one document
            without padding, because a language model may have no padding token.
          inputs_positions: positions within the document; None means 0, 1, 2, …
          train: whether dropout is on. It reads the random stream ``dropout``: ``rngs={"dropout": key}``.
          per_token: a function that is given logits of some tokens and the slice that says which tokens these
            are. What it returns, arrays (B, L', ...) such as losses, is returned in place of the logits. In
            training, large logits are computed for one stretch of tokens at a time.

        Raises:
          ValueError: a sequence is longer than the decoder's ``max_length``.
        """
        x = self.embed_inputs(inputs, inputs_positions, segments=inputs_segments, train=train)
        mask = Mask(Causal())
        if inputs_segments is not None:
            mask &= Segments(inputs_segments, inputs_segments)
        x = self.decoder(x, mask=mask, train=train)
        return self.logits.per_token(x, self.embedding, per_token, train=train)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> DecoderCache:
        """Returns an empty cache for ``batch_size`` rows of up to ``max_length`` places; needs no parameters.

        Places before a prompt count too, so there may be more places than the model has positions.
        """
        return empty_cache(self.config.decoder, batch_size, max_length)

    def read_prompt(
        self, inputs: Int[Array, "B L"], context: PromptContext, cache: DecoderCache
    ) -> DecoderCache:
        """Computes the tokens of prompts all at once, and returns the cache after them.

        Args:
          inputs: prompts that end in the last column. The columns before a prompt are ignored.
          context: the number of these columns in each row.
          cache: of ``init_cache``, or of an earlier call.
        """
        return self._advance(inputs, context, cache)[1]

    def decode_step(
        self, tokens: Int[Array, "B"], context: PromptContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Predicts the next token of each row.

        Args:
          tokens: the last token of each row.
          context: as for ``read_prompt``.
          cache: of ``read_prompt``, or of the step before.

        Returns:
          Logits of the next token, and the cache for the next step. Past the cache's length the result is
          meaningless; decoding loops must stop there.
        """
        x, cache = self._advance(tokens[:, None], context, cache)
        return self.logits(x, self.embedding)[:, 0], cache

    def _advance(
        self, tokens: Int[Array, "B L"], context: PromptContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B L D"], DecoderCache]:
        padding = context.padding[:, None]
        positions = cache.index + jnp.arange(tokens.shape[1])[None, :]
        x = self.embed_inputs(tokens, jnp.maximum(positions - padding, 0), train=False)
        return self.decoder.advance(x, cache, None, is_real(padding, cache.length))
