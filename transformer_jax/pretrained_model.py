"""A model with its parameters and tokenizer, and what can be done with it."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer_jax import inference, sentence_vectors
from transformer_jax.config import TransformerConfig
from transformer_jax.data import Tokenizer
from transformer_jax.families import Family
from transformer_jax.generation import DecodingSettings
from transformer_jax.image_inputs import Sizing
from transformer_jax.models import Model, build
from transformer_jax.pooling import Pooling
from transformer_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its parameters, ready for use.

    Attributes:
      family: of which it is.
      config: of the model.
      params: its parameters.
      tokenizer: None where the folder had none, as for images.
      labels: names of the classes, in order; () where it has none.
      problem_type: what its classes are, as ``config.json`` says; "" is one class of several.
      pooling: how a folder of sentence-transformers makes vectors of texts; None where it is no such folder.
      prompt_start: ids that stand before every prompt of a decoder alone; () as ``transformers`` has it.
      sizing: of a model of images, brings images of any size to its own; None takes those of its size alone.
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

    @property
    def model(self) -> Model:
        """The Linen module: ``model.apply({"params": params}, ...)``."""
        return build(self.config)

    def generate(
        self,
        texts: str | Sequence[str],
        *,
        max_new_tokens: int = inference.MAX_NEW_TOKENS,
        num_beams: int = 1,
        length_penalty: float = 0.6,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = inference.BATCH_SIZE,
    ) -> Any:
        """The text for each source, or the continuation of each prompt; see ``inference.generate_texts``.

        Args:
          texts: several, or one, which gives one result. ``<mask>`` in them is the special token.
          max_new_tokens: of an output, at most, eos included.
          num_beams: of beam search; 1 is greedy.
          length_penalty: of beam search: alpha of Wu et al. 2016, equation 14; 0 is none.
          temperature: above 0 samples.
          top_k, top_p, seed: of sampling; see ``generation.DecodingSettings``.
          batch_size: texts at once.

        Returns:
          A list of texts, or for one text a text.
        """
        decoding = DecodingSettings(num_beams, length_penalty, temperature, top_k, top_p, seed)
        many = [texts] if isinstance(texts, str) else texts
        found = inference.generate_texts(
            *self._parts,
            many,
            decoding,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            prompt_start=self.prompt_start,
        )
        return found[0] if isinstance(texts, str) else found

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int = inference.MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """What ``generate`` gives for one text, greedily or drawn, in pieces as they come."""
        decoding = DecodingSettings(1, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return inference.stream_text(
            *self._parts, text, decoding, max_new_tokens=max_new_tokens, prompt_start=self.prompt_start
        )

    def classify(
        self,
        inputs: inference.Classified | Sequence[inference.Classified],
        *,
        batch_size: int = inference.BATCH_SIZE,
    ) -> list[Any]:
        """Classes as ``(name, probability)``, the most probable first: such a list for each input.

        Args:
          inputs: a list, or one, which gives one result. An input is a text, a pair (tuple) of texts, or an
            image: uint8 (height, width, channels), or the path of its file. An array of four dimensions is
            several images.
          batch_size: of them at once.
        """
        is_image = isinstance(inputs, np.ndarray) and inputs.ndim == 3
        is_one = isinstance(inputs, str | tuple | os.PathLike) or is_image
        many: Any = [inputs] if is_one else inputs
        probabilities = inference.class_probabilities(
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
        batch_size: int = inference.BATCH_SIZE,
    ) -> np.ndarray:
        """Vectors (N, D) of texts, or (D,) of one; see ``sentence_vectors.embed_texts``.

        Args:
          texts: several, or one, which gives one vector.
          normalize: to the length 1; by default what the folder says, and yes where it says nothing.
          cut: take the beginning of a text with more tokens than the folder, or the model, allows; otherwise
            it is an error.
          batch_size: texts at once.
        """
        many = [texts] if isinstance(texts, str) else texts
        found = sentence_vectors.embed_texts(
            *self._parts,
            many,
            pooling=self.pooling or sentence_vectors.PLAIN,
            normalize=normalize,
            cut=cut,
            batch_size=batch_size,
        )
        return found[0] if isinstance(texts, str) else found

    @property
    def _parts(self) -> tuple[TransformerConfig, PyTree, Tokenizer | None]:
        return self.config, self.params, self.tokenizer
