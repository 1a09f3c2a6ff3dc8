"""Derives the shapes of an experiment's batches without its data or its tokenizer.

The objective determines which arrays a batch has, through its token examples. Therefore the objective's
stand-in example passes through its own ``encode`` and ``pieces``.
"""

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.data import rows_per_batch
from transformer_jax.data.padding import pad_batch
from transformer_jax.objectives.base import BoundTransform
from transformer_jax.runs.experiment import Experiment
from transformer_jax.runs.facts import model_facts
from transformer_jax.sharding import partitioning
from transformer_jax.types import ROLES, SIDES, Encoding, TokenExample


class _StandIn:
    """A tokenizer that numbers the words of a text."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = max(vocab_size, 256)
        self.sentinels = tuple(range(self.vocab_size - 1, self.vocab_size - 101, -1))
        self.targets = self

    def encode(self, text: str) -> np.ndarray:
        return self.encode_with_places(text).ids

    def encode_whole(self, text: str) -> np.ndarray:
        return np.append(self.encode(text), np.int32(self.id_of("eos")))

    def encode_with_places(self, text: str) -> Encoding:
        words = np.arange(len(text.split()), dtype=np.int32)
        stops = np.cumsum([len(word) + 1 for word in text.split()]).astype(np.int32) - 1
        starts = np.append(np.int32(0), stops[:-1] + 1).astype(np.int32)
        return Encoding(words + len(ROLES), words, starts, stops)

    def template(self, num_texts: int) -> tuple[np.ndarray, ...]:
        return tuple(np.array([self.id_of(role)], np.int32) for role in ("cls", *["sep"] * num_texts))

    def id_of(self, role: str) -> int:
        return list(ROLES).index(role)


def token_example(experiment: Experiment) -> TokenExample:
    """Returns a made-up example as the experiment's objective gives it to the pipeline."""
    objective, tokenizer = experiment.objective, _StandIn(experiment.model.vocab_size)
    example = objective.stand_in(model_facts(experiment.model), dict(experiment.data.source.features))
    length = min(experiment.data.max_length, 64)
    transform = BoundTransform(objective, tokenizer, length, True, model_facts(experiment.model))
    tokens = transform.encode(example)
    return transform.pieces(tokens, np.random.default_rng(0), lambda: tokens)[0]


def batch_template(
    experiment: Experiment, mesh: Mesh, length: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a training batch as shapes with shardings.

    Args:
      experiment: its data section determines the number of rows.
      mesh: the mesh that the rows are split over.
      length: tokens per side; by default the greatest length of batches.
    """
    data = experiment.data
    length = length or data.max_length
    rows = rows_per_batch(data.tokens_per_batch, length, data.batch_size)
    like = token_example(experiment)
    row = pad_batch([[]], max(length, *(len(like.get(side, ())) for side in SIDES)), like)
    batch = {
        key: jax.ShapeDtypeStruct((rows, *_shape(key, array, length)), array.dtype)
        for key, array in row.items()
    }
    shardings = partitioning.batch_shardings(mesh, batch)
    return {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[key])
        for key, leaf in batch.items()
    }


def source_shapes(experiment: Experiment, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the inputs of the encoder for ``rows`` sources of the greatest length, as shapes."""
    model = experiment.model
    length = min(experiment.data.max_length, model.batch_max_length)
    source = model.front_end.draw_inputs(model.part("encoder"), np.random.default_rng(0), [length])
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype) for name, array in source.items()
    }


def num_tokens(batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Returns the number of tokens of a batch, padding included.

    Counts the targets if the batch has any, else the inputs; a batch of images counts its images.
    """
    for side in ("targets", "inputs"):
        if side in batch:
            return int(np.prod(batch[side].shape))
    return next(iter(batch.values())).shape[0]


def _shape(key: str, array: np.ndarray, length: int) -> tuple[int, ...]:
    """Returns the shape of one row of an array."""
    is_side = key.split("_")[0] in SIDES
    return (length, *array.shape[2:]) if is_side else array.shape[1:]
