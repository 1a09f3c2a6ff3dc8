"""A model with its parameters and tokenizer, and methods to use it on texts and images."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer_jax.data import Tokenizer
from transformer_jax.families import Family
from transformer_jax.inference.defaults import RUN_DEFAULTS, GenerationDefaults
from transformer_jax.inference.generation import TextGenerator, stream_text
from transformer_jax.inference.images import Sizing
from transformer_jax.inference.pooling import Pooling
from transformer_jax.inference.texts import BATCH_SIZE, Classified, class_probabilities
from transformer_jax.inference.vectors import PLAIN, embed_texts
from transformer_jax.models import Model, TransformerConfig, build
from transformer_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Holds a model with its parameters, ready for use.

    Attributes:
      family: the family of the model.
      config: the config of the model.
      params: the parameters of the model.
      tokenizer: the tokenizer; None if the folder has none, as for image models.
      labels: names of the classes, in order; () if the model has no classes.
      problem_type: the kind of classification in ``config.json``; "" means one of several classes.
      pooling: the pooling of a folder of sentence-transformers; None for other folders.
      prompt_start: ids that precede every prompt of a decoder-only model; () for ``transformers``
        checkpoints.
      sizing: resizes images to the size of an image model; if None, images must have this size.
      generation: the default settings of ``generate``. For a checkpoint of ``transformers`` they come from
        its ``generation_config.json`` and the defaults of ``transformers``; otherwise they are those of runs.
    """

    family: Family
    config: TransformerConfig
    params: PyTree
    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    pooling: Pooling | None = None
    prompt_start: tuple[int, ...] = ()
    sizing: Sizing | None = None
    generation: GenerationDefaults = RUN_DEFAULTS

    @property
    def model(self) -> Model:
        """The Linen module: ``model.apply({"params": params}, ...)``."""
        return build(self.config)

    def generate(
        self,
        texts: str | Sequence[str],
        *,
        decoder_prompt: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        extra_length: int | None = None,
        min_new_tokens: int | None = None,
        beam_size: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | str | None = None,
        no_repeat_ngram_size: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """Generates a text for each source, or continues each prompt; see ``TextGenerator``.

        ``generation`` has the value of every argument that is None. For a checkpoint of ``transformers``
        these are the values of its ``generation_config.json``, then the defaults of ``transformers``. There
        are two
        differences: ``max_new_tokens`` is 128 by default, not 20, and only runs sample from all tokens
        (``top_k=0``) by default, while checkpoints sample from 50.

        Args:
          texts: several, or one, which gives one result. ``<mask>`` in them is the special token.
          decoder_prompt: of an encoder-decoder, the text that every output continues, or one for each source.
            Special tokens in it are recognized, such as Whisper's tasks or mBART's languages.
          max_new_tokens: maximum number of tokens of an output, eos included.
          extra_length: maximum number of tokens of an output beyond those of its source or prompt. If only
            this is given, it replaces the default of ``max_new_tokens``.
          min_new_tokens: minimum number of tokens of an output, without eos.
          beam_size: of beam search; 1 is greedy search.
          num_beams: the name of ``beam_size`` in ``transformers``.
          length_penalty: of beam search. For a checkpoint of ``transformers`` log P is divided by the length
            to this power (1.0 by default); for a run, see Wu et al. 2016, equation 14 (0.6). 0 is no penalty.
          early_stopping: of beam search; see ``BeamRule``.
          no_repeat_ngram_size: no sequence of this many tokens occurs twice; 0 is off.
          temperature: above 0 samples.
          top_k, top_p, seed: of sampling; see ``DecodingSettings``.
          batch_size: maximum number of texts that are decoded at once.

        Returns:
          A list of texts, or for one text a text.

        Raises:
          ValueError: as ``TextGenerator``; or ``beam_size`` and ``num_beams`` differ.
        """
        if beam_size is not None and num_beams is not None and beam_size != num_beams:
            raise ValueError(f"{beam_size=} and {num_beams=} are two names of one setting: give one of them")
        chosen = self.generation.chosen(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            beam_size=num_beams if beam_size is None else beam_size,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            no_repeat_ngram_size=no_repeat_ngram_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        has_own_limit = extra_length is not None and max_new_tokens is None
        generator = TextGenerator(
            self.config,
            self.tokenizer,
            chosen.settings,
            rules=chosen.rules,
            max_new_tokens=None if has_own_limit else chosen.max_new_tokens,
            extra_length=extra_length,
            batch_size=batch_size,
            prompt_start=self.prompt_start,
        )
        many = [texts] if isinstance(texts, str) else texts
        outputs = generator.generate(self.params, many, decoder_prompt=decoder_prompt)
        return outputs[0] if isinstance(texts, str) else outputs

    def stream(
        self,
        text: str,
        *,
        decoder_prompt: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yields the text of ``generate(text, beam_size=1)`` piece by piece."""
        chosen = self.generation.chosen(
            max_new_tokens=max_new_tokens,
            beam_size=1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        return stream_text(
            *self._parts,
            text,
            chosen.settings,
            max_new_tokens=chosen.max_new_tokens,
            rules=chosen.rules,
            prompt_start=self.prompt_start,
            decoder_prompt=decoder_prompt,
        )

    def classify(
        self,
        inputs: Classified | Sequence[Classified],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[Any]:
        """Returns for each input a list of classes as ``(name, probability)``, the most probable first.

        Args:
          inputs: a list, or one, which gives one result. An input is a text, a pair (tuple) of texts, or an
            image: uint8 (height, width, channels), or the path of its file. An array of four dimensions is
            several images.
          batch_size: maximum number of inputs that are computed at once.
        """
        is_image = isinstance(inputs, np.ndarray) and inputs.ndim == 3
        is_one = isinstance(inputs, str | tuple | os.PathLike) or is_image
        many: Any = [inputs] if is_one else inputs
        probabilities = class_probabilities(
            *self._parts, many, batch_size=batch_size, problem_type=self.problem_type, sizing=self.sizing
        )
        names = self.labels or tuple(f"LABEL_{i}" for i in range(self.config.num_labels))
        found = [
            [(names[i], float(row[i])) for i in np.argsort(-row, kind="stable")] for row in probabilities
        ]
        return found[0] if is_one else found

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool | None = None,
        cut: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Returns the embeddings (N, D) of texts, or (D,) of one text; see ``embed_texts``.

        Args:
          texts: several, or one, which gives one embedding.
          normalize: whether to scale embeddings to length 1; by default as the folder says, else True.
          cut: whether to truncate a text with more tokens than the folder or the model allows; otherwise such
            a text is an error.
          batch_size: maximum number of texts that are computed at once.
        """
        many = [texts] if isinstance(texts, str) else texts
        found = embed_texts(
            *self._parts,
            many,
            pooling=self.pooling or PLAIN,
            normalize=normalize,
            cut=cut,
            batch_size=batch_size,
        )
        return found[0] if isinstance(texts, str) else found

    @property
    def _parts(self) -> tuple[TransformerConfig, PyTree, Tokenizer | None]:
        return self.config, self.params, self.tokenizer
