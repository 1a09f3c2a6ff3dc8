"""The pages of docs/ on platforms: commands are such that they can be given."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from launch import gke, tpu_vm
from tests.jobset_schema import schema_problems
from transformer_jax.launching.run import split_flags

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def commands(page):
    """Those after a $ in a console block, or a ! in a cell of a notebook."""
    text = re.sub(r"\\\n *", "", PAGES[page])  # one command on several lines
    return re.findall(r"^ *(?:\$ |!)(.*)$", text, re.MULTILINE)


def launcher_commands(page):
    program = f"python launch/{page}.py "
    return [shlex.split(line.removeprefix(program)) for line in commands(page) if line.startswith(program)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_is_there(page):
    for command in commands(page):
        for word in shlex.split(command, comments=True):
            if word.startswith("transformer_jax.") and "/" not in word:
                assert (ROOT / f"{word.replace('.', '/')}.py").exists(), command
            if word.startswith("launch/"):
                assert (ROOT / word).exists(), command
            if word.startswith("--config="):
                assert (ROOT / word.removeprefix("--config=").partition(":")[0]).exists(), command
            if word.startswith("--constraint="):
                assert (ROOT / word.removeprefix("--constraint=")).exists(), command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / "docs" / target).exists(), target


def test_the_commands_for_kubernetes_engine(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    found = launcher_commands("gke")
    assert len(found) > 3
    for arguments in found:
        values = flags.FlagValues()
        gke.define_flags(values)
        _, *others = split_flags(["gke", *arguments, "--dry_run"], values)
        monkeypatch.setattr(gke, "FLAGS", values)
        assert gke.launch(others) == 0
        manifests = list(gke.yaml.safe_load_all(capsys.readouterr().out))
        assert manifests and not any(map(schema_problems, manifests))


def test_the_commands_for_tpu_vms(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    found = launcher_commands("tpu_vm")
    assert {arguments[0] for arguments in found} == set(tpu_vm.STEPS)
    for step, *arguments in found:
        values = flags.FlagValues()
        tpu_vm.define_flags(values)
        _, *others = split_flags(["tpu_vm", *arguments, "--dry_run"], values)
        monkeypatch.setattr(tpu_vm, "FLAGS", values)
        tpu_vm.launch(step, others)
        assert capsys.readouterr().out.startswith("gcloud compute tpus ")
