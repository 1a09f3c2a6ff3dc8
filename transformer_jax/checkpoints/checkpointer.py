"""Checkpoints of {training state, place in the data}: whole or not there, read onto any devices.

``DIRECTORY/STEP/`` holds one checkpoint: ``state`` (every leaf under the names that lead to it,
such as ``params/encoder/...``) and ``data`` (JSON: each process's place in the data, and the
metrics). Orbax writes it in the background and, last of all, ``commit_success.txt``; without that
file it does not count.
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
    """When to write a checkpoint and which to keep: the latest ones and, besides, the best ones.

    Raises:
      ValueError: a number out of range.
    """

    every_steps: int = 1000
    keep_latest: int = 3  # averaging the last N for evaluation needs at least N here
    keep_best: int = 1  # by best_metric; 0 keeps none for being good
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
    """A newer checkpoint that could not be read, and why."""

    step: int
    reason: str


class Restored(NamedTuple):
    """A training state as it was saved at ``step``, and the place in the data.

    What this process has saved with it or, where another number of processes did, the first of them.
    """

    step: int
    state: PyTree
    data_state: dict[str, Any]
    metrics: dict[str, float]
    skipped: tuple[Skipped, ...]  # newer ones that are half-written or damaged, newest first


class RestoredParams(NamedTuple):
    """The parameters of one checkpoint, or the mean of those of several."""

    steps: tuple[int, ...]  # newest first
    params: PyTree
    data_state: dict[str, Any]  # the first process's place in the data, of the newest
    skipped: tuple[Skipped, ...]


class Checkpointer:
    """Writes, prunes and reads the checkpoints of one directory; a context manager.

    Every process of a run makes one and calls the same methods in the same order. Reading needs no
    knowledge of the devices that wrote, and changes nothing; nothing exists before the first save.
    Leaves of a state are arrays; typed PRNG keys are stored as their raw data.
    """

    def __init__(self, directory: str | os.PathLike[str], config: CheckpointConfig) -> None:
        self.config = config
        path = os.fspath(directory)
        # A relative path would fail in Orbax's background thread only.
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
            _log.error("%s", failure)  # it must not hide the error that is on its way

    def is_due(self, step: int) -> bool:
        """Whether ``config.every_steps`` divides ``step``."""
        return step % self.config.every_steps == 0

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint, oldest first; not one that is being written."""
        return [step for step, committed in files.find_steps(self.directory).items() if committed]

    def half_written_steps(self) -> list[int]:
        """The steps with a checkpoint that was never committed; the next ``save`` removes them."""
        found = files.find_steps(self.directory)
        return [step for step, committed in found.items() if not committed and step != self._writing]

    def averageable_steps(self) -> list[int]:
        """The newest step and those on schedule, oldest first: the same however often a run was stopped."""
        steps = self.steps()
        return [step for step in steps if self.is_due(step) or step == steps[-1]]

    def latest_step(self) -> int | None:
        """The newest step with a committed checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best ``best_metric`` (the newest of equals); None without scores."""
        ranked = self._rank(self._read_metrics())
        return ranked[0] if ranked else None

    def save(
        self,
        step: int,
        state: PyTree,
        data_state: Mapping[str, Any],
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> None:
        """Copies the state to the host and returns; the rest is written in the background.

        The caller may donate the state's arrays at once. A save waits for the one before.

        Args:
          step: updates made so far; above all steps saved before.
          state: a pytree of arrays.
          data_state: the place in the data, the same for all processes; JSON values only.
          metrics: of this step, if it was evaluated.

        Raises:
          CheckpointError: this or the previous checkpoint could not be written, or the step is not
            above the saved ones.
          ValueError: ``data_state`` is not JSON, or ``metrics`` lacks ``config.best_metric``.
        """
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        if metrics is not None and self.config.keep_best and self.config.best_metric not in scores:
            raise ValueError(
                f"checkpoint.best_metric={self.config.best_metric!r} is not among the metrics "
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
                f"{self.directory} already holds a checkpoint of step {latest}, so none of step "
                f"{step} can be added: continue from it, use another directory, or move the newer "
                "ones away"
            )
        self._writing, self._metrics[step] = step, scores
        try:
            arguments = files.save_arguments(state, data_states, scores)
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:
            raise self._write_failed(error) from error

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          CheckpointError: it could not be written; the earlier ones are whole.
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
          CheckpointError: as ``wait``.
        """
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads a state as it was saved, to the bit, onto the devices of the template.

        Args:
          template: the state as ``jax.ShapeDtypeStruct``s; their ``sharding`` says where each array
            goes (the first local device without one).
          step: which checkpoint; by default the newest that is whole. Newer ones that are
            half-written or damaged are warned about and returned in ``skipped``; the next ``save``
            removes half-written ones and renames damaged ones to ``STEP.damaged``.

        Raises:
          CheckpointError: there is no whole checkpoint, or the step asked for is not there or damaged.
          CheckpointMismatchError: names, shapes or dtypes differ from the template's; it lists
            them.
        """
        found, state, data, skipped = self._read_newest(template, (), step)
        processes, index = data["processes"], jax.process_index()
        own = processes[index if len(processes) == jax.process_count() else 0]
        self._damaged = tuple(skip.step for skip in skipped)
        return Restored(found, state, own, data["metrics"], skipped)

    def restore_params(self, template: PyTree, step: int | None = None) -> RestoredParams:
        """Reads the field ``params`` of a state only, as evaluation does; see ``restore``.

        Args:
          template: the parameters as ``jax.ShapeDtypeStruct``s.
          step: as for ``restore``.

        Raises:
          CheckpointError: as ``restore``.
        """
        found, params, data, skipped = self._read_newest(template, (PARAMS,), step)
        return RestoredParams((found,), params, data["processes"][0], skipped)

    def average(self, template: PyTree, last: int, or_fewer: bool = False) -> RestoredParams:
        """The float32 mean of the last whole checkpoints' parameters (section 6.1 of the paper).

        Those are the newest one and, before it, those saved at multiples of ``every_steps``. Newer ones
        that are half-written or damaged are warned about and returned in ``skipped``.

        Args:
          template: the parameters as ``jax.ShapeDtypeStruct``s.
          last: how many checkpoints, at least 1.
          or_fewer: take those of the last ``last`` that are there and whole, if there is one; without
            it, damaged ones are made up for by older ones.

        Raises:
          CheckpointError: too few are there and whole; the message says how many.
        """
        if last < 1:
            raise ValueError(f"{last=} checkpoints cannot be averaged: it must be at least 1")
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
            f"cannot average the last {last} checkpoints: {self.directory} has {len(used)} whole "
            f"one(s); ask for at most that, or train with checkpoint.keep_latest={last}"
        )

    def _read_newest(
        self, template: PyTree, prefix: tuple[str, ...], step: int | None
    ) -> tuple[int, PyTree, dict[str, Any], tuple[Skipped, ...]]:
        found = files.find_steps(self.directory)
        if step is not None and not found.get(step):
            here = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.directory} has no whole checkpoint of step {step}; it has: {here}")
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
        advice = ": bring one back from a copy, or start in another folder" if skipped else ""
        reasons = "".join(f"\n  step {skip.step}: {skip.reason}" for skip in skipped)
        raise CheckpointError(f"{self.directory} has no whole checkpoint{advice}{reasons}")

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
        """Scored steps, best first and the newest of equals first; NaN is no score."""
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
                _log.warning("removing %s, which a run that was stopped left half-written", path)
                path.rmtree()
            elif step in self._damaged:
                aside = self.directory / f"{step}{DAMAGED_SUFFIX}"
                if aside.exists():
                    aside = self.directory / f"{step}{DAMAGED_SUFFIX}.{time.time_ns()}"
                _log.warning("renaming %s, which is damaged, to %s", path, aside.name)
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
            path.rmtree()  # it may be what fills the disk
        return CheckpointError(files.why_not_written(path, whole, error))
