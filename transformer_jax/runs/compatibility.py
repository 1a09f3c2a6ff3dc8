"""Whether the sections of an experiment go together; each of them has been checked by itself."""

from typing import Any

from transformer_jax.checkpoints.checkpointer import CheckpointConfig
from transformer_jax.config import ConfigError
from transformer_jax.data import SPLITS, DataConfig
from transformer_jax.models import TransformerConfig
from transformer_jax.models.heads import task_of
from transformer_jax.objectives import Classification, MaskedLM, Objective, TokenClassification
from transformer_jax.objectives.base import check_features

# Of each objective: the heads, one of which the model must have, and whether it has an encoder and a decoder.
MODELS: dict[str, tuple[tuple[str, ...], tuple[bool, bool]]] = {
    "seq2seq": (("tokens",), (True, True)),
    "span_corruption": (("tokens",), (True, True)),
    "denoising": (("tokens",), (True, True)),
    "causal_lm": (("tokens",), (False, True)),
    "masked_lm": (("masked_tokens", "pretraining"), (True, False)),
    "classification": (("classes",), (True, False)),
    "token_classification": (("token_classes",), (True, False)),
    "question_answering": (("spans",), (True, False)),
}


def check_sections(
    model: TransformerConfig,
    objective: Objective,
    data: DataConfig,
    checkpoint: CheckpointConfig,
    train: Any,
    evaluate: Any,
) -> None:
    """Checks what more than one section decides.

    Raises:
      ConfigError: something in one section does not fit what another says.
    """
    tokenizer = data.tokenizer
    is_trained = tokenizer.kind != "byte" and not tokenizer.path and not train.init_from
    if is_trained and not model.image_shape and tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer.vocab_size={tokenizer.vocab_size} does not fit into "
            f"config.model.vocab_size={model.vocab_size}"
        )
    features = [feature for feature, _ in data.source.features]
    check_features(objective, features)
    _check_model(model, objective, features)
    if checkpoint.best_metric not in objective.METRICS:
        raise ConfigError(
            f"config.checkpoint.best_metric={checkpoint.best_metric!r} must be one of "
            + ", ".join(objective.METRICS)
        )
    if not _is_measured(checkpoint.best_metric, model, objective):
        raise ConfigError(
            f"config.checkpoint.best_metric={checkpoint.best_metric!r} is not measured here: f1 and matthews "
            "are of two classes, next_sentence_accuracy is of config.objective.next_sentence=True"
        )
    best_mode = "max" if checkpoint.best_metric in objective.HIGHER_IS_BETTER else "min"
    if checkpoint.best_mode != best_mode:
        raise ConfigError(
            f"config.checkpoint.best_metric={checkpoint.best_metric!r} needs "
            f"config.checkpoint.best_mode={best_mode!r}"
        )
    if evaluate.split not in SPLITS:
        raise ConfigError(f"config.evaluate.split={evaluate.split!r} must be one of {', '.join(SPLITS)}")
    for name in ("beam_size", "top_k"):
        if not model.is_encoder_only and getattr(evaluate, name) > model.vocab_size:
            raise ConfigError(
                f"config.evaluate.{name}={getattr(evaluate, name)} is more than the vocabulary has "
                f"tokens: {model.vocab_size}"
            )
    if not model.image_shape and data.max_length > model.max_length:
        raise ConfigError(
            f"config.data.max_length={data.max_length} is longer than the model's sequences: raise "
            f"config.model.max_length={model.max_length}, or lower it"
        )
    if evaluate.average_last > checkpoint.keep_latest:
        raise ConfigError(
            f"config.evaluate.average_last={evaluate.average_last} needs as many checkpoints, but "
            f"config.checkpoint.keep_latest={checkpoint.keep_latest}"
        )


def _is_measured(metric: str, model: TransformerConfig, objective: Objective) -> bool:
    """Whether a metric of an objective that has it at times is there this time."""
    if metric in ("f1", "matthews"):
        return model.num_labels == 2
    if metric == "next_sentence_accuracy":
        return isinstance(objective, MaskedLM) and objective.next_sentence
    return True


def _check_model(model: TransformerConfig, objective: Objective, features: list[str]) -> None:
    """Checks that the model gives what the objective's loss is of."""
    heads, (encoder, decoder) = MODELS[objective.name]
    if isinstance(objective, MaskedLM):
        heads = ("pretraining",) if objective.next_sentence else ("masked_tokens",)
    parts = " and ".join(["an encoder"] * encoder + ["a decoder"] * decoder)
    if (encoder, decoder) != (not model.is_decoder_only, not model.is_encoder_only):
        raise ConfigError(
            f"config.objective.name={objective.name!r} needs a model of {parts}, and of nothing else: set "
            "config.model.num_encoder_layers and num_decoder_layers, or take another family"
        )
    if task_of(model.head) not in heads:
        raise ConfigError(
            f"config.objective.name={objective.name!r} needs config.model.head={heads[0]!r}, "
            f"not {model.head!r}"
        )
    if ("images" in features) != bool(model.image_shape):
        raise ConfigError(
            f"config.data.source.features has {', '.join(features)}, but the model is one of "
            + (
                "images: it needs the feature images"
                if model.image_shape
                else "texts: it has no use for images"
            )
        )
    if isinstance(objective, Classification | TokenClassification):
        _check_classes(model, objective)
    if isinstance(objective, Classification):
        _check_used(model, objective)
    side = objective.image_size if isinstance(objective, Classification) else 0
    if side and model.image_shape and model.image_shape[:2] != (side, side):
        raise ConfigError(
            f"config.objective.image_size={side} makes images of {side} x {side} pixels, but the model has "
            f"config.model.image_shape={model.image_shape}"
        )
    has_types = objective.name in ("classification", "question_answering") or model.head == "pretraining"
    if has_types and not model.image_shape and model.num_token_types < 2:
        raise ConfigError(
            f"config.objective.name={objective.name!r} tells two texts apart by their types: set "
            "config.model.num_token_types=2"
        )


def _check_used(model: TransformerConfig, objective: Classification) -> None:
    """Refuses settings of texts for images, and of images for texts, which would do nothing."""
    of_images = ("image_size", "least_area", "crop_padding", "flip")
    kind, unused = ("images", ("cut_long",)) if model.image_shape else ("texts", of_images)
    defaults = Classification()
    for name in unused:
        if getattr(objective, name) != getattr(defaults, name):
            raise ConfigError(
                f"config.objective.{name}={getattr(objective, name)!r} does nothing to {kind}: leave it at "
                f"{getattr(defaults, name)!r}"
            )


def _check_classes(model: TransformerConfig, objective: Classification | TokenClassification) -> None:
    if objective.labels and len(objective.labels) != model.num_labels:
        raise ConfigError(
            f"config.objective.labels names {len(objective.labels)} classes, but "
            f"config.model.num_labels={model.num_labels}"
        )
