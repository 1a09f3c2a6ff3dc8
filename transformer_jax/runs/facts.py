"""What an experiment's objective is told about its model."""

from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import ModelFacts


def model_facts(model: TransformerConfig) -> ModelFacts:
    """Returns what an objective may know about a model with this config."""
    return ModelFacts(model.num_labels, model.front_end.FEATURE, model.front_end.input_shape)
