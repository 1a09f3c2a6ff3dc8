"""Which ids are special tokens, and random ids that are not."""

import numpy as np
from jaxtyping import Int

from transformer_jax.types import Encoder

ROLES = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")


def special_ids(tokenizer: Encoder) -> Int[np.ndarray, "n"]:
    """The ids of all roles that the tokenizer has, and its sentinels; increasing."""
    found = set(tokenizer.sentinels)
    for role in ROLES:
        try:
            found.add(tokenizer.id_of(role))
        except ValueError:  # no vocabulary has all roles
            continue
    return np.array(sorted(found), np.int32)


def random_ids(
    count: int, vocab_size: int, special: Int[np.ndarray, "k"], rng: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """Ids drawn uniformly from those that are not in ``special`` (increasing)."""
    ids = rng.integers(0, vocab_size - len(special), count, dtype=np.int32)
    for taken in special:  # makes room for them, the lowest first
        ids += ids >= taken
    return ids
