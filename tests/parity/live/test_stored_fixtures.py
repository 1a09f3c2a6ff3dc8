"""What is stored is what PyTorch computes: one fixture anew, as ``make everything`` computes all of them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.parity.test_fixtures import STORED

pytestmark = pytest.mark.live

ROOT = pathlib.Path(__file__).parents[3]


def test_a_fixture_computed_anew_is_the_stored_one(tmp_path: pathlib.Path) -> None:
    name = "bert_next_sentence"
    command = [sys.executable, "-m", "tests.parity.make_fixtures", str(tmp_path), f"--only={name}"]
    subprocess.run(command, cwd=ROOT, env=os.environ, check=True, timeout=300)
    files = [sorted(path.name for path in (folder / name).iterdir()) for folder in (tmp_path, STORED)]
    assert files[0] == files[1]
    with np.load(tmp_path / name / "expected.npz") as arrays:
        found = dict(arrays)
    with np.load(STORED / name / "expected.npz") as arrays:
        wanted = dict(arrays)
    assert set(found) == set(wanted)
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-5, err_msg=key)
