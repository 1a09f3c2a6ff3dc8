"""Masks against loops over all pairs, and as segment ids for kernels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.layers.attention_ops import dot_product_attention
from transformer_jax.layers.kernel_inputs import segment_ids
from transformer_jax.layers.masks import Causal, Explicit, Globals, Mask, MaskPart, Segments, Window

pytestmark = pytest.mark.smoke

QUERIES = np.array([[1, 1, 2, 0], [1, 2, 3, 3]], np.int32)
KEYS = np.array([[1, 2, 2, 0, 0], [3, 1, 1, 2, 0]], np.int32)
ROWS, HEADS = 2, 2


@dataclasses.dataclass(frozen=True)
class Given:
    """A drawn mask as plain numbers, None where the part is absent."""

    length: int
    num_keys: int
    causal: bool
    offset: int | None
    query_segments: np.ndarray | None
    key_segments: np.ndarray | None
    window: tuple[int, int] | None
    query_is_global: np.ndarray | None
    key_is_global: np.ndarray | None
    explicit: np.ndarray | None

    def allows(self, row: int, head: int, i: int, j: int) -> bool:
        """Returns whether query i may attend to key j, straight from the definitions."""
        position = i + (self.offset or 0)
        if self.causal and j > position:
            return False
        if self.key_segments is not None:
            if self.query_segments is None:
                if self.key_segments[row, j] <= 0:
                    return False
            elif self.query_segments[row, i] != self.key_segments[row, j]:
                return False
        if self.explicit is not None and not self.explicit[row, head, i, j]:
            return False
        if self.window is None or position - self.window[0] <= j <= position + self.window[1]:
            return True
        if self.query_is_global is None or self.key_is_global is None:
            return False
        return bool(self.query_is_global[row, i] or self.key_is_global[row, j])

    def array(self) -> np.ndarray:
        allowed = np.zeros((ROWS, HEADS, self.length, self.num_keys), bool)
        for place in np.ndindex(*allowed.shape):
            allowed[place] = self.allows(*place)
        return allowed

    def mask(self) -> Mask:
        offset = None if self.offset is None else jnp.asarray(self.offset)
        parts: list[MaskPart] = []
        if self.causal:
            parts.append(Causal(offset))
        if self.key_segments is not None:
            query = None if self.query_segments is None else jnp.asarray(self.query_segments)
            parts.append(Segments(query, jnp.asarray(self.key_segments)))
        if self.query_is_global is not None:
            parts.append(Globals(jnp.asarray(self.query_is_global), jnp.asarray(self.key_is_global)))
        if self.window is not None:
            parts.append(Window(*self.window, offset))
        if self.explicit is not None:
            parts.append(Explicit(jnp.asarray(self.explicit)))
        return Mask(*parts)


@st.composite
def drawn_masks(draw: st.DrawFn) -> Given:
    """Any combination of parts, of few shapes: each operation is compiled anew for each of them."""
    length, num_keys = draw(st.sampled_from([(1, 1), (1, 5), (4, 4), (3, 6), (5, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.sets(st.sampled_from(["causal", "queries", "keys", "window", "globals", "explicit"])))

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, 3, (ROWS, count)).astype(np.int32)

    has_globals, has_keys = "globals" in kinds, "keys" in kinds
    return Given(
        length=length,
        num_keys=num_keys,
        causal="causal" in kinds,
        offset=draw(st.none() | st.integers(0, 3)),
        query_segments=ids(length) if has_keys and "queries" in kinds else None,
        key_segments=ids(num_keys) if has_keys else None,
        window=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) if "window" in kinds else None,
        query_is_global=rng.random((ROWS, length)) < 0.3 if has_globals else None,
        key_is_global=rng.random((ROWS, num_keys)) < 0.3 if has_globals else None,
        explicit=rng.random((ROWS, HEADS, length, num_keys)) < 0.7 if "explicit" in kinds else None,
    )


@settings(max_examples=150, deadline=None)
@given(drawn=drawn_masks())
def test_a_mask_allows_the_pairs_that_its_definition_allows(drawn: Given) -> None:
    array = drawn.mask().to_array(drawn.length, drawn.num_keys)
    wanted = drawn.array()
    found = np.ones((), bool) if array is None else np.asarray(array)
    np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted)


def test_attention_under_all_parts_is_a_mean_over_the_allowed_keys(rng: np.random.Generator) -> None:
    length, size = 12, 4
    segments = np.repeat([[1, 2, 0]], 2, axis=0).repeat(4, axis=1)
    is_global = np.zeros((ROWS, length), bool)
    is_global[0, [0, 5]] = is_global[1, 6] = True
    drawn = Given(
        length=length,
        num_keys=length,
        causal=True,
        offset=None,
        query_segments=segments,
        key_segments=segments,
        window=(1, 0),
        query_is_global=is_global,
        key_is_global=is_global,
        explicit=None,
    )
    query, key, value = rng.normal(size=(3, ROWS, length, HEADS, size))
    mask = drawn.mask().to_array(length, length)
    found = dot_product_attention(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)), mask=mask)
    for row, head, i in np.ndindex(ROWS, HEADS, length):
        keys = [j for j in range(length) if drawn.allows(row, head, i, j)]
        scores = [np.exp(query[row, i, head] @ key[row, j, head] / np.sqrt(size)) for j in keys]
        wanted = sum(s * value[row, j, head] for s, j in zip(scores, keys, strict=True)) / sum(scores)
        np.testing.assert_allclose(found[row, i, head], wanted, atol=1e-5)


def test_globals_widen_windows_alone() -> None:
    is_global = jnp.ones((1, 3), bool)
    everyone = Globals(is_global, is_global)
    assert np.asarray(Mask(everyone).to_array(3, 3)).all()
    np.testing.assert_array_equal(
        Mask(everyone, Causal(), Window(0, 0)).to_array(3, 3), np.tri(3, dtype=bool)[None, None]
    )


@pytest.mark.parametrize("wrap", ["jit", "scan", "remat"])
def test_masks_pass_through_transformations(wrap: str) -> None:
    is_global = jnp.asarray([[True, False, False, False]] * 2)
    mask = Mask(
        Causal(jnp.asarray(1)),
        Segments(jnp.asarray(QUERIES), jnp.asarray(QUERIES)),
        Window(1, 2),
        Globals(is_global, is_global),
        Explicit(jnp.ones((2, 1, 4, 4), bool)),
    )

    def scores(mask: Mask) -> jax.Array:
        array = mask.to_array(4, 4)
        assert array is not None
        return array.astype(jnp.float32)

    wrapped: Any = {
        "jit": jax.jit(scores),
        "scan": lambda mask: jax.lax.scan(lambda carry, _: (carry, scores(carry)), mask, length=2)[1][1],
        "remat": jax.checkpoint(scores),
    }[wrap]
    np.testing.assert_array_equal(wrapped(mask), scores(mask))


def test_parts_are_found_by_type() -> None:
    causal, window = Causal(), Window(1, 1)
    mask = Mask(causal) & window & Mask(Window(2, 2))
    assert mask.part(Causal) is causal
    assert mask.part(Segments) is None
    assert mask.has(Window)
    assert not mask.has(Globals)
    with pytest.raises(ValueError, match="2 parts of type Window; at most 1"):
        mask.part(Window)


def test_mistakes_are_errors() -> None:
    with pytest.raises(ValueError, match=r"left=-1, right=0.*at least 0"):
        Window(-1, 0)
    for shape in ((1, 1, 2, 4), (1, 1, 4, 3)):
        with pytest.raises(ValueError, match="3 queries and 4 keys"):
            Mask(Explicit(jnp.ones(shape, bool))).to_array(3, 4)
    with pytest.raises(NotImplementedError, match="Nameless must define to_array"):
        Mask(type("Nameless", (MaskPart,), {})()).to_array(1, 1)


@pytest.mark.parametrize("kind", ["both", "keys", "none"])
def test_segment_ids_are_equal_where_a_query_may_attend_to_a_key(kind: str) -> None:
    queries = jnp.asarray(QUERIES) if kind == "both" else None
    mask = Mask() if kind == "none" else Mask(Segments(queries, jnp.asarray(KEYS)))
    array = mask.to_array(4, 5)
    allowed = np.ones((2, 4, 5), bool) if array is None else np.broadcast_to(array[:, 0], (2, 4, 5))
    segments = segment_ids(mask, 2, 4, 5, always=True)
    assert segments is not None
    of_queries, of_keys = map(np.asarray, segments)
    np.testing.assert_array_equal(of_queries[:, :, None] == of_keys[:, None, :], allowed)
    needs_none = segment_ids(mask, 2, 4, 5, always=False) is None
    assert needs_none == allowed.all() == (kind == "none")
