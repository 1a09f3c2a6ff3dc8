"""Reads tensors from the safetensors files of a checkpoint, one at a time."""

import json
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_BYTES_AT_ONCE = 1 << 24  # read from a file before it is closed, because mapped pages count as memory
# Files that are converted with pickled weights: of tokenizers, image processors and sentence-transformers.
_TOKENIZERS = {
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "source.spm", "target.spm")
}
_PREPROCESSOR = "preprocessor_config.json"
_SENTENCE_MODULES = "modules.json"
_OLD_ENDINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


class WeightsError(ValueError):
    """A checkpoint's files are missing, broken, or not those of the model."""


class TensorFiles:
    """The tensors of a folder, in one file or several; opening it reads only their names and shapes.

    Args:
      folder: of the checkpoint.
      architecture: the model's class in ``transformers``, for the advice on converting pickled weights.

    Attributes:
      folder: as given.
      shapes: the shape of each tensor by its name.

    Raises:
      WeightsError: there are no tensors, a file is missing or truncated, two tensors have one name, or the
        weights are pickled.
    """

    def __init__(self, folder: str | os.PathLike[str], architecture: str = "AutoModel"):
        self.folder, self._architecture = pathlib.Path(folder), architecture
        self._files: dict[str, pathlib.Path] = {}  # by the tensor's name
        self._stored_names: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths():
            with _opened(path) as file:
                for stored in file.keys():  # noqa: SIM118, it is no dict
                    name = stored
                    for old, new in _OLD_ENDINGS:
                        name = name.removesuffix(old) + new if name.endswith(old) else name
                    if name in self._files:
                        raise WeightsError(f"{path} has {stored}, and {self._files[name]} has {name} as well")
                    self._files[name], self._stored_names[name] = path, stored
                    self.shapes[name] = tuple(file.get_slice(stored).get_shape())

    def _paths(self) -> list[pathlib.Path]:
        index = self.folder / INDEX_FILE
        if (self.folder / SINGLE_FILE).exists():
            return [self.folder / SINGLE_FILE]
        if index.exists():
            try:
                named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                names = sorted({os.fspath(name) for name in named})  # fspath raises TypeError for a number
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise WeightsError(f"{index} is not an index of safetensors files: {error}") from error
            missing = [name for name in names if not (self.folder / name).exists()]
            if missing:
                raise WeightsError(f"{index} names files that do not exist: {', '.join(missing)}")
            return [self.folder / name for name in names]
        pickled = [name for name in PICKLES if (self.folder / name).exists()]
        if pickled:
            names = {path.name for path in self.folder.iterdir()}
            raise pickle_error(self.folder, pickled[0], self._architecture, names)
        raise WeightsError(f"{self.folder} has no weights: it has neither {SINGLE_FILE} nor {INDEX_FILE}")

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as float32.

        Raises:
          WeightsError: its numbers are not floating-point, or some are not finite.
        """
        array = np.empty(self.shapes[name], np.float32)
        rows = max(1, _BYTES_AT_ONCE // (4 * math.prod(array.shape[1:])))
        for start in range(0, len(array), rows):
            stop = min(start + rows, len(array))
            with _opened(self._files[name]) as file:  # opened anew, which unmaps the pages read before
                found = file.get_slice(self._stored_names[name])[start:stop]
            if not jnp.issubdtype(found.dtype, jnp.floating):
                raise WeightsError(
                    f"the tensor {name} of {self._files[name]} has numbers of type {found.dtype}, which "
                    "are not floating-point"
                )
            array[start:stop] = found
        if not np.isfinite(array).all():
            raise WeightsError(f"the tensor {name} of {self._files[name]} has numbers that are not finite")
        return array


def pickle_error(
    where: str | os.PathLike[str], pickle: str, architecture: str, names: Collection[str]
) -> WeightsError:
    """Returns the error for pickled weights; it has the command that converts them.

    Args:
      where: the folder, or the name on the hub.
      pickle: name of the file.
      architecture: the model's class in ``transformers``.
      names: names of all files in the folder, because some must be converted with the weights.
    """
    old, new = f"'{where}'", f"'{where}-safetensors'"
    modules, package = ["transformers"], "transformers"
    statements = [f"transformers.{architecture}.from_pretrained({old}).save_pretrained({new})"]
    if _SENTENCE_MODULES in names:  # this package also writes the tokenizer and the pooling
        modules, package = ["sentence_transformers"], "sentence-transformers"
        statements = [f"sentence_transformers.SentenceTransformer({old}).save({new})"]
    elif not _TOKENIZERS.isdisjoint(names):
        statements.append(f"transformers.AutoTokenizer.from_pretrained({old}).save_pretrained({new})")
        package += " (some tokenizers need sentencepiece, too)"
    if _PREPROCESSOR in names:
        modules.insert(0, "shutil")
        statements.append(f"shutil.copy(transformers.utils.cached_file({old}, '{_PREPROCESSOR}'), {new})")
    line = "; ".join([f"import {', '.join(modules)}", *statements])
    return WeightsError(
        f"{where} has its weights in {pickle}, a pickle, which is not opened because it can run any code. "
        f'Convert it where {package} and PyTorch are installed: python -c "{line}"'
    )


def _opened(path: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({error}): copy or download it again"
        ) from error
