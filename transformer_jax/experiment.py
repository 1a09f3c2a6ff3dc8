"""An experiment: its sections as checked dataclasses, and the same experiment made small."""

import dataclasses
import math
from typing import Any

import jax
import ml_collections

from transformer_jax.checkpoint import CheckpointConfig
from transformer_jax.config import ConfigError, TransformerConfig, check_keys, check_types, read_section
from transformer_jax.data import SPLITS, DataConfig, Tokenizer
from transformer_jax.generation import DecodingSettings
from transformer_jax.objectives import OBJECTIVES, Objective
from transformer_jax.objectives.base import BoundTransform, check_features
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.partitioning import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: int = 100_000  # optimizer updates
    log_every_steps: int = 100
    evaluate_every_steps: int = 1000  # loss on the validation split; also scores checkpoints
    gradient_accumulation_steps: int = 1  # micro-batches of each batch, one after the other
    seed: int = 0  # of the initial parameters and of dropout

    def __post_init__(self) -> None:
        check_types(self, "train")
        for name in (
            "num_steps",
            "log_every_steps",
            "evaluate_every_steps",
            "gradient_accumulation_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"train.seed={self.seed} must be from 0 to 2**31 - 1")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(DecodingSettings):
    """How a trained model translates and is scored."""

    split: str = "test"
    extra_length: int = 50  # tokens that an output may have beyond its source, section 6.1
    batch_size: int = 32  # sentences decoded at once
    average_last: int = 1  # checkpoints whose parameters are averaged
    num_samples: int = 4  # translations to show

    def __post_init__(self) -> None:
        check_types(self, "evaluate")
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"evaluate.{error}") from error
        for name, least in (("batch_size", 1), ("average_last", 1), ("extra_length", 1), ("num_samples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluate.{name}={getattr(self, name)} must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run needs to know. Each section is read by the module that it configures."""

    model: TransformerConfig
    objective: Objective
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        tokenizer = self.data.tokenizer
        is_trained = tokenizer.kind != "byte" and not tokenizer.path
        if is_trained and tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"config.data.tokenizer.vocab_size={tokenizer.vocab_size} does not fit into "
                f"config.model.vocab_size={self.model.vocab_size}"
            )
        check_features(self.objective, [feature for feature, _ in self.data.source.features])
        if self.checkpoint.best_metric not in self.objective.METRICS:
            raise ConfigError(
                f"config.checkpoint.best_metric={self.checkpoint.best_metric!r} must be one of "
                + ", ".join(self.objective.METRICS)
            )
        best_mode = "max" if self.checkpoint.best_metric in self.objective.HIGHER_IS_BETTER else "min"
        if self.checkpoint.best_mode != best_mode:
            raise ConfigError(
                f"config.checkpoint.best_metric={self.checkpoint.best_metric!r} needs "
                f"config.checkpoint.best_mode={best_mode!r}"
            )
        if self.evaluate.split not in SPLITS:
            raise ConfigError(
                f"config.evaluate.split={self.evaluate.split!r} must be one of {', '.join(SPLITS)}"
            )
        for name in ("beam_size", "top_k"):
            if getattr(self.evaluate, name) > self.model.vocab_size:
                raise ConfigError(
                    f"config.evaluate.{name}={getattr(self.evaluate, name)} is more than the vocabulary has "
                    f"tokens: {self.model.vocab_size}"
                )
        if self.data.max_length > self.model.max_length:
            raise ConfigError(
                f"config.data.max_length={self.data.max_length} is longer than the model's sequences: raise "
                f"config.model.max_length={self.model.max_length}, or lower it"
            )
        if self.evaluate.average_last > self.checkpoint.keep_latest:
            raise ConfigError(
                f"config.evaluate.average_last={self.evaluate.average_last} needs as many checkpoints, but "
                f"config.checkpoint.keep_latest={self.checkpoint.keep_latest}"
            )

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """The sections with every key spelt out: what ``get_config`` of an experiment returns."""
        return ml_collections.ConfigDict(dataclasses.asdict(self))


def read_experiment(config: Any) -> Experiment:
    """Checks a config and gives each of its sections a type.

    Raises:
      ConfigError: a section or key is unknown, misspelt, missing, of the wrong type, or does not fit.
    """
    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Experiment)}
    if not hasattr(config, "items"):  # of a file that is not there, this raises the error of opening it
        raise ConfigError(
            "an experiment must be sections of keys, as to_config_dict() gives them, not a "
            f"{type(config).__name__}"
        )
    found = dict(config.items())
    check_keys(found, sections, "config")
    if not hasattr(found["objective"], "items"):
        raise ConfigError(f"config.objective must be a section of keys, not {found['objective']!r}")
    objective: dict[str, Any] = dict(found["objective"].items())
    if objective.get("name") not in OBJECTIVES:
        raise ConfigError(f"config.objective.name must be one of {', '.join(OBJECTIVES)}")
    sections["objective"] = OBJECTIVES[objective["name"]]
    return Experiment(**{name: read_section(cls, found[name], name) for name, cls in sections.items()})


def make_transform(
    objective: Objective, tokenizer: Tokenizer, max_length: int, *, train: bool
) -> BoundTransform:
    """What the objective does on the host, bound to all but the data.

    Args:
      objective: of the experiment.
      tokenizer: of the run.
      max_length: tokens of a side.
      train: whether it is for training.
    """
    return BoundTransform(objective, tokenizer, max_length, train)


def shrink(experiment: Experiment, num_steps: int = 2) -> Experiment:
    """The same experiment in seconds: a tiny model, short batches, ``num_steps`` steps.

    What makes the experiment what it is stays: objective, kind of data, tokenizer, batching, optimizer and
    schedule, placement of norms, sharing, scan and remat. The batch is shared by all devices.
    """
    sizes = dict(d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32)
    layers = dict(num_encoder_layers=2, num_decoder_layers=2)
    vocab_size, max_length = 300, min(experiment.data.max_length, 64)
    accumulation = min(experiment.train.gradient_accumulation_steps, 2)
    rows = math.lcm(8, jax.device_count()) * accumulation
    tokenizer = dataclasses.replace(
        experiment.data.tokenizer, path="", vocab_size=vocab_size, max_training_examples=1_000
    )
    return dataclasses.replace(
        experiment,
        # Sequences of any length: a text has many tokens of so small a vocabulary.
        model=dataclasses.replace(
            experiment.model, vocab_size=vocab_size, max_length=4096, **sizes, **layers
        ),
        data=dataclasses.replace(
            experiment.data,
            tokenizer=tokenizer,
            max_length=max_length,
            buckets=(),
            tokens_per_batch=max_length * rows,
            batch_size=rows if experiment.data.batch_size else 0,
            window=64,
        ),
        optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=1),
        train=dataclasses.replace(
            experiment.train,
            num_steps=num_steps,
            log_every_steps=1,
            evaluate_every_steps=num_steps,
            gradient_accumulation_steps=accumulation,
        ),
        checkpoint=dataclasses.replace(experiment.checkpoint, every_steps=1),
        evaluate=dataclasses.replace(
            experiment.evaluate,
            extra_length=4,
            batch_size=16,
            num_samples=1,
            beam_size=min(experiment.evaluate.beam_size, vocab_size),
            top_k=min(experiment.evaluate.top_k, vocab_size),
        ),
        mesh=MeshConfig(rules=experiment.mesh.rules),
    )
