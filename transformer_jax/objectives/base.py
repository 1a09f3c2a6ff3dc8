"""The base class of objectives: declarations, transforms on the host, and a loss on the device."""

import abc
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import numpy as np

from transformer_jax.config import ConfigError, check_types
from transformer_jax.objectives.kinds import check_kinds, is_text_feature, kinds_of
from transformer_jax.types import Batch, Drawing, Encoder, Example, PyTree, TokenExample

# ``model.apply``. A model of tokens also takes ``per_token``, a function of its logits, and returns what
# that returns.
Apply: TypeAlias = Callable[..., Any]
Sums: TypeAlias = dict[str, jax.Array]
# A random key for each random stream that a model reads, by the stream's name: ``{"dropout": key}``.
Rngs: TypeAlias = Mapping[str, jax.Array]


class ModelFacts(NamedTuple):
    """What an objective may know about its model. It knows no architecture.

    Attributes:
      num_labels: number of classes; 0 for a model whose head has no classes.
      feature: the feature of examples that the model reads, a key of ``types.FEATURES``.
      shape: shape of that feature's array, such as an image; () for texts.
      reads_types: whether token types tell the texts of an input apart; special tokens do in any case.
    """

    num_labels: int = 0
    feature: str = "inputs"
    shape: tuple[int, ...] = ()
    reads_types: bool = True

    @property
    def reads_text(self) -> bool:
        """Whether the model reads tokens of a text."""
        return is_text_feature(self.feature)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Base class of objectives: transforms of examples on the host, and a loss on the device.

    An objective is a section of a config: a frozen dataclass whose fields are its settings. Everything that
    the rest of the library must know about it is declared here; no other folder asks which objective it is.
    A new objective needs ``FEATURES``, ``HEADS``, ``PARTS``, ``name``, ``encode`` and ``loss``, usually
    ``pieces``, ``METRICS`` and ``metrics``, and an entry in ``OBJECTIVES``. All else has defaults.

    Class attributes:
      METRICS: names of the metrics that ``metrics`` can return.
      HIGHER_IS_BETTER: those of them whose best value is the highest.
      FEATURES: features that every example must have.
      OPTIONAL_FEATURES: further features that are read if an example has them.
      LIST_FEATURES: features that are read as lists, for example of one label per word, where
        ``types.FEATURES`` allows lists and single values.
      HEADS: heads of models (``model.head``) that the objective can train.
      PARTS: the parts that the model has: "encoder", "decoder" or both.
      PREDICTOR: the entry of ``evaluation.PREDICTORS`` that predicts and scores outputs in evaluation; "" is
        none.
      PROMPT_START: roles of the special tokens that precede every prompt of a trained decoder, because they
        precede every training text.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss",)
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ()
    FEATURES: ClassVar[tuple[str, ...]]
    OPTIONAL_FEATURES: ClassVar[tuple[str, ...]] = ()
    LIST_FEATURES: ClassVar[tuple[str, ...]] = ()
    HEADS: ClassVar[tuple[str, ...]]
    PARTS: ClassVar[tuple[str, ...]]
    PREDICTOR: ClassVar[str] = ""
    PROMPT_START: ClassVar[tuple[str, ...]] = ()

    name: str  # the key in ``OBJECTIVES``

    def __post_init__(self) -> None:
        check_types(self, "objective")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that can be trained with these settings; by default all of ``HEADS``."""
        return self.HEADS

    @property
    def num_token_types(self) -> int:
        """The number of token types that a model of texts must have; 0 if the objective needs none.

        A model with fewer than two types does not get any, see ``BoundTransform.pieces``.
        """
        return 0

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of their ids; () if the objective has no names."""
        return ()

    @property
    def may_cut(self) -> bool:
        """Whether examples that are too long are cut and scored; evaluation then reports their number."""
        return False

    @property
    def sizing(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """The function that brings images of any size to the model's size, as evaluation does, or None."""
        return None

    def unmeasured(self, model: ModelFacts) -> Mapping[str, str]:
        """Returns the metrics that this model and these settings do not give, each with the reason."""
        return {}

    def check(self, model: ModelFacts) -> None:
        """Raises ConfigError if the settings do not fit the model; heads and parts are checked elsewhere."""
        return None

    def check_example(self, example: Example, model: ModelFacts) -> None:
        """Raises ValueError if an example does not fit the model, for example its label."""
        return None

    def shrunk(self, max_length: int) -> "Objective":
        """Returns the same objective for pieces of ``max_length`` tokens, which may be as few as 64."""
        return self

    def stand_in(self, model: ModelFacts, features: Collection[str]) -> Example:
        """Returns a made-up example, from which the shapes of batches are derived.

        Args:
          model: the model that reads it.
          features: the features that the experiment's examples have.
        """
        return {
            feature: kinds_of(feature, as_list=feature in self.LIST_FEATURES)[0].stand_in(model.shape)
            for feature in (*self.FEATURES, *self.OPTIONAL_FEATURES)
            if feature in features
        }

    @abc.abstractmethod
    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns an example as arrays of tokens, on the host.

        Must be deterministic: the pipeline keeps the result in memory.
        """

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns what one visit of an example trains on.

        This is the example itself, ``[tokens]``, by default. It may also be pieces of at most
        ``context.max_length`` tokens per side, cut or changed anew at every visit with ``context.rng``. Must
        be a pure function of its arguments. ``transformer_jax.types`` defines the keys of pieces.
        """
        return [tokens]

    @abc.abstractmethod
    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the loss summed over a batch, and sums from which metrics are computed.

        Both are sums and not means: sums of micro-batches, devices or evaluation batches can be added, and
        divided by the sum of ``tokens`` they give the exact mean.

        Args:
          apply: the model's ``apply``.
          params: its parameters.
          batch: a batch, see ``transformer_jax.types``.
          rngs: a random key for each random stream that the model reads: ``dropout`` in training, and in
            evaluation those that the model's layers declare.
          train: whether dropout is on.

        Returns:
          The summed loss, and sums by name. ``tokens`` is always among them: the number that the loss is
          divided by, which counts tokens, or examples if there is one answer per example.
        """

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns the metrics of added sums; by default ``loss`` per token or example."""
        return {"loss": sums["loss"] / sums["tokens"]}


def check_features(objective: Objective, given: Iterable[str]) -> None:
    """Raises ConfigError unless all features that the objective needs are among those that are given."""
    given = list(given)
    missing = [feature for feature in objective.FEATURES if feature not in given]
    if missing:
        raise ConfigError(
            f"{type(objective).__name__}.FEATURES, the features that this objective needs, are "
            f"{', '.join(objective.FEATURES)}, but there is no {', '.join(missing)}: "
            f"config.data.source.features gives {', '.join(given)}"
        )


@dataclasses.dataclass(frozen=True)
class BoundTransform:
    """An objective with everything it needs on the host except the data; the pipeline's ``Transform``.

    Attributes:
      objective: the objective.
      tokenizer: the tokenizer of the run.
      max_length: the most tokens of a side.
      train: whether pieces are for training.
      model: what the objective may know about the model.
    """

    objective: Objective
    tokenizer: Encoder
    max_length: int
    train: bool
    model: ModelFacts

    def encode(self, example: Example) -> TokenExample:
        """Returns an example as arrays of tokens, see ``Objective.encode``.

        Raises:
          ConfigError: a feature is missing or of another kind.
          ValueError: the example does not fit the model, or the objective refuses it.
        """
        objective = self.objective
        check_features(objective, example)
        features = (*objective.FEATURES, *objective.OPTIONAL_FEATURES)
        check_kinds(objective.name, example, features, objective.LIST_FEATURES)
        tokens = objective.encode(example, self.tokenizer)
        objective.check_example(example, self.model)
        return tokens

    def pieces(
        self, tokens: TokenExample, rng: np.random.Generator, draw_other: Callable[[], TokenExample]
    ) -> list[TokenExample]:
        """Returns what one visit of an example trains on, see ``Objective.pieces``.

        Token types are left out if the model does not read them.
        """
        context = Drawing(rng, self.max_length, self.tokenizer, draw_other, self.train)
        found = self.objective.pieces(tokens, context)
        if self.model.reads_types:
            return found
        return [{key: piece[key] for key in piece if key != "inputs_types"} for piece in found]
