"""What launchers check before a run starts on machines with other files than this one's."""

import posixpath
import re
from collections.abc import Sequence

from transformer_jax.config import ConfigError
from transformer_jax.launching.run import Run


def read_environment(texts: Sequence[str]) -> dict[str, str]:
    """Variables from what was given to ``--env``.

    Raises:
      ConfigError: one is not KEY=VALUE.
    """
    found = {}
    for text in texts:
        key, is_set, value = text.partition("=")
        if not is_set or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ConfigError(f"--env={text} must be KEY=VALUE, a KEY of letters, digits and _")
        found[key] = value
    return found


def check_config_file(run: Run) -> None:
    """Makes sure that the file of the config is one that the other machines have.

    Raises:
      ConfigError: it is not in the checkout, or no config was given.
    """
    if not run.config_file:
        raise ConfigError("--config must be given: the run folder is not on this machine, to be read from")
    path = posixpath.normpath(run.config_file.partition(":")[0])
    if posixpath.isabs(path) or path.startswith(".."):
        raise ConfigError(
            f"--config={run.config_file} must be a path within the checkout, which is all that the other "
            "machines have: start this program in the checkout"
        )
