"""Labels of examples, given as numbers or by name, as ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_names(labels: tuple[str, ...]) -> None:
    """Raises ValueError where a name occurs twice."""
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if twice:
        raise ValueError(f"labels={labels} must be different names, but there is more than one {twice[0]!r}")


def label_id(label: Any, labels: Sequence[str]) -> int:
    """The id of a label: its place among the names ``labels``, or the number it is.

    Text files hold numbers as text, so that "2" is 2 where there is no name "2".

    Raises:
      ValueError: it is neither one of the names nor a number that is possible.
    """
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    is_number = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if is_number or (isinstance(label, str) and label.isdecimal()):
        found = int(label)
        if found >= 0 and (not labels or found < len(labels)):
            return found
    if labels:
        raise ValueError(
            f"the label {label!r} is none of objective.labels={tuple(labels)}, nor a number from 0 to "
            f"{len(labels) - 1}"
        )
    raise ValueError(
        f"the label {label!r} is no number from 0 on, and objective.labels=() has no names, which would go "
        "in the order of their ids"
    )


def check_numbers(labels: Any, num_labels: int) -> None:
    """Checks labels without names, one or a list of them, each of which ``label_id`` takes.

    Raises:
      ValueError: one is beyond a model of ``num_labels`` classes.
    """
    for label in [labels] if isinstance(labels, str | int | np.integer) else labels:
        found = label_id(label, ())
        if found >= num_labels:
            raise ValueError(
                f"the label {found} is beyond config.model.num_labels={num_labels}: it must be from 0 to "
                f"{num_labels - 1}"
            )


def check_classes(num_classes: int, labels: Sequence[str]) -> None:
    """Raises ValueError where the model does not tell as many classes as there are names."""
    if labels and num_classes != len(labels):
        raise ValueError(
            f"the model tells {num_classes} classes, but objective.labels={tuple(labels)} names {len(labels)}"
        )
