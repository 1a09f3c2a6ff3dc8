"""An experiment: its sections as checked dataclasses, and the run folder that it leaves behind.

A run folder (``workdir``) holds ``config.json``, ``tokenizer.json`` (and ``tokenizer_data.json``, what it was
made for), ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and, at the end, ``summary.json``; of each
evaluated split ``evaluation_SPLIT.json`` and ``translations_SPLIT.txt``.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from transformer_jax.checkpoint import CheckpointConfig
from transformer_jax.compatibility import check_sections
from transformer_jax.config import ConfigError, TransformerConfig, check_keys, check_types, read_section
from transformer_jax.data import (
    DataConfig,
    DataError,
    Tokenizer,
    TokenizerConfig,
    load_sources,
    train_tokenizer,
    training_texts,
)
from transformer_jax.files import write_json
from transformer_jax.objectives import OBJECTIVES, Objective
from transformer_jax.objectives.base import BoundTransform
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.partitioning import MeshConfig
from transformer_jax.pretrained import TOKENIZER_FILE, find_folder
from transformer_jax.progress import say

CONFIG_FILE = "config.json"
TOKENIZER_DATA_FILE = "tokenizer_data.json"  # the data section that the tokenizer was made for
CHECKPOINTS_FOLDER = "checkpoints"
SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: int = 100_000  # optimizer updates
    log_every_steps: int = 100
    evaluate_every_steps: int = 1000  # loss on the validation split; also scores checkpoints
    gradient_accumulation_steps: int = 1  # micro-batches of each batch, one after the other
    seed: int = 0  # of the initial parameters and of dropout
    init_from: str = ""  # a run folder, a folder of transformers or a name on the hub, to start from

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
class EvaluateConfig:
    """How a trained model translates and is scored."""

    split: str = "test"
    beam_size: int = 4  # 1 is greedy search
    length_penalty: float = 0.6  # alpha of Wu et al. 2016, equation 14
    temperature: float = 0.0  # above 0 samples instead of searching
    top_k: int = 0  # sampling: from the so many most probable tokens; 0 is all
    top_p: float = 1.0  # sampling: from the most probable tokens of at least this mass
    seed: int = 0  # of sampling
    extra_length: int = 50  # tokens that an output may have beyond its source, section 6.1
    batch_size: int = 32  # sentences decoded at once
    average_last: int = 1  # checkpoints whose parameters are averaged
    num_samples: int = 4  # translations to show

    def __post_init__(self) -> None:
        check_types(self, "evaluate")
        for name in ("beam_size", "batch_size", "average_last", "extra_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name}={getattr(self, name)} must be at least 1")
        for name in ("num_samples", "temperature", "top_k", "seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"evaluate.{name}={getattr(self, name)} must be from 0 to 2**31 - 1")
        if not -5 <= self.length_penalty <= 5:
            raise ValueError(f"evaluate.length_penalty={self.length_penalty} must be from -5 to 5")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"evaluate.top_p={self.top_p} must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                "evaluate.top_k and top_p are for sampling: set evaluate.temperature above 0, say 1"
            )


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
        check_sections(self.model, self.objective, self.data, self.train, self.checkpoint, self.evaluate)

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """The sections with every key spelt out: what ``get_config`` of an experiment returns."""
        return ml_collections.ConfigDict(dataclasses.asdict(self))


# What a stored run may be continued with; any other change makes it another experiment.
FREE_SECTIONS = ("checkpoint", "evaluate", "mesh")
FREE_KEYS = ("train.num_steps", "train.log_every_steps", "train.evaluate_every_steps", "data.source.folder")


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


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _as_json(experiment: Experiment) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def check_workdir(workdir: str | os.PathLike[str], experiment: Experiment) -> None:
    """Refuses a run folder in which another experiment was trained.

    A config without checkpoints was never trained with: it does not count, and will be replaced.

    Raises:
      ConfigError: the folder holds another experiment; the message lists what differs.
    """
    if not _has_checkpoints(workdir):
        return
    old, new = _flatten(_as_json(load_config(workdir))), _flatten(_as_json(experiment))
    differing = [
        f"config.{key}: {old[key]!r} there, {new[key]!r} here"
        for key in new
        if old[key] != new[key] and key not in FREE_KEYS and key.split(".")[0] not in FREE_SECTIONS
    ]
    if differing:
        raise ConfigError(
            f"{workdir} holds another experiment; use another --workdir, or undo\n  " + "\n  ".join(differing)
        )


def run_folder(workdir: str | os.PathLike[str]) -> str:
    """The run folder with ``~`` spelt out, which a shell leaves in ``--workdir=~/runs``.

    Raises:
      ConfigError: it is a URL.
    """
    path = os.path.expanduser(os.fspath(workdir))
    if "://" in path:
        raise ConfigError(
            f"the workdir {path} is a URL, but metrics and figures are written as files: mount the bucket "
            "and name the folder where it is mounted"
        )
    return path


def store_config(workdir: str | os.PathLike[str], experiment: Experiment) -> None:
    """Writes ``config.json``, once everything else has turned out to fit."""
    write_json(pathlib.Path(workdir) / CONFIG_FILE, _as_json(experiment))


def _has_checkpoints(workdir: str | os.PathLike[str]) -> bool:
    folder = pathlib.Path(workdir) / CHECKPOINTS_FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def load_config(workdir: str | os.PathLike[str]) -> Experiment:
    """Reads the experiment that a run folder holds.

    Raises:
      ConfigError: the folder holds no run, or its config is broken.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        return read_experiment(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if _has_checkpoints(workdir):
            raise ConfigError(
                f"{workdir} has checkpoints but no {CONFIG_FILE}, which says what they are: put it back"
            ) from None
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG_FILE} in it") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def load_or_train_tokenizer(workdir: str | os.PathLike[str], experiment: Experiment) -> Tokenizer:
    """The run's own tokenizer; if it has none yet, one trained on the training split and stored.

    Raises:
      ConfigError: its vocabulary, or the ids of special tokens, do not fit the model.
      DataError: the stored file is broken, or the training split cannot be read.
    """
    path = pathlib.Path(workdir) / TOKENIZER_FILE
    if experiment.model.image_shape or _has_checkpoints(workdir) or _was_made_for(workdir, experiment):
        return load_tokenizer(workdir, experiment)
    section = experiment.data.tokenizer
    origin = section.path or experiment.train.init_from
    if origin and not origin.endswith(".json"):
        origin = str(find_folder(origin) / TOKENIZER_FILE)
    section = dataclasses.replace(section, path=origin)
    texts: Iterable[str] = ()
    if not section.path:
        texts = training_texts(section, load_sources(experiment.data.sources, "train"))
        say("training the tokenizer on the training split")
    tokenizer = train_tokenizer(section, texts)
    _check_vocabulary(tokenizer, experiment, section.path or "the training split")
    path.parent.mkdir(parents=True, exist_ok=True)
    data_path = path.with_name(TOKENIZER_DATA_FILE)
    data_path.unlink(missing_ok=True)  # it never stands beside a tokenizer that it does not describe
    tokenizer.save(path)
    write_json(data_path, _as_json(experiment)["data"])
    return tokenizer


def load_tokenizer(workdir: str | os.PathLike[str], experiment: Experiment) -> Tokenizer:
    """The tokenizer that the run folder holds.

    Raises:
      ConfigError: its vocabulary, or the ids of special tokens, do not fit the model.
      DataError: there is none, or it is broken.
    """
    if experiment.model.image_shape:  # nothing to encode: bytes will do, and need no file
        return train_tokenizer(TokenizerConfig(kind="byte"), ())
    path = pathlib.Path(workdir) / TOKENIZER_FILE
    if not path.exists():
        raise DataError(f"{path} is missing: put it back, checkpoints can be used with no other tokenizer")
    tokenizer = Tokenizer.load(path)
    _check_vocabulary(tokenizer, experiment, str(path))
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, experiment: Experiment, origin: str) -> None:
    if tokenizer.vocab_size > experiment.model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {origin} has {tokenizer.vocab_size} tokens, the model only "
            f"config.model.vocab_size={experiment.model.vocab_size}"
        )
    choices = {"pad_id": ("pad",)}
    if tokenizer.has_role("eos"):  # without, as BERT's, it is for no decoder
        # What the decoder begins with is the paper's choice: T5 has pad there, BART eos.
        choices |= {"eos_id": ("eos",), "decoder_start_id": ("bos", "pad", "eos")}
    for name, roles in choices.items():
        ids = {role: tokenizer.id_of(role) for role in roles if tokenizer.has_role(role)}
        found = getattr(experiment.model, name)
        if ids and found not in ids.values():
            known = " or ".join(f"{id_} ({role})" for role, id_ in ids.items())
            raise ConfigError(f"config.model.{name}={found} must be {known}, as in the tokenizer of {origin}")


def _was_made_for(workdir: str | os.PathLike[str], experiment: Experiment) -> bool:
    """Whether an untrained run's tokenizer was trained on the same data with the same settings."""
    path = pathlib.Path(workdir) / TOKENIZER_DATA_FILE
    if experiment.data.tokenizer.path or not path.exists():  # a file may have changed since
        return False
    stored = json.loads(path.read_text(encoding="utf-8"))
    return path.with_name(TOKENIZER_FILE).exists() and stored == _as_json(experiment)["data"]


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
