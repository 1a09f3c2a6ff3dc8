"""Times at published rates, against what follows from them by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.config import ConfigError
from transformer_jax.planning.collectives import Collective, find_collectives
from transformer_jax.planning.costs import Cost, Work, read_work
from transformer_jax.planning.estimate import (
    WAITING,
    collective_seconds,
    estimate,
    mesh_coords,
    module_of,
    phase_of,
    roofline_seconds,
)
from transformer_jax.planning.hardware import DEVICES, EXAMPLES, read_topology
from transformer_jax.planning.hlo import read_program
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh


def chips(shape: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """The coordinates of chips in row-major order, as a mesh of these sizes."""
    return np.array(list(np.ndindex(*shape))).reshape(*sizes, len(shape))


def collective(kind: str, axes: tuple[str, ...], size: int, group: int, **others: Any) -> Collective:
    return Collective(kind, axes, "bf16", size, 1, group, False, "c", "", **others)


def work(products: dict[str, int], memory: int, **others: Any) -> Work:
    return Work("w", "fusion", "", "main", 1, Cost(products, 0, memory, memory), **others)


def test_a_roofline_is_the_longer_of_products_and_bytes() -> None:
    device = DEVICES["v5e"]
    assert roofline_seconds(work({"bf16": 197 * 10**12}, 819), device) == pytest.approx(1.0)
    assert roofline_seconds(work({"bf16": 197}, 819 * 10**9), device) == pytest.approx(1.0)
    assert roofline_seconds(work({"f32_highest": 197 * 10**12}, 0), device) == pytest.approx(6.0)
    assert roofline_seconds(work({"f32": 494 * 10**12}, 0), DEVICES["h100"]) == pytest.approx(1.0)


GB = 10**9


@pytest.mark.parametrize(
    ("kind", "size", "seconds"),
    [
        # Four chips in a row that is no ring: one link of 50 GB/s feeds the last.
        ("all-gather", 4 * GB, 3 / 50),
        ("reduce-scatter", 1 * GB, 3 / 50),
        ("all-reduce", 4 * GB, 6 / 50),
        ("all-to-all", 1 * GB, 1 / 50),
        ("collective-permute", 1 * GB, 1 / 50),
    ],
)
def test_collectives_along_one_axis_of_a_slice(kind: str, size: int, seconds: float) -> None:
    topology = read_topology("v5e:4x4")
    mesh = chips((4, 4), (4, 1, 1, 4))
    found = collective_seconds(collective(kind, ("tensor",), size, 4), mesh, topology)
    assert found == pytest.approx(seconds)


def test_more_links_where_more_axes_of_the_network_or_a_ring() -> None:
    both = collective("all-gather", ("data", "tensor"), 16 * GB, 16)
    found = collective_seconds(both, chips((4, 4), (4, 1, 1, 4)), read_topology("v5e:4x4"))
    assert found == pytest.approx(15 / 50 / 2)
    ring = collective("all-gather", ("data",), 16 * GB, 16)
    found = collective_seconds(ring, chips((16, 16), (16, 1, 1, 16)), read_topology("v5e:16x16"))
    assert found == pytest.approx(15 / 50 / 2)
    cube = collective("all-gather", ("tensor",), 4 * GB, 4)
    found = collective_seconds(cube, chips((4, 4, 4), (16, 1, 1, 4)), read_topology("v5p:4x4x4"))
    assert found == pytest.approx(3 / 100 / 2)


def test_gpus_send_through_their_switch() -> None:
    mesh = np.empty((8, 1, 1, 1, 0), int)
    topology = read_topology("h100:8")
    found = collective_seconds(collective("all-reduce", ("data",), 8 * GB, 8), mesh, topology)
    assert found == pytest.approx(14 / 450)
    found = collective_seconds(collective("all-to-all", ("data",), 8 * GB, 8), mesh, topology)
    assert found == pytest.approx(7 / 450)


def test_nothing_is_sent_to_oneself() -> None:
    alone = collective("all-reduce", (), 8 * GB, 1)
    assert collective_seconds(alone, chips((2, 2), (4, 1, 1, 1)), read_topology("v5e:2x2")) == 0


STEP = """HloModule jit_step, is_scheduled=true, num_partitions=4

ENTRY %main (x: bf16[4096,4096], w: bf16[4096,4096]) -> bf16[4096,4096] {
  %x = bf16[4096,4096]{1,0} parameter(0)
  %w = bf16[4096,4096]{1,0} parameter(1)
  %g = (bf16[4096,4096]{1,0}, bf16[16384,4096]{1,0}) all-gather-start(%w), replica_groups=GROUPS
  %c = (bf16[4096,4096]{1,0:S(1)}, bf16[4096,4096]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %d = bf16[4096,4096]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata=FORWARD
  %h = bf16[16384,4096]{1,0} all-gather-done(%g)
  %e = bf16[4096,4096]{1,0:S(1)} copy-done(%c)
  ROOT %n = bf16[4096,4096]{1,0} add(%d, %d), metadata=BACKWARD
}
"""
STEP = STEP.replace("GROUPS", "{{0,1,2,3}}")
STEP = STEP.replace("FORWARD", '{op_name="jit(s)/jvp(M)/layers/feedforward/hidden/dot_general"}')
STEP = STEP.replace("BACKWARD", '{op_name="jit(s)/transpose(jvp(M))/layers/self_attention/add"}')


def test_what_is_started_ahead_hides_behind_what_runs() -> None:
    program, topology = read_program(STEP), read_topology("v5e:2x2")
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    coords = chips((2, 2), (2, 1, 1, 2))
    found = estimate(program, read_work(program), find_collectives(program, mesh), coords, topology)
    matrix = 4096 * 4096 * 2
    product = 2 * 4096**3 / 197e12
    (gather,) = found.collectives
    sent = 3 * matrix / 100e9  # over two axes
    assert gather.seconds == pytest.approx(sent)
    assert gather.exposed_seconds == pytest.approx(sent - product)
    parts = {(part.phase, part.module): part.seconds for part in found.parts}
    # The product leaves the memory time enough for the copy.
    assert product > 4 * matrix / 819e9
    assert parts == {
        ("forward", "feed-forward"): pytest.approx(product),
        ("backward", "attention"): pytest.approx(3 * matrix / 819e9),
        ("update", "other"): 0,
        ("all", WAITING): 0,
    }
    assert found.seconds == pytest.approx(sum(parts.values()) + gather.exposed_seconds)


def test_copies_that_nothing_hides_are_waited_for() -> None:
    lines = [line for line in STEP.splitlines() if "%d" not in line and "all-gather" not in line]
    text = "\n".join(lines).replace("  %e", "  ROOT %e") + "\n"
    program, topology = read_program(text), read_topology("v5e:2x2")
    found = estimate(program, read_work(program), [], chips((2, 2), (4, 1, 1, 1)), topology)
    assert found.seconds == pytest.approx(4096 * 4096 * 2 / 819e9)


@pytest.mark.parametrize(
    ("name", "phase", "module"),
    [
        ("jit(train_step)/jvp(M)/decoder/while/layers/self_attention/bhlk", "forward", "attention"),
        ("jit(train_step)/transpose(jvp(M))/layers/context_attention_norm/sub", "backward", "norms"),
        ("jit(train_step)/jvp()/reduce_sum", "forward", "logits and loss"),
        ("jit(train_step)/jvp(M)/logits/embedding.attend/dot_general", "forward", "logits and loss"),
        ("jit(train_step)/mul", "update", "other"),
    ],
)  # fmt: skip
def test_parts_are_told_by_names(name: str, phase: str, module: str) -> None:
    assert (phase_of(name), module_of(name)) == (phase, module)


@pytest.mark.parametrize("name", [name for examples in EXAMPLES.values() for name in examples])
def test_topologies_of_the_examples(name: str) -> None:
    topology = read_topology(name)
    assert topology.name == name
    chips = np.prod([int(size) for size in name.partition(":")[2].split("x")])
    assert topology.num_devices == chips * (2 if name.startswith("tpu7x") else 1)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("v5e", "must be KIND:SIZES"),
        ("v9:4x4", "KIND is one of v4, v5e, v5p"),
        ("v5e:4x4x4", "v5e needs 2 sizes.*v5e:4x4"),
        ("v5p:4x4", "v5p needs 3 sizes.*v5p:4x4x4"),
        ("v5e:0x4", "v5e needs 2 sizes"),
        ("h100:4x4", "needs a number of GPUs.*h100:8"),
        ("h100:16", "at most 8 chips in one machine.*h100:8"),
        ("v5e:16x32", "at most 256 chips in one slice.*v5e:16x16"),
    ],
)
def test_a_topology_that_is_none_is_an_error_with_some_that_are(name: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        read_topology(name)


def test_memory_bandwidth_and_compute_are_each_of_one_device() -> None:
    """TPU7x has two devices in a chip; elsewhere a device is a chip."""
    assert DEVICES["tpu7x"].peak_rate == 2307e12 / 2
    assert DEVICES["tpu7x"].memory_bytes == 96 * 2**30
    assert {device.name for device in DEVICES.values() if device.devices_per_chip != 1} == {"tpu7x"}


def test_a_sharded_step_on_real_devices() -> None:
    """The whole way from a program to its time, with the devices that are here."""
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    rows = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    columns = NamedSharding(mesh, PartitionSpec("tensor"))
    step = jax.jit(
        jnp.dot, in_shardings=(rows, columns), out_shardings=NamedSharding(mesh, PartitionSpec("data"))
    )
    shapes = (jax.ShapeDtypeStruct((512, 256), jnp.float32), jax.ShapeDtypeStruct((256, 128), jnp.float32))
    program = read_program(step.lower(*shapes).compile().as_text())
    found = estimate(
        program,
        read_work(program),
        find_collectives(program, mesh),
        mesh_coords(mesh),
        read_topology("h100:8"),
    )
    assert found.product_seconds == pytest.approx(2 * 128 * 128 * 128 / 494e12)
    assert found.exposed_seconds == pytest.approx(max(128 * 128 * 4 / 450e9, 2 * 128 * 128 * 4 / 3350e9))
