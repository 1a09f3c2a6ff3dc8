"""One checkpoint on disk: its names, reading it, comparing it, and what its errors mean.

``transformer_jax.checkpoints.checkpointer`` is what programs use; this module knows Orbax's files.
"""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.options import AsyncOptions, AtomicityMode, AtomicityOptions

from transformer_jax.types import PyTree

COMMIT_FILE = "commit_success.txt"  # Orbax's name for it
HALF_WRITTEN = f"half-written: it has no {COMMIT_FILE}"
DATA_FILE = "data.json"
_MAX_LISTED = 20  # leaves in one message
_MAX_LINE = 400  # characters of another library's message
_READ_AT_ONCE = 32
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_DISK_FULL_TEXTS = tuple(os.strerror(number).lower() for number in _DISK_FULL_ERRNOS)
# Errors of the machine or of its user: an older checkpoint would meet them too.
_NOT_DAMAGE_TEXTS = (
    "permission_denied",
    "permission denied",
    "resource_exhausted",
    "out of memory",
)

LeafNames = tuple[str, ...]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read."""


class CheckpointMismatchError(CheckpointError):
    """A whole checkpoint holds other arrays than those asked for."""


class DamagedError(Exception):
    """The files of one checkpoint cannot be read; ``Checkpointer`` turns to an older one."""


def find_steps(directory: epath.Path) -> dict[int, bool]:
    """The steps that have a folder, oldest first, and whether each was committed."""
    if not directory.is_dir():
        return {}
    found = [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]
    return dict(sorted((int(path.name), (path / COMMIT_FILE).exists()) for path in found))


def make_manager(directory: epath.Path, kept: Callable[[Sequence[int]], set[int]]) -> ocp.CheckpointManager:
    """An Orbax manager that writes in the background and commits last.

    Args:
      directory: an absolute path that exists.
      kept: which of these steps to keep; the others are deleted after each save.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler())
    registry.add("data", ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename=DATA_FILE))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Keep(kept),
        # Orbax's default, a rename, takes a half-copied folder for a checkpoint.
        atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        create=False,
        save_root_metadata=False,
        # Folders are made before save() returns: a failure to make one in the background would
        # leave Orbax's threads waiting for it, for minutes.
        async_options=AsyncOptions(create_directories_asynchronously=False),
    )
    logging.getLogger("absl").addFilter(_is_not_orbax_chatter)
    return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def save_arguments(
    state: PyTree, data_states: Sequence[Any], metrics: Mapping[str, float]
) -> ocp.args.Composite:
    """What ``make_manager``'s manager saves: every leaf of the state by name, and JSON."""
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(_nest(_named_leaves(state, _raw_array))),
        data=ocp.args.JsonSave({"processes": list(data_states), "metrics": dict(metrics)}),
    )


def read_data(path: epath.Path) -> dict[str, Any]:
    """Reads ``{"processes": each one's place in the data, "metrics": ...}`` of a checkpoint.

    Raises:
      DamagedError: the file is missing or is not that.
      CheckpointError: it may not be read.
    """
    try:
        data = json.loads((path / "data" / DATA_FILE).read_text())
        return {"processes": data["processes"], "metrics": data["metrics"]}
    except Exception as error:
        raise _reading_error(error, path) from error


def check_readable(path: epath.Path, prefix: LeafNames = ()) -> None:
    """Reads what is stored below ``prefix`` once, and drops it; processes share the work.

    Orbax reads all arrays at once, and where one is damaged it forgets the others under way, which
    then complain on stderr for as long as the process lives. Processes have to agree, too: one
    that turned to an older checkpoint alone would leave the others waiting.

    Args:
      path: the folder of one step.
      prefix: names that lead to the part of the state in question.

    Raises:
      DamagedError: the files are missing, cut or changed, as far as they can tell: bits changed
        inside an array go unnoticed.
      CheckpointError: they may not be read.
    """
    failure: Exception | None = None
    try:
        _check_files(path / "state", prefix)
        read_data(path)
    except (DamagedError, CheckpointError) as error:
        failure = error
    except Exception as error:
        failure = _reading_error(error, path)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.asarray(failure is not None))
        if failed.any() and failure is None:
            processes = ", ".join(map(str, np.flatnonzero(failed)))
            failure = DamagedError(f"process(es) {processes} could not read it")
    if failure is not None:
        raise failure


def _check_files(path: epath.Path, prefix: LeafNames) -> None:
    details = [path / "_METADATA"]  # what Orbax wrote beside the arrays
    details += [each for each in (path / "_sharding",) if each.exists()]
    if (path / "array_metadatas").exists():
        details += list((path / "array_metadatas").iterdir())
    for each in details:
        json.loads(each.read_text())
    folder = f"{path}/"
    base = folder if "://" in folder else {"driver": "file", "path": folder}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    part = ".".join(prefix).encode()  # Orbax joins the names of a leaf with dots
    starts = (part + b".", part + b"/") if part else b""
    keys = [key for key in store.list().result() if key.startswith(starts)]
    if not keys:
        raise DamagedError("its arrays are not there")
    keys = keys[jax.process_index() :: jax.process_count()]
    for first in range(0, len(keys), _READ_AT_ONCE):
        reads = [store.read(key) for key in keys[first : first + _READ_AT_ONCE]]
        # Of a missing file TensorStore says that the value is empty, which no stored one is.
        if not all(read.result().value for read in reads):
            raise DamagedError("a file with the values of an array is missing")


def read_state(path: epath.Path, template: PyTree, prefix: LeafNames = ()) -> PyTree:
    """Reads a state, or the part of it that lies below ``prefix``.

    Args:
      path: the folder of one step.
      template: the part, as ``jax.ShapeDtypeStruct``s.
      prefix: names that lead to the part.

    Raises:
      DamagedError: the files cannot be read.
      CheckpointError: they may not be read.
      CheckpointMismatchError: they hold arrays of other names, shapes or dtypes.
    """
    logging.getLogger("absl").addFilter(_is_not_orbax_chatter)
    wanted = {prefix + names: leaf for names, leaf in _named_leaves(template, _raw_abstract).items()}
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(path / "state").tree
        stored = _named_leaves(metadata, lambda leaf: (tuple(leaf.shape), np.dtype(leaf.dtype)))
    except Exception as error:
        raise _reading_error(error, path) from error
    # Orbax would cast a dtype silently, and stops at the first shape that differs.
    _check_same(stored, wanted, prefix, path)
    item = _nest(wanted)
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            nested = reader.restore(path / "state", args=arguments)
    except Exception as error:
        raise _reading_error(error, path) from error
    restored = _named_leaves(nested, lambda leaf: leaf)
    leaves, structure = jax.tree.flatten(template)
    arrays = [_like(restored[names], leaf) for names, leaf in zip(wanted, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def gather_json(value: Mapping[str, Any]) -> list[Any]:
    """Every process's value, in the order of their indices.

    Raises:
      ValueError: it does not come back from JSON as it was.
    """
    try:
        text = json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"data_state must hold JSON values only: {error}") from error
    if json.loads(text) != value:
        raise ValueError(
            "data_state must come back from JSON as it was: no keys but strings, no tuples, no NaN"
        )
    if jax.process_count() == 1:
        return [json.loads(text)]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(own.size, np.int32))
    padded = multihost_utils.process_allgather(np.pad(own, (0, int(sizes.max()) - own.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that no more can be written."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _DISK_FULL_ERRNOS:
            return True
        if any(text in str(each).lower() for text in _DISK_FULL_TEXTS):
            return True
    return False


def first_line(error: BaseException) -> str:
    """An error in one line: Orbax's run over dozens."""
    line = next(iter(str(error).splitlines()), "").partition("[tensorstore_spec=")[0].strip()
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 2 :]}"
    return f"{type(error).__name__}: {line}"


class _Keep:
    """Orbax's protocol of a preservation policy, from a function of steps."""

    def __init__(self, kept: Callable[[Sequence[int]], set[int]]) -> None:
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


def _named_leaves(tree: PyTree, convert: Callable[[Any], Any]) -> dict[LeafNames, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(map(_key_name, path)): convert(leaf) for path, leaf in flat}


def _key_name(key: Any) -> str:
    names = (getattr(key, kind, None) for kind in ("key", "name", "idx"))
    return str(next(name for name in names if name is not None))


def _nest(leaves: Mapping[LeafNames, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for names, leaf in leaves.items():
        branch = tree
        for name in names[:-1]:
            branch = branch.setdefault(name, {})
        branch[names[-1]] = leaf
    return tree


# Typed PRNG keys are stored as their raw data; the template says which implementation they have.


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw_array(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype"):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _raw_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    raw = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(np.shape(raw), raw.dtype, sharding=sharding)


def _like(array: jax.Array, leaf: Any) -> jax.Array:
    if not _is_key(leaf):
        return array
    implementations = []  # a ShapeDtypeStruct does not tell it, but its tracer does
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), leaf)
    return jax.random.wrap_key_data(array, impl=implementations[0])


def _check_same(
    stored: Mapping[LeafNames, tuple[tuple[int, ...], np.dtype]],
    wanted: Mapping[LeafNames, jax.ShapeDtypeStruct],
    prefix: LeafNames,
    path: epath.Path,
) -> None:
    lines = []
    for names in sorted({*stored, *wanted}):
        name = "/".join(names)
        if names[: len(prefix)] != prefix:
            continue
        if names not in wanted:
            lines.append(f"{name}: in the checkpoint only")
        elif names not in stored:
            lines.append(f"{name}: not in the checkpoint")
        elif stored[names] != (wanted[names].shape, np.dtype(wanted[names].dtype)):
            (shape, dtype), here = stored[names], wanted[names]
            there = f"{dtype}{list(shape)} in the checkpoint"
            lines.append(f"{name}: {there}, {here.dtype}{list(here.shape)} here")
    if lines:
        count = len(lines)
        if count > _MAX_LISTED:
            lines[_MAX_LISTED:] = [f"... and {count - _MAX_LISTED} more"]
        raise CheckpointMismatchError(
            f"the checkpoint {path} is not one of this model and optimizer (but another "
            f"experiment's?): {count} array(s) differ\n  " + "\n  ".join(lines)
        )


def _reading_error(error: Exception, path: epath.Path) -> Exception:
    text = " ".join(str(each).lower() for each in _chain(error))
    machine = isinstance(error, PermissionError | MemoryError)
    if machine or any(known in text for known in _NOT_DAMAGE_TEXTS):
        return CheckpointError(f"cannot read the checkpoint {path}: {first_line(error)}")
    return DamagedError(first_line(error))


def _chain(error: BaseException) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        following = following.__cause__ or following.__context__
    return seen


def _is_not_orbax_chatter(record: logging.LogRecord) -> bool:
    # Orbax warns in ordinary saves, and what goes wrong is raised. --verbosity=0 shows it all.
    told = absl_logging.get_verbosity() >= absl_logging.INFO
    return told or f"{os.sep}orbax{os.sep}" not in record.pathname


def why_not_written(path: epath.Path, whole: Sequence[int], error: Exception) -> str:
    """What to tell a user whose checkpoint ``path`` could not be written; ``whole`` are the steps left."""
    kept = "there is no other one"
    if whole:
        kept = f"the checkpoints of step(s) {', '.join(map(str, whole))} are whole"
    what = f"could not write the checkpoint {path} ({first_line(error)}); {kept}"
    if not is_disk_full(error):
        return what
    return (
        f"the disk is full (or a quota or a limit on file sizes is reached): {what}. Free some "
        "space, or lower checkpoint.keep_latest and checkpoint.keep_best, then run the same "
        "command again: it continues from the latest whole checkpoint"
    )
