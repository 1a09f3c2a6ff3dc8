"""What README.md shows is what there is."""

import itertools
import pathlib
import re
import shlex

from tests.parity.test_fixtures import STORED

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_examples_run(tmp_path):
    checkpoint, library = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for path, folder in (
        ("path/to/folder", STORED / "bert_base_model"),
        ("another/folder", tmp_path / "new"),
    ):
        assert path in checkpoint
        checkpoint = checkpoint.replace(path, str(folder))
    names = {}
    exec(compile(checkpoint, "README.md", "exec"), names)
    assert names["vectors"].shape == (1, 3, 16) and (tmp_path / "new" / "config.json").exists()
    exec(compile(library, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 4, 32_000)


def test_the_table_has_every_experiment():
    files = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+\.py)`", README, re.MULTILINE)) == files


def test_commands_name_programs_targets_and_files_that_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"^ *\$ (.*)$", README, re.MULTILINE)
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert words[1] in targets
        for before, word in itertools.pairwise(words):
            if before == "-m":
                assert (ROOT / f"{word.replace('.', '/')}.py").exists(), command
            if word.startswith("--config="):
                assert (ROOT / word.removeprefix("--config=").partition(":")[0]).exists(), command
