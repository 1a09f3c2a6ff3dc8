"""Operations and bytes of compiled programs, against closed forms and XLA's own count where it has one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.planning.costs import Cost, Work, read_work, total
from transformer_jax.planning.hlo import read_program

ROWS, WIDTH, LAYERS = 64, 128, 5


def compiled(function: Callable, *shapes: tuple[int, ...], dtype=jnp.float32) -> jax.stages.Compiled:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def count(program: jax.stages.Compiled) -> Cost:
    return total(read_work(read_program(program.as_text())))


def scanned(weights: jax.Array, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ weight), None

    return jax.lax.scan(layer, x, weights)[0]


def unrolled(weights: jax.Array, x: jax.Array) -> jax.Array:
    for layer in range(LAYERS):
        x = jnp.tanh(x @ weights[layer])
    return x


SHAPES = ((LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))
PRODUCTS = LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_scanned_body_counts_once_for_every_trip() -> None:
    cost = count(compiled(scanned, *SHAPES))
    assert cost.product_flops == {"f32": PRODUCTS}
    assert count(compiled(unrolled, *SHAPES)).product_flops == {"f32": PRODUCTS}


def test_xla_itself_counts_a_scanned_body_once() -> None:
    """Why the count is not simply XLA's. Where this fails, it may be."""
    found = compiled(scanned, *SHAPES).cost_analysis()["flops"]
    assert found < 1.1 * PRODUCTS / LAYERS


def test_a_gradient_has_twice_the_products_of_its_function() -> None:
    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(scanned(weights, x) ** 2)

    cost = count(compiled(jax.grad(loss, argnums=(0, 1)), *SHAPES))
    assert cost.product_flops == {"f32": 3 * PRODUCTS}


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, y: jnp.einsum("bik,bjk->bij", x, y), id="batched"),
        pytest.param(lambda x, y: jnp.sum(x * y, axis=-1) * 2 + 1, id="elementwise"),
        pytest.param(lambda x, y: jnp.maximum(x, y) @ jnp.swapaxes(y, 1, 2), id="both"),
        pytest.param(
            lambda x, y: jax.lax.reduce_window(x * y, 0.0, jax.lax.add, (1, 4, 8), (1, 4, 8), "VALID"),
            id="windows",
        ),
    ],
)
def test_as_xla_counts_programs_without_loops(function: Callable) -> None:
    program = compiled(function, (4, 32, 48), (4, 32, 48))
    found, expected = count(program), program.cost_analysis()
    assert found.flops == pytest.approx(expected["flops"], rel=0.02)
    assert found.bytes_accessed == pytest.approx(expected["bytes accessed"], rel=0.02)


def test_a_slice_in_a_loop_is_read_as_a_slice() -> None:
    work = read_work(read_program(compiled(scanned, *SHAPES).as_text()))
    (slices,) = [one for one in work if one.op_name.endswith("dynamic_slice")]
    layer = WIDTH * WIDTH * 4
    assert slices.executions == LAYERS
    # Read and written, with an index; the whole stack would be five times as much.
    assert 2 * layer <= slices.cost.memory_bytes < 2 * layer + 64


# What a TPU's compiler writes: batched products as convolutions full of holes, copies into its own memory.

TPU = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: bf16[32,8,256,64], b: bf16[32,8,256,64]) -> bf16[32,8,256,256] {{
  %a = bf16[32,8,256,64]{{2,3,1,0:T(8,128)(2,1)}} parameter(0)
  %b = bf16[32,8,256,64]{{2,3,1,0:T(8,128)(2,1)}} parameter(1)
  {lines}
}}
"""
ONE = 32 * 8 * 256 * 64 * 2  # bytes of a


def tpu_work(*lines: str) -> list[Work]:
    return read_work(read_program(TPU.format(lines="\n  ".join(lines))))


@pytest.mark.parametrize(
    "window",
    [
        "window={size=32x8 stride=31x7 lhs_dilate=32x8}, dim_labels=01bf_01oi->01bf",
        "window={size=32x8 stride=32x8 pad=31_31x7_7 lhs_dilate=31x7 rhs_reversal=1x1}, "
        "dim_labels=01bf_01oi->01bf",
    ],
)
def test_a_batched_product_written_as_a_convolution(window: str) -> None:
    (work,) = tpu_work(f"ROOT %c = bf16[32,8,256,256]{{2,3,1,0}} convolution(%a, %b), {window}")
    assert work.cost.product_flops == {"bf16": 2 * 32 * 8 * 256 * 256 * 64}


def test_a_kernel_over_heads_written_as_a_convolution() -> None:
    """(32, 256, 512) times (512, 8, 64), the heads as places of a kernel that slides over one place."""
    text = """HloModule jit_f

ENTRY %main (x: bf16[32,256,512], w: bf16[1,512,8,64]) -> bf16[32,256,8,64] {
  %x = bf16[32,256,512]{2,1,0} parameter(0)
  %w = bf16[1,512,8,64]{3,2,1,0} parameter(1)
  %y = bf16[32,256,1,512]{3,2,1,0} bitcast(%x)
  ROOT %c = bf16[32,256,8,64]{1,3,2,0} convolution(%y, %w), WINDOW, dim_labels=0b1f_0i1o->0b1f
}
""".replace("WINDOW", "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}")
    (work,) = read_work(read_program(text))
    assert work.cost.product_flops == {"bf16": 2 * 32 * 256 * 512 * 8 * 64}


def test_what_is_on_the_chip_is_not_memory_traffic() -> None:
    copy, product = tpu_work(
        "%s = (bf16[32,8,256,64]{2,3,1,0:T(8,128)(2,1)S(1)}, bf16[32,8,256,64]{2,3,1,0:T(8,128)(2,1)}, "
        "u32[]{:S(2)}) copy-start(%a)",
        "%d = bf16[32,8,256,64]{2,3,1,0:T(8,128)(2,1)S(1)} copy-done(%s)",
        "ROOT %n = bf16[32,8,256,64]{2,3,1,0:T(8,128)(2,1)} negate(%d)",
    )[::2]
    assert (copy.cost.memory_bytes, copy.cost.bytes_accessed, copy.is_transfer) == (ONE, ONE, True)
    assert (product.cost.memory_bytes, product.is_transfer) == (ONE, False)


def test_only_the_slice_that_is_copied_moves() -> None:
    (work,) = tpu_work(
        "%s = ((bf16[32,8,256,64]{2,3,1,0}), bf16[8,8,256,64]{2,3,1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), "
        "slice={[0:8], [0:8], [0:256], [0:64]}",
        "ROOT %d = bf16[8,8,256,64]{2,3,1,0:S(1)} slice-done(%s)",
    )
    assert (work.cost.memory_bytes, work.cost.bytes_accessed) == (ONE // 4, ONE // 4)


def test_kernels_say_what_they_do_or_are_said_not_to() -> None:
    silent, said, cublas = tpu_work(
        '%k = bf16[32,8,256,64]{2,3,1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call"',
        '%l = bf16[32,8,256,64]{2,3,1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"1234","bytes_accessed":"5"}}}',
        'ROOT %g = bf16[256,256]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["3"]}}',
    )
    assert (silent.kernel, silent.is_counted, silent.cost.flops) == ("tpu_custom_call", False, 0)
    assert (said.is_counted, said.cost.product_flops) == (True, {"bf16": 1234})
    assert cublas.cost.product_flops == {"bf16": 2 * 256 * 256 * 64}
