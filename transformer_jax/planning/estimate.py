"""Predicts how long a compiled program takes at published peak rates: a roofline, not a measurement.

An instruction takes as long as its matrix products at their peak rate or its bytes at the memory's rate,
whichever is longer (Williams et al. 2009). Copies between memories run beside other instructions: they use
the time in which the memory is idle, and the program waits only for the rest. A collective takes as long as
its bytes need on the links between its devices; one that is started early is hidden by the instructions
before it is awaited. Latencies, vector operations, partly filled tiles and contention are not modelled, so a
real step takes longer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from transformer_jax.planning.collectives import Collective
from transformer_jax.planning.costs import Work
from transformer_jax.planning.hardware import Device, Topology
from transformer_jax.planning.hlo import Program
from transformer_jax.sharding.partitioning import MESH_AXES

Coords: TypeAlias = Int[np.ndarray, "*mesh axes"]  # coordinates in the network of each device of a mesh

WAITING = "waiting for copies"
FILLING = "filling buffers"  # initializing buffers that loops write to
# Parts of instruction names and the modules that they belong to; the first match applies.
_MODULES = (
    ("attention_norm", "norms"),
    ("feedforward_norm", "norms"),
    ("attention", "attention"),
    ("feedforward", "feed-forward"),
    ("norm", "norms"),
    ("logits", "logits and loss"),
    ("head", "logits and loss"),
    ("embed", "embeddings"),
    ("layers", "layers, other"),
    ("while", "layers, other"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds what the instructions of one module in one phase take, in one run of the program on one device.

    Attributes:
      phase: ``forward``, ``backward``, ``update``, or ``all`` if it cannot be determined; in a step without a
        gradient most is ``forward``.
      module: a module of the model, or another kind of work.
    """

    phase: str
    module: str
    flops: int
    memory_bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class CollectiveTime:
    """Holds a collective, the ``seconds`` of all its executions, and those that nothing hides."""

    collective: Collective
    seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Holds the predicted seconds of one run of a program.

    Attributes:
      parts: longest first; their seconds and the exposed seconds of the collectives add up to ``seconds``.
      product_seconds: seconds of the matrix products alone, at the peak rate.
      memory_seconds: seconds of the main memory's traffic alone, without that of collectives.
    """

    parts: tuple[Part, ...]
    collectives: tuple[CollectiveTime, ...]
    product_seconds: float
    memory_seconds: float

    @property
    def exposed_seconds(self) -> float:
        """Returns the seconds of collectives that nothing hides."""
        return sum((one.exposed_seconds for one in self.collectives), 0.0)

    @property
    def seconds(self) -> float:
        """Returns the seconds of the step."""
        return sum(part.seconds for part in self.parts) + self.exposed_seconds

    @property
    def least_seconds(self) -> float:
        """Returns the seconds of the step if all products and all memory traffic overlapped."""
        return max(self.product_seconds, self.memory_seconds) + self.exposed_seconds


def estimate(
    program: Program,
    work: Sequence[Work],
    collectives: Sequence[Collective],
    coords: Coords,
    topology: Topology,
) -> Estimate:
    """Predicts one run of a program.

    Args:
      program: the compiled program.
      work: its ``read_work``.
      collectives: its ``find_collectives``.
      coords: ``mesh_coords`` of the mesh.
      topology: provides the rates.
    """
    device = topology.device
    names = {collective.name for collective in collectives}
    computing = [one for one in work if one.name not in names]
    times = {
        one.name: roofline_seconds(one, device)
        for one in computing
        if not one.is_transfer and one.cost.bytes_accessed
    }
    in_memory = {one.name: one.cost.memory_bytes / device.memory_rate for one in work}
    collective_times = tuple(
        _collective_time(one, program, times, in_memory.get(one.name, 0.0), coords, topology)
        for one in collectives
    )
    products = sum(
        flops / device.product_rate(dtype) * one.executions
        for one in work
        for dtype, flops in one.cost.product_flops.items()
    )
    memory = sum(in_memory[one.name] * one.executions for one in computing)
    return Estimate(_parts(computing, times, device), collective_times, float(products), float(memory))


def mesh_coords(mesh: Mesh) -> Coords:
    """Returns the network coordinates of each device's chip; none for devices that a switch joins."""
    places = [getattr(device, "coords", ()) for device in mesh.devices.flat]
    return np.array(places, int).reshape(*mesh.devices.shape, -1 if places[0] else 0)


def roofline_seconds(work: Work, device: Device) -> float:
    """Returns the seconds of one execution: of its products or of its bytes, whichever takes longer."""
    flops = work.cost.product_flops
    products = sum((count / device.product_rate(dtype) for dtype, count in flops.items()), 0.0)
    return max(products, work.cost.memory_bytes / device.memory_rate)


def _parts(work: Sequence[Work], times: Mapping[str, float], device: Device) -> tuple[Part, ...]:
    has_gradient = any("transpose(" in one.op_name for one in work)
    sums: dict[tuple[str, str], list[float]] = {}
    busy: dict[str, list[float]] = {}  # by computation: seconds of its instructions, and of the memory
    for one in work:
        key = (phase_of(one.op_name) if has_gradient else "forward", module_of(one.op_name))
        if one.opcode == "broadcast":
            key = ("all", FILLING)
        part_sums = sums.setdefault(key, [0, 0, 0.0])
        seconds = times.get(one.name, 0.0) * one.executions
        part_sums[0] += one.cost.flops * one.executions
        part_sums[1] += one.cost.memory_bytes * one.executions
        part_sums[2] += seconds
        both = busy.setdefault(one.computation, [0.0, 0.0])
        both[0] += seconds
        both[1] += one.cost.memory_bytes / device.memory_rate * one.executions
    parts = [Part(*key, int(flops), int(size), seconds) for key, (flops, size, seconds) in sums.items()]
    waited = sum(max(0.0, memory - running) for running, memory in busy.values())
    parts.append(Part("all", WAITING, 0, 0, waited))
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def phase_of(op_name: str) -> str:
    """Returns the phase, from JAX's names of derived functions; without such a name it is ``update``."""
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "update"


def module_of(op_name: str) -> str:
    """Returns the module of the model that an instruction belongs to."""
    for name, module in _MODULES:
        if name in op_name:
            return module
    return "logits and loss" if "jvp()" in op_name else "other"


def _collective_time(
    collective: Collective,
    program: Program,
    times: Mapping[str, float],
    memory_seconds: float,
    coords: Coords,
    topology: Topology,
) -> CollectiveTime:
    seconds = max(collective_seconds(collective, coords, topology), memory_seconds)
    hidden = 0.0
    if collective.is_async:
        hidden = min(seconds, _seconds_until_awaited(program, collective.name, times))
    return CollectiveTime(collective, seconds * collective.count, (seconds - hidden) * collective.count)


def _seconds_until_awaited(program: Program, name: str, times: Mapping[str, float]) -> float:
    for lines in program.computations.values():
        if name not in lines:
            continue
        order = list(lines)
        start = order.index(name)
        for place in range(start + 1, len(order)):
            if name in lines[order[place]].operands and lines[order[place]].opcode.endswith("-done"):
                return sum((times.get(other, 0.0) for other in order[start + 1 : place]), 0.0)
    return 0.0


def collective_seconds(collective: Collective, coords: Coords, topology: Topology) -> float:
    """Returns the seconds of one execution on the links between the devices that take part.

    A ring sends in both directions at once. An axis of the network that is not a ring has a device at its end
    with only one link, for which all devices wait. An all-to-all of ``n`` devices sends each part a quarter
    of the way round the ring on average; if a switch joins the devices, it sends each part directly.
    """
    size, count = collective.bytes, collective.group_size
    if count < 2 or not collective.axes:
        return 0.0
    rate = topology.device.link_rate * max(1, _links(collective, coords, topology))
    share = (count - 1) / count
    is_ring = topology.device.axes > 0
    sent: dict[str, float] = {
        "all-reduce": 2 * share * size,
        "all-gather": share * size,
        "reduce-scatter": (count - 1) * size,
        "collective-broadcast": size,
        "collective-permute": size,
    }
    all_to_all = size * count / 4 if is_ring else share * size
    return sent.get(collective.kind, all_to_all) / rate


def _links(collective: Collective, coords: Coords, topology: Topology) -> int:
    """Returns the number of links, in one direction each, that a device of a group can use at once."""
    device = topology.device
    if not device.axes or collective.kind == "collective-permute":
        return 1
    # Looks at the group with the mesh's first device; the other groups are alike.
    first = tuple(slice(None) if name in collective.axes else 0 for name in MESH_AXES)
    group = coords[first].reshape(-1, coords.shape[-1])
    varying = [axis for axis in range(device.axes) if len(set(group[:, axis].tolist())) > 1]
    return sum(
        device.links_per_axis if _closes(topology, axis) and _is_whole(group, axis, topology) else 1
        for axis in varying
    )


def _is_whole(coords: np.ndarray, axis: int, topology: Topology) -> bool:
    return len(set(coords[:, axis].tolist())) == topology.shape[axis]


def _closes(topology: Topology, axis: int) -> bool:
    """Returns whether an axis of the network is a ring.

    Source: an axis of 16 chips of v5e and v6e is one, and for the other TPUs every multiple of 4.
    """
    size = topology.shape[axis]
    return size == 16 if topology.device.axes == 2 else size % 4 == 0
