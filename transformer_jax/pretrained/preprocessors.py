"""The preprocessing of inputs by ``transformers``, for each kind of front end that has any."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from transformer_jax.inference.images import Sizing
from transformer_jax.models import TransformerConfig
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.preprocessor_json import image_preprocessor_content, read_image_preprocessor
from transformer_jax.types import PyTree


@runtime_checkable
class Preprocessor(Protocol):
    """The preprocessor of a checkpoint."""

    @property
    def sizing(self) -> Sizing | None:
        """Brings an example to the size of the model; None if it must have that size."""
        ...

    def their_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the inputs of the checkpoint's model for those of ours."""
        ...

    def merged(self, params: PyTree) -> PyTree:
        """Returns parameters for our inputs, given those for the inputs of the checkpoint's model."""
        ...


class PreprocessorFormat(NamedTuple):
    """How ``preprocessor_config.json`` is read and written.

    Attributes:
      read: returns the preprocessor of a checkpoint.
      content: returns the keys of the file, given the config and how examples are resized, or None.
    """

    read: Callable[[CheckpointFolder, TransformerConfig], Preprocessor]
    content: Callable[[TransformerConfig, Any], dict[str, Any]]


# By the kind of the front end. Front ends that are not listed, such as "tokens", need no preprocessor.
PREPROCESSORS: dict[str, PreprocessorFormat] = {
    "patches": PreprocessorFormat(read_image_preprocessor, image_preprocessor_content)
}


def read_preprocessor(folder: CheckpointFolder, config: TransformerConfig) -> Preprocessor | None:
    """Returns the preprocessor of a checkpoint, or None if its front end needs none.

    Raises:
      ConfigError: ``preprocessor_config.json`` is broken or not supported.
    """
    file = PREPROCESSORS.get(config.front_end.kind)
    return None if file is None else file.read(folder, config)
