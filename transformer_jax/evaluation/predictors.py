"""The registry of predictors, which compute the outputs of a run for a split and score them."""

from collections.abc import Callable
from typing import TypeAlias

from jax.sharding import Mesh

from transformer_jax.config import ConfigError, nearest
from transformer_jax.data import Source
from transformer_jax.evaluation.predictions import Outputs, answers, reconstructions
from transformer_jax.evaluation.translations import translations
from transformer_jax.objectives import Objective
from transformer_jax.runs.experiment import EvaluateConfig
from transformer_jax.runs.loading import TrainedRun

# Takes a run, the mesh that it computes on, decoding settings and a split; returns outputs and their scores.
Predictor: TypeAlias = Callable[[TrainedRun, Mesh, EvaluateConfig, Source], Outputs]

# Keys are what an objective declares as PREDICTOR. A program may add predictors of its own.
PREDICTORS: dict[str, Predictor] = {
    "translations": translations,
    "reconstructions": reconstructions,
    "answers": answers,
}


def predictor_of(objective: Objective) -> Predictor | None:
    """Returns the predictor that an objective declares, or None if it declares none.

    Raises:
      ConfigError: there is no such predictor.
    """
    if not objective.PREDICTOR:
        return None
    if objective.PREDICTOR not in PREDICTORS:
        raise ConfigError(
            f"{type(objective).__name__}.PREDICTOR={objective.PREDICTOR!r} is not a key of "
            f"evaluation.PREDICTORS: {nearest(objective.PREDICTOR, PREDICTORS)}"
        )
    return PREDICTORS[objective.PREDICTOR]
