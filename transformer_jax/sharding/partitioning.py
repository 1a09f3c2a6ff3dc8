"""Meshes, the table from logical to mesh axes, and the shardings of states and batches.

Models give the axes of their parameters logical names (``"embed"``, ``"mlp"``, ...) and know nothing of the
devices. The table ``MeshConfig.rules`` maps each logical axis to the mesh axis that splits it. Mesh axes are:

    data     copies of the model; each copy gets a part of the rows of the batch
    fsdp     splits the rows of the batch too, and also parameters and optimizer state (Zhao et al. 2023)
    context  splits the tokens of each row, for long sequences: every device has the queries of its own
             tokens and gathers the keys and values of all tokens (Dubey et al. 2024, section 3.3.2)
    tensor   splits heads, feed-forward units and the vocabulary (Shoeybi et al. 2019)

Published vocabularies often have odd sizes (GPT-2's has 50,257 tokens). If the mesh axis does not divide the
vocabulary, every device holds all of it, and a note says so. For any other dimension this is an error.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.config import check_types, nearest
from transformer_jax.reporting.progress import say
from transformer_jax.sharding.placement import Placement, placed
from transformer_jax.types import SIDES, PyTree

Rules: TypeAlias = tuple[tuple[str, str | None], ...]
Function = TypeVar("Function", bound=Callable[..., Any])
Device: TypeAlias = Any  # jax.Device is not a type to type checkers

# The last axes communicate most, so they get the devices that are nearest to one another.
MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")  # the rows of a batch are always split over both axes
CONTEXT_AXIS = "context"  # and the tokens over this axis
# Logical axes of rows and tokens. Only activations have them, so there are no rules for them.
BATCH, SEQUENCE = "batch", "sequence"
VOCABULARY_AXIS = "vocab"
DEFAULT_RULES: Rules = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),  # d_model
    ("heads", "tensor"),
    ("head_size", None),
    ("mlp", "tensor"),  # d_feedforward
    ("layers", None),  # of a scanned stack
    ("length", None),  # of learned positions
    ("buckets", None),  # of relative positions
    ("types", None),  # token types
    ("labels", None),
    ("patch", None),
    ("channels", None),
)
WHOLE_RULES: Rules = tuple((logical, None) for logical, _ in DEFAULT_RULES)  # every device holds a copy


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Describes the mesh: the size of each axis, the rules, and the implementation of attention.

    The product of the sizes is the number of devices. One size may be -1; it is computed from the others.
    Rows of the batch are always split over ``data`` and ``fsdp``, and their tokens over ``context``, so there
    are no rules for ``"batch"`` and ``"sequence"``.

    Attributes:
      data, fsdp, context, tensor: sizes of the mesh axes.
      rules: pairs of a logical axis and the mesh axis that splits it, or None.
      attention: "auto", "plain" (XLA without a kernel) or the name of a kernel in
        ``layers.attention_kernels.KERNELS``. "auto" chooses for each attention the best kernel of the devices
        that can compute it. All agree up to rounding, so a run may resume with another value.

    Raises:
      ValueError: a size is not allowed, a mesh axis is unknown, or a logical axis has two rules.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, str | None], ...] = DEFAULT_RULES
    attention: str = "auto"

    def __post_init__(self) -> None:
        check_types(self, "mesh")
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name}={size} must be at least 1, or -1 to use the remaining devices")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(
                f"only one mesh axis may be -1 (the remaining devices), not several: {_product(sizes)}"
            )
        check_rules(self.rules)


def check_rules(rules: Rules) -> None:
    """Raises ValueError for an unknown mesh axis, a second rule for an axis, or a rule for rows or tokens."""
    seen: set[str] = set()
    for logical, axis in rules:
        if logical in (BATCH, SEQUENCE):
            raise ValueError(
                f"mesh.rules must not name {logical!r}: rows are split over {BATCH_AXES}, tokens over "
                f"{CONTEXT_AXIS!r}"
            )
        if axis is not None and axis not in MESH_AXES:
            raise ValueError(
                f"mesh.rules maps {logical!r} to the unknown mesh axis {axis!r}; use "
                + ", ".join(map(repr, MESH_AXES))
                + " or None (not split)"
            )
        if logical in seen:
            raise ValueError(f"mesh.rules has two rules for {logical!r}; remove one")
        seen.add(logical)


def make_mesh(config: MeshConfig, devices: Sequence[Device] | None = None) -> Mesh:
    """Returns a mesh of devices with the axes ``MESH_AXES``, all of type Auto.

    Args:
      config: the sizes of the axes.
      devices: the devices to use; by default all devices of all processes.

    Raises:
      ValueError: the product of the sizes is not the number of devices; the message lists sizes that work.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    count = len(devices)
    if -1 in sizes.values():
        if count % known:
            left = next(name for name, size in sizes.items() if size == -1)
            raise ValueError(
                f"{_product(sizes, skip=left)} makes {known}, which does not divide the {count} "
                f"device(s), so mesh.{left}=-1 has no value; the product of the other sizes must be one of "
                + _divisors(count)
            )
        sizes = {name: count // known if size == -1 else size for name, size in sizes.items()}
    elif known != count:
        raise ValueError(
            f"{_product(sizes)} makes {known}, but there are {count} device(s); choose sizes whose product "
            f"is {count} (each one of {_divisors(count)}), or mesh.data=-1 for the remaining devices"
        )
    return _auto_mesh(tuple(sizes.values()), devices)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def state_shardings(mesh: Mesh, abstract_state: PyTree, rules: Rules = DEFAULT_RULES) -> PyTree:
    """Returns the sharding of each leaf of a state.

    Args:
      mesh: from ``make_mesh``.
      abstract_state: the result of ``jax.eval_shape`` for ``model.init``, or for a function that returns a
        whole training state: any pytree whose parameters, and the optimizer's copies of them, are boxes of
        ``flax.linen.with_logical_partitioning``.
      rules: the table from logical to mesh axes. If two logical axes of a parameter have the same mesh
        axis, the earlier rule wins, as in Flax.

    Returns:
      The pytree with a ``NamedSharding`` in place of each leaf and each box: the shardings of
      ``unbox(state)``. These are not split: a leaf without a box; a leaf with another number of dimensions
      than its box has names, such as Adafactor's row and column statistics; a dimension of size 1; and a
      vocabulary that its mesh axis does not divide.

    Raises:
      ValueError: the mesh has other axes, a logical axis has no rule, or a mesh axis does not divide a
        dimension; the message lists all such dimensions.
    """
    check_rules(rules)
    _check_mesh(mesh)
    indivisible: list[str] = []

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        names: tuple[str | None, ...] = ()
        if isinstance(leaf, meta.Partitioned):
            names, leaf = tuple(leaf.names), leaf.value
            if not jax.tree.leaves(leaf):  # Optax's placeholder for a parameter of another optimizer
                return leaf
        where = jax.tree_util.keystr(path)
        _check_names(names, rules, where)
        shape = np.shape(leaf)
        if len(names) != len(shape):
            return NamedSharding(mesh, PartitionSpec())
        axes = _mesh_axes(names, shape, rules)
        for place, (name, size, axis) in enumerate(zip(names, shape, axes, strict=True)):
            if axis is None or size % mesh.shape[axis] == 0:
                continue
            if name == VOCABULARY_AXIS:
                _say_whole(size, axis, mesh.shape[axis])
                axes[place] = None
            else:
                indivisible.append(f"{where}: {name}={size} over {axis}={mesh.shape[axis]}")
        return NamedSharding(mesh, PartitionSpec(*axes))

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract_state, is_leaf=_is_box)
    if indivisible:
        raise ValueError(
            "these dimensions cannot be split evenly; change the sizes of the mesh or of the model, or "
            "map the logical axis to None in mesh.rules:\n  " + "\n  ".join(indivisible)
        )
    return shardings


def unbox(state: PyTree) -> PyTree:
    """Replaces boxes by their arrays; unlike Flax's ``unbox``, adds no sharding constraint."""
    return jax.tree.map(lambda leaf: leaf.value if _is_box(leaf) else leaf, state, is_leaf=_is_box)


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Returns the sharding of each array of a batch; only the shapes are used.

    Rows are split over ``BATCH_AXES`` and tokens over ``context``. A length that ``context`` does not divide
    is not split; it occurs only when examples that are longer than ``max_length`` are evaluated.
    """

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        is_side = name.split("_")[0] in SIDES  # see ``types``: inputs, inputs_types, ...
        is_split = is_side and shape[1] % mesh.shape[CONTEXT_AXIS] == 0
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *((CONTEXT_AXIS,) if is_split else ())))

    return {name: sharding(name, array.shape) for name, array in batch.items()}


def on_mesh(
    function: Function, mesh: Mesh, rules: Rules = DEFAULT_RULES, attention: str = "auto"
) -> Function:
    """Returns ``function`` such that models inside it split their activations over the mesh when traced.

    Rows and tokens are split like those of a batch. Other axes that a model names (``"heads"``, ``"mlp"``,
    ``"vocab"``) are split like those of its parameters. ``attention`` is that of ``MeshConfig``.
    """
    check_rules(rules)
    axes = {logical: (axis,) for logical, axis in rules if axis is not None}
    placement = Placement(mesh, axes | {BATCH: BATCH_AXES, SEQUENCE: (CONTEXT_AXIS,)}, attention)

    @functools.wraps(function)
    def on_its_mesh(*arguments: Any, **options: Any) -> Any:
        with placed(placement):
            return function(*arguments, **options)

    return cast(Function, on_its_mesh)


def process_slice(mesh: Mesh) -> tuple[int, int]:
    """Returns which part of each batch this process loads.

    Returns:
      ``(index, count)``: this process loads part ``index`` of ``count`` equal parts. Processes that hold the
      same rows, because ``tensor`` or ``context`` spans several processes, have the same index.

    Raises:
      ValueError: two processes would share only some of their rows.
    """
    owners = np.array([device.process_index for device in mesh.devices.flat])
    # Each row of ``owners`` belongs to one part of the rows of the batch.
    owners = owners.reshape(math.prod(mesh.shape[axis] for axis in BATCH_AXES), -1)
    parts = {
        process: frozenset(np.flatnonzero((owners == process).any(axis=1)).tolist())
        for process in set(owners.flat)
    }
    groups = sorted(set(parts.values()), key=min)
    if sum(map(len, groups)) != len(owners):
        raise ValueError(
            f"with {_product(mesh.shape)} some processes share only a part of their rows; mesh.context x "
            "mesh.tensor must divide the number of devices of a process, or be a multiple of it"
        )
    return groups.index(parts[jax.process_index()]), len(groups)


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts the rows of this process on its devices, as its part of global arrays.

    Args:
      mesh: from ``make_mesh``.
      batch: arrays with the B rows of this process, the part that ``process_slice`` returns.

    Returns:
      Arrays of ``B * count`` rows, with ``count`` from ``process_slice``, sharded as in ``batch_shardings``.

    Raises:
      ValueError: the arrays differ in their number of rows, or the devices cannot share the rows evenly.
    """
    rows = {name: len(array) for name, array in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"the arrays of a batch must have the same number of rows, not {rows}")
    _, count = process_slice(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] // count
    size = next(iter(rows.values()))
    if size % parts:
        near = [n for n in (size // parts * parts, -(-size // parts) * parts) if n]
        raise ValueError(
            f"{size} rows cannot be split evenly into the {parts} part(s) of this process (mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} over {count} part(s) of the "
            f"processes); use {' or '.join(map(str, near))} rows"
        )
    shardings = batch_shardings(mesh, batch)
    return {name: _global_array(shardings[name], array, count) for name, array in batch.items()}


def _check_mesh(mesh: Mesh) -> None:
    """Raises ValueError unless the mesh has the axes, and their types, of ``make_mesh``."""
    automatic = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    if mesh.axis_names != MESH_AXES or mesh.axis_types != automatic:
        count = mesh.size
        types = ", ".join(kind.name for kind in mesh.axis_types)
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names} ({types}); it must have {MESH_AXES}, all Auto. To make "
            "one of the same devices: from transformer_jax.sharding import MeshConfig, make_mesh; "
            f"make_mesh(MeshConfig(data=1, fsdp={count}), devices), or other sizes whose product is {count}"
        )


@functools.cache
def _say_whole(size: int, axis: str, parts: int) -> None:
    """Prints once that a vocabulary is not split."""
    say(f"every device holds the whole vocabulary of {size:,}, because {axis}={parts} does not divide it")


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, meta.Partitioned)


def _check_names(names: Iterable[str | None], rules: Rules, where: str) -> None:
    known = [logical for logical, _ in rules]
    for name in names:
        if name is not None and name not in known:
            raise ValueError(
                f"{where} has the logical axis {name!r}, for which mesh.rules has no rule: "
                + nearest(name, known)
            )


def _mesh_axes(names: Sequence[str | None], shape: Sequence[int], rules: Rules) -> list[str | None]:
    axes: list[str | None] = [None] * len(names)
    for logical, axis in rules:
        for place, name in enumerate(names):
            if name == logical and axis not in axes and shape[place] > 1:
                axes[place] = axis
    return axes


def _divisors(count: int) -> str:
    return ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)


def _product(sizes: Mapping[str, int], skip: str = "") -> str:
    return " x ".join(f"mesh.{name}={size}" for name, size in sizes.items() if name != skip)


def _global_array(sharding: NamedSharding, own: np.ndarray, count: int) -> jax.Array:
    """Builds a global array from the rows of every process; each process has all tokens of its rows."""
    shape = (len(own) * count, *own.shape[1:])
    return jax.make_array_from_process_local_data(sharding, own, shape)


# Code that depends on the version of JAX belongs below.


def _auto_mesh(sizes: tuple[int, ...], devices: Sequence[Device]) -> Mesh:
    # Since JAX 0.9 jax.make_mesh makes Explicit axes by default; Linen's logical constraints fail with them.
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
