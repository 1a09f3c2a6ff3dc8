"""Where arrays live: a mesh, a table from logical to mesh axes, shardings of states and batches.

Models name the axes of their parameters (``"embed"``, ``"mlp"``, ...), never those of the machine.
The table in ``MeshConfig.rules`` says over which mesh axis each is split:

    data     copies of the model, each with its rows of the batch
    fsdp     rows of the batch too, with parameters and optimizer state split (Zhao et al. 2023)
    context  tokens of each row, for long sequences: every device has the queries of its own tokens, and
             gathers the keys and values of all (Dubey et al. 2024, section 3.3.2)
    tensor   heads, feed-forward units and vocabulary split (Shoeybi et al. 2019)

A published vocabulary is often odd (GPT-2's has 50,257 tokens): one that its mesh axis does not divide is
whole on every device instead, which is said. Any other dimension that does not divide is an error.
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

# The last ones talk most, so they are given the devices that are nearest to one another.
MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")  # the rows of a batch are always split over both
CONTEXT_AXIS = "context"  # and tokens over this one
# The logical names of rows and tokens, which only activations have: they have no rules.
BATCH, SEQUENCE = "batch", "sequence"
VOCABULARY_AXIS = "vocab"
DEFAULT_RULES: Rules = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),  # d_model
    ("heads", "tensor"),
    ("head_size", None),
    ("mlp", "tensor"),  # d_feedforward
    ("layers", None),  # scanned
    ("length", None),  # learned positions
    ("buckets", None),  # of relative positions
    ("types", None),  # of tokens
    ("labels", None),
    ("patch", None),
    ("channels", None),
)
WHOLE_RULES: Rules = tuple((logical, None) for logical, _ in DEFAULT_RULES)  # a copy on every device


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The size of each mesh axis, the mesh axis of each logical one, and what computes attention there.

    Their product is the number of devices; one of them may be -1, which is what the others leave.
    The batch's rows are always split over ``data`` and ``fsdp`` together and their tokens over ``context``,
    so ``"batch"`` and ``"sequence"`` have no rules.

    Attributes:
      attention: what computes attention: "auto", "plain" (XLA without a kernel) or the name of a kernel in
        ``layers.attention_kernels.KERNELS``. "auto" is the best kernel of the devices that can compute an
        attention. All agree up to rounding, so a run may be resumed with another one.

    Raises:
      ValueError: an impossible size, an unknown mesh axis, or two rules for one logical axis.
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
                raise ValueError(f"mesh.{name}={size} must be at least 1, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"only one mesh axis may be -1 (what is left), not several: {_product(sizes)}")
        check_rules(self.rules)


def check_rules(rules: Rules) -> None:
    """Raises ValueError for an unknown mesh axis, a second rule for an axis, or one for rows or tokens."""
    seen: set[str] = set()
    for logical, axis in rules:
        if logical in (BATCH, SEQUENCE):
            raise ValueError(
                f"mesh.rules must not name {logical!r}: rows are split over {BATCH_AXES}, tokens over "
                f"{CONTEXT_AXIS!r}"
            )
        if axis is not None and axis not in MESH_AXES:
            raise ValueError(
                f"mesh.rules sends {logical!r} to an unknown mesh axis {axis!r}: it can be "
                + ", ".join(map(repr, MESH_AXES))
                + " or None (not split)"
            )
        if logical in seen:
            raise ValueError(f"mesh.rules has two rules for {logical!r}")
        seen.add(logical)


def make_mesh(config: MeshConfig, devices: Sequence[Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes ``MESH_AXES``, all Auto (left to the compiler).

    Args:
      config: sizes of the axes.
      devices: those to use; all devices of all processes by default.

    Raises:
      ValueError: the sizes do not multiply to the number of devices; it names sizes that do.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    count = len(devices)
    if -1 in sizes.values():
        if count % known:
            left = next(name for name, size in sizes.items() if size == -1)
            raise ValueError(
                f"mesh.{left}=-1 is what {_product(sizes, skip=left)} leaves of {count} device(s), "
                f"but {known} does not divide {count}: the other sizes must multiply to one of "
                + _divisors(count)
            )
        sizes = {name: count // known if size == -1 else size for name, size in sizes.items()}
    elif known != count:
        raise ValueError(
            f"{_product(sizes)} makes {known}, but there are {count} device(s): choose sizes that "
            f"multiply to {count} (each one of {_divisors(count)}), or mesh.data=-1 for what is "
            "left"
        )
    return _auto_mesh(tuple(sizes.values()), devices)


def num_batch_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def state_shardings(mesh: Mesh, abstract_state: PyTree, rules: Rules = DEFAULT_RULES) -> PyTree:
    """Says where each leaf of a state lives.

    Args:
      mesh: from ``make_mesh``.
      abstract_state: what ``jax.eval_shape`` gives for ``model.init``, or for a function that
        makes a whole training state from it: any pytree in which parameters, and whatever mirrors
        them in the optimizer's state, are boxes of ``flax.linen.with_logical_partitioning``.
      rules: the table from logical to mesh axes. Where two logical axes of a parameter have the
        same mesh axis, the earlier rule has it, as in Flax.

    Returns:
      The same pytree with a ``NamedSharding`` in place of each leaf and of each box: the shardings
      of ``unbox(state)``. A leaf without a box is whole on every device. So is one whose number of
      dimensions is not that of its box's axis names, such as Adafactor's row and column statistics,
      and so is a dimension of size 1, and a vocabulary that its mesh axis does not divide.

    Raises:
      ValueError: a mesh of other axes, a logical axis without a rule, or dimensions which their mesh axis
        does not divide (all of them are listed).
    """
    check_rules(rules)
    _check_mesh(mesh)
    indivisible: list[str] = []

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        names: tuple[str | None, ...] = ()
        if isinstance(leaf, meta.Partitioned):
            names, leaf = tuple(leaf.names), leaf.value
            if not jax.tree.leaves(leaf):  # what Optax leaves of a parameter that is another optimizer's
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
            "these dimensions cannot be split evenly; change the mesh's sizes or the model's, or "
            "map the logical axis to None in mesh.rules:\n  " + "\n  ".join(indivisible)
        )
    return shardings


def unbox(state: PyTree) -> PyTree:
    """The pytree with arrays in place of boxes (and, unlike Flax's, no sharding constraint)."""
    return jax.tree.map(lambda leaf: leaf.value if _is_box(leaf) else leaf, state, is_leaf=_is_box)


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Where each array of a batch lives, or would of its shape.

    Rows are split over ``BATCH_AXES``, tokens over ``context``. Tokens that ``context`` does not divide are
    whole, which only evaluation of overlong examples has.
    """

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        is_side = name.split("_")[0] in SIDES  # as ``types`` has it: inputs, inputs_types, ...
        is_split = is_side and shape[1] % mesh.shape[CONTEXT_AXIS] == 0
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *((CONTEXT_AXIS,) if is_split else ())))

    return {name: sharding(name, array.shape) for name, array in batch.items()}


def on_mesh(
    function: Function, mesh: Mesh, rules: Rules = DEFAULT_RULES, attention: str = "auto"
) -> Function:
    """The function, to be traced with the activations of models split over a mesh.

    Rows and tokens are split as those of a batch, and what else a model names (``"heads"``, ``"mlp"``,
    ``"vocab"``) as its parameters are. Attention is computed by what ``attention`` names.
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
    """Which part of each batch this process has to load.

    Returns:
      ``(index, count)``: part ``index`` of ``count`` equal ones. Processes which share the rows of a batch
      (``tensor`` or ``context`` reaching over processes) have the same index, and must load the same rows.

    Raises:
      ValueError: processes would share a part of their rows only.
    """
    owners = np.array([device.process_index for device in mesh.devices.flat])
    # A row of it is one part of the batch's rows.
    owners = owners.reshape(math.prod(mesh.shape[axis] for axis in BATCH_AXES), -1)
    parts = {
        process: frozenset(np.flatnonzero((owners == process).any(axis=1)).tolist())
        for process in set(owners.flat)
    }
    groups = sorted(set(parts.values()), key=min)
    if sum(map(len, groups)) != len(owners):
        raise ValueError(
            f"with {_product(mesh.shape)} some processes share a part of their rows only: let "
            "mesh.context x mesh.tensor divide the devices of a process, or be a multiple of them"
        )
    return groups.index(parts[jax.process_index()]), len(groups)


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices, as its part of global arrays.

    Args:
      mesh: from ``make_mesh``.
      batch: arrays of the same B rows, those of this process: the part ``process_slice`` names.

    Returns:
      Arrays of ``B * count`` rows (``count`` of ``process_slice``), split as ``batch_shardings`` says.

    Raises:
      ValueError: an array has another number of rows, or the rows do not divide over the devices.
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
            f"{size} rows do not divide over the {parts} part(s) of this process (mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} over {count} part(s) of the "
            f"processes): take {' or '.join(map(str, near))} rows"
        )
    shardings = batch_shardings(mesh, batch)
    return {name: _global_array(shardings[name], array, count) for name, array in batch.items()}


def _check_mesh(mesh: Mesh) -> None:
    """Raises ValueError for a mesh that ``make_mesh`` did not make, or would not."""
    automatic = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    if mesh.axis_names != MESH_AXES or mesh.axis_types != automatic:
        count = mesh.size
        types = ", ".join(kind.name for kind in mesh.axis_types)
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names} ({types}), and must have {MESH_AXES}, all Auto. Of the "
            "same devices: from transformer_jax.sharding.partitioning import MeshConfig, make_mesh; "
            f"make_mesh(MeshConfig(data=1, fsdp={count}), devices), or other sizes that multiply to {count}"
        )


@functools.cache
def _say_whole(size: int, axis: str, parts: int) -> None:
    """Says once what is not split."""
    say(f"the vocabulary of {size:,} is whole on every device: {axis}={parts} does not divide it")


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
    """The array of which every process has its rows, with all of their tokens."""
    shape = (len(own) * count, *own.shape[1:])
    return jax.make_array_from_process_local_data(sharding, own, shape)


# What differs, or has differed, between the versions of JAX that are supported belongs here.


def _auto_mesh(sizes: tuple[int, ...], devices: Sequence[Device]) -> Mesh:
    # jax.make_mesh makes Explicit axes since JAX 0.9, with which Linen's logical constraints fail.
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
