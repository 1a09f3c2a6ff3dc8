"""Vectors of texts, from an encoder alone."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float32

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, batches_by_length, pad_batch
from transformer_jax.inference.pooling import Pooling, check_known, pooled
from transformer_jax.inference.texts import BATCH_SIZE, check_tokens, checked_tokenizer
from transformer_jax.models import TransformerConfig, build
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.types import PyTree

PLAIN = Pooling()  # of a folder that says nothing of it


def embed_texts(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    *,
    pooling: Pooling = PLAIN,
    batch_size: int = BATCH_SIZE,
    normalize: bool | None = None,
    cut: bool = False,
) -> Float32[np.ndarray, "N D"]:
    """A vector for each text: by default the mean of an encoder's vectors over its tokens.

    As in sentence-transformers (Reimers and Gurevych 2019, arXiv:1908.10084, section 3, "MEAN").

    Args:
      config: of the model, an encoder alone; its head is not used.
      params: of the model.
      tokenizer: of the model.
      texts: any number.
      pooling: what is done with the vectors of a text's tokens.
      batch_size: texts at once.
      normalize: to the length 1, so that a product of two vectors is the cosine of their angle; None is what
        ``pooling`` says.
      cut: take the beginning of a text that is too long, with its special tokens, as sentence-transformers
        does.

    Raises:
      ConfigError: the model is no encoder of text alone, or has no tokenizer, or pools in a way that is not
        known.
      ValueError: a text is longer than the model or ``pooling`` takes; the message names it.
    """
    check_embeds(config, pooling)
    found = checked_tokenizer(tokenizer)
    encoded = [vector_tokens(config, found, text, i, pooling, cut=cut) for i, text in enumerate(texts, 1)]
    lengths = [len(tokens["inputs"]) for tokens in encoded]
    results = np.zeros((len(encoded), config.d_model), np.float32)
    for rows, length, chunk in batches_by_length(lengths, batch_size, config.max_length):
        batch = pad_batch([[encoded[i]] for i in chunk] + [[]] * (rows - len(chunk)), length)
        results[chunk] = np.asarray(_vectors(config, pooling.mode)(params, batch))[: len(chunk)]
    if pooling.normalize if normalize is None else normalize:
        results /= np.maximum(np.linalg.norm(results, axis=1, keepdims=True), 1e-12)
    return results


def check_embeds(config: TransformerConfig, pooling: Pooling = PLAIN) -> None:
    """Raises ConfigError unless the model is an encoder of text alone, pooled as is known here."""
    if config.image_shape or not config.is_encoder_only:
        kind = "a decoder alone" if config.is_decoder_only else "an encoder with a decoder"
        kind = "one of images" if config.image_shape else kind
        raise ConfigError(
            f"this model is {kind}: vectors of texts need an encoder of text alone, such as BERT"
        )
    check_known(pooling)


def vector_tokens(
    config: TransformerConfig,
    tokenizer: Tokenizer,
    text: str,
    number: int,
    pooling: Pooling = PLAIN,
    *,
    cut: bool = False,
) -> dict[str, np.ndarray]:
    """The tokens of a text as its vector is made from them, and their types where the model has types.

    Raises:
      ValueError: there are more than ``longest`` and they are not to be cut, or others than the model has;
        the message has the text's ``number``, from 1 on.
    """
    tokens = encode_texts(tokenizer, text)
    count, most = len(tokens["inputs"]), longest(config, pooling)
    if count > most and not cut:
        raise ValueError(
            f"text {number} has {count} tokens, the model takes {most}: split it. It begins {text[:60]!r}. "
            "cut=True, or --cut, takes the beginning of such texts, as sentence-transformers does"
        )
    if count > most:
        tokens = {key: np.append(array[: most - 1], array[-1:]) for key, array in tokens.items()}
    check_tokens(tokens["inputs"], number, text, config)
    if not config.num_token_types:
        del tokens["inputs_types"]
    return tokens


def longest(config: TransformerConfig, pooling: Pooling) -> int:
    """Tokens of a text, at most, special ones included."""
    return pooling.max_length or config.max_length


@functools.lru_cache(maxsize=8)
def _vectors(config: TransformerConfig, mode: str) -> Callable[..., Any]:
    """The compiled function from parameters and arguments to vectors of texts."""
    model = build(dataclasses.replace(config, head="none", num_labels=0))

    def vectors(params: PyTree, arguments: dict[str, jax.Array]) -> jax.Array:
        found = cast(Any, model.apply)({"params": params}, **arguments)
        return pooled(found, arguments["inputs_segments"] > 0, mode)

    return jax.jit(vectors)
