"""Translations of texts by a trained encoder and decoder."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer
from transformer_jax.decoding.generator import Generator
from transformer_jax.inference.texts import check_tokens
from transformer_jax.models import TransformerConfig
from transformer_jax.runs.experiment import EvaluateConfig
from transformer_jax.types import PyTree


class Translator:
    """Translates by beam search or sampling, many texts at once; see ``generation.Generator``.

    Args:
      config: of the model, an encoder and a decoder.
      tokenizer: its vocabulary.
      settings: how to search or sample, extra length and batch size.
      mesh: where to compute, rows over its data axes; by default where the parameters are.
      most_tokens: of a text that are read, special ones included; a longer one is cut. By default it is
        refused, if it is longer than the model takes.

    Raises:
      ConfigError: the model has no encoder or no decoder.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: Tokenizer,
        settings: EvaluateConfig,
        mesh: Mesh | None = None,
        most_tokens: int | None = None,
    ) -> None:
        if config.is_encoder_only or config.is_decoder_only:
            raise ConfigError(
                "translating needs a model of an encoder and a decoder: for others there are "
                "transformer_jax.generate, classify and embed"
            )
        self._config, self._tokenizer = config, tokenizer
        self._most_tokens = most_tokens
        self._generator = Generator(
            config,
            settings,
            tokenizer.vocab_size,
            output_length=lambda length: length + settings.extra_length,
            batch_size=settings.batch_size,
            mesh=mesh,
        )

    def translate(self, params: PyTree, texts: Sequence[str], first_number: int = 0) -> list[str]:
        """The best translation of each text, or one drawn at random, in order; blank ones stay empty.

        Args:
          params: of the model.
          texts: any number of sources.
          first_number: of the first text: its number is what a text's random draws depend on, beside
            the seed.

        Raises:
          ValueError: a text is longer than the model's sequences; the message names it.
        """
        sources = [self._source(text, number) for number, text in enumerate(texts, first_number + 1)]
        places = [i for i, text in enumerate(texts) if text.strip()]
        numbers = [first_number + i for i in places]
        outputs = self._generator.generate(params, [sources[i] for i in places], numbers)
        translations = [""] * len(texts)
        for i, output in zip(places, outputs, strict=True):
            translations[i] = self._tokenizer.decode(output)
        return translations

    def check(self, text: str, number: int) -> None:
        """Raises ValueError, which names the text by its number, if it is longer than the model takes."""
        self._source(text, number)

    def _source(self, text: str, number: int) -> np.ndarray:
        source, most = self._tokenizer.encode_whole(text), self._most_tokens
        if most is not None and len(source) > most:
            source = np.append(source[: most - 1], source[-1:])  # eos stays
        check_tokens(source, number, text, self._config)
        return source
