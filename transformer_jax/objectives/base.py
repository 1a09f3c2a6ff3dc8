"""What the trainer and the data pipeline ask of an objective."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

from transformer_jax.config import ConfigError
from transformer_jax.objectives.labels import check_numbers
from transformer_jax.types import FEATURES, Batch, Drawing, Encoder, Encoding, Example, PyTree, TokenExample

__all__ = [
    "Apply",
    "BoundTransform",
    "Drawing",
    "Encoder",
    "Encoding",
    "Objective",
    "Rngs",
    "Sums",
    "check_features",
    "check_kinds",
]

# ``model.apply``. A model of tokens is given ``per_token`` too, and returns what that makes of its logits.
Apply: TypeAlias = Callable[..., Any]
Sums: TypeAlias = dict[str, jax.Array]
# A random key for each random stream that a model reads, by the stream's name: ``{"dropout": key}``.
Rngs: TypeAlias = Mapping[str, jax.Array]

_LIST = "list of "


@runtime_checkable
class Objective(Protocol):
    """Host transforms and a device loss; knows no architecture. A section of a config: a dataclass."""

    METRICS: ClassVar[tuple[str, ...]]
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]]  # of METRICS
    FEATURES: ClassVar[tuple[str, ...]]  # of an example, that it must have

    @property
    def name(self) -> str:
        """As in ``OBJECTIVES``."""
        ...

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """An example as token arrays, on the host. Not random: the pipeline keeps the result in memory."""
        ...

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """What is learned from one visit of an example.

        Itself, ``[tokens]``, or, anew at every visit, its pieces of at most ``context.max_length`` tokens a
        side, with noise from ``context.rng``. A pure function of its arguments. The keys of the pieces are as
        ``transformer_jax.types`` says.
        """
        ...

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the loss summed over the tokens or examples of a batch, and the sums for the metrics.

        The values are sums, not means. The sums of several micro-batches, devices or evaluation batches add
        up; divided by their ``tokens``, they give exactly the mean over all real tokens or examples.

        Args:
          apply: the ``apply`` method of a model.
          params: the parameters of the model.
          batch: as ``transformer_jax.types`` describes it.
          rngs: a random key for each random stream that the model reads: ``dropout`` in training, and in
            evaluation those that the model's layers declare.
          train: whether dropout is on.

        Returns:
          The loss, and the sums, among them ``tokens``, the number that the loss is divided by: the number of
          tokens or, if every example has one answer, the number of examples.
        """
        ...

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics per token or example from summed sums."""
        ...


def check_features(objective: Objective, found: Iterable[str]) -> None:
    """Raises ConfigError unless all features that the objective needs of an example are among ``found``."""
    there = list(found)
    missing = [feature for feature in objective.FEATURES if feature not in there]
    if missing:
        raise ConfigError(
            f"{type(objective).__name__}.FEATURES, what this objective needs of an example, are "
            f"{', '.join(objective.FEATURES)}, but there is no {', '.join(missing)}: "
            f"config.data.source.features gives {', '.join(there)}"
        )


def check_kinds(objective: Objective, example: Example) -> None:
    """Raises ConfigError unless what the objective reads of an example is of the kinds that it reads.

    A feature may be single or a list (``types.FEATURES``). Inputs and labels are lists where words are to be
    told, and single everywhere else: a text taken for a list would be one of characters.
    """
    for feature in dict.fromkeys((*objective.FEATURES, "inputs", "pair")):
        if feature not in example:
            continue
        lists = [kind for kind in FEATURES[feature] if kind.startswith(_LIST)]
        single = [kind for kind in FEATURES[feature] if not kind.startswith(_LIST)]
        allowed = lists if lists and (not single or objective.name == "token_classification") else single
        if not any(_is_of_kind(example[feature], kind) for kind in allowed):
            wanted = " or ".join(f"an {kind}" if kind == "integer" else f"a {kind}" for kind in allowed)
            raise ConfigError(
                f"{objective.name} needs {wanted} as {feature}, not {example[feature]!r:.80}: "
                "config.data.source.features says what is read as it"
            )


def _is_of_kind(value: Any, kind: str) -> bool:
    if kind.startswith(_LIST):
        is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
        single = kind.removeprefix(_LIST).removesuffix("s")
        return is_list and all(_is_of_kind(item, single) for item in value)
    if kind == "text":
        return isinstance(value, str)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class BoundTransform:
    """What an objective does on the host, bound to all but the data; the pipeline's ``Transform``."""

    objective: Objective
    tokenizer: Encoder
    max_length: int  # tokens of a side
    train: bool
    num_labels: int  # classes of the model; 0 where it tells none

    def encode(self, example: Example) -> TokenExample:
        """As ``Objective.encode``.

        Raises:
          ConfigError: a feature is missing or of another kind.
          ValueError: a label is beyond the model's classes; and as ``Objective.encode``.
        """
        check_features(self.objective, example)
        check_kinds(self.objective, example)
        tokens = self.objective.encode(example, self.tokenizer)
        if "labels" in self.objective.FEATURES and not getattr(self.objective, "labels", ()):
            check_numbers(example["labels"], self.num_labels)
        return tokens

    def pieces(
        self, tokens: TokenExample, rng: np.random.Generator, draw_other: Callable[[], TokenExample]
    ) -> list[TokenExample]:
        """As ``Objective.pieces``."""
        context = Drawing(rng, self.max_length, self.tokenizer, draw_other, self.train)
        return self.objective.pieces(tokens, context)
