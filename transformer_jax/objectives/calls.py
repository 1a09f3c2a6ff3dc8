"""How objectives call the model: which arrays of a batch go in, and whether dropout is on."""

from collections.abc import Mapping
from typing import Any

import jax

from transformer_jax.objectives.base import Apply
from transformer_jax.types import Array, Batch, PyTree

_PARTS = ("", "_positions", "_segments")


def side_arrays(batch: Batch, *sides: str) -> dict[str, Array]:
    """Tokens, positions and segments of these sides, and ``inputs_types`` where the batch has them."""
    found = {side + part: batch[side + part] for side in sides for part in _PARTS}
    if "inputs" in sides and "inputs_types" in batch:
        found["inputs_types"] = batch["inputs_types"]
    return found


def run_model(apply: Apply, params: PyTree, arguments: Mapping[str, Any], rng: jax.Array | None) -> Any:
    """What the model gives for these arguments, with dropout if there is a key for it."""
    rngs = None if rng is None else {"dropout": rng}
    return apply({"params": params}, **arguments, train=rng is not None, rngs=rngs)
