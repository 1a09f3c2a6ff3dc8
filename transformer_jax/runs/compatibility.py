"""Checks that the sections of an experiment fit together. Each section has checked itself before."""

from typing import Any

from transformer_jax.checkpoints.checkpointer import CheckpointConfig
from transformer_jax.config import ConfigError
from transformer_jax.data import SPLITS, DataConfig
from transformer_jax.models import TransformerConfig
from transformer_jax.models.heads import task_of
from transformer_jax.objectives import Objective
from transformer_jax.objectives.base import check_features
from transformer_jax.objectives.kinds import is_array_feature
from transformer_jax.runs.facts import model_facts


def check_sections(
    model: TransformerConfig,
    objective: Objective,
    data: DataConfig,
    checkpoint: CheckpointConfig,
    train: Any,
    evaluate: Any,
) -> None:
    """Checks the settings that depend on more than one section of an experiment.

    Raises:
      ConfigError: a setting of one section does not fit another section.
    """
    features = [feature for feature, _ in data.source.features]
    check_features(objective, features)
    _check_model(model, objective, features)
    _check_lengths(model, data, train)
    _check_best_metric(model, objective, checkpoint)
    if evaluate.split not in SPLITS:
        raise ConfigError(f"config.evaluate.split={evaluate.split!r} must be one of {', '.join(SPLITS)}")
    for name in ("beam_size", "top_k"):
        if not model.is_encoder_only and getattr(evaluate, name) > model.vocab_size:
            raise ConfigError(
                f"config.evaluate.{name}={getattr(evaluate, name)} must be at most "
                f"config.model.vocab_size={model.vocab_size}"
            )
    if evaluate.average_last > checkpoint.keep_latest:
        raise ConfigError(
            f"config.evaluate.average_last={evaluate.average_last} needs as many checkpoints, but "
            f"config.checkpoint.keep_latest={checkpoint.keep_latest}"
        )


def _check_lengths(model: TransformerConfig, data: DataConfig, train: Any) -> None:
    """Checks that vocabulary and texts fit a model that reads or predicts tokens."""
    if not model.has_vocabulary:
        return
    tokenizer = data.tokenizer
    is_trained = tokenizer.kind != "byte" and not tokenizer.path and not train.init_from
    if is_trained and tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer.vocab_size={tokenizer.vocab_size} does not fit into "
            f"config.model.vocab_size={model.vocab_size}"
        )
    if data.max_length > model.batch_max_length:
        raise ConfigError(
            f"config.data.max_length={data.max_length} is longer than the model's sequences of at most "
            f"{model.batch_max_length} tokens: raise {model.batch_max_length_keys}, or lower "
            "config.data.max_length"
        )


def _check_best_metric(model: TransformerConfig, objective: Objective, checkpoint: CheckpointConfig) -> None:
    """Checks that the metric that chooses the best checkpoint is measured, and compared the right way."""
    metric = checkpoint.best_metric
    if metric not in objective.METRICS:
        raise ConfigError(
            f"config.checkpoint.best_metric={metric!r} must be one of {', '.join(objective.METRICS)}"
        )
    reason = objective.unmeasured(model_facts(model)).get(metric)
    if reason:
        raise ConfigError(f"config.checkpoint.best_metric={metric!r} is not measured here: {reason}")
    best_mode = "max" if metric in objective.HIGHER_IS_BETTER else "min"
    if checkpoint.best_mode != best_mode:
        raise ConfigError(
            f"config.checkpoint.best_metric={metric!r} needs config.checkpoint.best_mode={best_mode!r}"
        )


def _check_model(model: TransformerConfig, objective: Objective, features: list[str]) -> None:
    """Checks that the model has the parts, the head and the inputs that the objective declares."""
    name, facts = f"config.objective.name={objective.name!r}", model_facts(model)
    encoder, decoder = not model.is_decoder_only, not model.is_encoder_only
    if ("encoder" in objective.PARTS, "decoder" in objective.PARTS) != (encoder, decoder):
        raise ConfigError(
            f"{name} needs a model of exactly these parts: {', '.join(objective.PARTS)}. Set "
            "config.model.num_encoder_layers and num_decoder_layers, or use another family"
        )
    if task_of(model.head) not in objective.heads:
        heads = " or ".join(map(repr, objective.heads))
        raise ConfigError(f"{name} needs config.model.head={heads}, not {model.head!r}")
    unread = [feature for feature in features if is_array_feature(feature) and feature != facts.feature]
    if unread or facts.feature not in features:
        raise ConfigError(
            f"config.data.source.features has {', '.join(features)}, but the model reads {facts.feature}"
            + (f" and not {', '.join(unread)}" if unread else "")
        )
    objective.check(facts)
    if facts.reads_text and model.num_token_types < objective.num_token_types:
        raise ConfigError(
            f"{name} marks the parts of an input by token types: set "
            f"config.model.num_token_types={objective.num_token_types}"
        )
