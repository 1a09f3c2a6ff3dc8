"""Checks and encodes texts, and predicts the classes of texts or images.

``Pretrained`` has methods for this.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Float32

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, batches_by_length, pad_batch
from transformer_jax.inference.images import Sizing, model_image
from transformer_jax.models import TransformerConfig, build, evaluation_keys
from transformer_jax.models.heads import task_of
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.types import PyTree

BATCH_SIZE = 32

# A text, a pair of texts, or an image: an array, or the path of its file.
Classified: TypeAlias = str | tuple[str, str] | np.ndarray | os.PathLike[str]


def check_tokens(tokens: np.ndarray, number: int, text: str, config: TransformerConfig) -> None:
    """Raises ValueError, with the text's number from 1 on, if the model does not take its tokens."""
    if len(tokens) > config.inputs_max_length:
        raise ValueError(
            f"text {number} has {len(tokens)} tokens, the model takes {config.inputs_max_length}: split it. "
            f"It begins {text[:60]!r}"
        )
    check_vocabulary(tokens, f"text {number}", text, config)


def check_vocabulary(tokens: np.ndarray, name: str, text: str, config: TransformerConfig) -> None:
    """Raises ValueError if a token of a text, which messages call ``name``, is not one of the model's."""
    if tokens.max(initial=0) >= config.vocab_size:
        raise ValueError(
            f"{name} has the token {tokens.max()}, which the tokenizer knows and the model, with "
            f"{config.vocab_size} tokens, does not. It begins {text[:60]!r}"
        )


def class_probabilities(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    inputs: Sequence[Classified] | np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
    problem_type: str = "",
    sizing: Sizing | None = None,
) -> Float32[np.ndarray, "N num_labels"]:
    """Returns the probability of each class for each text, pair of texts, or image.

    Args:
      config: of the model, which has the head "classes".
      params: of the model.
      tokenizer: of the model; None for images.
      inputs: texts and pairs of texts; or images, uint8 (height, width, channels), and paths of their files.
      batch_size: maximum number of inputs that are computed at once.
      problem_type: as in ``config.json``. With "multi_label_classification" the classes are independent of
        one another; otherwise their probabilities sum to 1.
      sizing: resizes images of any size to the model's; with None other sizes are an error.

    Raises:
      ConfigError: the model has no head for classes or no tokenizer, or predicts a number instead of classes.
      ValueError: a text is longer than the model takes, an image has another size, or its file cannot be
        read. The message names the input.
    """
    if task_of(config.head) != "classes":
        raise ConfigError(
            f"this model has the head {config.head!r}: telling classes needs the head 'classes', that of a "
            "model trained to classify"
        )
    if problem_type == "regression" or config.num_labels == 1:
        raise ConfigError(
            "this model gives one number for an input, and no classes: model.apply has it, as its logits"
        )
    if config.front_end.has_tokens:
        checked_tokenizer(tokenizer)
    encoded = [
        encoded_input(config, tokenizer, given, number, sizing) for number, given in enumerate(inputs, 1)
    ]
    lengths = [len(arrays["inputs"]) if config.front_end.has_tokens else 1 for arrays in encoded]
    batches = batches_by_length(lengths, batch_size, config.inputs_max_length)
    results = np.zeros((len(encoded), config.num_labels), np.float32)
    for rows, length, chunk in batches:
        batch = pad_batch([[encoded[i]] for i in chunk] + [[]] * (rows - len(chunk)), length)
        found = _classes(config, problem_type == "multi_label_classification")(params, batch)
        results[chunk] = np.asarray(found)[: len(chunk)]
    return results


def encoded_input(
    config: TransformerConfig,
    tokenizer: Tokenizer | None,
    given: Any,
    number: int,
    sizing: Sizing | None = None,
) -> dict[str, np.ndarray]:
    """Returns the arrays of an input that a user has, as the model's front end reads it.

    Args:
      config: the model's config.
      tokenizer: the model's tokenizer, if it has one.
      given: a text, a pair of texts, an image, or whatever else the front end reads.
      number: of the input, from 1 on, for messages.
      sizing: brings an image to the size of the model.

    Raises:
      ConfigError: the front end needs a tokenizer, and there is none.
      ValueError: the input is not what the front end reads; the message has its ``number``.
    """
    return ENCODERS[config.front_end.FEATURE](config, tokenizer, given, number, sizing)


def encoder_tokens(
    config: TransformerConfig, tokenizer: Tokenizer, text: Classified, number: int
) -> dict[str, np.ndarray]:
    """Returns the tokens of a text or pair of texts for an encoder-only model, with types if the model has
    several.

    Raises:
      ValueError: the input is neither, or has more tokens than the model takes. The message has its
        ``number``, which counts from 1.
    """
    if isinstance(text, np.ndarray | os.PathLike):
        kind = "an array" if isinstance(text, np.ndarray) else "a path"
        raise ValueError(f"input {number} is {kind}, but this is a model of text")
    first, second = _text_and_second(text, number)
    tokens = encode_texts(tokenizer, first, second)
    check_tokens(tokens["inputs"], number, first, config)
    if config.num_token_types < 2:
        del tokens["inputs_types"]
    return tokens


# How inputs that users have become arrays, by the feature that a front end reads.
ENCODERS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "inputs": lambda config, tokenizer, given, number, sizing: encoder_tokens(
        config, checked_tokenizer(tokenizer), given, number
    ),
    "images": lambda config, tokenizer, given, number, sizing: {
        "images": model_image(config, given, number, sizing)
    },
}


def _text_and_second(text: Any, number: int) -> tuple[str, str | None]:
    if isinstance(text, str):
        return text, None
    if isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return text[0], text[1]
    shown = repr(text) if len(repr(text)) <= 60 else f"{repr(text)[:60]}..."
    raise ValueError(f"input {number} is {shown}, not a text or a pair of texts")


def checked_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Returns the tokenizer; raises ConfigError if it is None."""
    if tokenizer is None:
        raise ConfigError(
            "the model has no tokenizer, which texts need: put its tokenizer.json into its folder"
        )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _classes(config: TransformerConfig, are_independent: bool) -> Callable[..., Any]:
    """Returns the compiled function from parameters and arguments to probabilities."""
    model = build(config)

    def probabilities(params: PyTree, arguments: dict[str, jax.Array]) -> jax.Array:
        logits = cast(Any, model.apply)({"params": params}, **arguments, rngs=evaluation_keys(config))
        return jax.nn.sigmoid(logits) if are_independent else jax.nn.softmax(logits, axis=-1)

    return jax.jit(probabilities)
