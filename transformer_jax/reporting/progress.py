"""Reports the progress of a run: metrics files, a progress bar, and a summary table at the end."""

import collections
import contextlib
import io
import json
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

from absl import logging
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from transformer_jax.files import write_whole

# protobuf creates these classes at import time, so a type checker cannot see them.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
Summary = summary_pb2.Summary  # pyright: ignore

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_RATE_WINDOW = 30.0  # seconds over which the speed and the remaining time are measured


class MetricWriter:
    """Writes metrics to ``workdir/metrics.jsonl`` and to TensorBoard event files, crash-safely.

    Each call of ``write`` appends one line to the JSONL file: ``{"step": 100, "time": 1767225600.25,
    "train/loss": 3.2}``, where the time is in seconds since 1970. JSON cannot represent NaN and the
    infinities; they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
    ``float`` in Python and ``Number`` in JavaScript can parse. When ``write`` returns, the line has been
    passed to the operating system. The event files contain the same values under the same names.

    Args:
      workdir: folder of the run; it is created if it does not exist.
      active: if False, nothing is written. Only one process of a run should be active.

    Raises:
      OSError: the folder or a file in it cannot be created.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, active: bool = True) -> None:
        self.path = pathlib.Path(workdir) / METRICS_FILE
        self._active = active
        self._file = None
        self._events: RecordWriter | None = None
        if active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_records_beyond(None)
            # Unbuffered: closing a buffered file would try to write a failed line again.
            self._file = io.FileIO(self.path, "a")

    def resume(self, step: int) -> int:
        """Removes the records of steps after ``step``, because the run will write them again.

        Such records exist if the run was killed between two checkpoints. An event makes TensorBoard hide
        its copies of them.

        Args:
          step: the step of the checkpoint from which the run continues.

        Returns:
          The number of removed records.
        """
        if not self._active:
            return 0
        removed = self._remove_records_beyond(step)
        if removed:
            self._open_file().close()
            self._file = io.FileIO(self.path, "a")
        start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._write_event(start)
        return removed

    def write(self, step: int, metrics: Mapping[str, SupportsFloat], prefix: str) -> None:
        """Writes one record.

        Args:
          step: the number of optimizer steps at which the metrics were measured.
          metrics: their values by name.
          prefix: the data that was measured; with ``train``, the metric ``loss`` is named ``train/loss``.

        Raises:
          OSError: the record cannot be written, for example on a full disk; earlier records stay intact.
          ValueError: ``prefix`` is empty.
        """
        if not prefix:
            raise ValueError(f"{prefix=} must name the data that was measured, such as 'train'")
        if not self._active:
            return
        now = time.time()
        values = {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
        record = {"step": int(step), "time": round(now, 3)}
        record |= {name: _to_json(value) for name, value in values.items()}
        self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write_event(Event(wall_time=now, step=int(step), summary=Summary(value=scalars)))

    def close(self) -> None:
        """Closes the files; further calls have no effect."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_file(self) -> io.FileIO:
        if self._file is None:
            raise ValueError(f"the writer of {self.path} is closed")
        return self._file

    def _append(self, line: bytes) -> None:
        file = self._open_file()
        whole = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(line):  # a write may be partial; the next one then raises the error
                written += file.write(line[written:]) or 0
        except OSError as error:
            os.ftruncate(file.fileno(), whole)  # works on a full disk too, because it only frees space
            raise self._cannot_write(error) from error

    def _write_event(self, event: Any) -> None:
        # tensorboardX's SummaryWriter is not used: it writes in a thread, where an error from a full
        # disk would go unnoticed until a later call waits for that thread forever.
        try:
            if self._events is None:
                self._events = self._new_event_file()
            self._events.write(event.SerializeToString())
            self._events.flush()
        except OSError as error:
            if self._events is not None:
                with contextlib.suppress(OSError):  # closing tries to write its buffer again
                    self._events.close()
                self._events = None
            raise self._cannot_write(error) from error

    def _new_event_file(self) -> RecordWriter:
        folder = self.path.parent / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        # The number distinguishes files of the same second; TensorBoard reads them in this order.
        number = len(list(folder.iterdir()))
        name = f"events.out.tfevents.{int(time.time())}.{number:04}.{socket.gethostname()}"
        events = RecordWriter(str(folder / name))
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        events.write(version.SerializeToString())
        return events

    def _cannot_write(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        advice = "fix this and run the same command again; it continues from the last checkpoint"
        message = f"the metrics cannot be written: {reason}; {advice}"
        return OSError(error.errno, message, str(self.path))

    def _remove_records_beyond(self, step: int | None) -> int:
        """Removes unreadable lines and the records after ``step``; returns the number of those records."""
        if not self.path.exists():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept, later, unreadable = [], 0, 0
        for line in lines:
            record = _parse(line)
            if record is None:
                unreadable += 1
            elif step is not None and record["step"] > step:
                later += 1
            else:
                kept.append(line)
        if later or unreadable:
            write_whole(self.path, b"".join(kept))
        if unreadable:  # a killed process leaves one incomplete line, a crashed machine may leave several
            logging.warning("%s: removed %d incomplete line(s)", self.path, unreadable)
        if later:
            text = "%s: removed %d record(s) of steps after %d; the run will write them again"
            logging.warning(text, self.path, later, step)
        return later


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Returns the records that ``MetricWriter`` wrote, one dict of numbers per record.

    Raises:
      FileNotFoundError: the folder has no metrics file.
      ValueError: a line is not a record; the message gives its number.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        record = _parse(line)
        if record is None:
            raise ValueError(
                f"{path}, line {number} is not a record: {line[:60]!r}. A killed run may leave an "
                "incomplete last line; running its command again removes it"
            )
        records.append({name: float(value) for name, value in record.items()})
    return records


def _to_json(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record in ``line``, or None if the line is incomplete or is not a record."""
    try:
        record = json.loads(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and line.endswith(b"\n") else None


class ProgressBar:
    """Shows the step, loss, speed and remaining time: a bar in a terminal, otherwise a line at intervals.

    The speed and the remaining time are measured over the last 30 seconds, so that compilation affects
    them only briefly.

    Args:
      total_steps: the last step of the run.
      initial_step: the step from which the run starts.
      active: if False, nothing is shown. Only one process of a run should be active.
      unit: the name of the counted units; the speed is shown in units per second.
      seconds_between_lines: the minimum time between two lines if ``stream`` is not a terminal.
      stream: the output stream; standard error by default.
      clock: returns the current time in seconds, from an arbitrary origin.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        *,
        active: bool = True,
        unit: str = "tokens",
        seconds_between_lines: float = 30.0,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._step = initial_step
        self._count = 0
        self._active = active
        self._unit = unit
        self._seconds_between_lines = seconds_between_lines
        self._stream: Any = sys.stderr if stream is None else stream
        self._clock = clock
        now = clock()
        self._samples = collections.deque([(now, initial_step, 0)])  # (time, step, units so far)
        self._shown_at = now
        self._shown_step = initial_step
        self._text = ""
        self._bar = None
        if active and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=initial_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar}| {desc}",
            )

    @property
    def units_per_second(self) -> float:
        """The speed over the last 30 seconds; NaN before the second update."""
        return self._rates()[1]

    def update(self, step: int, loss: SupportsFloat, count: int) -> None:
        """Records that the run has reached ``step``.

        Args:
          step: the number of optimizer steps so far.
          loss: the latest known loss per token or example; NaN if none is known yet.
          count: the number of units trained on since the last update.
        """
        now = self._clock()
        advanced = step - self._step
        self._step = step
        self._count += count
        self._samples.append((now, step, self._count))
        # The oldest sample is kept until the next one is old too, so that a slow run still has two.
        while len(self._samples) > 2 and self._samples[1][0] <= now - _RATE_WINDOW:
            self._samples.popleft()
        if not self._active:
            return
        steps_per_second, units_per_second = self._rates()
        left = (self._total_steps - step) / steps_per_second if steps_per_second else math.nan
        shown = "" if math.isnan(loss := float(loss)) else f"loss {loss:.4f}  "
        self._text = (
            f"step {step:,}/{self._total_steps:,}  {shown}"
            f"{_rounded(units_per_second)} {self._unit}/s  {_duration(left)} left"
        )
        if self._bar is not None:
            self._bar.set_description_str(self._text, refresh=False)
            self._bar.update(advanced)
        elif now - self._shown_at >= self._seconds_between_lines:
            self._show_line(now)

    def print(self, text: str) -> None:
        """Writes lines of text, above the bar if there is one."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the final state and leaves it visible; further calls have no effect."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
        elif self._active and self._step != self._shown_step:
            self._show_line(self._clock())
        self._active = False

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show_line(self, now: float) -> None:
        print(self._text, file=self._stream, flush=True)
        self._shown_at, self._shown_step = now, self._step

    def _rates(self) -> tuple[float, float]:
        """Returns the steps and the units per second; both are NaN before the second sample."""
        start, first_step, first_count = self._samples[0]
        end, last_step, last_count = self._samples[-1]
        seconds = end - start
        if seconds <= 0:
            return math.nan, math.nan
        return (last_step - first_step) / seconds, (last_count - first_count) / seconds


def say(text: str) -> None:
    """Prints a message to the user on standard error."""
    print(text, file=sys.stderr, flush=True)


def summary_table(rows: Mapping[str, object]) -> str:
    """Returns an aligned plain-text table of two columns, without a final newline.

    Integers have thousands separators, floats four significant digits; None is shown as a dash.
    """
    if not rows:
        return ""
    width = max(map(len, rows))
    lines = []
    for name, value in rows.items():
        first, *more = cell_text(value).splitlines() or [""]
        lines.append(f"{name:<{width}}  {first}".rstrip())
        lines.extend(" " * (width + 2) + line for line in more)
    return "\n".join(lines)


def cell_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _rounded(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    """Returns the duration as ``1:02:03`` or ``2:03`` (hours, minutes, seconds), or "?" for NaN."""
    if math.isnan(seconds):
        return "?"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
