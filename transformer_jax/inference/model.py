"""A model with its parameters and tokenizer, and what can be done with it."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer_jax.data import Tokenizer
from transformer_jax.families import Family
from transformer_jax.inference.defaults import RUN_DEFAULTS, GenerationDefaults
from transformer_jax.inference.images import Sizing
from transformer_jax.inference.pooling import Pooling
from transformer_jax.inference.texts import (
    BATCH_SIZE,
    Classified,
    class_probabilities,
    generate_texts,
    stream_text,
)
from transformer_jax.inference.vectors import PLAIN, embed_texts
from transformer_jax.models import Model, TransformerConfig, build
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
      generation: what ``generate`` does where it is not told otherwise: for a checkpoint of ``transformers``
        what its ``generation_config.json`` says, and else what theirs does; by default what runs do.
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
    generation: GenerationDefaults = RUN_DEFAULTS

    @property
    def model(self) -> Model:
        """The Linen module: ``model.apply({"params": params}, ...)``."""
        return build(self.config)

    def generate(
        self,
        texts: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
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
        """The text for each source, or the continuation of each prompt; see ``generate_texts``.

        What is None is as ``generation`` has it: for a checkpoint as its ``generation_config.json`` says, and
        where that says nothing as ``transformers`` has it, but for ``max_new_tokens``, which is 128, not 20.
        So the 50 most probable tokens of a checkpoint are drawn from; ``top_k=0`` is all, as runs have it.

        Args:
          texts: several, or one, which gives one result. ``<mask>`` in them is the special token.
          max_new_tokens: of an output, at most, eos included.
          min_new_tokens: of an output, at least, without eos.
          num_beams: of beam search; 1 is greedy.
          length_penalty: of beam search. For a checkpoint of ``transformers`` log P is divided by the length
            to this power (1.0), for a run by Wu et al. 2016, equation 14 (0.6); 0 is none.
          early_stopping: of beam search; see ``BeamRule``.
          no_repeat_ngram_size: no so many tokens come in the same order twice; 0 is off.
          temperature: above 0 samples.
          top_k, top_p, seed: of sampling; see ``generation.DecodingSettings``.
          batch_size: texts at once.

        Returns:
          A list of texts, or for one text a text.
        """
        chosen = self.generation.chosen(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            no_repeat_ngram_size=no_repeat_ngram_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        many = [texts] if isinstance(texts, str) else texts
        found = generate_texts(
            *self._parts,
            many,
            chosen.settings,
            max_new_tokens=chosen.max_new_tokens,
            rules=chosen.rules,
            batch_size=batch_size,
            prompt_start=self.prompt_start,
        )
        return found[0] if isinstance(texts, str) else found

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """What ``generate(text, num_beams=1)`` gives, greedily or drawn, in pieces as they come."""
        chosen = self.generation.chosen(
            max_new_tokens=max_new_tokens,
            num_beams=1,
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
        )

    def classify(
        self,
        inputs: Classified | Sequence[Classified],
        *,
        batch_size: int = BATCH_SIZE,
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
        """Vectors (N, D) of texts, or (D,) of one; see ``embed_texts``.

        Args:
          texts: several, or one, which gives one vector.
          normalize: to the length 1; by default what the folder says, and yes where it says nothing.
          cut: take the beginning of a text with more tokens than the folder, or the model, allows; otherwise
            it is an error.
          batch_size: texts at once.
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
