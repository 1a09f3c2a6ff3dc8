"""What launchers share: which flags are their own, and the training that the others say, looked at
beforehand.

A launcher starts ``python -m transformer_jax.train`` with all flags but its own, as they were given. Before
anything is started or submitted, they are read as that program will read them, so that a mistake
is one line here and not in the log of a job that waited for its nodes.
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
LAUNCH_FILE = "launch.json"  # in a run folder: how its last start ended, and where its output is
LOG_FILE = "log.txt"  # in a run folder: the output, where a launcher writes it there

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Run:
    """A training to be started."""

    workdir: str
    arguments: tuple[str, ...]  # flags of the train program as they were given, without --workdir
    experiment: Experiment
    config_file: str  # as given to --config, FILE or FILE:VARIANT; "" where the stored config is used
    overrides: Mapping[str, Any]  # keys of the config that flags set, and their values
    is_shrunk: bool = False

    def command(self, python: str = sys.executable, *own: str) -> list[str]:
        """What starts it, on each of its processes.

        Args:
          python: the interpreter there.
          own: flags of the launcher's; of two that differ, the one that was given counts.
        """
        return [python, "-m", TRAIN_PROGRAM, *own, *self.arguments, f"--workdir={self.workdir}"]


def parse_own_flags(argv: Sequence[str]) -> list[str]:
    """A parser for ``absl.app.run``: takes the flags of the program and ``--help``, and gives back all
    others.

    What is absl's besides, such as ``--verbosity``, is the train program's.
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
    """Sets the flags in ``own``, wherever they stand, and returns the program's name and all others in order.

    Raises:
      ConfigError: the value of one of them cannot be used.
    """
    try:
        return own(list(argv), known_only=True)
    except (flags.Error, ValueError) as error:
        raise ConfigError(f"{error} (--help explains the flags)") from error


def read_run(arguments: Sequence[str]) -> Run:
    """What the train program would make of its flags, without the devices.

    Args:
      arguments: its flags, without its name.

    Raises:
      ConfigError: a flag or a key is unknown, a value does not fit, or the run folder holds another
        experiment; the message is the one that the train program gives.
      OSError: the file of the config is not there.
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
        raise ConfigError("--workdir must name the folder of the run")
    workdir = run_folder(found.workdir)
    config_file, overrides = "", dict[str, Any]()
    if found.config is None:
        experiment = load_config(workdir)
    else:
        experiment = read_experiment(found.config)
        config_file = config_flags.get_config_filename(found["config"])
        overrides = config_flags.get_override_values(found["config"])
    if not found.shrink:  # what a shrunk experiment becomes depends on the devices
        check_workdir(workdir, experiment)
    only_workdir = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=only_workdir)
    others = split_flags(argv, only_workdir)[1:]
    return Run(workdir, tuple(others), experiment, config_file, overrides, found.shrink)


def record_start(workdir: str, log: str) -> None:
    """Notes in a run folder, made if it is not there, that a run was started whose output is in ``log``."""
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    write_json(pathlib.Path(workdir) / LAUNCH_FILE, {"log": log, "exit_status": None})


def record_end(workdir: str, log: str, exit_status: int) -> None:
    """Notes how a run that was started ended: 0 is well, or stopped by a signal with all of it saved."""
    write_json(pathlib.Path(workdir) / LAUNCH_FILE, {"log": log, "exit_status": exit_status})
