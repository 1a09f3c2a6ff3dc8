"""Collects the properties of an experiment's model that its objective needs."""

from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import ModelFacts


def model_facts(model: TransformerConfig) -> ModelFacts:
    """Returns the properties of a model that its objective may use."""
    return ModelFacts(
        model.num_labels,
        model.front_end.FEATURE,
        model.front_end.input_shape,
        reads_types=model.num_token_types > 1,
    )
