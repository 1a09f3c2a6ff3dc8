"""What a model, its parameters and its tokenizer are for: text, and classes of texts, that a user has.

``pretrained.Pretrained`` has these functions as methods, with the settings spelt out.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Float32

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, batches_by_length, pad_batch
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules
from transformer_jax.inference.defaults import MAX_NEW_TOKENS
from transformer_jax.inference.images import Sizing, model_image
from transformer_jax.models import TransformerConfig, build
from transformer_jax.models.heads import task_of
from transformer_jax.objectives.classification import encode_texts, scale_pixels
from transformer_jax.types import PyTree

BATCH_SIZE = 32
GREEDY = DecodingSettings(beam_size=1)

# A text, a pair of texts, or an image: an array, or the path of its file.
Classified: TypeAlias = str | tuple[str, str] | np.ndarray | os.PathLike[str]

_UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


def generate_texts(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    settings: DecodingSettings = GREEDY,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    rules: TextRules = OWN_RULES,
    batch_size: int = BATCH_SIZE,
    prompt_start: tuple[int, ...] = (),
    first_number: int = 0,
) -> list[str]:
    """What an encoder and decoder make of each source, or how a decoder alone goes on after each prompt.

    What reads like a special token of the tokenizer in a text is one, such as ``<mask>``: to be filled in.

    Args:
      config: of the model.
      params: of the model.
      tokenizer: of the model.
      texts: sources or prompts. After an empty prompt a text begins: what stands before it is eos.
      settings: how to search or sample.
      max_new_tokens: of an output, eos included; where the model has room for fewer, those.
      rules: what the settings leave open.
      batch_size: texts at once.
      prompt_start: ids before every prompt of a decoder alone.
      first_number: of the first text: its number is what random draws depend on, beside the seed.

    Returns:
      Texts, without the prompts; a space with which one goes on is there.

    Raises:
      ConfigError: the model has no decoder or no tokenizer, or the settings contradict each other.
      ValueError: a text is longer than the model takes; the message names it.
    """
    generator = checked_generator(config, tokenizer, settings, rules, max_new_tokens, batch_size)
    assert tokenizer is not None  # or there would be no generator
    sequences = [
        given_tokens(config, tokenizer, text, number, prompt_start, generator)
        for number, text in enumerate(texts, first_number + 1)
    ]
    numbers = range(first_number, first_number + len(sequences))
    outputs = generator.generate(params, sequences, numbers)
    befores = [_before(config, sequence) for sequence in sequences]
    return [
        tokenizer.decode([*before, *output.tolist()])[len(tokenizer.decode(before)) :]
        for before, output in zip(befores, outputs, strict=True)
    ]


def stream_text(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    text: str,
    settings: DecodingSettings = GREEDY,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    rules: TextRules = OWN_RULES,
    prompt_start: tuple[int, ...] = (),
    number: int = 0,
) -> Iterator[str]:
    """The text that ``generate_texts`` gives, in pieces as they come; a character is in one of them whole.

    Args:
      config, params, tokenizer, settings, max_new_tokens, rules, prompt_start: as for ``generate_texts``.
      text: the source or prompt.
      number: of the text.

    Raises:
      ConfigError, ValueError: as ``generate_texts``, at once; also where the settings ask for beam search.
    """
    generator = checked_generator(config, tokenizer, settings, rules, max_new_tokens, 1)
    assert tokenizer is not None
    sequence = given_tokens(config, tokenizer, text, number + 1, prompt_start, generator)
    tokens = generator.stream(params, sequence, number)
    return text_pieces(tokenizer, _before(config, sequence), tokens)


def text_pieces(tokenizer: Tokenizer, before: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Yields the text of ``tokens`` as they come, never a part of a character.

    Args:
      tokenizer: decodes the tokens.
      before: the tokens that precede them, whose text is not repeated.
      tokens: the new tokens.
    """
    ids = list(before)
    told = len(tokenizer.decode(ids))
    text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        # At its end may be bytes of a character that is not complete; the next token tells.
        whole = len(text.rstrip(_UNFINISHED))
        if whole > told:
            yield text[told:whole]
            told = whole
    if len(text) > told:
        yield text[told:]


def given_tokens(
    config: TransformerConfig,
    tokenizer: Tokenizer,
    text: str,
    number: int,
    prompt_start: tuple[int, ...] = (),
    generator: Generator | None = None,
) -> np.ndarray:
    """The tokens of a source or prompt as ``generate_texts`` gives them to the model.

    Raises:
      ValueError: there are more than the model takes, or so many that ``generator``, if there is one, has no
        room for more; the message has the text's ``number``, from 1 on.
    """
    if config.is_decoder_only:
        tokens = np.array([*prompt_start, *tokenizer.encode(text, parse_special=True)], np.int32)
        if not len(tokens):
            tokens = np.array([config.eos_id], np.int32)
    else:
        tokens = tokenizer.encode_whole(text, parse_special=True)
    check_tokens(tokens, number, text, config)
    if generator is not None:
        generator.check_length(len(tokens), f"text {number}")
    return tokens


def check_tokens(tokens: np.ndarray, number: int, text: str, config: TransformerConfig) -> None:
    """Raises ValueError for a text of more or other tokens than the model has, with its number, from 1 on."""
    if len(tokens) > config.max_length:
        raise ValueError(
            f"text {number} has {len(tokens)} tokens, the model takes {config.max_length}: split it. "
            f"It begins {text[:60]!r}"
        )
    if tokens.max(initial=0) >= config.vocab_size:
        raise ValueError(
            f"text {number} has the token {tokens.max()}, which the tokenizer knows and the model, with "
            f"{config.vocab_size} tokens, does not. It begins {text[:60]!r}"
        )


def _before(config: TransformerConfig, sequence: np.ndarray) -> list[int]:
    """The tokens that an output goes on from, on which its first space may depend."""
    return sequence.tolist() if config.is_decoder_only else []


def checked_generator(
    config: TransformerConfig,
    tokenizer: Tokenizer | None,
    settings: DecodingSettings,
    rules: TextRules,
    max_new_tokens: int,
    batch_size: int,
) -> Generator:
    """What ``generate_texts`` generates with; raises ConfigError as it does."""
    if config.is_encoder_only:
        raise ConfigError(
            f"this model is an encoder alone, with the head {config.head!r}: it has no decoder, which "
            "generating text needs"
        )
    found = checked_tokenizer(tokenizer)
    if settings.temperature > 0 and settings.beam_size > 1:
        raise ConfigError(
            f"a beam of {settings.beam_size} searches, temperature={settings.temperature} samples: leave one "
            "of them out"
        )
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    return _generator(config, settings, rules, found.vocab_size, max_new_tokens, batch_size)


@functools.lru_cache(maxsize=8)
def _generator(
    config: TransformerConfig,
    settings: DecodingSettings,
    rules: TextRules,
    num_tokens: int,
    max_new_tokens: int,
    batch_size: int,
) -> Generator:
    """The same one for the same arguments, so that a second call compiles nothing."""
    return Generator(
        config,
        settings,
        num_tokens,
        output_length=lambda _: max_new_tokens,
        batch_size=batch_size,
        rules=rules,
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
    """How probable each class is for each text, pair of texts, or image.

    Args:
      config: of the model, which has the head "classes".
      params: of the model.
      tokenizer: of the model; None for images.
      inputs: texts and pairs of texts; or images, uint8 (height, width, channels), and paths of their files.
      batch_size: of them at once.
      problem_type: as in ``config.json``. Of "multi_label_classification" each class has a probability by
        itself; otherwise one of them is right, and the probabilities sum to 1.
      sizing: brings images of any size to the model's; None takes images of that size alone.

    Raises:
      ConfigError: the model has no head for classes or no tokenizer, or gives a number instead of classes.
      ValueError: a text is longer than the model takes, an image has another size, or its file cannot be
        read; the message names it.
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
    if config.image_shape:
        encoded = [
            {"images": model_image(config, image, number, sizing)} for number, image in enumerate(inputs, 1)
        ]
        lengths = [1] * len(encoded)
    else:
        known = checked_tokenizer(tokenizer)
        encoded = [encoder_tokens(config, known, text, number) for number, text in enumerate(inputs, 1)]
        lengths = [len(tokens["inputs"]) for tokens in encoded]
    batches = batches_by_length(lengths, batch_size, config.max_length)
    results = np.zeros((len(encoded), config.num_labels), np.float32)
    for rows, length, chunk in batches:
        batch = pad_batch([[encoded[i]] for i in chunk] + [[]] * (rows - len(chunk)), length)
        found = _classes(config, problem_type == "multi_label_classification")(params, batch)
        results[chunk] = np.asarray(found)[: len(chunk)]
    return results


def encoder_tokens(
    config: TransformerConfig, tokenizer: Tokenizer, text: Classified, number: int
) -> dict[str, np.ndarray]:
    """The tokens of a text or pair as an encoder alone is given them, and their types where it has types.

    Raises:
      ValueError: it is neither, or has more tokens than the model takes; the message has its ``number``,
        from 1 on.
    """
    if isinstance(text, np.ndarray | os.PathLike):
        kind = "an array" if isinstance(text, np.ndarray) else "a path"
        raise ValueError(f"input {number} is {kind}, but this is a model of text")
    first, second = _text_and_second(text, number)
    tokens = encode_texts(tokenizer, first, second)
    check_tokens(tokens["inputs"], number, first, config)
    if not config.num_token_types:
        del tokens["inputs_types"]
    return tokens


def _text_and_second(text: Any, number: int) -> tuple[str, str | None]:
    if isinstance(text, str):
        return text, None
    if isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return text[0], text[1]
    shown = repr(text) if len(repr(text)) <= 60 else f"{repr(text)[:60]}..."
    raise ValueError(f"input {number} is {shown}, not a text or a pair of texts")


def checked_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer; raises ConfigError where there is none."""
    if tokenizer is None:
        raise ConfigError(
            "the model has no tokenizer, which texts need: put its tokenizer.json into its folder"
        )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _classes(config: TransformerConfig, are_independent: bool) -> Callable[..., Any]:
    """The compiled function from parameters and arguments to probabilities."""
    model = build(config)

    def probabilities(params: PyTree, arguments: dict[str, jax.Array]) -> jax.Array:
        if "images" in arguments:
            arguments = {"images": scale_pixels(arguments["images"])}
        logits = cast(Any, model.apply)({"params": params}, **arguments)
        return jax.nn.sigmoid(logits) if are_independent else jax.nn.softmax(logits, axis=-1)

    return jax.jit(probabilities)
