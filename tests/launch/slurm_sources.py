"""Decides whether the tests on a real Slurm cluster have to run: whether their sources changed.

    python -m tests.launch.slurm_sources           # status 0 if unchanged since the last success, otherwise 1
    python -m tests.launch.slurm_sources --digest  # prints the digest of the sources

The tests take minutes, and what only they show breaks if a launcher, a module that a launcher imports, the
training program and its loop, a module that joins processes or stops them, or the tests themselves change.
``slurm_tried.txt`` stores the digest of these files as they were when the tests last passed. The comparison
reads file contents, not the history, so it is the same in a shallow clone. Needs the standard library only.
"""

import argparse
import hashlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
TRIED = pathlib.Path(__file__).with_name("slurm_tried.txt")
SOURCES = (
    "launch/**/*.py",
    "transformer_jax/launching/**/*.py",
    "transformer_jax/distributed/**/*.py",
    "transformer_jax/cli/**/*.py",
    "transformer_jax/checkpoints/**/*.py",
    "transformer_jax/reporting/**/*.py",
    "transformer_jax/runs/folder.py",
    "transformer_jax/training/loop.py",
    "transformer_jax/files.py",
    "transformer_jax/train.py",
    "tests/conftest.py",
    "tests/tiny_training.py",
    *(
        f"tests/**/{name}.py"
        for name in ("slurm_cluster", "slurm_sources", "stand_in", "test_slurm_jobs", "test_trainings")
    ),
)


def digest(root: pathlib.Path) -> str:
    """Returns the SHA-256 digest of the names and contents of all sources below ``root``."""
    paths = sorted({path for pattern in SOURCES for path in root.glob(pattern)})
    found = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def is_unchanged(root: pathlib.Path, tried: pathlib.Path) -> bool:
    """Returns whether ``tried`` holds the digest of the sources; False if there is no such file."""
    return tried.is_file() and tried.read_text().split() == [digest(root)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Decides whether the tests on Slurm have to run.")
    parser.add_argument("--digest", action="store_true", help="print the digest of the sources")
    if parser.parse_args().digest:
        print(digest(ROOT))
        return
    sys.exit(not is_unchanged(ROOT, TRIED))


if __name__ == "__main__":
    main()
