"""Writes files atomically: a file is either complete or not changed."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file, and renames it to ``path`` at the end; an OSError deletes it.

    Raises:
      OSError: the file cannot be written; the message says why and what to do.
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
        reason = f"cannot be written: {error.strerror or error}; fix this and run the same command again"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks that ``path`` can be written, before a program spends time on its content.

    Raises:
      OSError: the folder of ``path`` does not exist or is not writable, or ``path`` is itself a folder.
    """
    target = pathlib.Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot be written: it is a folder", os.fspath(path))
    if not target.parent.is_dir():
        reason = f"cannot be written: the folder {target.parent} does not exist; create it first"
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
    """Writes a file atomically, text as UTF-8: after a failure the previous content is still there.

    Raises:
      OSError: see ``whole_file``.
    """
    with whole_file(path) as partial, open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file atomically; raises OSError as ``whole_file`` does."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
