"""The front end of tokens: word embeddings, positions, and the types of several texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_jax.config import ConfigError, check_types
from transformer_jax.layers.embeddings import Embedding
from transformer_jax.layers.positions import PositionEncoding
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.front_ends.base import FrontEnd, normalise_and_drop

if TYPE_CHECKING:  # the config has a front end as a field
    from transformer_jax.models.config import TransformerConfig


def token_embedding(config: "TransformerConfig", name: str | None = None) -> Embedding:
    """Returns the embedding of the vocabulary."""
    is_scaled = config.embedding_scale == "inputs"
    # Looked-up rows have unit variance, unless a family draws all weights alike.
    stddev = config.initial_stddev or (config.d_model**-0.5 if is_scaled else 1.0)
    dtype = jnp.dtype(config.dtype)
    return Embedding(config.vocab_size, config.d_model, is_scaled, dtype, stddev, name=name)


class EmbedTokens(nn.Module):
    """Embeds tokens: the sum of word, position and type embeddings, with a norm if the config has one.

    Dropout is applied to the result (sections 3.4, 3.5 and 5.4 of Vaswani et al. 2017; Devlin et al. 2019,
    Figure 2).

    Attributes:
      embedding: the embedding of the vocabulary.
      position_offset, positions_skip_padding: as in ``Tokens``.
    """

    config: "TransformerConfig"
    embedding: Embedding
    position_offset: int = 0
    positions_skip_padding: bool = False

    def embed(self, arguments: Mapping[str, Array], *, train: bool) -> Embedded:
        """Returns the input of the first block, given ``Tokens.ARGUMENTS``."""
        tokens = arguments["inputs"]
        segments = arguments.get("inputs_segments")
        if segments is None:
            segments = (tokens != self.config.pad_id).astype(jnp.int32)
        positions, types = arguments.get("inputs_positions"), arguments.get("inputs_types")
        x = self(tokens, positions, types, segments, train=train)
        return Embedded(x, segments, self.embedding, arguments)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "#B L"] | None,
        types: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B L D"]:
        """Returns the sum of the embeddings.

        Args:
          tokens: ids of the vocabulary.
          positions: the position of each token in its example; None means 0, 1, 2, …
          types: the number of the text that each token belongs to; None means 0 everywhere.
          segments: 0 on padding, else the number of the example in its row; None means that there is no
            padding and one example.
          train: whether dropout is on.

        Raises:
          ValueError: there are more tokens than ``config.max_length``, or types for a model without types.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        check_length(tokens.shape[1], config)
        x = self.embedding(tokens)
        if config.positions != "relative":
            rows = config.max_length + self.position_offset
            encoding = PositionEncoding(config.positions, rows, config.d_model, dtype, name="positions")
            x += encoding(self._table_rows(tokens.shape[1], positions, segments))
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
        return normalise_and_drop(config, x, train)

    def _table_rows(
        self, length: int, positions: Int[Array, "#B L"] | None, segments: Int[Array, "B L"] | None
    ) -> Int[Array, "#B L"] | int:
        """Returns the row of the table of positions for each token; a number means the first so many rows."""
        if not self.position_offset:
            return length if positions is None else positions
        if self.positions_skip_padding and segments is not None:
            positions = positions_in_segments(segments) if positions is None else positions
            return jnp.where(segments > 0, positions, -1) + self.position_offset
        positions = jnp.arange(length)[None] if positions is None else positions
        return positions + self.position_offset


def positions_in_segments(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns the number of tokens of the same segment before each token, without padding.

    Args:
      segments: 0 on padding, else the number of the example in its row; the numbers do not decrease.

    Returns:
      The positions; those of padding mean nothing.
    """
    count = jnp.cumsum(segments > 0, axis=1, dtype=jnp.int32) - 1  # of real tokens before each real one
    latest = jax.lax.cummax(segments, axis=1)
    begins = latest > jnp.pad(latest[:, :-1], ((0, 0), (1, 0)))
    return count - jax.lax.cummax(jnp.where(begins, count, 0), axis=1)


def check_length(length: int, config: "TransformerConfig") -> None:
    """Raises ValueError if a sequence has more tokens than the model has positions."""
    if length > config.max_length:
        raise ValueError(
            f"a sequence of {length} tokens is longer than the model's {config.max_length}: shorten it, or "
            "use a model with a larger max_length"
        )


def draw_tokens(
    config: "TransformerConfig", rng: np.random.Generator, lengths: Sequence[int], side: str
) -> dict[str, np.ndarray]:
    """Returns random tokens of one side, ``inputs`` or ``targets``, padded at the end, and their segments.

    No token ends a text, and none but padding has the padding id, because ``transformers`` takes every token
    with that id for padding.
    """
    longest = max(lengths)
    segments = (np.arange(longest)[None, :] < np.array(lengths)[:, None]).astype(np.int32)
    tokens = rng.integers(0, config.vocab_size, segments.shape, dtype=np.int32)
    special = np.isin(tokens, (config.pad_id, config.eos_id))
    plain = next(i for i in range(config.vocab_size) if i not in (config.pad_id, config.eos_id))
    tokens = np.where(special, plain, tokens)
    tokens = np.where(segments == 1, tokens, config.pad_id).astype(np.int32)
    return {side: tokens, f"{side}_segments": segments}


@dataclasses.dataclass(frozen=True)
class Tokens(FrontEnd):
    """Texts as tokens of a vocabulary.

    Attributes:
      position_offset: the row of the table of positions that the first token of an example gets. The table
        has ``max_length`` rows and this many before them. It is 0 if there is a decoder beside an encoder.
      positions_skip_padding: whether positions are counted over the tokens that are not padding; a padding
        token gets the row before that of a first token. RoBERTa counts so, from ``pad_id + 1`` (Liu et al.
        2019, the released code).
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("inputs", "inputs_positions", "inputs_segments", "inputs_types")
    FEATURE: ClassVar[str] = "inputs"
    UNIT: ClassVar[str] = "tokens"
    has_tokens: ClassVar[bool] = True
    pools_classes: ClassVar[bool] = True

    kind: str = dataclasses.field(default="tokens", kw_only=True)
    position_offset: int = 0
    positions_skip_padding: bool = False

    def __post_init__(self) -> None:
        check_types(self, "model.front_end")
        if self.position_offset < int(self.positions_skip_padding):
            raise ConfigError(
                f"model.front_end.position_offset={self.position_offset} must be at least 0, and at least 1 "
                "with positions_skip_padding=True, because padding has the row before that of a first token"
            )

    def build(self, config: "TransformerConfig") -> EmbedTokens:
        """Returns the module ``embed_inputs``, beside ``embedding``, which other modules may share."""
        table = token_embedding(config, name="embedding")
        return EmbedTokens(
            config, table, self.position_offset, self.positions_skip_padding, name="embed_inputs"
        )

    def is_alike(self, other: FrontEnd) -> bool:
        """Returns whether both count positions in the same way; with padding skipped, from any offset."""
        if self.positions_skip_padding and isinstance(other, Tokens):
            return other.positions_skip_padding
        return self == other

    def check(self, config: "TransformerConfig") -> None:
        """Raises ConfigError if an offset of positions has no table to apply to, or two."""
        if self.position_offset and config.positions == "relative":
            raise ConfigError(
                f"model.front_end.position_offset={self.position_offset} shifts the rows of a table of "
                "positions, but model.positions='relative' has none: set it to 0"
            )
        if self.position_offset and not (config.is_encoder_only or config.is_decoder_only):
            raise ConfigError(
                f"model.front_end.position_offset={self.position_offset} is for an encoder or a decoder "
                "alone: beside an encoder, targets are counted from 0 and padding is not skipped; "
                "set it to 0"
            )

    def example_inputs(self, config: "TransformerConfig") -> dict[str, Array]:
        """Returns two tokens."""
        return {"inputs": jnp.full((1, min(2, config.max_length)), config.eos_id, jnp.int32)}

    def draw_inputs(
        self, config: "TransformerConfig", rng: np.random.Generator, lengths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Returns random tokens, their segments, and types if the model has several."""
        inputs = draw_tokens(config, rng, lengths, "inputs")
        if config.num_token_types > 1:
            types = rng.integers(0, config.num_token_types, inputs["inputs"].shape, dtype=np.int32)
            inputs["inputs_types"] = types * inputs["inputs_segments"]
        return inputs

    def length(self, config: "TransformerConfig", batch: Mapping[str, Any]) -> int:
        """Returns the length of the rows."""
        return batch["inputs"].shape[1]
