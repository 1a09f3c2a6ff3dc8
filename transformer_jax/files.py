"""Writing files whole or not at all."""

import contextlib
import errno
import json
import os
import pathlib
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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Finds out whether ``path`` can be written before there is something to write, whatever that costs.

    Raises:
      OSError: its folder is not there or cannot be written to, or it is a folder itself.
    """
    target = pathlib.Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot be written: it is a folder", os.fspath(path))
    if not target.parent.is_dir():
        reason = f"cannot be written: there is no folder {target.parent}; make it first"
        raise FileNotFoundError(errno.ENOENT, reason, os.fspath(path))
    partial = f"{os.fspath(path)}.partial"
    try:
        with open(partial, "wb"):
            pass
        os.unlink(partial)
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}"
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
