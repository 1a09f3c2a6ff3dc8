"""Sweeps: the members that an experiment's ``sweep()`` names, and the table of what became of them.

    python -m transformer_jax.launching.sweeps --workdir=runs/sweep

``sweep()`` stands beside ``get_config()`` in an experiment's file, takes the same argument if any, and
yields plain dicts of overrides with dotted keys, such as ``{"optimizer.peak_rate": 1e-3}``. Every launcher
takes ``--sweep``: one run a member, in ``WORKDIR/MEMBER``. This program prints the table of their results,
finished or not, and writes it to ``sweep_results.txt`` and ``sweep_results.json`` there. Its exit status is
1 if a member failed.
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

UNCHANGED = "unchanged"  # the member without overrides
_LONGEST_NAME = 150  # characters; file systems take 255 bytes
_PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # of its folder within that of the sweep
    overrides: Mapping[str, Any]
    run: Run


def read_members(run: Run) -> tuple[Member, ...]:
    """The members of a sweep, each of them looked at as if it were started alone.

    Args:
      run: what the flags say; its folder is that of the sweep.

    Raises:
      ConfigError: the experiment has no ``sweep()`` or one that cannot be used: which yields no dicts, an
        unknown key, a value that does not fit, a key that a flag sets as well, or twice the same; or the
        folder holds a run of its own, or that of a member another experiment.
    """
    if not run.config_file:
        raise ConfigError("--sweep needs --config: the file whose sweep() yields the members")
    if has_checkpoints(run.workdir) or (pathlib.Path(run.workdir) / CONFIG_FILE).exists():
        raise ConfigError(f"{run.workdir} holds a run of its own: give the sweep another --workdir")
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
        raise ConfigError(f"{where} yields no member")
    for (i, first), (j, second) in itertools.combinations(enumerate(members, 1), 2):
        if first.run.experiment == second.run.experiment:
            raise ConfigError(f"{where}: members {i} and {j} are the same experiment, {second.name}")
        if first.name.lower() == second.name.lower():
            raise ConfigError(f"{where}: members {i} and {j} have the same name, {second.name}")
    return tuple(members)


def member_name(overrides: Mapping[str, Any]) -> str:
    """What a member's folder is called: ``optimizer.peak_rate=0.001,train.seed=1``.

    It depends on nothing but the overrides, whatever their order, so a sweep that is started again, or with
    more members, finds each in its folder. Of values that no folder can be named by, or that differ from
    others in capitals alone, a hash is part of the name.
    """
    if not overrides:
        return UNCHANGED
    text = ",".join(f"{key}={_flag_text(overrides[key])}" for key in sorted(overrides))
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text)[:_LONGEST_NAME]
    if safe == text.lower():
        return safe
    return f"{safe},{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_finished(run: Run) -> bool:
    """Whether the folder of a run holds this very experiment, trained to its end and scored."""
    path = pathlib.Path(run.workdir) / SUMMARY_FILE
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return steps == run.experiment.train.num_steps and load_config(run.workdir) == run.experiment
    except (OSError, ValueError, KeyError, TypeError):
        return False


def begin_sweep(run: Run, members: Sequence[Member]) -> list[Member]:
    """Writes which members a sweep has into its folder, for the table.

    Says which are finished already, and which the folder had before that are none any more.

    Returns:
      Those that are to be started.

    Raises:
      OSError: it cannot be written.
    """
    folder = pathlib.Path(run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    names = {member.name for member in members}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        for name in [member["name"] for member in before["members"]]:
            if name not in names:
                say(f"{name} was a member of this sweep and is none now; its folder stays")
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
        say(f"{member.name} is finished already")
    return [member for member in members if member not in finished]


def _call_sweep(config_file: str) -> list[Any]:
    """What the ``sweep()`` beside the ``get_config()`` of a config file yields."""
    path, *argument = config_file.split(":", 1)  # as ml_collections parts them
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = getattr(module, "sweep", None)
    if not callable(sweep):
        raise ConfigError(
            f"{path} has no sweep(): write one that yields dicts of overrides, such as "
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
        raise ConfigError(f"{place}: must be a dict of overrides, not {overrides!r}")
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise ConfigError(f"{place}: keys are dotted names such as 'train.seed', not {key!r}")
        if key not in keys:
            inner = [known for known in keys if known.startswith(f"{key}.")]
            hint = f"it is a section: set its keys, such as {inner[0]!r}" if inner else nearest(key, keys)
            raise ConfigError(f"{place}: config has no key {key!r}: {hint}")
        items = value if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(item, _PLAIN) for item in items):
            raise ConfigError(
                f"{place}: {key!r} must be a number, a string, a bool or a tuple of these, not {value!r}"
            )
        for set_by_flag in on_command_line:
            if f"{key}.".startswith(f"{set_by_flag}."):
                raise ConfigError(
                    f"{place}: the command line sets config.{set_by_flag} as well; leave out one of the two"
                )


def _check_values(overrides: Mapping[str, Any], run: Run, place: str) -> None:
    """Flags are text: makes sure that each value arrives as what it was."""
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
    flags.DEFINE_string("workdir", None, "Folder of the sweep, as given to its launcher.", required=True)
    app.run(main)
