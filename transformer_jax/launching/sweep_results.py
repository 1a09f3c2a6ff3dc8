"""Reads the results of a sweep from the folders of its members, ranks them, and writes a table and JSON."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from transformer_jax.checkpoints.files import find_steps
from transformer_jax.config import ConfigError
from transformer_jax.files import write_json, write_whole
from transformer_jax.launching.run import LAUNCH_FILE
from transformer_jax.reporting.progress import cell_text, read_metrics
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, SUMMARY_FILE

SWEEP_FILE = "sweep.json"  # lists the members
RESULTS_TEXT, RESULTS_JSON = "sweep_results.txt", "sweep_results.json"

# Entries of a summary that are not scores.
_NO_SCORES = {
    "parameters", "steps", "epoch", "pairs_too_long", "pairs_blank", "pairs_cut", "examples", "inputs_cut",
    "beam_size", "length_penalty", "temperature", "top_k", "top_p", "seed",
}  # fmt: skip

Row = dict[str, Any]


def read_results(workdir: str) -> dict[str, Any]:
    """Returns the current results of a sweep, as JSON values.

    Args:
      workdir: folder of the sweep.

    Returns:
      A dict with these keys:
        config: the file of the experiment.
        ranked_by: the metric of the validation split by which the members are ordered, or None if the members
          have no common metric.
        mode: "min" or "max", or None if ``ranked_by`` is None.
        members: the members, best first. Each has ``name``, ``overrides``, ``state``, ``steps``,
          ``num_steps``, ``validation`` (the metric at its last step), ``figures`` (of its summary, measured
          on ``split``), ``exit_status`` and ``log``. The state is "finished", "failed", "stopped" (by a
          signal, with its state saved), "unfinished" (running or killed) or "not started".

    Raises:
      ConfigError: the folder does not contain a sweep.
    """
    folder = pathlib.Path(workdir)
    try:
        sweep = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{workdir} is not the folder of a sweep, because it has no {SWEEP_FILE}; give the --workdir "
            "with which the sweep was started"
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{folder / SWEEP_FILE} is not valid JSON: {error}; start the sweep again to rewrite it"
        ) from error
    metric, mode = sweep["best_metric"], sweep["best_mode"]
    rows = [_row(folder / member["name"], member, metric) for member in sweep["members"]]
    if all(row["validation"] is None for row in rows if row["state"] == "finished"):
        metric = mode = None
    # Members are ranked on the validation split, because selecting on the test split would bias its scores.
    rows.sort(key=lambda row: _rank(row, mode))
    return {"config": sweep["config"], "ranked_by": metric, "mode": mode, "members": rows}


def _rank(row: Row, mode: str | None) -> tuple[bool, bool, float]:
    """Returns the sort key of a row; finished members with a finite value come first."""
    value: float | None = row["validation"]
    unfinished = row["state"] != "finished"
    if mode is None or value is None or not math.isfinite(value):
        return (unfinished, True, 0.0)
    return (unfinished, False, -value if mode == "max" else value)


def _row(folder: pathlib.Path, member: Mapping[str, Any], metric: str | None) -> Row:
    launch = _read_json(folder / LAUNCH_FILE)
    summary = _read_json(folder / SUMMARY_FILE)
    config = _read_json(folder / CONFIG_FILE)
    num_steps = config.get("train", {}).get("num_steps")
    saved = [step for step, whole in find_steps(epath.Path(folder / CHECKPOINTS_FOLDER)).items() if whole]
    is_complete = bool(summary) and summary.get("steps") == num_steps
    status = launch.get("exit_status")
    if status:
        state = "failed"
    elif is_complete:
        state = "finished"
    elif status == 0:
        state = "stopped"
    else:
        state = "unfinished" if launch or config else "not started"
    log = folder / launch["log"] if "log" in launch else None
    return {
        "name": member["name"],
        "overrides": member["overrides"],
        "state": state,
        "steps": summary["steps"] if is_complete else max(saved, default=None),
        "num_steps": num_steps,
        "validation": _last_validation(folder, metric),
        "split": summary.get("split") if is_complete else None,
        "figures": _scores(summary) if is_complete else {},
        "exit_status": status,
        "log": str(log) if log is not None and log.exists() else None,
    }


def _scores(summary: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in summary.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in _NO_SCORES
        and (name == "training_seconds" or not name.endswith("_seconds"))
    }


def _last_validation(folder: pathlib.Path, metric: str | None) -> float | None:
    try:
        records = read_metrics(folder)
    except (OSError, ValueError):  # the run has not started, or is writing its last line
        return None
    values = [record[f"validation/{metric}"] for record in records if f"validation/{metric}" in record]
    return values[-1] if values else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def has_failures(results: Mapping[str, Any]) -> bool:
    """Returns whether a member failed."""
    return any(row["state"] == "failed" for row in results["members"])


def report_results(workdir: str) -> dict[str, Any]:
    """Prints the table of a sweep, writes the results to its folder as text and JSON, and returns them.

    Raises:
      ConfigError: the folder does not contain a sweep.
      OSError: the results cannot be written.
    """
    results = read_results(workdir)
    text = results_text(results)
    print(text, flush=True)
    folder = pathlib.Path(workdir)
    write_whole(folder / RESULTS_TEXT, text + "\n")
    write_json(folder / RESULTS_JSON, results)
    return results


def results_text(results: Mapping[str, Any]) -> str:
    """Returns the table, with one line per member, and the log files of the members that failed."""
    rows = results["members"]
    states = {state: sum(row["state"] == state for row in rows) for state in ("finished", "failed")}
    title = f"sweep of {results['config']}: {len(rows)} members, {states['finished']} finished"
    if states["failed"]:
        title += f", {states['failed']} failed"
    if results["ranked_by"]:
        best = "highest" if results["mode"] == "max" else "lowest"
        title += f"; {best} {results['ranked_by']} of the validation split first"
    splits = sorted({row["split"] for row in rows if row["split"]})
    if splits:
        title += f"; the other figures are of the split {' or '.join(splits)}"
    lines = [title, "", *_table(rows, results["ranked_by"])]
    failed = [row for row in rows if row["state"] == "failed"]
    if failed:
        lines.append("")
    for row in failed:
        log = f": see {row['log']}" if row["log"] else ""
        lines.append(f"failed with status {row['exit_status']}: {row['name']}{log}")
    return "\n".join(lines)


def _table(rows: Sequence[Row], metric: str | None) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row["overrides"]))
    figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    figures.sort(key=lambda name: name == "training_seconds")  # last
    header = [_short(key, keys) for key in keys] + ["state", "steps"]
    header += [f"validation {metric}"] * bool(metric) + figures
    lines = [header]
    for row in rows:
        cells = [str(row["overrides"][key]) if key in row["overrides"] else "-" for key in keys]
        steps = cell_text(row["steps"])
        if row["state"] != "finished" and row["steps"] is not None:
            steps += f" of {cell_text(row['num_steps'])}"
        cells += [row["state"], steps]
        cells += [cell_text(row["validation"])] * bool(metric)
        cells += [cell_text(row["figures"].get(name)) for name in figures]
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _short(key: str, keys: Sequence[str]) -> str:
    """Returns the last part of a key, or the whole key if the last parts of several keys are equal."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(other.rsplit(".", 1)[-1] == last for other in keys) == 1 else key
