"""Masks as numbers of segments say what masks as arrays say."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers.masks import Mask

QUERIES = np.array([[1, 1, 2, 0], [1, 2, 3, 3]], np.int32)
KEYS = np.array([[1, 2, 2, 0, 0], [3, 1, 1, 2, 0]], np.int32)


@pytest.mark.parametrize("given", ["both", "keys", "queries", "none"])
def test_segments_are_equal_where_a_query_may_see_a_key(given: str) -> None:
    mask = Mask(
        jnp.asarray(QUERIES) if given in ("both", "queries") else None,
        jnp.asarray(KEYS) if given in ("both", "keys") else None,
    )
    array = mask.to_array(4, 5)
    allowed = np.ones((2, 4, 5), bool) if array is None else np.broadcast_to(array[:, 0], (2, 4, 5))
    segments = mask.to_segments(2, 4, 5, always=True)
    assert segments is not None
    of_queries, of_keys = map(np.asarray, segments)
    np.testing.assert_array_equal(of_queries[:, :, None] == of_keys[:, None, :], allowed)
    needs_none = mask.to_segments(2, 4, 5, always=False) is None
    assert needs_none == allowed.all() == (given in ("queries", "none"))
