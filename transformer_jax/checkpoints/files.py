"""Reads, writes and compares the files of one checkpoint, and interprets the errors of Orbax.

This module depends on the file format of Orbax; other code uses ``transformer_jax.checkpoints.checkpointer``.
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

COMMIT_FILE = "commit_success.txt"  # the name that Orbax uses
HALF_WRITTEN = f"it is incomplete, because it has no {COMMIT_FILE}"
DATA_FILE = "data.json"
_MAX_LISTED = 20  # number of leaves that a message lists
_MAX_LINE = 400  # number of characters quoted from the message of another library
_READ_AT_ONCE = 32
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_DISK_FULL_TEXTS = tuple(os.strerror(number).lower() for number in _DISK_FULL_ERRNOS)
# These errors are not caused by damaged files; they would also occur with an older checkpoint.
_NOT_DAMAGE_TEXTS = (
    "permission_denied",
    "permission denied",
    "resource_exhausted",
    "out of memory",
)

LeafNames = tuple[str, ...]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or no checkpoint can be read."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint is complete, but its arrays differ from the requested ones."""


class DamagedError(Exception):
    """The files of one checkpoint cannot be read; ``Checkpointer`` then tries an older one."""


def find_steps(directory: epath.Path) -> dict[int, bool]:
    """Returns the steps that have a folder, oldest first, and whether each was committed."""
    if not directory.is_dir():
        return {}
    found = [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]
    return dict(sorted((int(path.name), (path / COMMIT_FILE).exists()) for path in found))


def make_manager(directory: epath.Path, kept: Callable[[Sequence[int]], set[int]]) -> ocp.CheckpointManager:
    """Returns an Orbax manager that writes in the background and writes the commit file last.

    Args:
      directory: an existing folder; the path is absolute.
      kept: returns which of the given steps to keep; the others are deleted after each save.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler())
    registry.add("data", ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename=DATA_FILE))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Keep(kept),
        # With Orbax's default, a rename, a folder that is copied in part would count as a checkpoint.
        atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        create=False,
        save_root_metadata=False,
        # Folders are created before save() returns. If creating one failed in the background, the
        # threads of Orbax would wait for it for minutes.
        async_options=AsyncOptions(create_directories_asynchronously=False),
    )
    logging.getLogger("absl").addFilter(_is_not_orbax_chatter)
    return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def save_arguments(
    state: PyTree, data_states: Sequence[Any], metrics: Mapping[str, float]
) -> ocp.args.Composite:
    """Returns the arguments for saving with ``make_manager``: the leaves of the state by name, and JSON."""
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(_nest(_named_leaves(state, _raw_array))),
        data=ocp.args.JsonSave({"processes": list(data_states), "metrics": dict(metrics)}),
    )


def read_data(path: epath.Path) -> dict[str, Any]:
    """Returns ``{"processes": [position in the data of each process], "metrics": {...}}`` of a checkpoint.

    Raises:
      DamagedError: the file is missing or has another content.
      CheckpointError: reading is not permitted, or memory is exhausted.
    """
    try:
        data = json.loads((path / "data" / DATA_FILE).read_text())
        return {"processes": data["processes"], "metrics": data["metrics"]}
    except Exception as error:
        raise _reading_error(error, path) from error


def check_readable(path: epath.Path, prefix: LeafNames = ()) -> None:
    """Checks that everything stored below ``prefix`` can be read; the processes share the work.

    The check is needed for two reasons. Orbax reads all arrays concurrently; if one is damaged, it abandons
    the other reads, whose errors then appear on standard error. And all processes must decide together: if
    only one used an older checkpoint, the others would wait for it forever.

    Args:
      path: the folder of one step.
      prefix: the path of the part of the state to check.

    Raises:
      DamagedError: files are missing, truncated or changed. Changed bits within an array are not detected.
      CheckpointError: reading is not permitted, or memory is exhausted.
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
    details = [path / "_METADATA"]  # files that Orbax writes in addition to the arrays
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
        raise DamagedError("its arrays are missing")
    keys = keys[jax.process_index() :: jax.process_count()]
    for first in range(0, len(keys), _READ_AT_ONCE):
        reads = [store.read(key) for key in keys[first : first + _READ_AT_ONCE]]
        # TensorStore returns an empty value if the file is missing; stored values are never empty.
        if not all(read.result().value for read in reads):
            raise DamagedError("a file with the values of an array is missing")


def read_state(path: epath.Path, template: PyTree, prefix: LeafNames = ()) -> PyTree:
    """Reads a state, or the part of it below ``prefix``.

    Args:
      path: the folder of one step.
      template: the part to read, as ``jax.ShapeDtypeStruct``s.
      prefix: the path of the part.

    Raises:
      DamagedError: the files are damaged.
      CheckpointError: reading is not permitted, or memory is exhausted.
      CheckpointMismatchError: the stored arrays have other names, shapes or dtypes than the template.
    """
    logging.getLogger("absl").addFilter(_is_not_orbax_chatter)
    wanted = {prefix + names: leaf for names, leaf in _named_leaves(template, _raw_abstract).items()}
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(path / "state").tree
        stored = _named_leaves(metadata, lambda leaf: (tuple(leaf.shape), np.dtype(leaf.dtype)))
    except Exception as error:
        raise _reading_error(error, path) from error
    # Orbax would cast dtypes silently, and its error would report only the first shape that differs.
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
    """Returns the values of all processes, in the order of the process indices.

    Raises:
      ValueError: the value changes when it is converted to JSON and back.
    """
    try:
        text = json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"data_state must contain only JSON values: {error}") from error
    if json.loads(text) != value:
        raise ValueError(
            f"data_state={value!r} changes when it is converted to JSON and back; use string keys, lists "
            "instead of tuples, and no NaN"
        )
    if jax.process_count() == 1:
        return [json.loads(text)]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(own.size, np.int32))
    padded = multihost_utils.process_allgather(np.pad(own, (0, int(sizes.max()) - own.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error, or one of its causes, means that the disk or a quota is full."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _DISK_FULL_ERRNOS:
            return True
        if any(text in str(each).lower() for text in _DISK_FULL_TEXTS):
            return True
    return False


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error; those of Orbax can have dozens of lines."""
    line = next(iter(str(error).splitlines()), "").partition("[tensorstore_spec=")[0].strip()
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 2 :]}"
    return f"{type(error).__name__}: {line}"


class _Keep:
    """Implements Orbax's protocol of a preservation policy with a function of the steps."""

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


# Typed PRNG keys are stored as their raw data; their implementation is taken from the template.


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
    implementations = []  # a ShapeDtypeStruct does not have it, but its tracer does
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
            lines.append(f"{name}: only in the checkpoint")
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
            f"the checkpoint {path} does not match this model and optimizer; it may belong to another "
            f"experiment. {count} array(s) differ:\n  " + "\n  ".join(lines)
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
    # Orbax logs warnings in normal saves, and raises real errors. --verbosity=0 shows all messages.
    told = absl_logging.get_verbosity() >= absl_logging.INFO
    return told or f"{os.sep}orbax{os.sep}" not in record.pathname


def why_not_written(path: epath.Path, whole: Sequence[int], error: Exception) -> str:
    """Returns the error message for a checkpoint that could not be written.

    Args:
      path: the folder of the checkpoint.
      whole: the steps with complete checkpoints.
      error: the error of Orbax.
    """
    kept = "there is no earlier checkpoint"
    if whole:
        kept = f"the checkpoints of step(s) {', '.join(map(str, whole))} are complete"
    what = f"could not write the checkpoint {path} ({first_line(error)}); {kept}"
    if not is_disk_full(error):
        return what
    return (
        f"the disk is full (or a quota or a limit on file sizes is reached): {what}. Free some space, or "
        "lower checkpoint.keep_latest and checkpoint.keep_best, and then run the same command again; it "
        "continues from the latest complete checkpoint"
    )
