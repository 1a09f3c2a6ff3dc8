"""What a run tells while it goes on: metrics on disk, a progress bar, a table at its end."""

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

# Made at import time from their descriptions, where a type checker cannot see them.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
Summary = summary_pb2.Summary  # pyright: ignore

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_RATE_WINDOW = 30.0  # seconds over which speed and time left are measured


class MetricWriter:
    """Writes metrics to ``workdir/metrics.jsonl`` and to TensorBoard event files, crash-safely.

    A line of the JSONL file is one call of ``write``: ``{"step": 100, "time": 1767225600.25,
    "train/loss": 3.2}``, time in seconds since 1970. JSON has no number for NaN and the infinities:
    they are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which ``float`` reads in
    Python and ``Number`` in JavaScript. Every line has reached the operating system when ``write``
    returns. The event files hold the same values under the same names.

    Args:
      workdir: folder of the run; made if it is not there.
      active: False writes nothing, for all processes of a run but one.

    Raises:
      OSError: the folder or a file in it cannot be made.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, active: bool = True) -> None:
        self.path = pathlib.Path(workdir) / METRICS_FILE
        self._active = active
        self._file = None
        self._events: RecordWriter | None = None
        if active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_records_beyond(None)
            # Unbuffered: a buffer would try a line that failed again when the file is closed.
            self._file = io.FileIO(self.path, "a")

    def resume(self, step: int) -> int:
        """Removes the records of later steps than ``step``, because the run makes them again.

        They are left where a run was killed between two checkpoints. TensorBoard is told to hide
        its copies of them.

        Args:
          step: the step of the checkpoint that the run goes on from.

        Returns:
          The number of records removed.
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
          step: the optimizer steps taken when the metrics were measured.
          metrics: name to number.
          prefix: what they were measured on, for example ``train``: they are called ``train/loss``.

        Raises:
          OSError: it cannot be written, as on a full disk. What was written before stays whole.
          ValueError: there is no prefix.
        """
        if not prefix:
            raise ValueError("metrics need a prefix that says what they were measured on")
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
        """Closes the files; more than once does no harm."""
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
            while written < len(line):  # the system may take a part, then say why not the rest
                written += file.write(line[written:]) or 0
        except OSError as error:
            os.ftruncate(file.fileno(), whole)  # frees space only, so a full disk allows it
            raise self._cannot_write(error) from error

    def _write_event(self, event: Any) -> None:
        # Without tensorboardX's SummaryWriter: it writes in a thread, where a full disk would go
        # unnoticed until a later call waits for that thread for ever.
        try:
            if self._events is None:
                self._events = self._new_event_file()
            self._events.write(event.SerializeToString())
            self._events.flush()
        except OSError as error:
            if self._events is not None:
                with contextlib.suppress(OSError):  # it has what failed still in its buffer
                    self._events.close()
                self._events = None
            raise self._cannot_write(error) from error

    def _new_event_file(self) -> RecordWriter:
        folder = self.path.parent / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        # The number tells two files of the same second apart; TensorBoard reads them in this order.
        number = len(list(folder.iterdir()))
        name = f"events.out.tfevents.{int(time.time())}.{number:04}.{socket.gethostname()}"
        events = RecordWriter(str(folder / name))
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        events.write(version.SerializeToString())
        return events

    def _cannot_write(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        advice = "mend that and start the same command again: it goes on from the last checkpoint"
        message = f"metrics cannot be written: {reason}; {advice}"
        return OSError(error.errno, message, str(self.path))

    def _remove_records_beyond(self, step: int | None) -> int:
        """Removes unreadable lines and, given a step, later records: all of them or none."""
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
        if unreadable:  # a process that was killed leaves one half line, a machine that fell more
            logging.warning("%s: removed %d half-written line(s)", self.path, unreadable)
        if later:
            text = "%s: removed %d record(s) of steps after %d, which will be made again"
            logging.warning(text, self.path, later, step)
        return later


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads back what ``MetricWriter`` wrote: one dict per record, all values numbers.

    Raises:
      FileNotFoundError: nothing was ever written there.
      ValueError: a line is not a record; its number is named.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        record = _parse(line)
        if record is None:
            raise ValueError(
                f"{path}, line {number} is not a record: {line[:60]!r}. A killed run may end in "
                "half a line; starting it again removes that"
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
    """The record in ``line``, or None where there is no whole one."""
    try:
        record = json.loads(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and line.endswith(b"\n") else None


class ProgressBar:
    """Shows step, loss, speed and time left: a bar in a terminal, elsewhere a line now and then.

    Speed and time left are measured over the last 30 seconds, so compilation and what an earlier
    run did do not count for long.

    Args:
      total_steps: the step at which the run is done.
      initial_step: the step it starts from.
      active: False shows nothing, for all processes of a run but one.
      unit: what is counted, to tell the speed in.
      seconds_between_lines: at least so long between two lines where there is no terminal.
      stream: where to show it, standard error by default.
      clock: seconds, from any moment on.
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
        """Speed over the last 30 seconds; NaN before the second update."""
        return self._rates()[1]

    def update(self, step: int, loss: SupportsFloat, count: int) -> None:
        """Tells that the run has reached ``step``.

        Args:
          step: optimizer steps taken.
          loss: of the latest step of which it is known, per token or example; NaN where of none.
          count: units trained on since the last update.
        """
        now = self._clock()
        advanced = step - self._step
        self._step = step
        self._count += count
        self._samples.append((now, step, self._count))
        # The oldest sample stays until the next is old too: a slow run still has two to compare.
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
        """Writes lines of text, above the bar where there is one."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last state and leaves it standing; more than once does no harm."""
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
        """Steps and units per second, NaN while nothing is known."""
        start, first_step, first_count = self._samples[0]
        end, last_step, last_count = self._samples[-1]
        seconds = end - start
        if seconds <= 0:
            return math.nan, math.nan
        return (last_step - first_step) / seconds, (last_count - first_count) / seconds


def say(text: str) -> None:
    """Tells the user, on standard error, what is going on."""
    print(text, file=sys.stderr, flush=True)


def summary_table(rows: Mapping[str, object]) -> str:
    """An aligned plain-text table of two columns, without a newline at its end.

    Whole numbers have thousands separators, others four significant digits; None is a dash.
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
    """Hours, minutes and seconds: ``1:02:03`` or ``2:03``; a question mark for NaN."""
    if math.isnan(seconds):
        return "?"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
