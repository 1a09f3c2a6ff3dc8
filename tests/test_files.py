"""A file is written whole, or what was there before stays."""

import os

import pytest

from tests.started_processes import run_python
from transformer_jax.files import check_writable, write_whole

WRITE = """
import resource, signal, sys
from transformer_jax.files import write_whole

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    write_whole(f"{sys.argv[1]}/a.txt", "more than ten bytes")
except OSError as error:
    print(error)
"""


def test_text_and_bytes_are_written(tmp_path):
    write_whole(tmp_path / "a.txt", "größer")
    write_whole(str(tmp_path / "b"), b"\xff")
    assert (tmp_path / "a.txt").read_bytes() == "größer".encode()
    assert (tmp_path / "b").read_bytes() == b"\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b"]


def test_on_a_full_disk_the_old_content_stays_and_the_file_is_named(tmp_path, single_device_environment):
    (tmp_path / "a.txt").write_text("old")
    ended = run_python(WRITE, tmp_path, single_device_environment)
    assert "cannot be written: File too large; fix this and run the same command again" in ended.stdout
    assert str(tmp_path / "a.txt") in ended.stdout
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match=r"No such file.*none/a.txt"):
        write_whole(tmp_path / "none" / "a.txt", "")


def test_what_cannot_be_written_is_known_before(tmp_path):
    path = tmp_path / "vectors.npy"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("older")
    check_writable(path)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/nowhere does not exist; create it"):
        check_writable(tmp_path / "nowhere" / "vectors.npy")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match=r"cannot be written: .*: '/proc/vectors.npy'"):  # not even by root
        check_writable("/proc/vectors.npy")
