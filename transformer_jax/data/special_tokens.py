"""Special tokens of tokenizers: their roles, and how they stand around texts."""

import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import pre_tokenizers

from transformer_jax.data.examples import DataError
from transformer_jax.types import ROLES


def find_roles(implementation: tokenizers.Tokenizer) -> dict[str, int]:
    """Returns the id of the token for each role that the vocabulary has."""
    roles = {}
    for role, names in ROLES.items():
        ids = [id_ for id_ in map(implementation.token_to_id, names) if id_ is not None]
        if ids:
            roles[role] = ids[0]
    return roles


def keep_out(implementation: tokenizers.Tokenizer, special: Sequence[str]) -> None:
    """Splits the name of a special token in a text after its first character, so that it is ordinary text.

    A unigram model has its special tokens among its pieces and would otherwise find "</s>" in a text.
    """
    names = [name for name in special if len(name) > 1]
    if not names:
        return
    pattern = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(names))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    first = implementation.pre_tokenizer
    implementation.pre_tokenizer = split if first is None else pre_tokenizers.Sequence([first, split])


def has_template(implementation: tokenizers.Tokenizer) -> bool:
    """Returns whether a tokenizer's file adds special tokens to one text or to a pair.

    A post-processor may add none, as the byte-level one, which only corrects offsets.
    """
    return any(implementation.num_special_tokens_to_add(is_pair=is_pair) for is_pair in (False, True))


def stored_template(
    implementation: tokenizers.Tokenizer, num_texts: int
) -> tuple[Int32[np.ndarray, "_"], ...]:
    """Returns the special tokens that a tokenizer's file adds: before texts, between them, and at the end.

    Args:
      implementation: the tokenizer; it must not truncate or pad.
      num_texts: 1, or 2 for a pair.

    Returns:
      ``num_texts + 1`` arrays, or () if the file adds no special tokens to any input.

    Raises:
      DataError: the file adds special tokens only to one text or only to a pair, and ``num_texts`` is the
        other number.
    """
    if not has_template(implementation):
        return ()
    if not implementation.num_special_tokens_to_add(is_pair=num_texts > 1):
        names = ["one text", "a pair of texts"]
        given, other = names if num_texts > 1 else names[::-1]
        raise DataError(
            f"the template of tokenizer.json adds special tokens to {given}, but none to {other}: add the "
            f"template of {other} to its post_processor, or remove the post_processor, so that cls and sep "
            "are used"
        )
    names = map(implementation.id_to_token, range(implementation.get_vocab_size()))
    encodings = (implementation.encode(name or "", add_special_tokens=False) for name in names)
    text = next(encoding for encoding in encodings if encoding.ids)  # any that has tokens
    whole = implementation.post_process(text, text if num_texts > 1 else None)
    of_texts = np.flatnonzero(np.array(whole.special_tokens_mask) == 0).reshape(num_texts, -1)
    starts = [0, *(of_texts[:, -1] + 1).tolist()]
    stops = [*of_texts[:, 0].tolist(), len(whole.ids)]
    ids = np.array(whole.ids, np.int32)
    return tuple(ids[start:stop] for start, stop in zip(starts, stops, strict=True))
