"""Writing files whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a file to write, which takes the place of ``path`` at the end, or goes on an error.

    Raises:
      OSError: it cannot be written; the message says why and what to do, and nothing is left beside it.
    """
    partial = f"{os.fspath(path)}.partial"
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        reason = f"cannot be written: {error.strerror or error}; mend that and run the same command again"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file, text as UTF-8: afterwards all of it is there, or what was there before.

    Raises:
      OSError: as ``whole_file``.
    """
    with whole_file(path) as partial, open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file whole or not at all; raises OSError as ``whole_file``."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
