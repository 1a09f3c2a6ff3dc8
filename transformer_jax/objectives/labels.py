"""Labels of examples, given as numbers or by name, and the base class of objectives that predict them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transformer_jax.config import ConfigError
from transformer_jax.objectives.base import ModelFacts, Objective
from transformer_jax.objectives.losses import smoothed_cross_entropy
from transformer_jax.types import Example


@dataclasses.dataclass(frozen=True)
class LabelledObjective(Objective):
    """Base class of objectives whose examples have ``labels``, of which the model predicts the classes.

    Attributes:
      labels: the names of the classes in the order of their ids; () if labels are given as ids.
    """

    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        repeated = sorted({name for name in self.labels if self.labels.count(name) > 1})
        if repeated:
            raise ValueError(
                f"labels={self.labels} must be different names, but {repeated[0]!r} occurs more than once"
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes: ``labels``."""
        return self.labels

    def check(self, model: ModelFacts) -> None:
        """Raises ConfigError unless ``labels`` has as many names as the model has classes."""
        if self.labels and len(self.labels) != model.num_labels:
            raise ConfigError(
                f"config.objective.labels names {len(self.labels)} classes, but "
                f"config.model.num_labels={model.num_labels}"
            )

    def check_example(self, example: Example, model: ModelFacts) -> None:
        """Raises ValueError if a label that is given as an id is not a class of the model."""
        if not self.labels:
            check_numbers(example["labels"], model.num_labels)

    def class_losses(
        self,
        logits: Float[jax.Array, "B L classes"],
        targets: Int[jax.Array, "B L"],
        weights: Float[jax.Array, "B L"],
        label_smoothing: float = 0.0,
    ) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
        """Returns the cross-entropy, summed, in nats, and 1 at each right prediction of weight 1.

        A target that is not a class of the model makes the loss NaN and counts as wrong. If ``labels`` has
        names, there cannot be such a target.

        Raises:
          ValueError: the model has another number of classes than ``labels`` has names.
        """
        num_classes = logits.shape[-1]
        if self.labels and num_classes != len(self.labels):
            raise ValueError(
                f"the model has {num_classes} classes, but objective.labels={self.labels} names "
                f"{len(self.labels)}"
            )
        losses = smoothed_cross_entropy(logits, jnp.maximum(targets, 0), label_smoothing)
        is_class = targets < num_classes
        each = jnp.where(is_class, losses.loss, jnp.nan)
        loss = jnp.sum(jnp.where(weights > 0, each, 0.0))
        return loss, losses.is_correct * is_class * weights


def label_id(label: Any, labels: Sequence[str]) -> int:
    """Returns the id of a label: its index in the names ``labels``, or the number that it is.

    Text files hold numbers as texts; therefore "2" is 2 unless there is a name "2".

    Raises:
      ValueError: the label is neither one of the names nor a possible number.
    """
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    is_number = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if is_number or (isinstance(label, str) and label.isdecimal()):
        number = int(label)
        if number >= 0 and (not labels or number < len(labels)):
            return number
    if labels:
        raise ValueError(
            f"the label {label!r} must be one of objective.labels={tuple(labels)}, or a number from 0 to "
            f"{len(labels) - 1}"
        )
    raise ValueError(
        f"the label {label!r} must be a number from 0 on; to use names, list them in objective.labels in the "
        "order of their ids"
    )


def check_numbers(labels: Any, num_labels: int) -> None:
    """Checks labels that are given as ids.

    Args:
      labels: one label, or a list of labels, that ``label_id`` accepts.
      num_labels: number of classes of the model.

    Raises:
      ValueError: a label is not below ``num_labels``.
    """
    for label in [labels] if isinstance(labels, str | int | np.integer) else labels:
        number = label_id(label, ())
        if number >= num_labels:
            raise ValueError(
                f"the label {number} is beyond config.model.num_labels={num_labels}: it must be from 0 to "
                f"{num_labels - 1}"
            )
