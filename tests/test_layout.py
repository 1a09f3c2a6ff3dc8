"""The layout of docs/design.md, read from the source: who imports whom, how long a thing may be."""

import ast
import configparser
import graphlib
import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

from tests.allowed_imports import BASIC, MAY_IMPORT, PROGRAMS, WITHOUT_CONFIG

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "transformer_jax"
CODE_FOLDERS = (PACKAGE, "experiments", "launch", "benchmarks", "tests")

NEVER_IMPORTED = {
    "experiments": "the library knows no experiment",
    "launch": "the library knows no launcher",
    "tensorflow": "the core runs without TensorFlow",
    "torch": "the core runs without PyTorch",
    "transformers": "the core runs without PyTorch's transformers",
}
# But inside a function of this file, which compares with them.
COMPARES = f"{PACKAGE}/pretrained/verify.py"
COMPARED_WITH = ("torch", "transformers")
FORBIDDEN_NAMES = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
MOST_LINES_IN_FILE = 400
MOST_LINES_IN_FUNCTION = 80
LONGER_FUNCTIONS = {(f"{PACKAGE}/training/loop.py", "train"): 200}
MOST_TOP_LEVEL_FILES = 16


def python_files(root: pathlib.Path, folders: tuple[str, ...]) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def imports(path: pathlib.Path, root: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported in a file, at its top or inside a function.

    Without what ``COMPARES`` may import there.
    """
    package = path.relative_to(root).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text())
    allowed = set()
    if path.relative_to(root).as_posix() == COMPARES:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = [node for function in functions for node in ast.walk(function)]
        allowed = {
            id(node)
            for node in inside
            if isinstance(node, ast.Import) and {alias.name for alias in node.names} <= set(COMPARED_WITH)
        }
    for node in ast.walk(tree):
        if id(node) in allowed:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


# What each folder and each file of the top level may import.
ALLOWED = {
    "types": [],
    "files": [],
    "config": ["types"],
    **{folder: [*BASIC, *names.split()] for folder, names in MAY_IMPORT.items()},
    **{folder: ["types", *MAY_IMPORT[folder].split()] for folder in WITHOUT_CONFIG},
    **{program: [*BASIC, *MAY_IMPORT] for program in PROGRAMS},
    "__init__": [*BASIC, *MAY_IMPORT],
}


def import_problems(root: pathlib.Path) -> list[str]:
    """One sentence for every import in the package that points the wrong way."""
    problems = []
    for path in python_files(root, (PACKAGE,)):
        own = path.relative_to(root / PACKAGE).with_suffix("").parts[0]
        where = path.relative_to(root)
        if own not in ALLOWED:
            problems.append(f"{where}: {own!r} is no folder of MAY_IMPORT and no program")
            continue
        allowed = {own, *ALLOWED[own]}
        for line, name in imports(path, root):
            top, *rest = name.split(".")
            if top in NEVER_IMPORTED:
                problems.append(f"{where}:{line} imports {name}: {NEVER_IMPORTED[top]}")
            elif top == PACKAGE:
                modules = {*ALLOWED, *(file.stem for file in (root / PACKAGE).iterdir())}
                # `from transformer_jax import build` takes from the package itself.
                target = rest[0] if rest and rest[0] in modules else "__init__"
                if target not in allowed:
                    problems.append(f"{where}:{line} imports {name}: {own} may not import {target}")
    return problems


def size_problems(root: pathlib.Path) -> list[str]:
    """One sentence for every file or function too long, and every name that says nothing."""
    problems = []
    for path in python_files(root, CODE_FOLDERS):
        where = path.relative_to(root).as_posix()
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > MOST_LINES_IN_FILE:
            problems.append(f"{where} has {lines} lines; {MOST_LINES_IN_FILE} are the most")
        if path.name in FORBIDDEN_NAMES:
            problems.append(f"{where} has a name that says nothing of what is in it")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                most = LONGER_FUNCTIONS.get((where, node.name), MOST_LINES_IN_FUNCTION)
                if length > most:
                    problems.append(
                        f"{where}:{node.lineno} {node.name} has {length} lines; {most} are the most"
                    )
    return problems


def skip_problems(root: pathlib.Path) -> list[str]:
    """One sentence for every test that is skipped, or expected to fail, without a reason."""
    problems = []
    for path in python_files(root, ("tests",)):
        tree = ast.parse(path.read_text())
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            name = ast.unparse(node)
            if not re.fullmatch(r"(pytest|unittest)\.(mark\.)?(skip\w*|xfail|importorskip)", name):
                continue
            if not _has_reason(name, called.get(id(node))):
                problems.append(f"{path.relative_to(root)}:{node.lineno} {name} gives no reason")
    return problems


def _has_reason(name: str, call: ast.Call | None) -> bool:
    if call is None:
        return False
    by_name = [word.value for word in call.keywords if word.arg == "reason"]
    first_is_reason = name in ("pytest.skip", "pytest.xfail", "pytest.mark.skip", "unittest.skip")
    by_place = call.args[:1] if first_is_reason else []
    found = [*by_name, *by_place]
    return bool(found) and not (isinstance(found[0], ast.Constant) and not found[0].value)


def test_imports_point_one_way() -> None:
    assert import_problems(ROOT) == []


def test_the_table_of_imports_has_no_circle() -> None:
    graph = {folder: set(names.split()) for folder, names in MAY_IMPORT.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MAY_IMPORT), "a folder is named in MAY_IMPORT that has no line there"


def test_every_folder_of_the_library_has_its_line_and_says_what_it_may_import() -> None:
    folders = [path for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {path.name for path in folders} == set(MAY_IMPORT)
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, folder.name
        assert "may import" in docstring, folder.name


def test_the_top_level_has_programs_and_little_else() -> None:
    files = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    assert files == {"__init__", *BASIC, *PROGRAMS}
    assert len(files) <= MOST_TOP_LEVEL_FILES


def test_files_and_functions_are_short_and_well_named() -> None:
    assert size_problems(ROOT) == []


def test_no_test_is_skipped_without_a_reason() -> None:
    assert skip_problems(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line", "problem"),
    [
        ("layers/new.py", "from transformer_jax.models import block", "may not import models"),
        (
            "layers/new.py",
            "from transformer_jax.config import ConfigError",
            "may not import config",
        ),
        ("layers/new.py", "from ..models.block import Block", "may not import models"),
        ("objectives/new.py", "import transformer_jax.models.transformer", "may not import models"),
        ("data/new.py", "from transformer_jax import objectives", "may not import objectives"),
        (
            "families/new.py",
            "def f():\n    from transformer_jax import train",
            "may not import train",
        ),
        ("evaluate.py", "from transformer_jax.train import main", "may not import train"),
        ("runs/new.py", "from transformer_jax.training import loop", "may not import training"),
        ("models/new.py", "from transformer_jax import build", "may not import __init__"),
        ("train.py", "import experiments.number_words", "knows no experiment"),
        ("train.py", "from launch import slurm", "knows no launcher"),
        ("data/new.py", "import tensorflow as tf", "without TensorFlow"),
        ("pretrained/new.py", "def f():\n    import torch.nn", "without PyTorch"),
        ("pretrained/verify.py", "import torch", "without PyTorch"),
        ("pretrained/verify.py", "class A:\n    import transformers", "without PyTorch"),
        ("data/verify.py", "def f():\n    import torch", "without PyTorch"),
        ("pretrained/verify.py", "def f():\n    import tensorflow", "without TensorFlow"),
        ("novelty.py", "import os", "no folder of MAY_IMPORT"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: pathlib.Path, place: str, line: str, problem: str) -> None:
    path = tmp_path / PACKAGE / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    (found,) = import_problems(tmp_path)
    assert problem in found
    assert place in found


def test_allowed_imports_are_not_caught(tmp_path: pathlib.Path) -> None:
    (tmp_path / PACKAGE / "layers").mkdir(parents=True)
    (tmp_path / PACKAGE / "layers" / "new.py").write_text(
        "import jax\nimport tensorflow_datasets\nfrom transformer_jax.types import Array\n"
        "from transformer_jax.layers import norms\nfrom .masks import Mask\n"
    )
    (tmp_path / COMPARES).parent.mkdir()
    (tmp_path / COMPARES).write_text("def f():\n    import torch\n    import transformers\n")
    assert import_problems(tmp_path) == []


def test_planted_lengths_and_names_are_caught(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    body = "".join(f"    x{i} = {i}\n" for i in range(80))
    (folder / "utils.py").write_text("x = 0\n" * 401)
    (folder / "training").mkdir()
    (folder / "training" / "loop.py").write_text("def train():\n" + body + "def train_step():\n" + body)
    (folder / "types.py").write_text("x = 0\n" * 319 + "def f():\n" + body[: body.index("    x79")])
    assert size_problems(tmp_path) == [
        "transformer_jax/training/loop.py:82 train_step has 81 lines; 80 are the most",
        "transformer_jax/utils.py has 401 lines; 400 are the most",
        "transformer_jax/utils.py has a name that says nothing of what is in it",
    ]


def test_planted_skips_are_caught(tmp_path: pathlib.Path) -> None:
    lines = {
        "@pytest.mark.skip\ndef f(): pass": False,
        "@pytest.mark.skip('no data here')\ndef f(): pass": True,
        "@pytest.mark.skipif(os.name == 'nt')\ndef f(): pass": False,
        "@pytest.mark.skipif(os.name == 'nt', reason='')\ndef f(): pass": False,
        "@pytest.mark.skipif(os.name == 'nt', reason='no signals')\ndef f(): pass": True,
        "@pytest.mark.xfail(strict=True)\ndef f(): pass": False,
        "pytest.skip()": False,
        "pytest.skip(f'no {thing} here')": True,
        "torch = pytest.importorskip('torch')": False,
        "torch = pytest.importorskip('torch', reason='the parity extra has it')": True,
        "@unittest.skip('why')\ndef f(): pass": True,
    }
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "test_new.py"
    for line, good in lines.items():
        path.write_text(line + "\n")
        assert len(skip_problems(tmp_path)) == (0 if good else 1), line


# What setup.cfg declares, and what constraints/ pins.


def setup_section(name: str, key: str) -> dict[str, str]:
    """Requirement name, normalized, to lower bound."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = [line for line in parser[name][key].splitlines() if line and line[0] != "#"]
    found = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in lines]
    assert all(found), f"a requirement of {name} without a lower bound: {lines}"
    return {normalized(match[1]): match[2] for match in found if match}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def pins(path: pathlib.Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{path.name}: {line!r} pins nothing"
    return {normalized(name): pin for name, pin in (line.split("==") for line in lines)}


CONSTRAINTS = sorted((ROOT / "constraints").glob("*.txt"))


def test_the_constraints_are_there() -> None:
    names = ["newest-py311.txt", "newest-py312.txt", "oldest.txt", "parity.txt", "plan.txt"]
    assert [path.name for path in CONSTRAINTS] == names


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_within_its_bound(path: pathlib.Path) -> None:
    pinned = pins(path)
    bounds = setup_section("options", "install_requires")
    bounds |= setup_section("options.extras_require", "dev")
    missing = sorted(set(bounds) - set(pinned))
    assert missing == []
    below = {name for name, bound in bounds.items() if version(pinned[name]) < version(bound)}
    assert below == set()


@pytest.mark.parametrize(("name", "extra"), [("parity", "parity"), ("plan", "tpu")])
def test_sets_of_other_targets_are_the_newest_one_with_an_extra(name: str, extra: str) -> None:
    newest, other = (pins(ROOT / "constraints" / f"{file}.txt") for file in ("newest-py311", name))
    assert newest.items() <= other.items()
    for requirement, bound in setup_section("options.extras_require", extra).items():
        assert version(other[requirement]) >= version(bound), requirement


def test_lower_bounds_leave_the_oldest_platform_alone() -> None:
    # Colab's TPU runtimes of August 2026: pip must not replace what they bring.
    runtime = {"jax": "0.7.2", "flax": "0.11.2", "orbax-checkpoint": "0.12.4", "grain": "0.2.18"}
    bounds = setup_section("options", "install_requires")
    pinned = pins(ROOT / "constraints" / "oldest.txt")
    for name, brought in runtime.items():
        assert version(bounds[name]) <= version(brought), name
        assert pinned[name] == brought, name


def test_every_import_of_the_library_is_declared() -> None:
    distributions = importlib.metadata.packages_distributions()
    declared = set(setup_section("options", "install_requires"))
    undeclared = set()
    for path in python_files(ROOT, (PACKAGE,)):
        for line, name in imports(path, ROOT):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == PACKAGE:
                continue
            if not declared & {normalized(found) for found in distributions.get(top, [])}:
                undeclared.add(f"{path.relative_to(ROOT)}:{line} imports {top}")
    assert undeclared == set()
