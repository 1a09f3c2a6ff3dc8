"""Reads an experiment: its sections as checked dataclasses."""

import dataclasses
from typing import Any, get_args, get_type_hints

import ml_collections
from ml_collections import config_dict

from transformer_jax.checkpoints.checkpointer import CheckpointConfig
from transformer_jax.config import (
    ConfigError,
    UnknownNameError,
    check_keys,
    check_types,
    import_callable,
    read_section,
)
from transformer_jax.data import DataConfig, Tokenizer
from transformer_jax.decoding.settings import DecodingSettings
from transformer_jax.layers.attention_kernels import check_attention
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import OBJECTIVES, Objective
from transformer_jax.objectives.base import BoundTransform
from transformer_jax.optimizers.optimizers import OptimizerConfig
from transformer_jax.runs.compatibility import check_sections
from transformer_jax.runs.facts import model_facts
from transformer_jax.sharding.partitioning import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop.

    Attributes:
      num_steps: number of optimizer updates.
      log_every_steps: steps between two lines of training metrics.
      evaluate_every_steps: steps between two evaluations on the validation split, which score checkpoints.
      gradient_accumulation_steps: number of micro-batches that each batch is split into and that are computed
        one after the other.
      seed: seed of the initial parameters and of dropout.
      init_from: the run folder, folder in Hugging Face's format or name on the hub whose parameters training
        starts from; "" starts from random ones.
    """

    num_steps: int = 100_000
    log_every_steps: int = 100
    evaluate_every_steps: int = 1000
    gradient_accumulation_steps: int = 1
    seed: int = 0
    init_from: str = ""

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
    """Settings of decoding and scoring with a trained model.

    Attributes:
      split: the split that is scored.
      extra_length: number of tokens that an output may have beyond its source (Vaswani et al. 2017,
        section 6.1).
      batch_size: number of texts that are decoded at once.
      average_last: number of checkpoints whose parameters are averaged.
      num_samples: number of outputs that are printed.
    """

    split: str = "test"
    extra_length: int = 50
    batch_size: int = 32
    average_last: int = 1
    num_samples: int = 4

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
    """Everything that determines a run. Each section is read by the module that it configures.

    Attributes:
      extensions: "package.module:function" of functions that add entries to the library's registries. They
        are called before the sections of a config are read, so that a run folder can be used by every
        program. A config file that uses such entries calls them itself too. A process may call a function
        several times, so its later calls must leave what its first call did. Not a section.
    """

    model: TransformerConfig
    objective: Objective
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_attention(self.mesh.attention)
        except ValueError as error:
            raise ConfigError(f"config.{error}") from error
        check_sections(self.model, self.objective, self.data, self.checkpoint, self.train, self.evaluate)

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """Returns the sections with all their keys, as ``get_config`` of an experiment does."""
        return _as_config_dict(self)


def _as_config_dict(section: Any) -> ml_collections.ConfigDict:
    """Returns the fields of a dataclass; those of nested dataclasses are sections of their own.

    A key that is None gets a placeholder of its type, because a flag cannot set a key of unknown type.
    """
    config = ml_collections.ConfigDict(dataclasses.asdict(section))
    hints = get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            config[field.name] = _as_config_dict(value)
        elif value is None:
            (kind,) = set(get_args(hints[field.name])) - {type(None)}
            config[field.name] = config_dict.placeholder(kind)
    return config


def read_experiment(config: Any) -> Experiment:
    """Checks a config and returns its sections as dataclasses.

    Raises:
      ConfigError: a section or key is unknown or missing, has the wrong type, or does not fit another one.
    """
    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Experiment)}
    if not hasattr(config, "items"):  # of a file that is not there, this raises the error of opening it
        raise ConfigError(
            "an experiment must be sections of keys, as to_config_dict() gives them, not a "
            f"{type(config).__name__}"
        )
    found = dict(config.items())
    check_keys(found, sections, "config")
    del sections["extensions"]
    extensions = call_extensions(found["extensions"])
    try:
        sections["objective"] = _objective_class(found["objective"])
        read = {name: read_section(cls, found[name], name) for name, cls in sections.items()}
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error}. If a module of yours adds it to the library, name its function in config.extensions, "
            'such as ("my_package.my_module:register",)'
        ) from error
    return Experiment(**read, extensions=extensions)


def _objective_class(section: Any) -> type[Objective]:
    if not hasattr(section, "items"):
        raise ConfigError(f"config.objective must be a section of keys, not {section!r}")
    name = dict(section.items()).get("name")
    if name not in OBJECTIVES:
        raise UnknownNameError(f"config.objective.name={name!r} must be one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def call_extensions(extensions: Any) -> tuple[str, ...]:
    """Calls the functions that ``Experiment.extensions`` names, and returns their names.

    Raises:
      ConfigError: these are no names, or one of them cannot be imported or called.
    """
    if not isinstance(extensions, list | tuple) or not all(isinstance(name, str) for name in extensions):
        raise ConfigError(f"config.extensions must be a tuple of texts, not {extensions!r}")
    for extension in extensions:
        import_callable(extension, "config.extensions", "a function that adds entries to registries")()
    return tuple(extensions)


def make_transform(experiment: Experiment, tokenizer: Tokenizer, *, train: bool) -> BoundTransform:
    """Returns the objective's transforms on the host, with everything they need except the data.

    Args:
      experiment: the experiment, whose data section has the length of a side.
      tokenizer: the tokenizer of the run.
      train: whether pieces are for training.
    """
    max_length = experiment.data.max_length
    return BoundTransform(experiment.objective, tokenizer, max_length, train, model_facts(experiment.model))
