"""A checkpoint is opened once: each JSON file is read once, and nothing outlives the opened folder."""

import collections
import json
import pathlib
import shutil

import pytest

from tests.parity.test_fixtures import STORED
from tests.training.test_initialization import classifier, drawn_on, starting_from
from transformer_jax.config import ConfigError
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.training.initialization import check_origin, initial_params


@pytest.fixture
def reads(monkeypatch):
    """How often each JSON file is read."""
    counts, read_text = collections.Counter(), pathlib.Path.read_text

    def counting(path, *arguments, **options):
        if path.suffix == ".json":
            counts[path.name] += 1
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "read_text", counting)
    return counts


@pytest.fixture
def vit(tmp_path):
    """A copy of a tiny ViT that has all of the JSON files that are read for it."""
    folder = pathlib.Path(shutil.copytree(STORED / "vit", tmp_path / "vit"))
    size = json.loads((folder / "config.json").read_text())["image_size"]
    content = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def test_a_model_is_read_from_each_file_once(vit, reads):
    from_pretrained(vit)
    assert reads == {"config.json": 1, "preprocessor_config.json": 1}


def test_a_model_that_generates_is_read_from_each_file_once(tmp_path, reads):
    folder = shutil.copytree(STORED / "bart", tmp_path / "bart")
    (folder / "generation_config.json").write_text('{"num_beams": 2}')
    assert from_pretrained(folder).generation.beam_size == 2
    assert reads["config.json"] == reads["generation_config.json"] == 1


def test_a_training_starts_from_a_folder_that_is_opened_once(corpus, reads):
    config = from_pretrained(STORED / "bert_masked_lm").config
    experiment = starting_from(classifier(corpus, config), STORED / "bert_masked_lm")
    drawn, mesh = drawn_on(experiment)
    reads.clear()
    initial_params(experiment, drawn, mesh, check_origin(experiment))
    assert reads["config.json"] == 1


def test_a_folder_that_has_changed_is_read_anew(tmp_path):
    folder = shutil.copytree(STORED / "bert_masked_lm", tmp_path / "bert")
    before = CheckpointFolder(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"layer_norm_eps": 0.5}))
    assert before.model.config.norm_epsilon != 0.5
    assert CheckpointFolder(folder).model.config.norm_epsilon == 0.5
    assert from_pretrained(folder).config.norm_epsilon == 0.5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"bert/config.json must be a JSON object"),
        ("config.json", '{"model_type": 3}', r"bert/config.json has model_type=3, which is not supported; "),
        ("modules.json", "{", r"bert/modules.json cannot be read as JSON: "),
    ],
)
def test_errors_name_the_file(name, content, message, tmp_path):
    folder = shutil.copytree(STORED / "bert_masked_lm", tmp_path / "bert")
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        from_pretrained(folder)
