"""What the programs share: flags, errors of one line, and going through standard input line by line."""

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
from transformer_jax.decoding.settings import DecodingSettings

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the program's that calls the functions below, so --help shows them

# Reported in one line. OSError: a full disk, a folder that cannot be written.
USER_ERRORS = (ConfigError, DataError, CheckpointError, ValueError, OSError)
DECODING_FLAGS = tuple(field.name for field in dataclasses.fields(DecodingSettings))
LINES_AT_ONCE = 1024

Settings = TypeVar("Settings", bound=DecodingSettings)


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Ends the program with one line for a user's mistake, and quietly where its output is wanted no more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it


def define_training_flags(flag_values: flags.FlagValues = FLAGS, argv: Sequence[str] | None = None) -> None:
    """The flags of ``transformer_jax.train``, which a launcher passes on.

    Args:
      flag_values: where to define them.
      argv: what will be parsed, the program's name first, if it is not this process's command line.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File of the experiment, such as experiments/number_words.py; change any of its keys with "
        "--config.SECTION.KEY=VALUE. Without it the run in --workdir goes on as it was configured.",
        flag_values=flag_values,
        sys_argv=None if argv is None else list(argv),
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run: config, checkpoints, metrics, summary.",
        flag_values=flag_values,
        required=True,
    )
    flags.DEFINE_bool(
        "shrink",
        False,
        "Train the experiment for two steps with a tiny model: does it run at all? Use a workdir of its own.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "This is one of several processes, and JAX can find the others (Cloud TPU, GKE, MPI). Not needed "
        "where a launcher or Slurm started them.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "start_timeout",
        300,
        "Of several processes: seconds to wait for all of them.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "heartbeat_timeout",
        60,
        "Of several processes: seconds without a sign until one is taken for dead.",
        lower_bound=5,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status of a run that a signal stopped before its end, for what starts it again to tell by.",
        lower_bound=0,
        upper_bound=255,
        flag_values=flag_values,
    )


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = FLAGS) -> list[str]:
    """Absl's parser, with one line for a config that cannot be read instead of a traceback.

    Returns:
      What are no flags, the program's name first.

    Raises:
      ConfigError: a flag is unknown, or its value or the config cannot be read.
    """
    try:
        return flag_values(list(argv))
    except flags.Error as error:  # of a get_config that raised, the last line of its traceback
        lines = str(error).strip().splitlines()
        reason = lines[-1] if any(line.startswith("Traceback") for line in lines) else str(error)
        raise ConfigError(f"{reason} (--help explains the flags)") from error
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace("\\n", " ").replace("\\", "").replace('"', "'").split())
        raise ConfigError(f"--config cannot be read as the flags say: {reason}") from error


def define_run_flags() -> None:
    """The flags that choose a run, which must be given, and its checkpoint."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the run, as given to transformer_jax.train.", required=True
    )
    _define_checkpoint_flags()


def define_model_flags() -> None:
    """The flags that choose a checkpoint of ``transformers`` or a run; see ``loading.load_model``."""
    flags.DEFINE_string(
        "model", None, "Folder in the format of Hugging Face transformers, or a name on the hub."
    )
    flags.DEFINE_string("workdir", None, "Instead of --model: a run's folder, as given to train.")
    _define_checkpoint_flags()


def _define_checkpoint_flags() -> None:
    flags.DEFINE_string(
        "from_checkpoint", "latest", "Of a run: which checkpoint, 'latest', 'best' or a step."
    )
    flags.DEFINE_integer(
        "average_last",
        None,
        "Average the parameters of a run's last so many checkpoints; by default what its config says.",
        lower_bound=1,
    )


def define_decoding_flags() -> None:
    """The flags of ``DecodingSettings``."""
    flags.DEFINE_integer("beam_size", None, "Hypotheses kept in beam search; 1 is greedy search.")
    flags.DEFINE_float(
        "length_penalty", None, "Alpha of the length penalty of beam search; higher favours longer outputs."
    )
    flags.DEFINE_float("temperature", None, "Above 0: sample instead of searching; 1 is the model's own.")
    flags.DEFINE_integer("top_k", None, "Sampling: only the so many most probable tokens; 0 is all.")
    flags.DEFINE_float("top_p", None, "Sampling: only the most probable tokens of at least this mass.")
    flags.DEFINE_integer("seed", None, "Of sampling.")


def decoding_from_flags(settings: Settings, **changes: Any) -> Settings:
    """The settings with those that flags, or ``changes`` that are not None, set otherwise."""
    changes |= {name: FLAGS[name].value for name in DECODING_FLAGS}
    return dataclasses.replace(
        settings, **{name: value for name, value in changes.items() if value is not None}
    )


def work_on_lines(check: Callable[[str, int], Any], work: Callable[[list[str], int], None]) -> None:
    """Goes through standard input: line by line where someone types, else many at a time.

    Args:
      check: raises ValueError for a line that cannot be worked on, given with its number from 1 on. What
        precedes such a line is worked on before the error.
      work: prints what comes of some lines, given with the number of the first from 0 on.

    Raises:
      ValueError: a line is not UTF-8, or ``check`` refused it; the message says which.
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
