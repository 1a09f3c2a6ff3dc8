"""Lists the collectives of a compiled program: how often they run, how many bytes, over which mesh axes."""

import dataclasses
import re

import numpy as np
from jax.sharding import Mesh

from transformer_jax.planning.hlo import Instruction, Program, read_arrays, read_program, tuple_elements

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# The results of these instructions are (operands, results, ...).
_RESULT_IS_SECOND = ("all-gather-start", "collective-permute-start")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}|source_target_pairs=\{\}")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=@?mesh\w*\[([^\]]*)\](?:, device_ids=\((?P<ids>\[[^)]*(?:\([\d,]*\))?)\))? \{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Describes a collective instruction of a compiled program.

    Attributes:
      kind: one of ``KINDS``. A TPU's fusion of an all-reduce and a slice counts as ``reduce-scatter``.
      axes: the mesh axes along which its groups of devices extend, in the mesh's order. Axes of size 1 never
        count; the tuple is empty if every group is a single device.
      dtype: type of its results; several types are joined by ``+``.
      bytes: size of its results on one device in one execution; a combined collective adds up its results.
      count: executions in one run of the program: the product of the trip counts of the loops around it.
      group_size: number of devices that take part together; 2 for a permutation.
      is_async: whether two instructions start and await it, with others in between.
      name: name of the instruction.
      op_name: its place in the traced function.
      is_count_exact: False if a loop around it has a trip count that depends on data; the loop then counts as
        one trip.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    count: int
    group_size: int
    is_async: bool
    name: str
    op_name: str
    is_count_exact: bool = True

    @property
    def total_bytes(self) -> int:
        """Returns the bytes of all executions."""
        return self.bytes * self.count


def read_collectives(compiled_text: str, mesh: Mesh) -> list[Collective]:
    """Returns the collectives of a program compiled for a mesh, in the order of its text.

    A collective that two instructions start and await counts once.

    Args:
      compiled_text: the text from ``Compiled.as_text()``.
      mesh: the mesh that the program was compiled for, with its devices in the same order.

    Raises:
      ValueError: the text is not that of a compiled program, or the program is for another number of devices.
    """
    return find_collectives(read_program(compiled_text), mesh)


def find_collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """Returns the collectives of a program that has already been read; see ``read_collectives``."""
    found = []
    inexact = _inside_unknown_loops(program)
    for computation, lines in program.computations.items():
        count = program.executions.get(computation, 0)
        if not count:
            continue
        for line in lines.values():
            collective = _read(program, line, mesh, count, computation not in inexact)
            if collective is not None:
                found.append(collective)
    return found


def _read(program: Program, line: Instruction, mesh: Mesh, count: int, is_exact: bool) -> Collective | None:
    kind = line.opcode.removesuffix("-start")
    shape, source = line.shape, line
    if line.opcode in _RESULT_IS_SECOND:
        shape = tuple_elements(line.shape)[1]
    elif line.opcode == "fusion":
        inner = scattered_all_reduce(program, line)
        if inner is None:
            return None
        kind, source = "reduce-scatter", inner
    elif kind == "all-reduce" and "from-cross-replica-sharding" in line.attributes:
        return None  # the fusion around it is counted instead
    if kind not in KINDS:
        return None
    arrays = read_arrays(shape)
    axes, group_size = _axes(source.attributes, mesh)
    return Collective(
        kind=kind,
        axes=axes,
        dtype="+".join(sorted({array.dtype for array in arrays})),
        bytes=sum(array.num_bytes for array in arrays),
        count=count,
        group_size=group_size,
        is_async=line.opcode.endswith("-start"),
        name=line.name,
        op_name=line.op_name or source.op_name,
        is_count_exact=is_exact,
    )


def scattered_all_reduce(program: Program, fusion: Instruction) -> Instruction | None:
    """Returns the all-reduce in a fusion that is a TPU's reduce-scatter, or None for any other fusion."""
    for name in fusion.called.get("calls", ()):
        for line in program.computations[name].values():
            if line.opcode == "all-reduce" and "from-cross-replica-sharding" in line.attributes:
                return line
    return None


def _inside_unknown_loops(program: Program) -> set[str]:
    """Returns the names of the computations whose number of executions is unknown."""
    inside: set[str] = set()
    unknown = set(program.unknown_loops)
    for name in program.executions:  # callers come first
        for line in program.computations[name].values():
            if name in inside or line.name in unknown:
                inside.update(other for called in line.called.values() for other in called)
    return inside


def _axes(attributes: str, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """Returns the mesh axes along which the groups extend, and the number of devices in a group."""
    groups = device_groups(attributes, mesh.size)
    if groups.size and groups.max() >= mesh.size:
        raise ValueError(
            f"the program was compiled for more than the {mesh.size} devices of the mesh: device "
            f"{groups.max()} takes part in a collective"
        )
    # Device i of a program is the device at index i of the mesh.
    places = np.stack(np.unravel_index(groups, tuple(mesh.shape.values())))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    names = tuple(name for name, differs in zip(mesh.axis_names, varies, strict=True) if differs)
    return names, groups.shape[1]


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Returns the groups of devices in the attributes of a collective, integers (groups, devices).

    XLA writes them as lists, as an iota that is reshaped and transposed, or, in newer versions, as axes of a
    mesh. A permutation has pairs of a source and a target.

    Raises:
      ValueError: they are written in another way.
    """
    if match := _PAIRS.search(attributes):
        numbers = [int(number) for number in re.findall(r"\d+", match[1] or "")]
        return np.array(numbers, int).reshape(-1, 2)
    if match := _NAMED.search(attributes):
        return _named_groups(match[1], match["ids"], match[3], num_devices)
    if match := _IOTA.search(attributes):
        shape, source = _numbers(match[1]), _numbers(match[2])
        order = _numbers(match[3]) if match[3] else range(len(source))
        return np.arange(np.prod(source)).reshape(source).transpose(order).reshape(shape)
    if match := _LISTS.search(attributes):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", match[1])]
        return np.array(groups or [range(num_devices)], int)
    raise ValueError(f"no groups of devices were found in {attributes[:200]!r}")


def _named_groups(axes: str, ids: str | None, chosen: str, num_devices: int) -> np.ndarray:
    """Returns the groups that are written as axes of a mesh.

    Args:
      axes: names and sizes of the mesh's axes.
      ids: the devices of the mesh, if they are not in order.
      chosen: the axes, or parts of them, along which the groups extend.
      num_devices: number of devices of the mesh.
    """
    sizes = {name: int(size) for name, size in re.findall(r"['\"]?([\w.\-]+)['\"]?=(\d+)", axes)}
    devices = np.arange(num_devices)
    if ids:
        listed = re.match(r"\[([\d,]*)\](?:<=\[[\d,]*\])?(?:T\(([\d,]*)\))?", ids)
        numbers = _numbers(listed[1]) if listed else ()
        if listed and np.prod(numbers) == num_devices:  # an iota, reshaped and transposed
            order = _numbers(listed[2]) if listed[2] else range(len(numbers))
            devices = devices.reshape(numbers).transpose(order).reshape(-1)
        else:
            devices = np.array(numbers, int)
    # Splits each axis into the parts that its mention names: before, the part itself, after.
    shape: list[int] = []
    taken: dict[tuple[str, int], int] = {}
    mentions = re.findall(r"['\"]?([\w.\-]+)['\"]?(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        parts = sorted(
            (int(before or 1), int(part or size)) for other, before, part in mentions if other == name
        )
        done = 1
        for before, part in parts:
            shape.append(before // done)
            taken[name, before] = len(shape)
            shape.append(part)
            done = before * part
        shape.append(size // done)
    places = [taken[name, int(before or 1)] for name, before, _ in mentions]
    rest = [place for place in range(len(shape)) if place not in places]
    count = int(np.prod([shape[place] for place in places]))
    return devices.reshape(shape).transpose([*rest, *places]).reshape(-1, count)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
