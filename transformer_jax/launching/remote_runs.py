"""Checks of a run that is started on other machines, which have only the files of the checkout."""

import posixpath
import re
from collections.abc import Sequence

from transformer_jax.config import ConfigError
from transformer_jax.launching.run import Run


def read_environment(texts: Sequence[str]) -> dict[str, str]:
    """Returns the environment variables given with ``--env=KEY=VALUE``.

    Raises:
      ConfigError: a text is not KEY=VALUE.
    """
    found = {}
    for text in texts:
        key, is_set, value = text.partition("=")
        if not is_set or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ConfigError(
                f"--env={text} must be KEY=VALUE, where KEY has only letters, digits and _ and does not "
                "begin with a digit"
            )
        found[key] = value
    return found


def check_config_file(run: Run) -> None:
    """Checks that the config file exists on the other machines, that is, in the checkout.

    Raises:
      ConfigError: the file is not in the checkout, or no config was given.
    """
    if not run.config_file:
        raise ConfigError(
            "--config is not set; give the experiment's file, because the stored config of the run folder "
            "cannot be read from this machine"
        )
    path = posixpath.normpath(run.config_file.partition(":")[0])
    if posixpath.isabs(path) or path.startswith(".."):
        raise ConfigError(
            f"--config={run.config_file} must be a relative path within the checkout, because the other "
            "machines have no other files; start this program in the root of the checkout"
        )
