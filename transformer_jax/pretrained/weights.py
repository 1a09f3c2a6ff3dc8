"""Reads and writes parameters as safetensors files, tensor by tensor.

A ``families.Checkpoint`` says which tensor holds which parameter, and in which layout.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from transformer_jax.families import Checkpoint, Tensor
from transformer_jax.files import whole_file, write_whole
from transformer_jax.models import TransformerConfig
from transformer_jax.pretrained.tensor_files import INDEX_FILE, SINGLE_FILE, TensorFiles, WeightsError
from transformer_jax.types import PyTree

_NEVER_ZERO = ("/kernel", "/embedding", "/scale")  # training leaves none of these entirely zero
_NEW = ".new"  # suffix of a file until it replaces an older one
SHARD_BYTES = 5_000_000_000  # size limit of a written file; it is the default of transformers, too


class _Place(NamedTuple):
    """A parameter, or one layer of a parameter whose layers are stacked, and the tensor that holds it."""

    path: str
    layer: int | None  # index into the stacked layers; None if they are not stacked
    tensor: Tensor
    name: str  # of the tensor
    shape: tuple[int, ...]  # of the parameter, or of the layer

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.tensor.layout.shape(self.shape)

    @property
    def is_never_zero(self) -> bool:
        """Whether an intact checkpoint has other numbers than zeros in it."""
        return self.path.endswith(_NEVER_ZERO) and not self.tensor.may_be_zero


def _places(
    checkpoint: Checkpoint, config: TransformerConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[_Place]:
    """Returns the places of all parameters, given their shapes by path.

    Raises:
      WeightsError: a parameter has no tensor.
    """
    counts = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    places = []
    for tensor in checkpoint.tensors:
        if not tensor.applies(config):
            continue
        stack = tensor.ours.split("/")[0]
        is_layer = "{i}" in tensor.ours
        for i in range(counts[stack] if is_layer else 1):
            is_scanned = is_layer and config.scan_layers
            path = tensor.ours.replace("layer_{i}", "layers" if is_scanned else f"layer_{i}")
            if path in shapes:
                shape = shapes[path][1:] if is_scanned else shapes[path]
                name = tensor.theirs.replace("{i}", str(i))
                places.append(_Place(path, i if is_scanned else None, tensor, name, shape))
    unnamed = sorted(set(shapes) - {place.path for place in places})
    if unnamed:
        raise WeightsError(f"checkpoints of {checkpoint.model_type} have no tensor for {', '.join(unnamed)}")
    return places


def read_weights(
    files: TensorFiles,
    checkpoint: Checkpoint,
    config: TransformerConfig,
    abstract_params: PyTree,
    *,
    new_head: bool = False,
) -> PyTree:
    """Returns the parameters of a model; each is moved to its devices as soon as it has been read.

    The host holds one parameter at a time. The largest are read first, when most memory is free.

    Args:
      files: tensors of the checkpoint.
      checkpoint: names and layouts of the family's tensors.
      config: of the model.
      abstract_params: a ``ShapeDtypeStruct`` for each parameter; if it has a sharding, that is used.
      new_head: if True, the head may differ from the checkpoint's: parameters of the head that the checkpoint
        lacks, or has in another shape, are None in the result, and tensors of other heads are ignored.

    Raises:
      WeightsError: tensors are missing, have another shape, are unknown or contradict each other; the error
        lists them all. Or a tensor has numbers that are not finite, or a kernel, an embedding or the scale of
        a norm is entirely zero.
    """
    leaves = {_joined(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params)}
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    names = _stored_names(files, checkpoint)
    places = _places(checkpoint, config, shapes)
    if new_head:
        absent = {
            place.path
            for place in places
            if place.path.startswith("head/")
            and (place.name not in names or files.shapes[names[place.name]] != place.tensor_shape)
        }
        places = [place for place in places if place.path not in absent]
    ignored = (*checkpoint.ignored, *checkpoint.left_over.get(config.head, ()))
    _check(files, checkpoint, places, names, ignored=ignored, new_head=new_head)
    of_path: dict[str, list[_Place]] = {}
    for place in places:
        of_path.setdefault(place.path, []).append(place)
    found = {}
    zero: set[str] = set()
    for path in sorted(of_path, key=lambda path: -math.prod(shapes[path])):
        array = _read_parameter(files, of_path[path], names, shapes[path], zero)
        sharding = getattr(leaves[path], "sharding", None)
        if sharding is None:
            found[path] = jax.device_put(array)
        else:
            found[path] = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    if zero:
        raise WeightsError(
            f"these tensors of {files.folder} have only zeros, so the file was probably not downloaded "
            f"completely: copy or download it again. {', '.join(sorted(zero))}"
        )
    return jax.tree_util.tree_map_with_path(lambda path, _: found.get(_joined(path)), abstract_params)


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(str(key.key) for key in path)


def _stored_names(files: TensorFiles, checkpoint: Checkpoint) -> dict[str, str]:
    """Returns for each tensor's name, with the family's prefix, its name in the files."""
    known = [re.escape(tensor.theirs).replace(re.escape("{i}"), r"\d+") for tensor in checkpoint.tensors]
    known += [re.escape(alias) for alias in checkpoint.aliases] + list(checkpoint.ignored)
    pattern = re.compile("|".join(known))
    names = {}
    for stored in files.shapes:
        prefixed = checkpoint.prefix + stored
        is_bare = not pattern.fullmatch(stored) and pattern.fullmatch(prefixed)
        names[prefixed if is_bare and prefixed not in files.shapes else stored] = stored
    return names


def _check(
    files: TensorFiles,
    checkpoint: Checkpoint,
    places: list[_Place],
    names: Mapping[str, str],
    *,
    ignored: tuple[str, ...],
    new_head: bool,
) -> None:
    used = {place.name for place in places}
    missing = {
        f"{place.name} {place.tensor_shape}"
        for place in places
        if place.name not in names and not place.tensor.is_optional
    }
    misshaped = {
        f"{place.name}: {files.shapes[names[place.name]]} instead of {place.tensor_shape}"
        for place in places
        if place.name in names and files.shapes[names[place.name]] != place.tensor_shape
    }
    heads = {tensor.theirs for tensor in checkpoint.tensors if tensor.ours.startswith("head/")}
    extra, differing = set(), set()
    for name, stored in names.items():
        if name in used or any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        target = checkpoint.aliases.get(name)
        if target is not None and target in names:
            if not np.array_equal(files.read(stored), files.read(names[target])):
                differing.add(f"{name}, which is not what {target} is")
        elif target is None and not (new_head and name in heads):
            extra.add(f"{name} {files.shapes[stored]}")
    problems = {
        "missing": missing,
        "of another shape": misshaped,
        "not known": extra,
        "contradictory": differing,
    }
    if any(problems.values()):
        raise WeightsError(
            f"the tensors of {files.folder} are not those of the model that its config.json describes:\n"
            + _listed(problems)
        )


def _read_parameter(
    files: TensorFiles,
    places: list[_Place],
    names: Mapping[str, str],
    shape: tuple[int, ...],
    zero: set[str],
) -> np.ndarray:
    """Returns one parameter; adds to ``zero`` the names of its tensors that are zero but should not be."""

    def read(place: _Place) -> np.ndarray:
        if place.name not in names:
            return np.zeros(place.shape, np.float32)  # it is optional, or _check would have raised
        found = place.tensor.layout.read(files.read(names[place.name]), place.shape)
        if place.is_never_zero and not found.any():
            zero.add(names[place.name])
        return found

    if places[0].layer is None:
        return read(places[0])
    array = np.empty(shape, np.float32)
    for place in places:
        array[place.layer] = read(place)
    return array


def check_params(params: PyTree, abstract_params: PyTree) -> None:
    """Raises WeightsError, which lists all differences, if ``params`` are not those of a model.

    Args:
      params: the parameters.
      abstract_params: a value with a shape for each parameter of the model.
    """
    found, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (params, abstract_params)
    )
    problems = {
        "missing": [f"{path} {wanted[path]}" for path in wanted.keys() - found.keys()],
        "of another shape": [
            f"{path}: {found[path]} instead of {wanted[path]}"
            for path in wanted.keys() & found.keys()
            if found[path] != wanted[path]
        ],
        "not known": [f"{path} {found[path]}" for path in found.keys() - wanted.keys()],
    }
    if any(problems.values()):
        raise WeightsError(f"the parameters are not those of the model's config:\n{_listed(problems)}")


def _listed(problems: Mapping[str, Collection[str]]) -> str:
    return "\n".join(
        f"  {problem}: {', '.join(sorted(found))}" for problem, found in problems.items() if found
    )


@contextlib.contextmanager
def new_weights(
    folder: str | os.PathLike[str],
    checkpoint: Checkpoint,
    config: TransformerConfig,
    params: PyTree,
    *,
    with_prefix: bool,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[None]:
    """Writes parameters as float32 tensors, above ``shard_bytes`` in several files with an index.

    The new files replace older ones at the end of the ``with`` statement. After an earlier error, such
    as a full disk, the older ones are unchanged.

    Args:
      folder: an existing folder.
      checkpoint: names and layouts of the family's tensors.
      config: of the model.
      params: its parameters; one file's parameters at a time are copied to the host.
      with_prefix: whether names have the family's prefix, which models without a head lack.
      shard_bytes: size limit of a file, unless a single tensor is larger.

    Raises:
      OSError: a file cannot be written.
    """
    leaves = {_joined(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    of_name: dict[str, list[_Place]] = {}
    for place in _places(checkpoint, config, {path: leaf.shape for path, leaf in leaves.items()}):
        name = place.name if with_prefix else place.name.removeprefix(checkpoint.prefix)
        of_name.setdefault(name, []).append(place)
    shards: list[list[str]] = [[]]
    size = 0
    for name, places in of_name.items():
        own = 4 * math.prod(places[0].tensor_shape)
        if size + own > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    files = {
        SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, 1)
    }
    target = pathlib.Path(folder)
    written: list[str] = []
    try:
        for file, names in files.items():
            tensors = {name: _gather(of_name[name], leaves) for name in names}
            with whole_file(target / f"{file}{_NEW}") as partial:
                _save(tensors, partial)
            written.append(file)
        if len(shards) > 1:
            total = sum(4 * leaf.size for leaf in leaves.values())
            weight_map = {name: file for file, names in files.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_whole(target / f"{INDEX_FILE}{_NEW}", json.dumps(index, indent=2) + "\n")
            written.append(INDEX_FILE)
        yield
    except BaseException:
        for file in written:
            (target / f"{file}{_NEW}").unlink(missing_ok=True)
        raise
    for file in written:
        (target / f"{file}{_NEW}").replace(target / file)
    for old in [target / SINGLE_FILE, *target.glob("model-?????-of-?????.safetensors"), target / INDEX_FILE]:
        if old.name not in written:  # an old single file would be read instead of new shards
            old.unlink(missing_ok=True)


def _save(tensors: dict[str, np.ndarray], path: str) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # safetensors raises its own error if the disk is full
        raise OSError(errno.EIO, str(error)) from error


def _gather(places: list[_Place], leaves: Mapping[str, Any]) -> np.ndarray:
    """Returns a tensor, given the places of all parameters in it."""
    tensor = np.zeros(places[0].tensor_shape, np.float32)
    for place in places:
        leaf = leaves[place.path]
        parameter = np.asarray(leaf if place.layer is None else leaf[place.layer], np.float32)
        place.tensor.layout.write(parameter, tensor)
    return tensor
