"""Finds the ids of special tokens, and draws random ids of other tokens."""

import numpy as np
from jaxtyping import Int

from transformer_jax.types import ROLES, Encoder


def special_ids(tokenizer: Encoder) -> Int[np.ndarray, "n"]:
    """Returns the ids of all roles that the tokenizer has, and of its sentinels, in increasing order."""
    found = set(tokenizer.sentinels)
    for role in ROLES:
        try:
            found.add(tokenizer.id_of(role))
        except ValueError:  # the tokenizer has no token of this role
            continue
    return np.array(sorted(found), np.int32)


def random_ids(
    count: int, vocab_size: int, special: Int[np.ndarray, "k"], rng: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """Returns ids drawn uniformly from those that are not in ``special``, which must be increasing."""
    ids = rng.integers(0, vocab_size - len(special), count, dtype=np.int32)
    for taken in special:  # skips the special ids, the lowest first
        ids += ids >= taken
    return ids
