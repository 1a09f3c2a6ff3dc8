"""Writes and reads checkpoints of {training state, position in the data}, atomically and for any devices.

``DIRECTORY/STEP/`` holds one checkpoint: ``state`` (every leaf under its path, such as
``params/encoder/...``) and ``data`` (JSON: the position of each process in the data, and the metrics). Orbax
writes it in the background. The last file that it writes is ``commit_success.txt``; a checkpoint without it
is incomplete and is ignored.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from transformer_jax.checkpoints import files
from transformer_jax.checkpoints.files import CheckpointError, CheckpointMismatchError
from transformer_jax.config import check_types
from transformer_jax.types import PyTree

__all__ = [
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointMismatchError",
    "Checkpointer",
    "Restored",
    "RestoredParams",
    "Skipped",
]

_log = logging.getLogger(__name__)

PARAMS = "params"  # the field of the state that evaluation reads
DAMAGED_SUFFIX = ".damaged"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Sets when checkpoints are written and which are kept: the latest ones and the best ones.

    Raises:
      ValueError: a number out of range.
    """

    every_steps: int = 1000
    keep_latest: int = 3  # averaging the last N for evaluation needs at least N here
    keep_best: int = 1  # number of best ones by best_metric; 0 for none
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        check_types(self, "checkpoint")
        for name, least in (("every_steps", 1), ("keep_latest", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"checkpoint.{name}={getattr(self, name)} must be at least {least}")
        if not self.best_metric:
            raise ValueError("checkpoint.best_metric must name a metric, such as 'loss'")


class Skipped(NamedTuple):
    """A newer checkpoint that could not be read, and the reason."""

    step: int
    reason: str


class Restored(NamedTuple):
    """A training state as it was saved at ``step``, and the position in the data.

    ``data_state`` is the one that this process saved or, if another number of processes saved the checkpoint,
    that of the first process.
    """

    step: int
    state: PyTree
    data_state: dict[str, Any]
    metrics: dict[str, float]
    skipped: tuple[Skipped, ...]  # newer checkpoints that are incomplete or damaged, newest first


class RestoredParams(NamedTuple):
    """The parameters of one checkpoint, or the mean of those of several."""

    steps: tuple[int, ...]  # newest first
    params: PyTree
    data_state: dict[str, Any]  # of the newest checkpoint, saved by the first process
    skipped: tuple[Skipped, ...]


class Checkpointer:
    """Writes, prunes and reads the checkpoints of one directory; a context manager.

    Every process of a run creates one and calls the same methods in the same order. Checkpoints can be read
    onto other devices than they were written from, and reading changes no file. The directory is created by
    the first save. Leaves of a state are arrays; typed PRNG keys are stored as their raw data.
    """

    def __init__(self, directory: str | os.PathLike[str], config: CheckpointConfig) -> None:
        self.config = config
        path = os.fspath(directory)
        # With a relative path Orbax would fail, and only in its background thread.
        self.directory = epath.Path(path if "://" in path else os.path.abspath(path))
        self._manager: ocp.CheckpointManager | None = None
        self._metrics: dict[int, dict[str, float]] = {}  # of the steps here, once we write
        self._writing: int | None = None
        self._damaged: tuple[int, ...] = ()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # do not hide the error that is being raised

    def is_due(self, step: int) -> bool:
        """Returns whether ``config.every_steps`` divides ``step``."""
        return step % self.config.every_steps == 0

    def steps(self) -> list[int]:
        """Returns the steps with a committed checkpoint, oldest first, without one that is being written."""
        return [step for step, committed in files.find_steps(self.directory).items() if committed]

    def half_written_steps(self) -> list[int]:
        """Returns the steps with a checkpoint that was never committed; the next ``save`` deletes these."""
        found = files.find_steps(self.directory)
        return [step for step, committed in found.items() if not committed and step != self._writing]

    def averageable_steps(self) -> list[int]:
        """Returns the newest step and the scheduled ones, oldest first; interruptions do not change them."""
        steps = self.steps()
        return [step for step in steps if self.is_due(step) or step == steps[-1]]

    def latest_step(self) -> int | None:
        """Returns the newest step with a committed checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best ``best_metric`` (the newest of equal ones), or None."""
        ranked = self._rank(self._read_metrics())
        return ranked[0] if ranked else None

    def save(
        self,
        step: int,
        state: PyTree,
        data_state: Mapping[str, Any],
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> None:
        """Copies the state to the host and returns; a background thread writes it to disk.

        The caller may donate the arrays of the state at once. A save waits until the previous one is
        finished.

        Args:
          step: the number of updates so far; higher than all saved steps.
          state: a pytree of arrays.
          data_state: the position in the data; JSON values only.
          metrics: metrics of this step if it was evaluated.

        Raises:
          CheckpointError: this or the previous checkpoint could not be written, or a saved step is not lower.
          ValueError: ``data_state`` is not JSON, or ``metrics`` lacks ``config.best_metric``.
        """
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        if metrics is not None and self.config.keep_best and self.config.best_metric not in scores:
            raise ValueError(
                f"checkpoint.best_metric={self.config.best_metric!r} is not a metric of this run; use one of "
                + ", ".join(sorted(scores))
            )
        data_states = files.gather_json(data_state)
        self.wait()
        if self._manager is None or self._damaged:
            self._open()
        assert self._manager is not None
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise CheckpointError(
                f"cannot save step {step}, because {self.directory} already has a checkpoint of step "
                f"{latest}; continue from that one, use another directory, or move the newer checkpoints away"
            )
        self._writing, self._metrics[step] = step, scores
        try:
            arguments = files.save_arguments(state, data_states, scores)
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:
            raise self._write_failed(error) from error

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: it could not be written; the earlier checkpoints are intact.
        """
        if self._manager is None or self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_failed(error) from error
        self._writing = None

    def close(self) -> None:
        """Waits for the last save and ends the background threads.

        Raises:
          CheckpointError: see ``wait``.
        """
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads a state as it was saved, to the bit, onto the devices of the template.

        Args:
          template: the state as ``jax.ShapeDtypeStruct``s with the ``sharding`` of each array; an array
            without a sharding is put on the first local device.
          step: the step of the checkpoint; by default the newest intact one. Newer ones that are incomplete
            or damaged cause a warning and are returned in ``skipped``. The next ``save`` deletes incomplete
            ones and renames damaged ones to ``STEP.damaged``.

        Raises:
          CheckpointError: there is no intact checkpoint, or the one of ``step`` is missing or damaged.
          CheckpointMismatchError: names, shapes or dtypes differ from the template; the message lists them.
        """
        found, state, data, skipped = self._read_newest(template, (), step)
        processes, index = data["processes"], jax.process_index()
        own = processes[index if len(processes) == jax.process_count() else 0]
        self._damaged = tuple(skip.step for skip in skipped)
        return Restored(found, state, own, data["metrics"], skipped)

    def restore_params(self, template: PyTree, step: int | None = None) -> RestoredParams:
        """Reads only the field ``params`` of a state, which is enough for evaluation; see ``restore``.

        Args:
          template: the parameters as ``jax.ShapeDtypeStruct``s.
          step: see ``restore``.

        Raises:
          CheckpointError: see ``restore``.
        """
        found, params, data, skipped = self._read_newest(template, (PARAMS,), step)
        return RestoredParams((found,), params, data["processes"][0], skipped)

    def average(self, template: PyTree, last: int, or_fewer: bool = False) -> RestoredParams:
        """Returns the float32 mean of the parameters of the last checkpoints (Vaswani et al. 2017, section
        6.1).

        These are the newest one and the ones before it that were saved at multiples of ``every_steps``.
        Incomplete or damaged ones cause a warning and are returned in ``skipped``.

        Args:
          template: the parameters as ``jax.ShapeDtypeStruct``s.
          last: the number of checkpoints, at least 1.
          or_fewer: average the intact ones among the last ``last``; at least one is needed. If False, older
            checkpoints replace damaged ones.

        Raises:
          CheckpointError: there are too few intact checkpoints; the message says how many there are.
        """
        if last < 1:
            raise ValueError(f"{last=}, the number of checkpoints to average, must be at least 1")
        total: PyTree = None
        used: list[int] = []
        data_states: list[dict[str, Any]] = []
        skipped: list[Skipped] = []
        steps = self.averageable_steps()
        if or_fewer:
            steps = steps[-last:]
        newer = [step for step in self.half_written_steps() if step > max(steps, default=0)]
        skipped += [self._skip(step, files.HALF_WRITTEN) for step in newer]
        for step in reversed(steps):
            try:
                files.check_readable(self.directory / str(step), (PARAMS,))
                params = files.read_state(self.directory / str(step), template, (PARAMS,))
                data = files.read_data(self.directory / str(step))
            except files.DamagedError as error:
                skipped.append(self._skip(step, str(error)))
                continue
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
            total = params if total is None else jax.tree.map(jnp.add, total, params)
            used.append(step)
            data_states.append(data["processes"][0])
            if len(used) == last:
                break
        if len(used) == last or (used and or_fewer):
            mean = jax.tree.map(lambda leaf: leaf / len(used), total)
            return RestoredParams(tuple(used), mean, data_states[0], tuple(skipped))
        raise CheckpointError(
            f"cannot average the last {last} checkpoints, because {self.directory} has {len(used)} intact "
            f"checkpoint(s); average at most this many, or train with checkpoint.keep_latest={last}"
        )

    def _read_newest(
        self, template: PyTree, prefix: tuple[str, ...], step: int | None
    ) -> tuple[int, PyTree, dict[str, Any], tuple[Skipped, ...]]:
        found = files.find_steps(self.directory)
        if step is not None and not found.get(step):
            here = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.directory} has no complete checkpoint of step {step}; available steps: {here}"
            )
        skipped: list[Skipped] = []
        for candidate in reversed(found) if step is None else [step]:
            if candidate == self._writing:
                continue
            try:
                if not found[candidate]:
                    raise files.DamagedError(files.HALF_WRITTEN)
                path = self.directory / str(candidate)
                files.check_readable(path, prefix)
                state = files.read_state(path, template, prefix)
                return candidate, state, files.read_data(path), tuple(skipped)
            except files.DamagedError as error:
                if step is not None:
                    raise CheckpointError(f"{self.directory}/{step} is damaged: {error}") from error
                skipped.append(self._skip(candidate, str(error)))
        advice = "; restore one from a backup, or start in another folder" if skipped else ""
        reasons = "".join(f"\n  step {skip.step}: {skip.reason}" for skip in skipped)
        raise CheckpointError(f"{self.directory} has no intact checkpoint{advice}{reasons}")

    def _skip(self, step: int, reason: str) -> Skipped:
        _log.warning("skipping the checkpoint %s/%d: %s", self.directory, step, reason)
        return Skipped(step, reason)

    def _read_metrics(self) -> dict[int, dict[str, float]]:
        metrics = {}
        for step in self.steps():
            try:
                metrics[step] = files.read_data(self.directory / str(step))["metrics"]
            except files.DamagedError as error:
                self._skip(step, str(error))
        return metrics

    def _rank(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """Returns the scored steps, best first, the newest of equal ones first; NaN is not a score."""
        sign, name = 1 if self.config.best_mode == "min" else -1, self.config.best_metric
        scores = {step: sign * each[name] for step, each in metrics.items() if name in each}
        scores = {step: score for step, score in scores.items() if not np.isnan(score)}
        return sorted(scores, key=lambda step: (scores[step], -step))

    def _kept(self, steps: Sequence[int]) -> set[int]:
        metrics = {step: self._metrics[step] for step in steps if step in self._metrics}
        best = self._rank(metrics)[: self.config.keep_best]
        latest = self.config.keep_latest
        scheduled = [step for step in sorted(steps) if step and self.is_due(step)]  # to be averaged
        return {*sorted(steps)[-latest:], *scheduled[-latest:], *best}

    def _open(self) -> None:
        if self._manager is not None:
            self._manager.close()
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear_away()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("transformer_jax.checkpoints.checkpointer")
        self._damaged = ()
        self._metrics = self._read_metrics()
        self._manager = files.make_manager(self.directory, self._kept)

    def _clear_away(self) -> None:
        for step, committed in files.find_steps(self.directory).items():
            path = self.directory / str(step)
            if not committed:
                _log.warning("removing the incomplete checkpoint %s of an interrupted run", path)
                path.rmtree()
            elif step in self._damaged:
                aside = self.directory / f"{step}{DAMAGED_SUFFIX}"
                if aside.exists():
                    aside = self.directory / f"{step}{DAMAGED_SUFFIX}.{time.time_ns()}"
                _log.warning("renaming the damaged checkpoint %s to %s", path, aside.name)
                path.rename(aside)

    def _write_failed(self, error: Exception) -> CheckpointError:
        step, self._writing = self._writing, None
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.close()
            except Exception as again:
                _log.debug("closing after a failed save: %s", again)
        path, whole = self.directory / str(step), self.steps()
        if jax.process_index() == 0 and step not in whole and path.exists():
            path.rmtree()  # the disk may be full because of it
        return CheckpointError(files.why_not_written(path, whole, error))
