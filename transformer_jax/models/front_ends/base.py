"""The interface of a front end: everything that depends on what a model reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.embeddings import Embedding
from transformer_jax.layers.norms import NORMS
from transformer_jax.models.embedded import Embedded
from transformer_jax.sharding.placement import constrain
from transformer_jax.types import PyTree

if TYPE_CHECKING:  # the config has a front end as a field
    from transformer_jax.models.config import TransformerConfig


@runtime_checkable
class Embedder(Protocol):
    """The module of a front end."""

    @property
    def embedding(self) -> Embedding | None:
        """The embedding of the vocabulary, or None if the inputs are not tokens."""
        ...

    def embed(self, arguments: Mapping[str, Array], *, train: bool) -> Embedded:
        """Returns the input of the first block.

        Args:
          arguments: the inputs of the model, some of ``FrontEnd.ARGUMENTS``.
          train: whether dropout is on.
        """
        ...


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """What a model reads, how it is embedded, and what the rest of the library asks about it.

    A front end is a frozen dataclass with a field ``kind``, its name in ``FRONT_ENDS``, and is a field of
    ``TransformerConfig``. Its other fields are what decides about the shapes of its inputs.

    Attributes:
      ARGUMENTS: names of the inputs of the model. The first one has to be given, the others are optional.
      FEATURE: the feature of an example that becomes the first of ``ARGUMENTS``.
      UNIT: what the examples are, in the plural, for messages and for the progress bar.
      RESIZABLE: in words, what ``resized`` can adapt parameters to; "" for nothing.
      has_tokens: whether the inputs are tokens. Their rows have any length up to ``max_length`` and are
        padded; the model has a vocabulary and needs a tokenizer.
      pools_classes: whether the head "classes" has a pooler (see ``heads.Classes``).
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = ()
    FEATURE: ClassVar[str] = ""
    UNIT: ClassVar[str] = ""
    RESIZABLE: ClassVar[str] = ""
    has_tokens: ClassVar[bool] = False
    pools_classes: ClassVar[bool] = False

    kind: str = dataclasses.field(kw_only=True)

    def build(self, config: "TransformerConfig") -> Embedder:
        """Returns the module that embeds the inputs; called in the ``setup`` of the model."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def check(self, config: "TransformerConfig") -> None:
        """Checks the rest of the config.

        Args:
          config: as the stack that reads the inputs has it, ``TransformerConfig.part``.

        Raises:
          ConfigError: something does not fit this front end.
        """

    def example_inputs(self, config: "TransformerConfig") -> dict[str, Array]:
        """Returns the smallest inputs of the model."""
        raise NotImplementedError(f"{type(self).__name__} must define example_inputs")

    def draw_inputs(
        self, config: "TransformerConfig", rng: np.random.Generator, lengths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Returns random inputs of the model.

        Args:
          config: the model's config.
          rng: where the numbers are drawn from.
          lengths: one length for each row; ignored if all inputs have the same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw_inputs")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example's first argument if all examples have the same, else ()."""
        return ()

    def length(self, config: "TransformerConfig", batch: Mapping[str, Any]) -> int:
        """Returns the number of positions of the first block, L, given arrays or shapes of a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define length")

    def operations(self, config: "TransformerConfig") -> int:
        """Returns the floating-point operations of the matrix products on one row."""
        return 0

    @property
    def max_length(self) -> int | None:
        """The ``max_length`` that a config with this front end has to have, or None if it may have any."""
        return None

    def is_alike(self, other: "FrontEnd") -> bool:
        """Returns whether two models that differ in these front ends alone are of the same family."""
        return self == other

    def changed(self, **changes: Any) -> "FrontEnd":
        """Returns a front end with other values of its fields.

        Raises:
          ConfigError: a value has a wrong type or does not fit.
        """
        return dataclasses.replace(self, **changes)

    def resizable(self, other: "FrontEnd") -> tuple[str, ...]:
        """Returns the fields in which ``other`` may differ if ``resized`` is to make its parameters fit."""
        return ()

    def resized(self, params: PyTree, other: "FrontEnd") -> PyTree:
        """Converts the parameters of a model with the front end ``other`` for one with this front end.

        It is called only for front ends that differ in ``resizable`` fields; it may be traced.
        """
        return params

    @staticmethod
    def upgrade(model: dict[str, Any]) -> None:
        """Brings the model section of a config that an earlier version stored to the keys of today."""

    def checked(self, arguments: Mapping[str, Array | None]) -> dict[str, Array]:
        """Returns the arguments that are given.

        Raises:
          ValueError: the first of ``ARGUMENTS`` is missing, or there are others than these.
        """
        given = {name: array for name, array in arguments.items() if array is not None}
        unknown = [name for name in given if name not in self.ARGUMENTS]
        if unknown or self.ARGUMENTS[0] not in given:
            optional = "".join(f", {name}" for name in self.ARGUMENTS[1:])
            raise ValueError(
                f"this is a model of {self.UNIT} and was given {', '.join(given) or 'nothing'}: give it "
                f"{self.ARGUMENTS[0]}{' and, if you like' + optional if optional else ''}, and nothing else"
            )
        return given


def normalise_and_drop(
    config: "TransformerConfig", x: Float[Array, "B L D"], train: bool
) -> Float[Array, "B L D"]:
    """Applies the norm of embeddings, if the config has one, and dropout; called in compact methods."""
    if config.embedding_norm:
        x = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype), name="norm")(x)
    return constrain(Dropout(config.dropout)(x, train=train), "batch", "sequence", None)
