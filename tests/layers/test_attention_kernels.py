"""The numbers of attention kernels, interpreted on a CPU, against plain attention and its gradients."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import kept
from transformer_jax.layers.attention_ops import dot_product_attention
from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.layers.splash_attention import SplashAttention, block_size
from transformer_jax.layers.triton_attention import TritonAttention
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh, on_mesh
from transformer_jax.sharding.placement import Placement, placed

KERNELS = {"splash": SplashAttention(), "triton": TritonAttention()}
FULL_SPLIT = MeshConfig(data=2, context=2, tensor=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention of two rows; lengths that are no multiple of a block, unless said otherwise."""

    length: int = 130
    keys: int = 0  # as many as queries
    heads: int = 2
    head_size: int = 64
    value_size: int = 0  # as the other heads
    causal: bool = False
    segments: str = "none"  # "packed", "padded", "keys": those of the keys alone
    scale: bool = True
    dtype: str = "float32"
    rows: int = 2

    @property
    def num_keys(self) -> int:
        return self.keys or self.length

    def mask(self, rng: np.random.Generator) -> Mask:
        causal = Mask(Causal()) if self.causal else Mask()
        if self.segments == "none":
            return causal
        count = 3 if self.segments == "packed" else 1
        queries, keys = (segments(rng, self.rows, n, count) for n in (self.length, self.num_keys))
        if self.segments == "keys":
            return causal & Segments(None, keys)
        return causal & Segments(queries, queries if self.num_keys == self.length else keys)

    @property
    def tolerance(self) -> float:
        """Of a result, as a part of its largest element."""
        if self.dtype == "bfloat16":
            # Plain attention rounds scores of up to 4, so weights are off by 4 x 2**-9; and queries, weights
            # and results, by 2**-9 each.
            return 8 * 2**-9
        # A sum of n terms is off by n x 2**-24 at most: those of a score, and those over keys.
        return (self.head_size + self.num_keys) * 2**-24


def segments(rng: np.random.Generator, rows: int, length: int, count: int) -> jax.Array:
    """Up to ``count`` examples in each row, all of them somewhere, and then padding."""
    numbers = np.sort(rng.integers(1, count + 1, (rows, length)), axis=1)
    numbers[:, :count] = np.arange(1, count + 1)
    padding = rng.integers(1, length // 3, (rows, 1))
    return jnp.asarray(np.where(np.arange(length) < length - padding, np.sort(numbers, axis=1), 0), jnp.int32)


def with_gradients(attend: Callable, *arrays: jax.Array) -> list[np.ndarray]:
    """Output and the gradients of query, key and value, of the last array being that of the output."""

    def results(query, key, value, gradient):
        output, pullback = jax.vjp(attend, query, key, value)
        return output, *pullback(gradient)

    return [np.asarray(x, np.float64) for x in jax.jit(results)(*arrays)]


def check(kernel: str, case: Case, rng: np.random.Generator, mesh: MeshConfig | None = None) -> None:
    mask = case.mask(rng)
    value_size = case.value_size or case.head_size
    sizes = {
        "query": (case.rows, case.length, case.heads, case.head_size),
        "key": (case.rows, case.num_keys, case.heads, case.head_size),
        "value": (case.rows, case.num_keys, case.heads, value_size),
        "gradient": (case.rows, case.length, case.heads, value_size),
    }
    query, key, value, gradient = (jnp.asarray(rng.normal(size=size), case.dtype) for size in sizes.values())
    is_real = np.ones((case.rows, case.length, 1, 1))
    packed = mask.part(Segments)
    if packed is not None and packed.query is not None:  # nobody looks at the results of padding
        is_real = np.asarray(packed.query > 0)[:, :, None, None]
    gradient *= jnp.asarray(is_real, case.dtype)

    plain = functools.partial(
        dot_product_attention, mask=mask.to_array(case.length, case.num_keys), scale=case.scale
    )
    call = functools.partial(KERNELS[kernel], mask=mask, scale=case.scale, interpret=True)
    if mesh is not None:
        call = on_mesh(call, make_mesh(mesh))
    wanted = with_gradients(plain, query, key, value, gradient)
    found = with_gradients(call, query, key, value, gradient)
    for name, ours, theirs in zip(("output", *sizes), found, wanted, strict=False):
        assert np.isfinite(ours).all(), name
        if name == "output":
            ours, theirs = ours * is_real, theirs * is_real
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < case.tolerance, (name, error)


FAST = {
    "packed causal": Case(segments="packed", causal=True),
    "cross without scale": Case(40, keys=130, head_size=32, value_size=64, segments="packed", scale=False),
    "causal bfloat16": Case(100, heads=1, causal=True, dtype="bfloat16"),
    "padded keys": Case(128, heads=1, keys=130),
}


def fast() -> Iterator[Any]:
    """Each case with one kernel for every change, and each kernel with two; and with one more on a mesh."""
    chosen = {
        "splash": ("packed causal", "causal bfloat16"),
        "triton": ("cross without scale", "padded keys"),
    }
    for name, kernel in itertools.product(FAST, KERNELS):
        yield pytest.param(name, kernel, marks=[pytest.mark.everything] * (name not in chosen[kernel]))


@pytest.mark.parametrize(("name", "kernel"), list(fast()))
def test_a_kernel_agrees_with_plain_attention(kernel: str, name: str, rng: np.random.Generator) -> None:
    check(kernel, FAST[name], rng)


@pytest.mark.smoke
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_agrees_on_a_mesh(kernel: str, rng: np.random.Generator) -> None:
    check(kernel, Case(250, segments="packed", causal=True), rng, FULL_SPLIT)


THOROUGH = {
    "full": Case(128),
    "causal": Case(300, causal=True),
    "causal in whole blocks": Case(1024, heads=1, rows=1, causal=True),  # two blocks: of one, nothing is seen
    "many blocks of keys": Case(2560, heads=1, rows=1, causal=True, segments="packed"),  # gradients unfused
    "padded": Case(200, segments="padded"),
    "keys": Case(70, keys=200, segments="keys"),
    "bfloat16 packed": Case(segments="packed", dtype="bfloat16"),
    "heads of 32": Case(head_size=32, causal=True),
    "heads of 128": Case(head_size=128, causal=True, segments="packed"),
    "longer than keys": Case(200, keys=70, segments="packed"),
}
MESHES = {
    "data x context x tensor": FULL_SPLIT,
    "context": MeshConfig(data=1, context=8),
    "rows in copies": MeshConfig(data=4, tensor=2),  # more parts than rows
}


# For every change: each case with one kernel, and each kernel on each mesh that no fast test has.
CHOSEN = {
    ("full", "triton", ""),
    ("causal in whole blocks", "triton", ""),
    ("many blocks of keys", "splash", ""),
    ("padded", "triton", ""),
    ("keys", "splash", ""),
    ("bfloat16 packed", "splash", ""),
    ("heads of 32", "triton", ""),
    ("heads of 128", "splash", ""),
    ("causal", "splash", "context"),
    ("causal", "triton", "rows in copies"),
    ("longer than keys", "splash", "rows in copies"),
    ("longer than keys", "triton", "context"),
}


def thorough() -> Iterator[Any]:
    cases = [(name, kernel, "") for name in THOROUGH for kernel in KERNELS]
    cases += itertools.product(("causal", "longer than keys"), KERNELS, MESHES)
    for case in cases:
        yield pytest.param(*case, marks=[pytest.mark.slow] + [pytest.mark.everything] * (case not in CHOSEN))


@pytest.mark.parametrize(("name", "kernel", "mesh"), list(thorough()))
def test_a_kernel_agrees_in_many_cases(name: str, kernel: str, mesh: str, rng: np.random.Generator) -> None:
    check(kernel, THOROUGH[name], rng, MESHES.get(mesh))


@pytest.mark.parametrize(
    ("length", "size"),
    [
        (1, 128),
        (128, 128),
        (129, 256),
        (257, 384),
        (512, 512),
        (577, 384),
        (640, 384),
        (1024, 512),
        (1280, 256),
    ],
)
def test_blocks_are_large_and_pad_little(length: int, size: int) -> None:
    assert block_size(length) == size


def test_padding_counts_the_parts_of_queries() -> None:
    padded_shape = KERNELS["splash"].padded_shape
    assert padded_shape(197, 197) == (256, 256)
    with placed(Placement(make_mesh(FULL_SPLIT), {"sequence": ("context",)})):
        assert padded_shape(300, 300) == (512, 384)


@pytest.mark.parametrize(("size", "is_kept"), [(192, True), (128, True), (64, False)])
def test_results_that_would_be_padded_are_not_kept_on_tpus(size: int, is_kept: bool) -> None:
    attend = functools.partial(KERNELS["splash"], mask=Mask(Causal()), interpret=True)
    remat = jax.checkpoint(lambda *arrays: attend(*arrays).sum(), policy=kept.policy("products"))
    arrays = [jnp.zeros((1, 128, 1, size))] * 3
    # What the forward pass hands to the backward pass.
    pullback = jax.eval_shape(lambda *arrays: jax.vjp(remat, *arrays)[1], *arrays)
    found = sum(leaf.size for leaf in jax.tree.leaves(pullback) if jnp.issubdtype(leaf.dtype, jnp.floating))
    inputs = 3 * 128 * size
    assert found == inputs + is_kept * (128 * size + 128)  # the result, and the normalizer of each query
