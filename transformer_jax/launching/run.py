"""Separates the flags of a launcher from those of the train program, and checks the latter in advance.

A launcher starts ``python -m transformer_jax.train`` with all flags except its own, unchanged. Before it
starts or submits anything, it parses them as the train program will, so that a mistake is reported at once
and not in the log of a job that has waited for its nodes.
"""

import copy
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from transformer_jax.cli.flags import define_training_flags, parse_flags
from transformer_jax.config import ConfigError
from transformer_jax.files import write_json
from transformer_jax.runs.experiment import Experiment, read_experiment
from transformer_jax.runs.folder import check_workdir, load_config, run_folder

TRAIN_PROGRAM = "transformer_jax.train"
LAUNCH_FILE = "launch.json"  # in the run folder: the exit status and the log file of the last start
LOG_FILE = "log.txt"  # in the run folder: the output, if the launcher writes it there

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that a launcher will start."""

    workdir: str
    arguments: tuple[str, ...]  # flags of the train program as given, without --workdir
    experiment: Experiment
    config_file: str  # as given to --config, FILE or FILE:VARIANT; "" if the stored config is used
    overrides: Mapping[str, Any]  # config keys that flags set, and their values

    def command(self, python: str = sys.executable, *own: str) -> list[str]:
        """Returns the command that starts each process of the run.

        Args:
          python: the Python interpreter on the machine of the process.
          own: flags that the launcher adds; flags given by the user take precedence.
        """
        return [python, "-m", TRAIN_PROGRAM, *own, *self.arguments, f"--workdir={self.workdir}"]


def parse_own_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags of the running program and ``--help``, and returns all other arguments.

    It is a ``flags_parser`` for ``absl.app.run``. Other flags of absl, such as ``--verbosity``, are returned,
    because they belong to the train program.
    """
    names = ["help", "helpshort", "helpfull", "helpxml"]
    own = flags.FlagValues()
    for flag in [*FLAGS.get_key_flags_for_module(argv[0]), *(FLAGS[name] for name in names)]:
        own[flag.name] = flag
    try:
        others = split_flags(argv, own)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    FLAGS.mark_as_parsed()
    return others


def split_flags(argv: Sequence[str], own: flags.FlagValues) -> list[str]:
    """Parses the flags in ``own``, at any position, and returns the program name and all other arguments.

    Raises:
      ConfigError: the value of a flag in ``own`` is not valid.
    """
    try:
        return own(list(argv), known_only=True)
    except (flags.Error, ValueError) as error:
        raise ConfigError(f"{error} (--help explains the flags)") from error


def read_run(arguments: Sequence[str]) -> Run:
    """Returns the run that the train program would start with these flags, without using devices.

    Args:
      arguments: the flags of the train program, without the program name.

    Raises:
      ConfigError: a flag or a config key is unknown, a value is not valid, or the run folder contains another
        experiment. The message is that of the train program.
      OSError: the config file does not exist.
    """
    argv = [TRAIN_PROGRAM, *arguments]
    found = flags.FlagValues()
    define_training_flags(found, argv)
    for flag in FLAGS.get_flags_for_module("absl.logging"):
        found[flag.name] = copy.deepcopy(flag)
    _, *unexpected = parse_flags(argv, found)
    if unexpected:
        raise ConfigError(f"unexpected arguments {unexpected}: flags begin with --")
    if not found.workdir:
        raise ConfigError("--workdir is not set; give the folder of the run")
    workdir = run_folder(found.workdir)
    config_file, overrides = "", dict[str, Any]()
    if found.config is None:
        experiment = load_config(workdir)
    else:
        experiment = read_experiment(found.config)
        config_file = config_flags.get_config_filename(found["config"])
        overrides = config_flags.get_override_values(found["config"])
    if not found.shrink:  # the config of a shrunk experiment depends on the devices
        check_workdir(workdir, experiment)
    only_workdir = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=only_workdir)
    others = split_flags(argv, only_workdir)[1:]
    return Run(workdir, tuple(others), experiment, config_file, overrides)


def record_start(workdir: str, log: str) -> None:
    """Records the start of a run and its log file in the run folder, which is created if necessary."""
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    write_json(pathlib.Path(workdir) / LAUNCH_FILE, {"log": log, "exit_status": None})


def record_end(workdir: str, log: str, exit_status: int) -> None:
    """Records the exit status of a run; 0 means that it finished or was stopped with its state saved."""
    write_json(pathlib.Path(workdir) / LAUNCH_FILE, {"log": log, "exit_status": exit_status})
