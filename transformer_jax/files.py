"""Writing files whole or not at all."""

import contextlib
import os


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file, text as UTF-8: afterwards all of it is there, or what was there before.

    Raises:
      OSError: it cannot be written; the message says why and what to do, and nothing is left beside it.
    """
    partial = f"{os.fspath(path)}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        reason = f"cannot be written: {error.strerror or error}; mend that and run the same command again"
        raise OSError(error.errno, reason, os.fspath(path)) from error
