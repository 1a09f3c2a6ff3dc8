"""Calls the model for objectives: with which arrays of a batch, and with or without dropout."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.objectives.base import Apply, Rngs
from transformer_jax.types import SIDE_PARTS, SIDES, Array, Batch, PyTree


def side_arrays(batch: Batch, *names: str) -> dict[str, Array]:
    """Returns the arrays of a batch that a model reads.

    Args:
      batch: the batch.
      names: for a side, its tokens, positions and segments are returned, and ``inputs_types`` if the batch
        has them; for any other key, the array with this key.
    """
    found = {}
    for name in names:
        found |= {name + part: batch[name + part] for part in (SIDE_PARTS if name in SIDES else ("",))}
    if "inputs" in names and "inputs_types" in batch:
        found["inputs_types"] = batch["inputs_types"]
    return found


def run_model(apply: Apply, params: PyTree, arguments: Mapping[str, Any], rngs: Rngs, *, train: bool) -> Any:
    """Calls the model with ``arguments``.

    Args:
      rngs: a random key for each random stream that the model reads, by the stream's name.
      train: whether dropout is on.
    """
    return apply({"params": params}, **arguments, train=train, rngs=dict(rngs))
