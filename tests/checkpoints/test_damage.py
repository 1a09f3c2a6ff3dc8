"""Half-written and damaged checkpoints, full disks, and folders that are in the way."""

import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.started_processes import run_python
from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from transformer_jax.checkpoints.files import CheckpointError

CONFIG = CheckpointConfig(every_steps=10, keep_latest=3, keep_best=0)


def make_state(seed: int) -> dict[str, Any]:
    """Arrays too large and small enough to lie within Orbax's index."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(200, 16)), jnp.float32),
        "embedding": jnp.asarray(rng.normal(size=(90, 30)), jnp.float32),
        "scale": jnp.asarray(rng.normal(size=3), jnp.float32),
    }
    return {"params": params, "step": jnp.asarray(seed)}


TEMPLATE = jax.eval_shape(lambda: make_state(0))


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20; to be copied, not changed."""
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    with Checkpointer(directory, CONFIG) as checkpointer:
        for step in (10, 20):
            checkpointer.save(step, make_state(step), {"step": step})
    return directory


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def largest_array(step: Path) -> Path:
    return max((step / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "not committed": lambda step: (step / "commit_success.txt").unlink(),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no data": lambda step: shutil.rmtree(step / "data"),
    "data cut": lambda step: truncate(step / "data" / "data.json"),
    "data of another kind": lambda step: (step / "data" / "data.json").write_text("{}"),
    "names cut": lambda step: truncate(step / "state" / "_METADATA"),
    "no manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "manifest empty": lambda step: os.truncate(step / "state" / "manifest.ocdbt", 0),
    "no index": lambda step: shutil.rmtree(step / "state" / "d"),
    "array missing": lambda step: largest_array(step).unlink(),
    "array cut": lambda step: truncate(largest_array(step)),
    "array empty": lambda step: os.truncate(largest_array(step), 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_falls_back_to_the_last_whole_one_and_says_so(
    damage: Callable[[Path], object], copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(copied / "20")
    found = Checkpointer(copied, CONFIG).restore(TEMPLATE)
    assert found.step == 10 and found.data_state == {"step": 10}
    assert_same(found.state, make_state(10))
    assert [skip.step for skip in found.skipped] == [20]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith(f"skipping the checkpoint {copied}/20: ")
    assert found.skipped[0].reason in warnings[0] and "\n" not in warnings[0]
    # Seen before Orbax reads: an array that fails in Orbax leaves noise on stderr.
    assert "Encountered error while reading" not in warnings[0]


def test_no_cut_or_missing_file_gives_another_state(written: Path, tmp_path: Path) -> None:
    expected = {step: make_state(step) for step in (10, 20)}
    seen = set()
    names = sorted(path.relative_to(written) for path in (written / "20").rglob("*") if path.is_file())
    cases = [(name, spoil) for name in names for spoil in (truncate, Path.unlink)]
    for number, (name, spoil) in enumerate(cases):
        directory = Path(shutil.copytree(written, tmp_path / str(number)))
        spoil(directory / name)
        found = Checkpointer(directory, CONFIG).restore(TEMPLATE)
        assert_same(found.state, expected[found.step])
        assert all("Encountered error" not in skip.reason for skip in found.skipped)
        seen.add(found.step)
    assert seen == {10, 20}


def test_all_damaged_is_an_error_that_lists_them(copied: Path) -> None:
    (copied / "10" / "commit_success.txt").unlink()
    truncate(copied / "20" / "data" / "data.json")
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(copied, CONFIG).restore(TEMPLATE)
    message = str(caught.value)
    assert f"{copied} has no intact checkpoint;" in message
    assert "step 20: JSONDecodeError" in message
    assert "step 10: it is incomplete, because it has no commit_success.txt" in message


def test_nothing_to_read_is_an_error_and_creates_nothing(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "absent", CONFIG)
    with pytest.raises(CheckpointError, match=r"absent has no intact checkpoint$"):
        checkpointer.restore(TEMPLATE)
    assert checkpointer.best_step() is None
    assert not (tmp_path / "absent").exists()


def test_a_step_asked_for_by_number_does_not_fall_back(copied: Path) -> None:
    checkpointer = Checkpointer(copied, CONFIG)
    assert checkpointer.restore(TEMPLATE, step=10).step == 10
    with pytest.raises(CheckpointError, match="no complete checkpoint of step 15; available steps: 10, 20"):
        checkpointer.restore(TEMPLATE, step=15)
    truncate(largest_array(copied / "20"))
    with pytest.raises(CheckpointError, match=r"checkpoints/20 is damaged"):
        checkpointer.restore(TEMPLATE, step=20)


@pytest.mark.parametrize("damage", ["not committed", "array cut"])
def test_training_goes_on_after_falling_back(damage: str, copied: Path) -> None:
    DAMAGES[damage](copied / "20")
    with Checkpointer(copied, dataclasses.replace(CONFIG, keep_latest=1)) as checkpointer:
        assert checkpointer.restore(TEMPLATE).step == 10
        checkpointer.save(15, make_state(15), {})
        checkpointer.save(20, make_state(20), {})
        checkpointer.wait()
        assert checkpointer.restore(TEMPLATE).step == 20
        assert checkpointer.steps() == [20]
    assert (copied / "20.damaged").exists() == (damage == "array cut")


def test_falling_back_while_a_run_is_saving(copied: Path) -> None:
    with Checkpointer(copied, CONFIG) as checkpointer:
        checkpointer.save(30, make_state(30), {})
        checkpointer.wait()
        truncate(largest_array(copied / "30"))
        assert checkpointer.restore(TEMPLATE).step == 20
        checkpointer.save(25, make_state(25), {})
    assert checkpointer.steps() == [10, 20, 25]
    assert (copied / "30.damaged").is_dir()


def test_an_average_passes_over_a_damaged_one(copied: Path) -> None:
    truncate(largest_array(copied / "20"))
    found = Checkpointer(copied, CONFIG).average(TEMPLATE["params"], last=1)
    assert found.steps == (10,) and [skip.step for skip in found.skipped] == [20]
    assert_same(found.params, make_state(10)["params"])
    with pytest.raises(CheckpointError, match="has 1 intact"):
        Checkpointer(copied, CONFIG).average(TEMPLATE["params"], last=2)


def test_an_average_of_fewer_takes_what_is_whole_of_the_last_ones(copied: Path) -> None:
    truncate(largest_array(copied / "20"))
    found = Checkpointer(copied, CONFIG).average(TEMPLATE["params"], last=2, or_fewer=True)
    assert found.steps == (10,) and [skip.step for skip in found.skipped] == [20]
    # Not one that is older than the last that were asked for.
    with pytest.raises(CheckpointError, match="cannot average the last 1 "):
        Checkpointer(copied, CONFIG).average(TEMPLATE["params"], last=1, or_fewer=True)


def test_an_average_tells_of_a_newer_half_written_one(copied: Path) -> None:
    (copied / "20" / "commit_success.txt").unlink()
    checkpointer = Checkpointer(copied, CONFIG)
    assert checkpointer.half_written_steps() == [20]
    found = checkpointer.average(TEMPLATE["params"], last=1)
    assert found.steps == (10,) and [skip.step for skip in found.skipped] == [20]


def test_a_failed_write_surfaces_and_the_next_can_succeed(tmp_path: Path) -> None:
    directory, state = tmp_path / "checkpoints", {"params": jnp.zeros(2)}
    before = set(threading.enumerate())
    with Checkpointer(directory, CONFIG) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.wait()
        directory.rename(tmp_path / "aside")
        directory.write_text("in the way")
        with pytest.raises(CheckpointError, match=rf"could not write the checkpoint {directory}/2"):
            checkpointer.save(2, state, {})
            checkpointer.wait()
        checkpointer.wait()  # said once
        directory.unlink()
        (tmp_path / "aside").rename(directory)
        checkpointer.save(3, state, {})
        checkpointer.wait()
    # Threads that wait for a folder that never comes would hold up the end of the program.
    left = " ".join(thread.name for thread in set(threading.enumerate()) - before)
    assert "_target_setting_result" not in left and "write_metadata" not in left, left
    assert checkpointer.steps() == [1, 3]


def test_a_full_disk_is_said_and_older_checkpoints_stay_whole(
    tmp_path: Path, single_device_environment: dict[str, str]
) -> None:
    program = """
        import resource, sys, numpy as np
        from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer, CheckpointError
        noise = np.random.default_rng(0).normal
        with Checkpointer(sys.argv[1], CheckpointConfig(keep_latest=1)) as checkpointer:
            checkpointer.save(1, {"params": np.float32(noise(size=(10, 10)))}, {})
            checkpointer.wait()
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            for surfaces in ("wait", "save", "close"):
                try:
                    checkpointer.save(2, {"params": noise(size=(200, 200))}, {})
                    if surfaces == "wait":
                        checkpointer.wait()
                    elif surfaces == "save":
                        checkpointer.save(3, {"params": noise(size=(2, 2))}, {})
                    else:
                        checkpointer.close()
                except CheckpointError as error:
                    print(error)
                assert checkpointer.steps() == [1], checkpointer.steps()
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    """
    done = run_python(program, tmp_path, single_device_environment)
    assert (done.returncode, done.stderr) == (0, "")
    messages = done.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert "the disk is full" in message and f"{tmp_path}/2" in message
        assert "File too large" in message and "of step(s) 1 are complete" in message
    expected = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    wanted = jax.ShapeDtypeStruct((10, 10), jnp.float32)
    found = Checkpointer(tmp_path, CONFIG).restore_params(wanted)
    np.testing.assert_array_equal(found.params, expected)


def test_leaving_with_an_error_keeps_that_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt), Checkpointer(directory, CONFIG) as checkpointer:
        checkpointer.save(1, {"params": jnp.zeros(2)}, {})
        checkpointer.wait()
        shutil.rmtree(directory)
        directory.write_text("in the way")
        try:
            checkpointer.save(2, {"params": jnp.zeros(2)}, {})
        finally:
            raise KeyboardInterrupt
    assert all("orbax" not in record.pathname for record in caplog.records)
