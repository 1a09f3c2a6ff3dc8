"""Random keys for the random streams of a model."""

import zlib

import jax

from transformer_jax.models.config import TransformerConfig

DROPOUT = "dropout"


def training_keys(config: TransformerConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Returns a key for each random stream that a training step reads, by the name of the stream.

    ``dropout`` gets ``key`` itself. Every other stream gets a key of its own, which depends on ``key`` and on
    its name.
    """
    return {DROPOUT: key} | _keys(config, key)


def evaluation_keys(config: TransformerConfig) -> dict[str, jax.Array]:
    """Returns a key for each random stream that the model reads without dropout.

    The keys are always the same, so evaluation and decoding can be repeated.
    """
    return _keys(config, jax.random.key(0)) if config.streams else {}


def _keys(config: TransformerConfig, key: jax.Array) -> dict[str, jax.Array]:
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in config.streams}
