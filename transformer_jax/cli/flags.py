"""Flags that several programs share, one-line errors, and reading standard input line by line."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_flags

from transformer_jax.checkpoints.files import CheckpointError
from transformer_jax.config import ConfigError
from transformer_jax.data import DataError
from transformer_jax.decoding.settings import DECODING_FIELDS, DecodingSettings

FLAGS = flags.FLAGS
# --help lists the flags under the program that calls the functions below, not under this module.
flags.disclaim_key_flags()

# Printed as one line, without a traceback. OSError: for example a full disk or a read-only folder.
USER_ERRORS = (ConfigError, DataError, CheckpointError, ValueError, OSError)
LINES_AT_ONCE = 1024

Settings = TypeVar("Settings", bound=DecodingSettings)


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Ends the program with one line for USER_ERRORS, and silently if the reader of its output has ended."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the status that shells use for SIGINT


def define_training_flags(flag_values: flags.FlagValues = FLAGS, argv: Sequence[str] | None = None) -> None:
    """Defines the flags of ``transformer_jax.train``; launchers use them too, to check what they pass on.

    Args:
      flag_values: the object in which the flags are defined.
      argv: the command line that will be parsed, with the program's name first; None for that of this
        process.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File of the experiment, such as experiments/number_words.py. Change any key with "
        "--config.SECTION.KEY=VALUE. Without --config the run in --workdir resumes with its stored config.",
        flag_values=flag_values,
        sys_argv=None if argv is None else list(argv),
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run, for config, checkpoints, metrics and summary.",
        flag_values=flag_values,
        required=True,
    )
    flags.DEFINE_bool(
        "shrink",
        False,
        "Train for two steps with a tiny model, to check that the experiment runs. Use a separate --workdir.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Let JAX find the other processes of the run (Cloud TPU, GKE, MPI). Not needed if a launcher or "
        "Slurm started them.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "start_timeout",
        300,
        "With several processes: seconds to wait until all have started.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "heartbeat_timeout",
        60,
        "With several processes: seconds without a heartbeat after which a process is considered dead.",
        lower_bound=5,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status if a signal stopped the run before its end, for schedulers that restart it.",
        lower_bound=0,
        upper_bound=255,
        flag_values=flag_values,
    )


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = FLAGS) -> list[str]:
    """Parses flags as absl does, but raises ConfigError where absl would print a traceback.

    Returns:
      The arguments that are not flags, with the program's name first.

    Raises:
      ConfigError: a flag is unknown, or its value or the config cannot be read.
    """
    try:
        return flag_values(list(argv))
    except flags.Error as error:  # if get_config raised, this contains its traceback: keep the last line
        lines = str(error).strip().splitlines()
        reason = lines[-1] if any(line.startswith("Traceback") for line in lines) else str(error)
        raise ConfigError(f"{reason} (--help explains the flags)") from error
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace("\\n", " ").replace("\\", "").replace('"', "'").split())
        raise ConfigError(f"--config cannot be read with these flags: {reason}") from error


def define_run_flags() -> None:
    """Defines the flags that choose a run and its checkpoint."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the run, the --workdir of transformer_jax.train.", required=True
    )
    _define_checkpoint_flags()


def define_model_flags() -> None:
    """Defines the flags that choose a Hugging Face checkpoint or a run; see ``loading.load_model``."""
    flags.DEFINE_string("model", None, "Hugging Face checkpoint: a folder, or a name on the hub.")
    flags.DEFINE_string("workdir", None, "Folder of a run of this library, instead of --model.")
    _define_checkpoint_flags()


def _define_checkpoint_flags() -> None:
    flags.DEFINE_string("from_checkpoint", "latest", "Checkpoint of the run: 'latest', 'best' or a step.")
    flags.DEFINE_integer(
        "average_last",
        None,
        "Average the parameters of this many last checkpoints. Default: evaluate.average_last of the config.",
        lower_bound=1,
    )


def define_decoding_flags() -> None:
    """Defines the flags of ``DecodingSettings``."""
    flags.DEFINE_integer("beam_size", None, "Number of hypotheses in beam search; 1 is greedy search.")
    flags.DEFINE_float(
        "length_penalty",
        None,
        "Exponent of the length penalty of beam search; larger values favour longer outputs.",
    )
    flags.DEFINE_float(
        "temperature",
        None,
        "If above 0, sample instead of searching; 1 samples from the model's distribution.",
    )
    flags.DEFINE_integer("top_k", None, "Sampling: number of most probable tokens to draw from; 0 for all.")
    flags.DEFINE_float(
        "top_p", None, "Sampling: draw from the fewest tokens that have this total probability."
    )
    flags.DEFINE_integer("seed", None, "Seed of the random numbers for sampling.")


def decoding_from_flags(settings: Settings, **changes: Any) -> Settings:
    """Returns ``settings`` with the values of ``changes`` and of the decoding flags that are not None."""
    changes |= {name: FLAGS[name].value for name in DECODING_FIELDS}
    return dataclasses.replace(
        settings, **{name: value for name, value in changes.items() if value is not None}
    )


def work_on_lines(check: Callable[[str, int], Any], work: Callable[[list[str], int], None]) -> None:
    """Processes the lines of standard input: one at a time from a terminal, otherwise many at once.

    Args:
      check: called with a line and its number, counted from 1; raises ValueError if the line cannot be
        processed. The lines before it are processed first.
      work: called with a list of lines and the index of the first, counted from 0; prints the results.

    Raises:
      ValueError: a line is not UTF-8, or ``check`` refused it; the message contains its number.
    """
    at_once = 1 if sys.stdin.isatty() else LINES_AT_ONCE
    lines: list[str] = []
    done = 0

    def flush() -> None:
        nonlocal done
        if lines:
            work(lines, done)
        sys.stdout.flush()
        done += len(lines)
        lines.clear()

    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
            check(text, number)
        except ValueError as error:
            flush()
            raise ValueError(f"line {number} of standard input: {error}") from error
        lines.append(text)
        if len(lines) == at_once:
            flush()
    flush()
