"""Prints the results of a sweep; as a module, it reads the members that an experiment's ``sweep()`` yields.

    python -m transformer_jax.launching.sweeps --workdir=runs/sweep

``sweep()`` is a function in an experiment's file, beside ``get_config()``, with the same argument if any. It
yields dicts of overrides with dotted keys, such as ``{"optimizer.peak_rate": 1e-3}``. With ``--sweep``, every
launcher starts one run per member, in ``WORKDIR/MEMBER``. This program prints the table of their results,
finished or not, and writes it to ``sweep_results.txt`` and ``sweep_results.json`` in the folder of the sweep.
Its exit status is 1 if a member failed.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from transformer_jax.cli.flags import reported_errors
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError, nearest
from transformer_jax.files import write_json
from transformer_jax.launching.run import Run, read_run
from transformer_jax.launching.sweep_results import SWEEP_FILE, has_failures, report_results
from transformer_jax.reporting.progress import say
from transformer_jax.runs.folder import (
    CONFIG_FILE,
    SUMMARY_FILE,
    flatten,
    has_checkpoints,
    load_config,
    run_folder,
)

UNCHANGED = "unchanged"  # name of the member without overrides
_LONGEST_NAME = 150  # characters; file systems take 255 bytes
_PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # of its folder, within the folder of the sweep
    overrides: Mapping[str, Any]
    run: Run


def read_members(run: Run) -> tuple[Member, ...]:
    """Returns the members of a sweep, each checked like a run that is started alone.

    Args:
      run: the run that the flags describe; its folder is that of the sweep.

    Raises:
      ConfigError: the experiment has no ``sweep()``; or it yields something other than dicts, an unknown key,
        a value that is not valid, a key that a flag sets too, or the same experiment twice; or the folder
        contains a single run; or the folder of a member contains another experiment.
    """
    if not run.config_file:
        raise ConfigError("--sweep needs --config; give the file whose sweep() yields the members")
    if has_checkpoints(run.workdir) or (pathlib.Path(run.workdir) / CONFIG_FILE).exists():
        raise ConfigError(f"{run.workdir} contains a single run; give the sweep another --workdir")
    where = f"sweep() of {run.config_file}"
    keys = flatten(run.experiment.to_config_dict().to_dict())
    members: list[Member] = []
    for number, overrides in enumerate(_call_sweep(run.config_file), 1):
        place = f"{where}, member {number}"
        _check_overrides(overrides, keys, run.overrides, place)
        name = member_name(overrides)
        arguments = [*run.arguments, *(f"--config.{key}={_flag_text(overrides[key])}" for key in overrides)]
        try:
            found = read_run([*arguments, f"--workdir={run.workdir}/{name}"])
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        _check_values(overrides, found, place)
        members.append(Member(name, overrides, found))
    if not members:
        raise ConfigError(f"{where} yields no member; it must yield at least one dict of overrides")
    for (i, first), (j, second) in itertools.combinations(enumerate(members, 1), 2):
        if first.run.experiment == second.run.experiment:
            raise ConfigError(
                f"{where}: members {i} and {j} are the same experiment, {second.name}; remove one of them"
            )
        if first.name.lower() == second.name.lower():
            raise ConfigError(
                f"{where}: members {i} and {j} have the same name, {second.name}; change the overrides of one"
            )
    return tuple(members)


def member_name(overrides: Mapping[str, Any]) -> str:
    """Returns the name of a member's folder, such as ``optimizer.peak_rate=0.001,train.seed=1``.

    It depends only on the overrides and not on their order, so that a sweep that is started again, perhaps
    with more members, finds the folder of each. The name includes a hash if the overrides have capital
    letters, or are too long or have characters that are not suitable for a folder name.
    """
    if not overrides:
        return UNCHANGED
    text = ",".join(f"{key}={_flag_text(overrides[key])}" for key in sorted(overrides))
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text)[:_LONGEST_NAME]
    if safe == text.lower():
        return safe
    return f"{safe},{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_finished(run: Run) -> bool:
    """Returns whether the folder of a run contains exactly this experiment, fully trained and evaluated."""
    path = pathlib.Path(run.workdir) / SUMMARY_FILE
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return steps == run.experiment.train.num_steps and load_config(run.workdir) == run.experiment
    except (OSError, ValueError, KeyError, TypeError):
        return False


def begin_sweep(run: Run, members: Sequence[Member]) -> list[Member]:
    """Writes the list of the members into the folder of the sweep, and returns the members to start.

    It prints the names of members that are already finished, and of former members that are no longer in the
    sweep.

    Raises:
      OSError: the list cannot be written.
    """
    folder = pathlib.Path(run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    names = {member.name for member in members}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        for name in [member["name"] for member in before["members"]]:
            if name not in names:
                say(f"{name} is no longer a member of this sweep; its folder is kept")
    sections = [member.run.experiment.checkpoint for member in members]
    rankings = {(section.best_metric, section.best_mode) for section in sections}
    metric, mode = rankings.pop() if len(rankings) == 1 else (None, None)
    content = {
        "config": run.config_file,
        "best_metric": metric,
        "best_mode": mode,
        "members": [{"name": member.name, "overrides": dict(member.overrides)} for member in members],
    }
    write_json(folder / SWEEP_FILE, content)
    finished = [member for member in members if is_finished(member.run)]
    for member in finished:
        say(f"{member.name} is already finished")
    return [member for member in members if member not in finished]


def _call_sweep(config_file: str) -> list[Any]:
    """Returns the values that the ``sweep()`` of a config file yields."""
    path, *argument = config_file.split(":", 1)  # the same split as in ml_collections
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = getattr(module, "sweep", None)
    if not callable(sweep):
        raise ConfigError(
            f"{path} has no function sweep(); write one that yields dicts of overrides, such as "
            '{"optimizer.peak_rate": 1e-3}'
        )
    try:
        inspect.signature(sweep).bind(*argument)
    except TypeError as error:
        given = f"the argument {argument[0]!r}" if argument else "no argument"
        raise ConfigError(f"sweep() of {path} cannot be called with {given}: {error}") from error
    try:
        found: Any = sweep(*argument)
        return list(found)
    except Exception as error:
        raise ConfigError(f"sweep() of {path} raised {type(error).__name__}: {error}") from error


def _check_overrides(
    overrides: Any, keys: Mapping[str, Any], on_command_line: Mapping[str, Any], place: str
) -> None:
    if not isinstance(overrides, dict):
        raise ConfigError(f"{place} is {overrides!r}, but must be a dict of overrides")
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise ConfigError(f"{place}: the key {key!r} must be a dotted name, such as 'train.seed'")
        if key not in keys:
            inner = [known for known in keys if known.startswith(f"{key}.")]
            hint = f"it is a section; set its keys, such as {inner[0]!r}" if inner else nearest(key, keys)
            raise ConfigError(f"{place}: config has no key {key!r}: {hint}")
        items = value if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(item, _PLAIN) for item in items):
            raise ConfigError(
                f"{place}: the value of {key!r} is {value!r}, but must be a number, a string, a bool or a "
                "tuple of these"
            )
        for set_by_flag in on_command_line:
            if f"{key}.".startswith(f"{set_by_flag}."):
                raise ConfigError(
                    f"{place}: the command line sets config.{set_by_flag} too; remove one of the two"
                )


def _check_values(overrides: Mapping[str, Any], run: Run, place: str) -> None:
    """Checks that each value keeps its type and value when it is passed as the text of a flag."""
    found = flatten(run.experiment.to_config_dict().to_dict())
    for key, value in overrides.items():
        wanted = tuple(value) if isinstance(value, list) else value
        arrived = found.get(key)
        if arrived != wanted or isinstance(arrived, bool) != isinstance(wanted, bool):
            raise ConfigError(f"{place}: config.{key} takes values such as {arrived!r}, not {value!r}")


def _flag_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    prepare_process()
    with reported_errors():
        results = report_results(run_folder(FLAGS.workdir))
    sys.exit(1 if has_failures(results) else 0)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the sweep; the --workdir of its launcher.", required=True)
    app.run(main)
