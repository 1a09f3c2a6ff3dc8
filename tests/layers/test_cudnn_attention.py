"""Attention by cuDNN, without a GPU: what it is asked for, and what it is lowered to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers.attention_ops import dot_product_attention
from transformer_jax.layers.cudnn_attention import CudnnAttention
from transformer_jax.layers.masks import Causal, Mask, Segments

CUDNN = CudnnAttention()
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 3, 3, 0]], np.int32)
MASKS = ("none", "causal", "packed causal", "keys")


def arrays(length: int = 8, size: int = 16, dtype: str = "bfloat16", value_size: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    sizes = (size, size, value_size or size)
    return [jnp.asarray(rng.normal(size=(2, length, 2, width)), dtype) for width in sizes]


def mask_of(name: str) -> Mask:
    segments = jnp.asarray(SEGMENTS)
    if name == "keys":
        return Mask(Segments(None, segments))
    parts = {"packed": Segments(segments, segments), "causal": Causal()}
    return Mask(*(part for word, part in parts.items() if word in name))


def obstacle(*given: jax.Array, mask: Mask | None = None) -> str:
    return CUDNN.obstacle(*given, mask or Mask(), needs_weights="", bias=None)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that finds cuDNN 9.12 and an H100, for JAX's checks; it can compile nothing for it."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(checks, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [True, False])
def test_what_is_asked_for_is_plain_attention(
    name: str, scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_jax = jax.nn.dot_product_attention

    def by_xla(*given: jax.Array, implementation: str, **options: object) -> jax.Array:
        assert implementation == "cudnn"
        return of_jax(*given, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    mask = mask_of(name)
    given = arrays(dtype="float32")
    found = CUDNN(*given, mask=mask, scale=scale)
    wanted = dot_product_attention(*given, mask=mask.to_array(8, 8), scale=scale)
    # Sums of 16 and of 8 products.
    np.testing.assert_allclose(found, wanted, atol=24 * 2**-24 * np.abs(wanted).max())


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("name", "kernel"), [("causal", "fmhaSoftmax"), ("packed causal", "fmhaScaleBiasSoftmax")]
)
def test_it_is_lowered_to_its_kernels_forward_and_backward(name: str, kernel: str) -> None:
    mask = mask_of(name)

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(CUDNN(query, key, value, mask=mask).astype(jnp.float32))

    assert obstacle(*arrays(), mask=mask) == ""
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert set(re.findall(r"__cudnn\$(\w+)", text)) == {kernel, f"{kernel}Backward"}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dtype": "float32"}, "float32"),
        ({"length": 7}, "Unsupported sequence length"),
        ({"size": 20}, "head dim"),
        ({"value_size": 8}, "value shape"),
    ],
)
def test_what_cudnn_does_not_take_is_said_in_its_words(given: dict, reason: str) -> None:
    found = obstacle(*arrays(**given))
    assert found.startswith("cuDNN: ")
    assert reason in found


def test_without_cudnn_that_is_the_reason() -> None:
    assert obstacle(*arrays()) == "cuDNN is not detected."
    with pytest.raises(ValueError, match="on GPUs only"):
        CUDNN(*arrays(), mask=Mask(), interpret=True)
