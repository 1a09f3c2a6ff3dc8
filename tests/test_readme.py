"""The examples, commands and links of README.md and of the pages that it leads to are right."""

import itertools
import pathlib
import re
import shlex
import xml.etree.ElementTree

import pytest

from tests.parity.test_fixtures import STORED

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))
}
MOST_LINES = 200


def python_examples(page, **folders):
    """The Python examples of a page in order, with ``path/to/folder`` and others replaced by real folders."""
    examples = re.findall(r"^( *)```python\n(.*?)```", PAGES[page], re.DOTALL | re.MULTILINE)
    texts = [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in examples]
    for shown, folder in folders.items():
        path = shown.replace("_", "/")
        assert any(path in text for text in texts), path
        texts = [text.replace(path, str(folder)) for text in texts]
    return texts


def run(text, page, names):
    exec(compile(text, page, "exec"), names)


@pytest.fixture
def folders(tmp_path):
    return {"path_to_folder": STORED / "bert_base_model", "another_folder": tmp_path / "new"}


def test_the_examples_of_the_readme_run(tmp_path, folders):
    checkpoint, library = python_examples("README.md", **folders)
    # The example's smallest model: the base one is the same program with more layers and larger arrays.
    assert '"base"' in library and "or tiny" in library
    library = library.replace('"base"', '"tiny"')
    names = {}
    run(checkpoint, "README.md", names)
    assert names["hidden"].shape == (1, 3, 16) and (tmp_path / "new" / "config.json").exists()
    run(library, "README.md", names)
    assert names["logits"].shape == (1, 4, 32_000)


def test_the_examples_of_the_page_on_checkpoints_run(tmp_path, folders):
    names = {}
    for text in python_examples("docs/checkpoints.md", **folders):
        run(text, "docs/checkpoints.md", names)
    assert names["hidden"].shape == (1, 3, 16) and (tmp_path / "new" / "config.json").exists()
    assert names["mesh"].axis_names == ("data", "fsdp", "context", "tensor")


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= MOST_LINES
    links = set(re.findall(r"\]\((docs/[\w.]+)\)", README))
    assert links == {page for page in PAGES if page != "README.md"} | {"docs/overview.svg"}


def test_the_picture_is_an_image_with_a_title():
    picture = xml.etree.ElementTree.parse(ROOT / "docs" / "overview.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.find("{http://www.w3.org/2000/svg}title") is not None


def test_the_page_on_experiments_has_every_experiment():
    files = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert set(re.findall(r"^\| `(\w+\.py)`", PAGES["docs/experiments.md"], re.MULTILINE)) == files


@pytest.mark.parametrize(
    "page", ["README.md", "docs/training.md", "docs/checkpoints.md", "docs/data.md", "docs/numbers.md"]
)
def test_commands_name_programs_targets_and_files_that_are_there(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = re.findall(r"^ *\$ (.*)$", PAGES[page].replace("\\\n", ""), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert words[1] in targets
        for before, word in itertools.pairwise(words):
            if before == "-m":
                assert (ROOT / f"{word.replace('.', '/')}.py").exists(), command
            if word.startswith("--config="):
                assert (ROOT / word.removeprefix("--config=").partition(":")[0]).exists(), command
