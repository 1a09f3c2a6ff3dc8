"""Names on the hub: what is fetched of them, in which order, and what is said where it is not enough."""

import importlib.util
import inspect
import json

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.parity.test_fixtures import STORED
from transformer_jax.config import ConfigError
from transformer_jax.families import FAMILIES
from transformer_jax.pretrained import hub as hub_module
from transformer_jax.pretrained.hub import find_folder, open_checkpoint
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.tensor_files import WeightsError

NAME = "someone/tiny-gpt2"
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"


class Hub:
    """Stands for the hub: ``files`` by their paths, and the paths that were ``fetched`` into ``cache``."""

    def __init__(self, cache):
        self.cache, self.fetched, self.asked = cache, [], []
        self.files = {name: (STORED / "gpt2" / name).read_bytes() for name in ("config.json", WEIGHTS)}

    def hf_hub_download(self, name, path, **asked):
        assert name == NAME
        self.asked.append(asked)
        self.fetched.append(path)
        (self.cache / path).parent.mkdir(parents=True, exist_ok=True)
        (self.cache / path).write_bytes(self.files[path])
        return str(self.cache / path)

    def snapshot_download(self, name, *, allow_patterns=None, ignore_patterns=None, **asked):
        for path in filter_repo_objects(
            self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            if path not in self.fetched:
                self.hf_hub_download(name, path, **asked)
        return str(self.cache)

    def list_repo_files(self, name, **asked):
        assert name == NAME
        self.asked.append(asked)
        return list(self.files)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "cache")
    for function in ("hf_hub_download", "snapshot_download", "list_repo_files"):
        monkeypatch.setattr(huggingface_hub, function, getattr(made, function))
    return made


def test_a_name_is_fetched_without_pickles_and_folders(hub):
    asked = [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "source.spm",
        "target.spm",
    ]
    others = [PICKLE, "README.md", "onnx/model.safetensors", "onnx/config.json", "checkpoint-1/source.spm"]
    hub.files |= dict.fromkeys(asked + others, b"{}")
    assert find_folder(NAME) == hub.cache
    assert hub.fetched[0] == "config.json"
    assert sorted(hub.fetched) == sorted(["config.json", WEIGHTS, *asked])


def test_a_name_is_read_as_its_folder_is(hub):
    assert from_pretrained(NAME).config == from_pretrained(STORED / "gpt2").config


def test_revision_token_and_cache_are_passed_on(hub):
    asked = dict(revision="v1.0", token="hf_secret", cache_dir="elsewhere")
    hub.files |= {
        "modules.json": b'[{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "p"}]',
        "p/config.json": b"{}",
    }
    from_pretrained(NAME, **asked)
    assert "p/config.json" in hub.fetched and hub.asked == [asked] * 4
    del hub.files[WEIGHTS], asked["cache_dir"]
    (hub.cache / WEIGHTS).unlink()
    hub.fetched.clear()
    hub.asked.clear()
    with pytest.raises(WeightsError):
        from_pretrained(NAME, **asked)
    assert hub.asked[-1] == asked  # what files there are: nothing is kept of that


def test_the_arguments_are_those_of_the_library_that_fetches():
    for function in ("hf_hub_download", "snapshot_download", "list_repo_files"):
        known = inspect.signature(getattr(huggingface_hub, function)).parameters
        wanted = {"revision", "token"} | ({"cache_dir"} if function != "list_repo_files" else set())
        assert wanted <= set(known), function


def test_of_a_package_there_is_no_revision(hub, monkeypatch):
    monkeypatch.setitem(hub_module._PACKAGES, NAME, "transformer_jax")
    assert find_folder(NAME).name == "model" and hub.fetched == []
    assert open_checkpoint(NAME, revision="main").path == hub.cache


def test_of_a_folder_there_is_no_revision():
    with pytest.raises(ConfigError, match=r"gpt2 is a folder, which has no revision='main'"):
        from_pretrained(STORED / "gpt2", revision="main")


@pytest.mark.parametrize("model_type", ["llama", "electra", None])
def test_of_another_family_nothing_but_the_config_is_fetched(model_type, hub):
    hub.files["config.json"] = json.dumps({"model_type": model_type}).encode()
    with pytest.raises(ConfigError) as error:
        from_pretrained(NAME)
    assert f"{NAME} has model_type={model_type!r}" in str(error.value)
    for family in FAMILIES.values():
        assert family.checkpoint is None or family.checkpoint.model_type in str(error.value)
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize("elsewhere", [[], [f"onnx/{WEIGHTS}"]])
@pytest.mark.parametrize("pickle", [PICKLE, "pytorch_model.bin.index.json"])
def test_a_name_with_nothing_but_pickles_is_refused_with_the_line_that_converts_it(pickle, elsewhere, hub):
    del hub.files[WEIGHTS]
    hub.files |= dict.fromkeys([pickle, *elsewhere], b"{}")
    line = (
        rf'{NAME} has its weights in {pickle}, a pickle, .* python -c "import transformers; '
        rf"transformers\.GPT2LMHeadModel\.from_pretrained\('{NAME}'\)\.save_pretrained\('{NAME}-safetensors'\)\""
    )
    with pytest.raises(WeightsError, match=line):
        from_pretrained(NAME)
    assert PICKLE not in hub.fetched


def test_a_name_without_weights(hub):
    del hub.files[WEIGHTS]
    with pytest.raises(WeightsError, match=r"has no weights: it has neither model.safetensors nor"):
        from_pretrained(NAME)


@pytest.mark.parametrize("function", ["hf_hub_download", "snapshot_download"])
def test_a_name_that_is_nowhere(function, hub, monkeypatch):
    def no_network(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, function, no_network)
    with pytest.raises(
        ConfigError, match=rf"{NAME} is not a folder, and could not be fetched .*no connection"
    ):
        from_pretrained(NAME)


class NoConnection(huggingface_hub.errors.HTTPError):
    """As the library with which the hub is asked raises it, whatever its name."""


@pytest.mark.parametrize("function", ["hf_hub_download", "snapshot_download", "list_repo_files"])
def test_a_connection_that_breaks_is_one_clear_error(function, hub, monkeypatch):
    def broken(*_, **__):
        raise NoConnection("name resolution failed")

    monkeypatch.setattr(huggingface_hub, function, broken)
    del hub.files[WEIGHTS]  # or nothing would be listed
    with pytest.raises(ConfigError, match=rf"{NAME} .* could not be fetched .*: name resolution failed"):
        find_folder(NAME)


def test_the_errors_of_a_hub_that_names_no_other_library(monkeypatch):
    monkeypatch.delattr(huggingface_hub.errors, "HTTPError")
    spec = importlib.util.spec_from_file_location("older_hub", hub_module.__file__)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    assert set(older._ERRORS) == {huggingface_hub.errors.HfHubHTTPError}
