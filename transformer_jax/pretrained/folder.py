"""Opens the folder of a checkpoint, and reads each of its files once, when it is first needed.

folder = open_checkpoint("path/to/folder")  # hub.py: or a name on the hub, which is fetched
folder.family, folder.content               # config.json, read when the folder was opened
folder.tensors, folder.model                # read when they are first needed
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, marian_tokenizer
from transformer_jax.families import Checkpoint, Family
from transformer_jax.pretrained.config_json import CONFIG_FILE, Description, describe, family_in
from transformer_jax.pretrained.tensor_files import TensorFiles

TOKENIZER_FILE = "tokenizer.json"


class CheckpointFolder:
    """A folder in the format of Hugging Face ``transformers``.

    It keeps what it has read. To see changes of the files, open the folder anew.

    Args:
      path: the folder.
      name: its name in error messages; by default its path.
      family: the name of the model's family; by default the result of ``family_in``.

    Attributes:
      path: the folder.
      content: the keys of ``config.json``.
      family: the model's family.

    Raises:
      ConfigError: ``config.json`` is missing, is not a JSON object, or has a ``model_type`` that the
        family does not read.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "", family: str = ""):
        self.path = pathlib.Path(path)
        self.content: Mapping[str, Any] = read_config(self.path)
        self.family: Family = family_in(self.content, name or self.path / CONFIG_FILE, family)
        self._read: dict[str, Any] = {}

    @property
    def checkpoint(self) -> Checkpoint:
        """How the family's checkpoints are read."""
        assert self.family.checkpoint is not None  # or there would be no such model_type
        return self.family.checkpoint

    @property
    def architecture(self) -> str:
        """The name of the model's class in ``transformers``."""
        return next(iter(self.content.get("architectures") or []), "AutoModel")

    @functools.cached_property
    def tensors(self) -> TensorFiles:
        """The names and shapes of the tensors; their values are read on request.

        Raises:
          WeightsError: there are no tensors, or their files are broken or pickled.
        """
        return TensorFiles(self.path, self.architecture)

    @functools.cached_property
    def model(self) -> Description:
        """The model's config and labels, from ``config.json`` and the names of the tensors.

        Raises:
          ConfigError: a key is missing or broken, or the model differs from the family of this library.
          WeightsError: as for ``tensors``.
        """
        return describe(self.content, frozenset(self.tensors.shapes), self.path, self.family)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the folder has none.

        Raises:
          DataError: its files are broken.
        """
        return find_tokenizer(self.path)

    def has(self, name: str) -> bool:
        """Returns whether the folder has a file of this name."""
        return (self.path / name).exists()

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file; raises ConfigError if the file is missing or broken."""
        if name not in self._read:
            self._read[name] = _read_json(self.path / name)
        return self._read[name]

    def read_object(self, name: str) -> dict[str, Any]:
        """Returns the keys of a JSON file; raises ConfigError if it is missing, broken or not an object."""
        return _as_object(self.read_json(name), self.path / name)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the keys of a folder's ``config.json``; raises ConfigError if it is missing or broken."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    return _as_object(_read_json(path), path)


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error


def _as_object(content: Any, path: pathlib.Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a JSON object")
    return content


def find_tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    """Returns the tokenizer in ``tokenizer.json`` or in Marian's files; None if the folder has neither.

    Raises:
      DataError: the files are broken.
    """
    if (folder / TOKENIZER_FILE).exists():
        return Tokenizer.load(folder / TOKENIZER_FILE)
    if (folder / marian_tokenizer.SOURCE_FILE).exists():
        return marian_tokenizer.load_marian_tokenizer(folder)
    return None
