"""What the trainer and the data pipeline ask of an objective."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

from transformer_jax.types import Batch, PyTree, TextExample, TokenExample

Apply: TypeAlias = Callable[..., Any]  # model.apply
Sums: TypeAlias = dict[str, jax.Array]


@runtime_checkable
class Encoder(Protocol):
    """The part of a tokenizer that a host transform needs."""

    def encode(self, text: str) -> np.ndarray: ...


@runtime_checkable
class Objective(Protocol):
    """A host transform and a device loss; knows no architecture."""

    def transform(self, example: TextExample, tokenizer: Encoder) -> TokenExample:
        """One text example as token arrays, on the host."""
        ...

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        """The loss summed over a batch's tokens, and sums for metrics, ``tokens`` among them.

        Sums, not means: those of several micro-batches, devices or evaluation batches add up, and
        divided by their ``tokens`` give exactly the mean over all real tokens. ``rng`` None means
        evaluation: no dropout.
        """
        ...

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics per token from summed sums."""
        ...
