"""A model with an encoder and a decoder (Vaswani et al. 2017, Figure 1)."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.models.cache import DecoderCache, EncodedContext, empty_cache, is_real
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.front_ends.tokens import EmbedTokens, token_embedding
from transformer_jax.models.heads import HEADS, PerToken
from transformer_jax.models.stack import Stack
from transformer_jax.types import PyTree


class EncoderDecoder(nn.Module):
    """Predicts each target token from the source and the target tokens before it.

    By default the embeddings of source and target and the product before the softmax share their parameters.
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.front_end = config.front_end.build(config.part("encoder"))
        shared = self.front_end.embedding if config.share_embeddings in ("all", "inputs") else None
        self.target_embedding = token_embedding(config) if shared is None else shared
        self.embed_targets = EmbedTokens(config.part("decoder"), self.target_embedding)
        self.encoder = Stack(config.encoder)
        self.decoder = Stack(config.decoder)
        self.logits = HEADS[config.head].module(config)

    def __call__(
        self,
        inputs: Int[Array, "B S"] | None = None,
        targets: Int[Array, "B L"] | None = None,
        *,
        inputs_positions: Int[Array, "B S"] | None = None,
        inputs_segments: Int[Array, "B S"] | None = None,
        targets_positions: Int[Array, "B L"] | None = None,
        targets_segments: Int[Array, "B L"] | None = None,
        train: bool = False,
        per_token: PerToken | None = None,
        **arguments: Array | None,
    ) -> Float[Array, "B L V"] | PyTree:
        """Returns the logits of each target token, given the source and the target tokens before it.

        ``logits[:, i]`` predicts ``targets[:, i]``. The model shifts the targets itself.

        Args:
          inputs: source tokens.
          targets: target tokens; they must be given.
          inputs_segments, targets_segments: 0 on padding, else the number of the example in its row. None
            means that tokens equal to ``config.pad_id`` are padding, and all others one example.
          inputs_positions, targets_positions: positions within the example; None means 0, 1, 2, …
          train: whether dropout is on. It reads the random stream ``dropout``: ``rngs={"dropout": key}``.
          per_token: a function that is given logits of some tokens and the slice that says which tokens these
            are. What it returns, arrays (B, L', ...) such as losses, is returned in place of the logits. In
            training, large logits are computed for one stretch of tokens at a time.
          arguments: the arguments of the front end, if its inputs are not tokens.

        Raises:
          ValueError: a sequence is longer than ``max_length`` of its stack, there are no targets, or the
            arguments are not those of the front end.
        """
        if targets is None:
            raise ValueError("an encoder-decoder needs targets, the tokens that its decoder is to predict")
        if targets_segments is None:
            targets_segments = self._segments(targets)
        arguments |= {"inputs_positions": inputs_positions, "inputs_segments": inputs_segments}
        context, segments = self._encode({"inputs": inputs, **arguments}, train=train)
        shifted = shift_right(targets, targets_positions, self.config.decoder_start_id)
        x = self.embed_targets(shifted, targets_positions, train=train)
        x = self.decoder(
            x,
            context,
            mask=Mask(Causal(), Segments(targets_segments, targets_segments)),
            context_mask=Mask() if segments is None else Mask(Segments(targets_segments, segments)),
            train=train,
        )
        return self.logits.per_token(x, self.target_embedding, per_token, train=train)

    def encode(
        self,
        inputs: Int[Array, "B S"] | None = None,
        *,
        train: bool = False,
        **arguments: Array | None,
    ) -> Float[Array, "B S D"]:
        """Returns the output of the encoder; the arguments are those of the front end, as in ``__call__``."""
        return self._encode({"inputs": inputs, **arguments}, train=train)[0]

    def _encode(
        self, arguments: Mapping[str, Array | None], *, train: bool
    ) -> tuple[Float[Array, "B S D"], Int[Array, "B S"] | None]:
        """Returns the output of the encoder, and the segments (``Embedded.segments``)."""
        embedded = self.front_end.embed(self.config.front_end.checked(arguments), train=train)
        segments = embedded.segments
        mask = Mask() if segments is None else Mask(Segments(segments, segments))
        return self.encoder(embedded.x, mask=mask, train=train), segments

    def encode_context(
        self,
        inputs: Int[Array, "B S"] | None = None,
        inputs_segments: Int[Array, "B S"] | None = None,
        **arguments: Array | None,
    ) -> EncodedContext:
        """Encodes sources, one a row, for any number of calls of ``decode_step``."""
        given = {"inputs": inputs, "inputs_segments": inputs_segments, **arguments}
        encoded, segments = self._encode(given, train=False)
        if segments is None:
            segments = jnp.ones(encoded.shape[:2], jnp.int32)
        return self.decoder.project_context(encoded, segments)

    def read_prompt(
        self, tokens: Int[Array, "B L"], context: EncodedContext, cache: DecoderCache
    ) -> DecoderCache:
        """Writes the first tokens of the decoder into the cache, all at once.

        Args:
          tokens: ``config.decoder_start_id`` and what follows it, up to the token that the first
            ``decode_step`` is given. Rows end in the last column; ``context.padding`` columns before a row's
            start token are ignored.
          context: of ``encode_context``.
          cache: of ``init_cache``, or of an earlier call.
        """
        return self._advance(tokens, context, cache)[1]

    def decode_step(
        self, tokens: Int[Array, "B"], context: EncodedContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Predicts the next token of each row.

        Args:
          tokens: the last token of each row; ``config.decoder_start_id`` at first if there is no prompt.
          context: of ``encode_context``.
          cache: of ``init_cache``, ``read_prompt`` or the step before.

        Returns:
          Logits of the next token, and the cache for the next step. Past the cache's length the result is
          meaningless; decoding loops must stop there.
        """
        x, cache = self._advance(tokens[:, None], context, cache)
        return self.logits(x, self.target_embedding)[:, 0], cache

    def _advance(
        self, tokens: Int[Array, "B L"], context: EncodedContext, cache: DecoderCache
    ) -> tuple[Float[Array, "B L D"], DecoderCache]:
        positions = cache.index + jnp.arange(tokens.shape[1])[None, :]
        mask = Mask()
        if context.padding is not None:
            padding = context.padding[:, None]
            positions = jnp.maximum(positions - padding, 0)
            mask = is_real(padding, cache.length)
        x = self.embed_targets(tokens, positions, train=False)
        return self.decoder.advance(x, cache, context, mask)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> DecoderCache:
        """Returns an empty cache for ``batch_size`` rows of up to ``max_length`` places; needs no parameters.

        Places before a prompt count too, so there may be more places than the model has positions.
        """
        return empty_cache(self.config.decoder, batch_size, max_length)

    def _segments(self, tokens: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return (tokens != self.config.pad_id).astype(jnp.int32)


def shift_right(
    targets: Int[Array, "B L"], positions: Int[Array, "B L"] | None, start_id: int
) -> Int[Array, "B L"]:
    """Returns the targets moved by one position, with ``start_id`` at the first one of every example."""
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
    return shifted if positions is None else jnp.where(positions == 0, start_id, shifted)
