"""Computes embeddings of texts with an encoder-only model."""

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
from transformer_jax.models import TransformerConfig, build, evaluation_keys
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.types import PyTree

PLAIN = Pooling()  # of a folder that does not configure it


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
    """Returns an embedding for each text: by default the mean of the encoder's output over its tokens.

    This is what sentence-transformers does (Reimers and Gurevych 2019, arXiv:1908.10084, section 3, "MEAN").

    Args:
      config: of an encoder-only model; its head is not used.
      params: of the model.
      tokenizer: of the model.
      texts: any number.
      pooling: how the outputs for a text's tokens become one embedding.
      batch_size: maximum number of texts that are computed at once.
      normalize: whether to scale embeddings to length 1, so that the product of two is the cosine of their
        angle; None means as ``pooling`` says.
      cut: whether to truncate a text that is too long, as sentence-transformers does; special tokens stay.

    Raises:
      ConfigError: the model is no encoder-only model of text, has no tokenizer, or pools in an unsupported
      way. ValueError: a text is longer than the model or ``pooling`` takes. The message names it.
    """
    check_embeds(config, pooling)
    found = checked_tokenizer(tokenizer)
    encoded = [vector_tokens(config, found, text, i, pooling, cut=cut) for i, text in enumerate(texts, 1)]
    lengths = [len(tokens["inputs"]) for tokens in encoded]
    results = np.zeros((len(encoded), config.output_size), np.float32)
    for rows, length, chunk in batches_by_length(lengths, batch_size, config.inputs_max_length):
        batch = pad_batch([[encoded[i]] for i in chunk] + [[]] * (rows - len(chunk)), length)
        results[chunk] = np.asarray(_vectors(config, pooling.mode)(params, batch))[: len(chunk)]
    if pooling.normalize if normalize is None else normalize:
        results /= np.maximum(np.linalg.norm(results, axis=1, keepdims=True), 1e-12)
    return results


def check_embeds(config: TransformerConfig, pooling: Pooling = PLAIN) -> None:
    """Raises ConfigError unless the model is an encoder-only model of text with a supported pooling."""
    if not config.front_end.has_tokens or not config.is_encoder_only:
        kind = "a decoder alone" if config.is_decoder_only else "an encoder with a decoder"
        kind = kind if config.front_end.has_tokens else f"one of {config.front_end.UNIT}"
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
    """Returns the tokens of a text for the encoder, with types if the model has several.

    Raises:
      ValueError: there are more than ``longest`` and ``cut`` is not set, or the model does not have a token.
        The message has the text's ``number``, which counts from 1.
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
    if config.num_token_types < 2:
        del tokens["inputs_types"]
    return tokens


def longest(config: TransformerConfig, pooling: Pooling) -> int:
    """Returns the maximum number of tokens of a text, special tokens included."""
    return pooling.max_length or config.inputs_max_length


@functools.lru_cache(maxsize=8)
def _vectors(config: TransformerConfig, mode: str) -> Callable[..., Any]:
    """Returns the compiled function from parameters and arguments to embeddings of texts."""
    model = build(dataclasses.replace(config, head="none", num_labels=0))

    def vectors(params: PyTree, arguments: dict[str, jax.Array]) -> jax.Array:
        found = cast(Any, model.apply)({"params": params}, **arguments, rngs=evaluation_keys(config))
        return pooled(found, arguments["inputs_segments"] > 0, mode)

    return jax.jit(vectors)
