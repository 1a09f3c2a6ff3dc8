"""Generates texts: the outputs of an encoder-decoder for sources, or a language model's continuations of
prompts.

``TextGenerator`` is the one way from texts to texts. ``Pretrained.generate``, the program ``generate`` and
the translation of runs differ in its arguments only.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules
from transformer_jax.inference.defaults import MAX_NEW_TOKENS
from transformer_jax.inference.texts import BATCH_SIZE, check_tokens, check_vocabulary, checked_tokenizer
from transformer_jax.models import TransformerConfig
from transformer_jax.types import PyTree

GREEDY = DecodingSettings(beam_size=1)

_UNFINISHED = "\ufffd"  # a tokenizer decodes the first bytes of an incomplete character to this


class TextGenerator:
    """Generates a text for each source, or continues each prompt.

    Two generators with equal arguments share their compiled programs.

    Args:
      config: of the model.
      tokenizer: of the model.
      settings: how to search or sample.
      rules: what the settings leave open.
      max_new_tokens: maximum number of tokens of an output, eos included; None is no limit of its own. The
        model's room is a limit in any case.
      extra_length: maximum number of tokens of an output beyond those of its source or prompt; None is no
        limit.
      batch_size: maximum number of texts that are decoded at once.
      prompt_start: ids before every prompt of a decoder-only model.
      parse_special: whether the text of a special token in a source or prompt, such as ``<mask>``, is that
        token.
      keep_blank: whether the output of a blank text is empty.
      cut_to: maximum number of tokens of a source, special tokens included. A longer source is truncated. By
        default it is not, and an error if the model does not take it.
      mesh: the devices to compute on, with rows over its data axes; by default where the parameters are.

    Raises:
      ConfigError: the model has no decoder or no tokenizer, or the settings contradict each other.
      ValueError: the rules name a token that the model does not have.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: Tokenizer | None,
        settings: DecodingSettings = GREEDY,
        *,
        rules: TextRules = OWN_RULES,
        max_new_tokens: int | None = MAX_NEW_TOKENS,
        extra_length: int | None = None,
        batch_size: int = BATCH_SIZE,
        prompt_start: tuple[int, ...] = (),
        parse_special: bool = True,
        keep_blank: bool = False,
        cut_to: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        if config.is_encoder_only:
            raise ConfigError(
                f"this model is an encoder with the head {config.head!r}: it has no decoder, which "
                f"generating "
                "text needs"
            )
        self._config, self._tokenizer = config, checked_tokenizer(tokenizer)
        if settings.temperature > 0 and settings.beam_size > 1:
            raise ConfigError(
                f"a beam of {settings.beam_size} searches, temperature={settings.temperature} samples: "
                f"leave one "
                "of them out"
            )
        limits = {"max_new_tokens": max_new_tokens, "extra_length": extra_length, "batch_size": batch_size}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        self._prompt_start, self._parse_special = prompt_start, parse_special
        self._keep_blank, self._cut_to = keep_blank, cut_to
        num_tokens = self._tokenizer.vocab_size
        self._generator = _generator(
            config, settings, rules, num_tokens, max_new_tokens, extra_length, batch_size, mesh
        )

    def generate(
        self,
        params: PyTree,
        texts: Sequence[str],
        first_number: int = 0,
        decoder_prompt: str | Sequence[str] | None = None,
    ) -> list[str]:
        """Generates the best or a randomly drawn output for each text, in order.

        Args:
          params: of the model.
          texts: any number of sources or prompts. An empty prompt begins a text: its only token is eos.
          first_number: number of the first text. Random draws depend on a text's number and the seed.
          decoder_prompt: of an encoder-decoder, the text that every output continues, or one for each source;
            by default that of the rules. Special tokens in it, such as ``<|en|>``, are recognized.

        Returns:
          Texts without their prompts, but with the space that may follow a prompt.

        Raises:
          ValueError: a text is longer than the model takes, and the message names it; or a decoder-only model
            is given a decoder prompt.
        """
        count = len(texts)
        given = [decoder_prompt] * count if isinstance(decoder_prompt, str | None) else decoder_prompt
        if len(given) != count:
            raise ValueError(f"{len(given)} decoder prompts do not fit {count} texts: give one for each")
        pairs = zip(texts, given, strict=True)
        encoded = [self._encoded(*pair, number) for number, pair in enumerate(pairs, first_number + 1)]
        prompts = [prompt for _, prompt in encoded if prompt is not None]  # of all texts, or of none
        indices = [i for i, text in enumerate(texts) if text.strip() or not self._keep_blank]
        outputs = self._generator.generate(
            params,
            [encoded[i][0] for i in indices],
            [first_number + i for i in indices],
            None if decoder_prompt is None else [prompts[i] for i in indices],
        )
        results = [""] * len(texts)
        for i, output in zip(indices, outputs, strict=True):
            before = self._before(*encoded[i])
            whole = self._tokenizer.decode([*before, *output.tolist()])
            results[i] = whole[len(self._tokenizer.decode(before)) :]
        return results

    def stream(
        self, params: PyTree, text: str, number: int = 0, decoder_prompt: str | None = None
    ) -> Iterator[str]:
        """Yields the output of ``generate`` for one text piece by piece; no piece ends within a character.

        Raises:
          ValueError: as ``generate``; or the settings ask for beam search. It is raised before the first
            piece.
        """
        sequence, prompt = self._encoded(text, decoder_prompt, number + 1)
        tokens = self._generator.stream(params, sequence, number, prompt)
        return text_pieces(self._tokenizer, self._before(sequence, prompt), tokens)

    def tokens(self, text: str, number: int, decoder_prompt: str | None = None) -> Int32[np.ndarray, "_"]:
        """Returns the tokens of a source or prompt.

        Args:
          text: the source or prompt.
          number: the text's number, counted from 1, for messages.
          decoder_prompt: of a source, as for ``generate``; it is only checked.

        Raises:
          ValueError: there are more than the model takes, or they or the decoder prompt leave no room for an
            output.
        """
        return self._encoded(text, decoder_prompt, number)[0]

    def _encoded(
        self, text: str, decoder_prompt: str | None, number: int
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"] | None]:
        """Returns the tokens of a source or prompt and those of its decoder prompt, after checking both."""
        prompt = None
        if decoder_prompt is not None:
            prompt = self._tokenizer.targets.encode(decoder_prompt, parse_special=True)
            name = f"the decoder prompt of text {number}"
            check_vocabulary(prompt, name, decoder_prompt, self._config)
        if self._config.is_decoder_only:
            encoded = self._tokenizer.encode(text, parse_special=self._parse_special)
            tokens = np.array([*self._prompt_start, *encoded], np.int32)
            if not len(tokens):
                tokens = np.array([self._config.eos_id], np.int32)
        else:
            tokens = self._tokenizer.encode_whole(text, parse_special=self._parse_special)
            if self._cut_to is not None and len(tokens) > self._cut_to:
                tokens = np.append(tokens[: self._cut_to - 1], tokens[-1:])  # eos stays
        check_tokens(tokens, number, text, self._config)
        prompt_length = None if prompt is None else len(prompt)
        self._generator.check_length(len(tokens), f"text {number}", prompt_length)
        return tokens, prompt

    def _before(self, sequence: np.ndarray, prompt: np.ndarray | None) -> list[int]:
        """Returns the tokens that an output continues; its first space may depend on them."""
        if self._config.is_decoder_only:
            return sequence.tolist()
        return list(self._generator.decoder_prompt) if prompt is None else prompt.tolist()


def generate_texts(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    settings: DecodingSettings = GREEDY,
    *,
    first_number: int = 0,
    decoder_prompt: str | Sequence[str] | None = None,
    **options: Any,
) -> list[str]:
    """Generates the best or a randomly drawn output for each text, in order.

    Args:
      config, tokenizer, settings, options: as for ``TextGenerator``.
      params, texts, first_number, decoder_prompt: as for ``TextGenerator.generate``.
    """
    generator = TextGenerator(config, tokenizer, settings, **options)
    return generator.generate(params, texts, first_number, decoder_prompt)


def stream_text(
    config: TransformerConfig,
    params: PyTree,
    tokenizer: Tokenizer | None,
    text: str,
    settings: DecodingSettings = GREEDY,
    *,
    number: int = 0,
    decoder_prompt: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yields the output of ``generate_texts`` for one text piece by piece.

    Args:
      config, tokenizer, settings, options: as for ``TextGenerator``.
      params, text, number, decoder_prompt: as for ``TextGenerator.stream``.
    """
    generator = TextGenerator(config, tokenizer, settings, **options)
    return generator.stream(params, text, number, decoder_prompt)


def text_pieces(tokenizer: Tokenizer, before: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Yields the text that ``tokens`` add to that of the tokens ``before``; a character comes whole."""
    ids = list(before)
    end = len(tokenizer.decode(ids))  # of what has been yielded
    text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        # The text may end in the first bytes of a character, which the next token completes.
        complete = len(text.rstrip(_UNFINISHED))
        if complete > end:
            yield text[end:complete]
            end = complete
    if len(text) > end:
        yield text[end:]


@functools.lru_cache(maxsize=8)
def _generator(
    config: TransformerConfig,
    settings: DecodingSettings,
    rules: TextRules,
    num_tokens: int,
    max_new_tokens: int | None,
    extra_length: int | None,
    batch_size: int,
    mesh: Mesh | None,
) -> Generator:
    """Returns the same generator for the same arguments, so that a second call compiles nothing."""

    def output_length(length: int) -> int:
        limits = [config.targets_max_length]
        if max_new_tokens is not None:
            limits.append(max_new_tokens)
        if extra_length is not None:
            limits.append(length + extra_length)
        return min(limits)

    return Generator(
        config,
        settings,
        num_tokens,
        output_length=output_length,
        batch_size=batch_size,
        rules=rules,
        mesh=mesh,
    )
