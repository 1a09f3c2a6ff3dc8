"""What a program keeps from its forward to its backward pass, where that is known by construction."""

from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.planning.hlo import read_program
from transformer_jax.planning.memory import activation_bytes, read_memory, shard_bytes
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

ROWS, WIDTH, LAYERS = 64, 128, 6
ONE = ROWS * WIDTH * 4  # bytes of a layer's input


def compiled(body: Callable[[jax.Array, jax.Array], tuple[jax.Array, None]]) -> jax.stages.Compiled:
    """The gradient of a scanned network of ``LAYERS`` such layers."""

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(body, x, weights)[0] ** 2)

    shapes = (
        jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
    )
    return jax.jit(jax.grad(loss)).lower(*shapes).compile()


def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
    return jnp.sin(jnp.sin(x @ weight)), None


def kept(program: jax.stages.Compiled) -> int:
    return activation_bytes(read_program(program.as_text()))


def test_a_layer_keeps_what_its_gradient_needs() -> None:
    """The input, for the weights' gradient, and the cosine for that of each sine; and the last output."""
    assert kept(compiled(layer)) == pytest.approx(LAYERS * 3 * ONE + ONE, rel=0.01)


def test_rematerialised_a_layer_keeps_its_input() -> None:
    assert kept(compiled(jax.checkpoint(layer))) == pytest.approx(LAYERS * ONE + ONE, rel=0.01)


THROUGH = """HloModule jit_step, is_scheduled=true

%body (b: (s32[], f32[64,128], f32[64,128])) -> (s32[], f32[64,128], f32[64,128]) {
  %b = (s32[], f32[64,128]{1,0}, f32[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %w = f32[64,128]{1,0} get-tuple-element(%b), index=1
  %x = f32[64,128]{1,0} get-tuple-element(%b), index=2
  %y = f32[64,128]{1,0} add(%w, %x)
  ROOT %t = (s32[], f32[64,128]{1,0}, f32[64,128]{1,0}) tuple(%i, %w, %y)
}

%condition (c: (s32[], f32[64,128], f32[64,128])) -> pred[] {
  %c = (s32[], f32[64,128]{1,0}, f32[64,128]{1,0}) parameter(0)
  ROOT %p = pred[] constant(false)
}

ENTRY %main (weight: f32[64,128], n: s32[]) -> f32[64,128] {
  %weight = f32[64,128]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %s = (s32[], f32[64,128]{1,0}, f32[64,128]{1,0}) tuple(%n, %weight, %weight)
  %l = (s32[], f32[64,128]{1,0}, f32[64,128]{1,0}) while(%s), condition=%condition, body=%body, FORWARD
  %u = f32[64,128]{1,0} get-tuple-element(%l), index=1
  %v = f32[64,128]{1,0} get-tuple-element(%l), index=2
  ROOT %g = f32[64,128]{1,0} multiply(%u, %v), BACKWARD
}
"""


def test_what_only_passes_through_a_loop_is_not_kept_by_it() -> None:
    text = THROUGH.replace("FORWARD", 'metadata={op_name="jit(f)/jvp(M)/while"}')
    text = text.replace("BACKWARD", 'metadata={op_name="jit(f)/transpose(jvp(M))/mul"}')
    assert activation_bytes(read_program(text)) == ONE


def test_without_a_gradient_nothing_is_kept() -> None:
    program = jax.jit(lambda x: jnp.sin(x) @ x.T).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
    assert kept(program) == 0


def test_memory_adds_up_to_what_xla_plans() -> None:
    program = compiled(layer)
    params = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, WIDTH), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    found = read_memory(program, read_program(program.as_text()), params, platform="cpu")
    planned = program.memory_analysis()
    assert found.parameters == LAYERS * WIDTH * WIDTH * 4
    assert found.other_arguments == ONE
    assert found.outputs == found.parameters  # the gradient takes no argument's place
    assert found.activations + found.temporaries == planned.temp_size_in_bytes
    assert found.peak == (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes
    )


@pytest.mark.parametrize(
    ("platform", "peak", "wanted"),
    [("tpu", 4100, 4100), ("tpu", 0, 6100), ("tpu", 6200, 6100), ("tpu", 1000, 1100), ("cuda", 4100, 6100)],
)
def test_of_a_tpu_the_worst_moment_counts_and_not_what_libtpu_adds_to_it(
    platform: str, peak: int, wanted: int
) -> None:
    sizes = {"argument": 1000, "output": 700, "alias": 600, "temp": 5000, "generated_code": 30}
    planned = {f"{name}_size_in_bytes": size for name, size in sizes.items()} | {"peak_memory_in_bytes": peak}
    program = jax.jit(lambda x: x).lower(1.0).compile()
    text = read_program(program.as_text())
    with mock.patch.object(program, "memory_analysis", lambda: SimpleNamespace(**planned)):
        found = read_memory(program, text, (), platform=platform)
    assert (found.peak, found.total) == (wanted, wanted + 30)


def test_bytes_of_a_shard() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = {
        "kernel": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=split),
        "bias": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=whole),
    }
    assert shard_bytes(tree) == 4 * 8 * 2 + 16 * 4
