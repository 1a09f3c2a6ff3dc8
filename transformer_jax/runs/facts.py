"""What an experiment's objective is told about its model."""

from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import ModelFacts


def model_facts(model: TransformerConfig) -> ModelFacts:
    """Returns what an objective may know about a model with this config."""
    if model.image_shape:
        return ModelFacts(model.num_labels, "images", model.image_shape)
    return ModelFacts(model.num_labels)
