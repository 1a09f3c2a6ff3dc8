"""Collectives read from programs of which it is known, by construction, what they send where."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from transformer_jax.planning.collectives import Collective, device_groups, read_collectives
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

ALL_AXES = ("data", "fsdp", "tensor")
SHAPE = (8, 4)  # of each device's part, float32
PART = 8 * 4 * 4  # its bytes


def cube() -> Mesh:
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def compiled_text(function: Callable[[jax.Array], jax.Array], mesh: Mesh) -> str:
    """The program that runs ``function`` on every device's part."""
    axes = PartitionSpec(mesh.axis_names)
    sharded = jax.shard_map(function, mesh=mesh, in_specs=axes, out_specs=axes, check_vma=False)
    whole = jax.ShapeDtypeStruct((SHAPE[0] * mesh.size, SHAPE[1]), jnp.float32)
    return jax.jit(sharded).lower(whole).compile().as_text()


def read(function: Callable[[jax.Array], jax.Array], mesh: Mesh | None = None) -> list[Collective]:
    mesh = mesh or cube()
    return read_collectives(compiled_text(function, mesh), mesh)


@pytest.mark.parametrize(
    "axes",
    [("data",), ("fsdp",), ("tensor",), ("data", "tensor"), ("fsdp", "tensor"), ALL_AXES],
    ids="+".join,
)
def test_a_sum_is_an_all_reduce_over_its_axes(axes: tuple[str, ...]) -> None:
    (found,) = read(lambda x: jax.lax.psum(x, axes))
    assert (found.kind, found.axes, found.group_size) == ("all-reduce", axes, 2 ** len(axes))
    assert (found.dtype, found.bytes, found.count, found.total_bytes) == ("f32", PART, 1, PART)
    assert found.is_count_exact
    assert "psum" in found.op_name


def test_bytes_are_those_of_the_result() -> None:
    (gathered,) = read(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)[: SHAPE[0]] * 2)
    assert (gathered.kind, gathered.axes, gathered.bytes) == ("all-gather", ("fsdp",), 2 * PART)
    (scattered,) = read(lambda x: jax.lax.psum_scatter(x, ("data", "fsdp"), tiled=True))
    assert (scattered.kind, scattered.axes, scattered.bytes) == (
        "reduce-scatter",
        ("data", "fsdp"),
        PART // 4,
    )
    (exchanged,) = read(lambda x: jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True))
    assert (exchanged.kind, exchanged.axes, exchanged.bytes) == ("all-to-all", ("tensor",), PART)


def test_several_sums_that_are_combined_add_up() -> None:
    def two(x: jax.Array) -> jax.Array:
        both = jax.lax.psum((x, x[0].astype(jnp.int32)), "data")
        return both[0] + both[1].astype(jnp.float32)[None]

    found = read(two)
    assert {one.kind for one in found} == {"all-reduce"}
    assert sum(one.bytes for one in found) == PART + SHAPE[1] * 4
    assert {name for one in found for name in one.dtype.split("+")} == {"f32", "s32"}


@pytest.mark.parametrize("axis", ALL_AXES)
def test_a_permutation_is_over_the_axis_that_it_shifts(axis: str) -> None:
    (found,) = read(lambda x: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)]))
    assert (found.kind, found.axes, found.bytes) == ("collective-permute", (axis,), PART)


def test_a_ring_over_an_axis_of_four() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    ring = [(place, (place + 1) % 4) for place in range(4)]
    (found,) = read(lambda x: jax.lax.ppermute(x, "tensor", ring), mesh)
    assert (found.axes, found.bytes) == (("tensor",), PART)


def test_loops_multiply() -> None:
    def looped(x: jax.Array) -> jax.Array:
        def inner(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.psum(carry, "tensor"), None

        def outer(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            carry = jax.lax.ppermute(carry, "fsdp", [(0, 1), (1, 0)])
            return jax.lax.scan(inner, carry, None, length=3)[0], None

        return jax.lax.psum(jax.lax.scan(outer, x, None, length=5)[0], "data")

    counts = {one.axes: (one.kind, one.count, one.total_bytes) for one in read(looped)}
    assert counts == {
        ("tensor",): ("all-reduce", 15, 15 * PART),
        ("fsdp",): ("collective-permute", 5, 5 * PART),
        ("data",): ("all-reduce", 1, PART),
    }


def test_a_loop_that_hangs_on_data_is_said_to() -> None:
    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: jax.lax.psum(y, "data"), x)

    (found,) = read(looped)
    assert (found.count, found.is_count_exact) == (1, False)


def test_trips_of_a_loop_whose_compiler_does_not_write_them_down() -> None:
    def looped(x: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.psum(carry, "tensor"), None

        return jax.lax.scan(body, x, None, length=7)[0]

    mesh = cube()
    text = compiled_text(looped, mesh)
    assert "known_trip_count" in text
    (found,) = read_collectives(text.replace("known_trip_count", "forgotten"), mesh)
    assert (found.count, found.is_count_exact) == (7, True)


def test_a_sharded_product_is_summed_over_what_it_contracts() -> None:
    mesh = cube()
    rows = jax.NamedSharding(mesh, PartitionSpec("data", "tensor"))
    columns = jax.NamedSharding(mesh, PartitionSpec("tensor", None))
    out = jax.NamedSharding(mesh, PartitionSpec("data", None))
    step = jax.jit(jnp.dot, in_shardings=(rows, columns), out_shardings=out)
    arguments = (jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((32, 24), jnp.float32))
    (found,) = read_collectives(step.lower(*arguments).compile().as_text(), mesh)
    assert (found.kind, found.axes, found.bytes) == ("all-reduce", ("tensor",), 8 * 24 * 4)


# What other compilers and versions write, of which this one is not asked.

TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%all-reduce-scatter.1 (input: bf16[8,8,128]) -> bf16[4,8,128] {{
  %input = bf16[8,8,128]{{2,1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %all-reduce.3 = bf16[8,8,128]{{2,1,0:T(8,128)(2,1)}} all-reduce(%input), channel_id=1, {groups}
  %zero = s32[] constant(0)
  ROOT %part = bf16[4,8,128]{{2,1,0:T(8,128)(2,1)S(1)}} dynamic-slice(%all-reduce.3, %zero, %zero, %zero)
}}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {{
  %x = f32[8,4]{{1,0:T(8,128)}} parameter(0)
  {line}
  ROOT %y = f32[8,4]{{1,0:T(8,128)}} copy(%x)
}}
"""


FUSED = (
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, "
    'frontend_attributes={from-cross-replica-sharding="true"}'
)


def read_line(line: str) -> list[Collective]:
    return read_collectives(TEXT.format(line=line, groups=FUSED), cube())


def test_started_and_awaited_counts_once() -> None:
    (found,) = read_line(
        "%s = (f32[8,4]{1,0}, f32[16,4]{1,0:T(8,128)S(1)}) all-gather-start(%x), channel_id=1, "
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}\n"
        "  %d = f32[16,4]{1,0:T(8,128)S(1)} all-gather-done(%s)"
    )
    assert (found.kind, found.axes, found.bytes, found.is_async) == ("all-gather", ("fsdp",), 2 * PART, True)
    (found,) = read_line(
        "%s = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
        "channel_id=1, source_target_pairs={{0,4},{4,0},{1,5},{5,1}}\n"
        "  %d = f32[8,4]{1,0} collective-permute-done(%s)"
    )
    assert (found.kind, found.axes, found.bytes) == ("collective-permute", ("data",), PART)
    (found,) = read_line(
        "%s = ((f32[8,4]{1,0}, f32[2]{0}), (f32[16,4]{1,0}, /*index=1*/f32[4]{0})) all-gather-start(%x, %x), "
        "replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}\n"
        "  %d = (f32[16,4]{1,0}, f32[4]{0}) all-gather-done(%s)"
    )
    assert (found.axes, found.bytes) == (("tensor",), 2 * PART + 16)


def test_a_reduce_scatter_that_a_tpu_fused() -> None:
    (found,) = read_line(
        "%f = bf16[4,8,128]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    )
    assert (found.kind, found.axes, found.bytes) == ("reduce-scatter", ("tensor",), 4 * 8 * 128 * 2)


def iota(shape: tuple[int, ...], order: tuple[int, ...], groups: tuple[int, int]) -> set[frozenset[int]]:
    numbers = np.arange(8).reshape(shape).transpose(order).reshape(groups)
    return {frozenset(row.tolist()) for row in numbers}


def by_axes(sizes: tuple[int, ...], chosen: tuple[int, ...]) -> set[frozenset[int]]:
    """Places that differ along the chosen axes only, found one by one."""
    groups: dict[tuple[int, ...], set[int]] = {}
    for number, place in enumerate(np.ndindex(*sizes)):
        key = tuple(index for axis, index in enumerate(place) if axis not in chosen)
        groups.setdefault(key, set()).add(number)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", by_axes((2, 2, 2), (1,))),
        ("replica_groups={}", {frozenset(range(8))}),
        ("replica_groups=[2,4]<=[8]", iota((8,), (0,), (2, 4))),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", iota((2, 2, 2), (0, 2, 1), (4, 2))),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", iota((2, 4), (1, 0), (4, 2))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", by_axes((2, 2, 2), (0, 2))),
        ("replica_groups=mesh['a'=8,'b'=1] {'a','b'}", {frozenset(range(8))}),
        # The devices of the mesh in another order: 0 4 1 5 2 6 3 7.
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", by_axes((2, 4), (0,))),
        # A part of an axis of 8: after the first 2, the next 2, so number // 2 % 2.
        ("replica_groups=mesh['a'=8] {'a':(2)2}", by_axes((2, 2, 2), (1,))),
        ("source_target_pairs={{0,1},{2,3}}", {frozenset({0, 1}), frozenset({2, 3})}),
    ],
)  # fmt: skip
def test_groups_in_every_way_of_writing_them(text: str, expected: set[frozenset[int]]) -> None:
    found = device_groups(f", channel_id=1, {text}, use_global_device_ids=true", 8)
    assert {frozenset(row.tolist()) for row in found} == expected


def test_what_is_no_compiled_program() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_collectives("module @jit_f {}", cube())
    with pytest.raises(ValueError, match="no groups of devices"):
        read_line("%s = f32[8,4]{1,0} all-reduce(%x), to_apply=%add")
    with pytest.raises(ValueError, match="8 devices of the mesh: device 15"):
        read_line("%s = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,15}}, to_apply=%add")
