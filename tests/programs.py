"""The command-line programs inside this process, for tests of their mistakes: a new process takes seconds."""

import contextlib
import importlib.util
import io
import os
import pathlib
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

from absl import app, flags

import transformer_jax
from transformer_jax.cli import process

FOLDER = pathlib.Path(transformer_jax.__file__).parent


class Outcome(NamedTuple):
    """What a process would end with: its status, and what it printed."""

    status: int
    out: str
    err: str


def run_program(name: str, *arguments: object) -> Outcome:
    """Runs ``python -m transformer_jax.NAME`` with an empty standard input, in this process.

    The settings of the process are left as they are, and the flags that the program defines are removed at
    the end, so that another program can define its own.
    """
    spec = importlib.util.find_spec(f"transformer_jax.{name}")
    assert spec is not None and spec.origin is not None, name
    path = pathlib.Path(spec.origin)
    path = path.with_name("__main__.py") if path.name == "__init__.py" else path
    command = [str(path), *map(str, arguments)]
    known, handler = set(flags.FLAGS), signal.getsignal(signal.SIGTERM)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(FOLDER.parent))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(mock.patch.object(sys, "stdin", stack.enter_context(open(os.devnull))))
        stack.enter_context(mock.patch.object(app, "run", _run))
        stack.enter_context(mock.patch.object(process, "prepare_process", lambda: None))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # of ml_collections
        try:
            runpy.run_path(command[0], run_name="__main__")
            code: Any = 0
        except SystemExit as error:
            code = error.code
        finally:
            signal.signal(signal.SIGTERM, handler)
            flags.FLAGS.remove_flag_values([flag for flag in flags.FLAGS if flag not in known])
            flags.FLAGS.unparse_flags()
    text = "" if code is None or isinstance(code, int) else f"{code}\n"
    printed = [stream.buffer.getvalue().decode() for stream in _flushed(out, err)]
    return Outcome(1 if text else int(code or 0), printed[0], printed[1] + text)


def _flushed(*streams: io.TextIOWrapper) -> Sequence[Any]:
    for stream in streams:
        stream.flush()
    return streams


def _run(
    main: Callable[[list[str]], Any], flags_parser: Callable[[list[str]], Any] = app.parse_flags_with_usage
) -> None:
    """Stands in for ``absl.app.run`` without its settings of the process."""
    try:
        sys.exit(main(flags_parser(sys.argv)))
    except app.UsageError as error:
        app.usage(shorthelp=True, detailed_error=error, exitcode=error.exitcode)
