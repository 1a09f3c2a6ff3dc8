"""Reads and writes the run folder, in which training an experiment leaves its results.

A run folder (``workdir``) contains ``config.json``, ``tokenizer.json``, ``tokenizer_data.json`` (the data
section that the tokenizer was made for), ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and, after
training, ``summary.json``. Each evaluated split adds ``evaluation_SPLIT.json``, and the predicted texts if
there are any, such as ``translations_SPLIT.txt``.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.data import (
    DataError,
    Tokenizer,
    TokenizerConfig,
    load_sources,
    train_tokenizer,
    training_texts,
)
from transformer_jax.files import write_json
from transformer_jax.pretrained.folder import TOKENIZER_FILE, find_tokenizer
from transformer_jax.pretrained.hub import find_folder
from transformer_jax.reporting.progress import say
from transformer_jax.runs.experiment import Experiment, call_extensions, read_experiment
from transformer_jax.runs.stored_configs import upgraded

CONFIG_FILE = "config.json"
TOKENIZER_DATA_FILE = "tokenizer_data.json"
CHECKPOINTS_FOLDER = "checkpoints"
SUMMARY_FILE = "summary.json"

# A run may be continued with other values of these; a change of any other key makes it another experiment.
FREE_SECTIONS = ("checkpoint", "evaluate", "mesh")
FREE_KEYS = (
    *("train.num_steps", "train.log_every_steps", "train.evaluate_every_steps"),
    *("data.source.folder", "extensions"),
)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the keys of all sections under their full names, such as ``optimizer.peak_rate``."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _as_json(experiment: Experiment) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def flat_config(experiment: Experiment) -> dict[str, Any]:
    """Returns all keys under their full names, without the folders of further sources, which may change."""
    content = _as_json(experiment)
    for source in content["data"]["more_sources"]:
        del source["folder"]
    return flatten(content)


def check_workdir(workdir: str | os.PathLike[str], experiment: Experiment) -> None:
    """Checks that no other experiment was trained in a run folder.

    A config without checkpoints is ignored, because nothing was trained with it.

    Raises:
      ConfigError: another experiment was trained in the folder; the message lists the differences.
    """
    if not has_checkpoints(workdir):
        return
    old, new = flat_config(load_config(workdir)), flat_config(experiment)
    differing = [
        f"config.{key}: {old.get(key, 'nothing')!r} there, {new.get(key, 'nothing')!r} here"
        for key in {**old, **new}  # objectives have keys of their own
        if old.get(key) != new.get(key) and key not in FREE_KEYS and key.split(".")[0] not in FREE_SECTIONS
    ]
    if differing:
        raise ConfigError(
            f"{workdir} holds another experiment; use another --workdir, or undo these changes:\n  "
            + "\n  ".join(differing)
        )


def run_folder(workdir: str | os.PathLike[str]) -> str:
    """Returns the run folder's path with ``~`` expanded, which a shell does not do in ``--workdir=~/runs``.

    Raises:
      ConfigError: the path is a URL.
    """
    path = os.path.expanduser(os.fspath(workdir))
    if "://" in path:
        raise ConfigError(
            f"the workdir {path} is a URL, but a run folder must be on a file system: mount the bucket and "
            "give the folder where it is mounted"
        )
    return path


def store_config(workdir: str | os.PathLike[str], experiment: Experiment) -> None:
    """Writes ``config.json``. Call it after all checks, so that a config that fails leaves no file."""
    write_json(pathlib.Path(workdir) / CONFIG_FILE, _as_json(experiment))


def has_checkpoints(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether a run folder has a checkpoint."""
    folder = pathlib.Path(workdir) / CHECKPOINTS_FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def load_config(workdir: str | os.PathLike[str]) -> Experiment:
    """Reads the experiment of a run folder.

    Raises:
      ConfigError: the folder has no config, or the config is broken.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if has_checkpoints(workdir):
            raise ConfigError(
                f"{workdir} has checkpoints but no {CONFIG_FILE}, which describes them: put it back"
            ) from None
        raise ConfigError(
            f"{workdir} holds no run, because it has no {CONFIG_FILE}; give the --workdir of a run"
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict):  # front ends from outside bring their keys to date too
        call_extensions(content.get("extensions", ()))
    return read_experiment(upgraded(content))


def load_or_train_tokenizer(workdir: str | os.PathLike[str], experiment: Experiment) -> Tokenizer:
    """Returns the run's tokenizer; if the run has none yet, makes one and stores it.

    A new tokenizer is read from the file that the config names, taken from the folder that training starts
    from, or trained on the training split.

    Raises:
      ConfigError: the vocabulary or the ids of special tokens do not fit the model.
      DataError: the file is broken, or the training split cannot be read.
    """
    path = pathlib.Path(workdir) / TOKENIZER_FILE
    is_needed = experiment.model.has_vocabulary
    if not is_needed or has_checkpoints(workdir) or _was_made_for(workdir, experiment):
        return load_tokenizer(workdir, experiment)
    section = experiment.data.tokenizer
    origin = section.path or experiment.train.init_from
    if not origin:
        say("training the tokenizer on the training split")
        texts = training_texts(section, load_sources(experiment.data.sources, "train"))
        tokenizer = train_tokenizer(section, texts)
    elif origin.endswith(".json"):
        tokenizer = Tokenizer.load(origin)
    else:
        tokenizer = _tokenizer_of(origin)
    _check_vocabulary(tokenizer, experiment, origin or "the training split")
    path.parent.mkdir(parents=True, exist_ok=True)
    data_path = path.with_name(TOKENIZER_DATA_FILE)
    data_path.unlink(missing_ok=True)  # first, so that it never describes another tokenizer
    tokenizer.save(path)
    write_json(data_path, _as_json(experiment)["data"])
    return tokenizer


def _tokenizer_of(origin: str) -> Tokenizer:
    """Returns the tokenizer of the folder that training starts from."""
    folder = find_folder(origin)
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise DataError(
            f"{folder} has no {TOKENIZER_FILE}, from which this run takes its tokenizer: put the file "
            "there, or name another file in config.data.tokenizer.path"
        )
    return tokenizer


def load_tokenizer(workdir: str | os.PathLike[str], experiment: Experiment) -> Tokenizer:
    """Reads the tokenizer of a run folder.

    Raises:
      ConfigError: the vocabulary or the ids of special tokens do not fit the model.
      DataError: the file is missing or broken.
    """
    if not experiment.model.has_vocabulary:  # nothing to encode: bytes will do, and need no file
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
    if not experiment.model.is_encoder_only:
        if not tokenizer.has_role("eos"):
            raise ConfigError(
                f"the tokenizer of {origin} has no token that ends a decoder's text, such as <eos> or </s>: "
                "use a tokenizer that was made for a model with a decoder"
            )
        # Papers choose the token that the decoder starts with: T5 uses pad, BART eos.
        choices |= {"eos_id": ("eos",), "decoder_start_id": ("bos", "pad", "eos")}
    for name, roles in choices.items():
        ids = {role: tokenizer.id_of(role) for role in roles if tokenizer.has_role(role)}
        found = getattr(experiment.model, name)
        if ids and found not in ids.values():
            known = " or ".join(f"{id_} ({role})" for role, id_ in ids.items())
            raise ConfigError(f"config.model.{name}={found} must be {known}, as in the tokenizer of {origin}")


def _was_made_for(workdir: str | os.PathLike[str], experiment: Experiment) -> bool:
    """Returns whether the tokenizer of an untrained run was trained on the same data and settings."""
    path = pathlib.Path(workdir) / TOKENIZER_DATA_FILE
    # Otherwise it came from a file, which may have changed since.
    if experiment.data.tokenizer.path or experiment.train.init_from or not path.exists():
        return False
    stored = upgraded({"data": json.loads(path.read_text(encoding="utf-8"))})["data"]
    return path.with_name(TOKENIZER_FILE).exists() and stored == _as_json(experiment)["data"]
