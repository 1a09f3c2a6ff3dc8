"""The tests on a real Slurm cluster run again as soon as one of their sources changes."""

import pathlib
import types

import pytest

from launch import slurm
from tests.launch.slurm_sources import ROOT, SOURCES, digest, is_unchanged


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("launch/slurm.py", "transformer_jax/distributed/groups.py", "transformer_jax/config.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a = 1\n")
    (tmp_path / "tried.txt").write_text(digest(tmp_path) + "\n")
    return tmp_path


def test_unchanged_sources_and_other_modules_need_no_cluster(tree: pathlib.Path) -> None:
    (tree / "transformer_jax/config.py").write_text("a = 2\n")
    assert is_unchanged(tree, tree / "tried.txt")


@pytest.mark.parametrize("name", ["launch/slurm.py", "transformer_jax/distributed/groups.py"])
def test_a_changed_source_needs_a_cluster(tree: pathlib.Path, name: str) -> None:
    (tree / name).write_text("a = 2\n")
    assert not is_unchanged(tree, tree / "tried.txt")


def test_new_removed_and_renamed_sources_and_a_missing_digest_need_a_cluster(tree: pathlib.Path) -> None:
    assert not is_unchanged(tree, tree / "missing.txt")
    (tree / "launch/slurm.py").rename(tree / "launch/other.py")
    assert not is_unchanged(tree, tree / "tried.txt")
    (tree / "launch/other.py").unlink()
    assert not is_unchanged(tree, tree / "tried.txt")


def test_the_modules_that_start_and_join_processes_are_sources() -> None:
    """Wherever they lie: a folder that moves away from the patterns would never be tried again."""
    watched = {path.stem for pattern in SOURCES for path in ROOT.glob(pattern)}
    assert watched >= {"slurm", "local", "sweeps", "processes", "rendezvous", "stopping", "test_slurm_jobs"}
    assert watched >= {"train", "loop", "flags", "process", "folder", "files", "tiny_training"}


def test_what_the_launcher_imports_are_sources() -> None:
    watched = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    modules = {value.__module__ for value in vars(slurm).values() if hasattr(value, "__module__")}
    modules |= {value.__name__ for value in vars(slurm).values() if isinstance(value, types.ModuleType)}
    files = {
        ROOT / (name.replace(".", "/") + ".py") for name in modules if name.startswith("transformer_jax")
    }
    assert len(files) > 3 and files <= watched
