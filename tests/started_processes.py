"""Programs given as text, run in a Python of their own."""

import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(
    program: str, directory: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``program`` with ``directory`` and ``arguments`` as its own and this checkout on its path."""
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(directory), *arguments],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=100,
    )
