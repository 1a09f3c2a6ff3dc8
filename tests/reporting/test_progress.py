"""Metrics on disk survive crashes and come back; the bar and the table say what is so."""

import errno
import io
import json
import math
import pathlib
import struct

import numpy as np
import pytest
from absl import logging
from tensorboardX.proto import event_pb2

from transformer_jax.reporting import progress
from transformer_jax.reporting.progress import MetricWriter, ProgressBar, read_metrics, summary_table


def read_events(workdir: pathlib.Path) -> list:
    """Reads TensorBoard's files by their published framing: length, checksum, bytes, checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            place += 12
            events.append(event_pb2.Event.FromString(data[place : place + length]))
            place += length + 4
    return events


def scalars(events: list) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]


@pytest.fixture
def warnings_logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    return messages


def test_each_write_is_one_line_on_disk_at_once(tmp_path: pathlib.Path) -> None:
    with MetricWriter(tmp_path / "new" / "run") as writer:
        writer.write(10, {"loss": 2.5, "accuracy": np.float32(0.25)}, "train")
        lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 1
        record = json.loads(lines[0])
        assert record.pop("time") > 1.7e9
        assert record == {"step": 10, "train/loss": 2.5, "train/accuracy": 0.25}
        writer.write(20, {"loss": 2.0}, "validation")
    records = read_metrics(tmp_path / "new" / "run")
    assert [(record["step"], len(record)) for record in records] == [(10, 4), (20, 3)]


def test_tensorboard_reads_the_same_values(tmp_path: pathlib.Path) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 2.5, "accuracy": 0.25}, "train")
        writer.write(2, {"loss": math.inf}, "train")
        events = read_events(tmp_path)  # before closing: it was flushed
    assert events[0].file_version == "brain.Event:2"
    assert scalars(events) == [
        (1, "train/loss", 2.5),
        (1, "train/accuracy", 0.25),
        (2, "train/loss", math.inf),
    ]


def test_numbers_that_json_lacks_become_strings(tmp_path: pathlib.Path) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf}, "train")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=refuse)
    assert [record[f"train/{name}"] for name in "abc"] == ["NaN", "Infinity", "-Infinity"]
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back["train/a"])
    assert (back["train/b"], back["train/c"]) == (math.inf, -math.inf)


def test_resume_removes_later_records_and_says_so(tmp_path: pathlib.Path, warnings_logged: list[str]) -> None:
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"loss": float(step)}, "train")
    with MetricWriter(tmp_path) as writer:
        assert writer.resume(20) == 2
        writer.write(30, {"loss": -30.0}, "train")
    losses = [(record["step"], record["train/loss"]) for record in read_metrics(tmp_path)]
    assert losses == [(10, 10.0), (20, 20.0), (30, -30.0)]
    (message,) = warnings_logged
    assert "removed 2 record(s) of steps after 20" in message

    # The files of both runs are there, and TensorBoard is told to hide from step 21 on.
    events = read_events(tmp_path)
    assert [step for step, _, _ in scalars(events)] == [10, 20, 30, 40, 30]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [21]


def test_resume_with_nothing_beyond_changes_nothing(
    tmp_path: pathlib.Path, warnings_logged: list[str]
) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0}, "train")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with MetricWriter(tmp_path) as writer:
        assert writer.resume(10) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert warnings_logged == []


@pytest.mark.parametrize("tail", [b'{"step": 20, "ti', b'{"step": 20}', b"\x00\x00\x00", b"7\n"])
def test_half_written_line_of_a_killed_run_is_removed(
    tmp_path: pathlib.Path, warnings_logged: list[str], tail: bytes
) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0}, "train")
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    with pytest.raises(ValueError, match="line 2 is not a record"):
        read_metrics(tmp_path)
    with MetricWriter(tmp_path) as writer:
        writer.write(20, {"loss": 2.0}, "train")
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20]
    (message,) = warnings_logged
    assert "removed 1 incomplete line(s)" in message


def test_full_disk_is_an_error_that_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.FileIO):
        """Takes nine bytes of a second record, then has no space left."""

        def write(self, data) -> int:
            if self.tell() == 0:
                return super().write(data)
            if len(data) > 40:
                return super().write(data[:9])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress.io, "FileIO", FullDisk)
    writer = MetricWriter(tmp_path)
    writer.write(10, {"loss": 1.0}, "train")
    with pytest.raises(OSError, match=r"No space left on device; .* last checkpoint") as caught:
        writer.write(20, {"loss": 2.0}, "train")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [10]


def test_full_disk_under_tensorboard_is_an_error_and_does_not_hang(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(self, *arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0}, "train")
        monkeypatch.setattr(progress.RecordWriter, "flush", no_space)
        with pytest.raises(OSError, match="No space left on device; "):
            writer.write(20, {"loss": 2.0}, "train")
        monkeypatch.undo()
        writer.write(30, {"loss": 3.0}, "train")
    assert 30 in [step for step, _, _ in scalars(read_events(tmp_path))]


def test_an_inactive_writer_leaves_no_trace(tmp_path: pathlib.Path) -> None:
    with MetricWriter(tmp_path / "run", active=False) as writer:
        assert writer.resume(3) == 0
        writer.write(10, {"loss": 1.0}, "train")
    assert not (tmp_path / "run").exists()


def test_wrong_calls_are_refused(tmp_path: pathlib.Path) -> None:
    writer = MetricWriter(tmp_path)
    with pytest.raises(ValueError, match="prefix"):
        writer.write(1, {"loss": 1.0}, "")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(1, {"loss": 1.0}, "train")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_every_so_many_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with ProgressBar(100, seconds_between_lines=10.0, stream=stream, clock=clock) as bar:
        for step in range(1, 26):
            clock.now += 1.0
            bar.update(step, loss=2.0, count=500)
        bar.print("validation loss 1.5")
    assert stream.getvalue().splitlines() == [
        "step 10/100  loss 2.0000  500 tokens/s  1:30 left",
        "step 20/100  loss 2.0000  500 tokens/s  1:20 left",
        "validation loss 1.5",
        "step 25/100  loss 2.0000  500 tokens/s  1:15 left",
    ]


def test_the_last_step_is_shown_once() -> None:
    clock, stream = Clock(), io.StringIO()
    with ProgressBar(2, stream=stream, clock=clock) as bar:
        for step in (1, 2):
            clock.now += 0.5
            bar.update(step, loss=0.125, count=1000)
    assert stream.getvalue() == "step 2/2  loss 0.1250  2,000 tokens/s  0:00 left\n"


def test_speed_and_time_left_count_only_this_run_and_forget_compilation() -> None:
    clock = Clock()
    bar = ProgressBar(4000, initial_step=1000, stream=io.StringIO(), clock=clock)
    assert math.isnan(bar.units_per_second)
    clock.now += 60.0  # the first step is compiled
    bar.update(1001, loss=1.0, count=100)
    assert bar.units_per_second == pytest.approx(100 / 60)
    for step in range(1002, 1101):
        clock.now += 0.5
        bar.update(step, loss=1.0, count=100)
    assert bar.units_per_second == pytest.approx(200)


def test_before_a_loss_is_known_none_is_shown_and_images_are_no_tokens() -> None:
    clock, stream = Clock(), io.StringIO()
    with ProgressBar(1, unit="images", stream=stream, clock=clock) as bar:
        clock.now += 0.5
        bar.update(1, loss=math.nan, count=64)
    assert stream.getvalue() == "step 1/1  128 images/s  0:00 left\n"


def test_hours_left() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = ProgressBar(10_001, seconds_between_lines=1.0, stream=stream, clock=clock)
    clock.now += 1.5
    bar.update(1, loss=1.0, count=0)
    assert stream.getvalue() == "step 1/10,001  loss 1.0000  0 tokens/s  4:10:00 left\n"


def test_in_a_terminal_a_bar() -> None:
    clock, stream = Clock(), Terminal()
    with ProgressBar(200, initial_step=100, stream=stream, clock=clock) as bar:
        clock.now += 1.0
        bar.update(150, loss=3.0, count=4096)
        bar.print("a line above the bar")
    shown = stream.getvalue()
    assert "a line above the bar\n" in shown
    assert " 75% |" in shown
    assert "step 150/200  loss 3.0000  4,096 tokens/s  0:01 left" in shown


def test_an_inactive_bar_shows_nothing_but_measures() -> None:
    clock, stream = Clock(), Terminal()
    with ProgressBar(10, active=False, stream=stream, clock=clock) as bar:
        clock.now += 2.0
        bar.update(10, loss=1.0, count=64)
        bar.print("nothing")
        assert bar.units_per_second == 32
    assert stream.getvalue() == ""


def test_summary_table_is_aligned() -> None:
    table = summary_table(
        {
            "steps": 12_345,
            "exact match, %": 99.8,
            "perplexity": 1.23456,
            "tokens/s": 12345.6,
            "best step": None,
            "finished": True,
            "loss": math.nan,
            "samples": "seven\nsieben",
        }
    )
    assert table.splitlines() == [
        "steps           12,345",
        "exact match, %  99.8",
        "perplexity      1.235",
        "tokens/s        12,346",
        "best step       -",
        "finished        yes",
        "loss            nan",
        "samples         seven",
        "                sieben",
    ]
    assert summary_table({}) == ""
