"""``python -m transformer_jax.pretrained verify``: what it prints and its status, with PyTorch beside it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.test_fixtures import DECODING_MODELS, MODELS, STORED, each_family_once
from tests.programs import run_program
from transformer_jax.pretrained import verify
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.reading import from_pretrained

pytestmark = pytest.mark.live

# The program, but with another folder read by our side.
READS_ANOTHER = """
import sys
from absl import app
import transformer_jax.pretrained.__main__ as program
from transformer_jax.pretrained.reading import from_pretrained
folder = sys.argv.pop()
program.read_model = lambda _: from_pretrained(folder)
program.define_flags()
app.run(program.main)
"""


@pytest.fixture
def program(single_device_environment):
    def program(*arguments):
        command = [sys.executable, *map(str, arguments)]
        environment = os.environ | single_device_environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return program


@pytest.mark.parametrize("name", each_family_once())
def test_every_fixture_is_the_same(name, transformers):
    ours = from_pretrained(STORED / name)
    found = verify.compare(CheckpointFolder(STORED / name), ours.config, ours.params, tolerance=1e-5)
    wanted = [*MODELS[name][2]]
    if "decoder_input_ids" in MODELS[name][1]:
        wanted.insert(0, "encoder_last_hidden_state")
    if name in DECODING_MODELS:
        wanted += ["greedy, 8 tokens", "4 beams, 8 tokens"]
    assert [one.name for one in found] == wanted
    assert all(one.is_same and one.largest > 0.1 for one in found), verify.table(found)


def test_a_model_of_other_pixels_is_the_same_on_those_that_it_wants(tmp_path, transformers):
    folder = pathlib.Path(shutil.copytree(STORED / "vit", tmp_path / "vit"))
    content = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    ours = from_pretrained(folder)
    for one in verify.compare(CheckpointFolder(folder), ours.config, ours.params, tolerance=1e-5):
        assert one.is_same and one.largest > 0.1
    stored = from_pretrained(STORED / "vit").params
    assert not verify.compare(CheckpointFolder(folder), ours.config, stored)[0].is_same


def test_the_program_prints_a_table(program):
    found = program("-m", "transformer_jax.pretrained", "verify", STORED / "t5")
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [line[:2] for line in lines] == [
        ["output", "shape"],
        ["encoder_last_hidden_state", "3x140x24"],
        ["logits", "3x140x67"],
        ["greedy,", "8"],
        ["4", "beams,"],
    ]
    assert all(line[-2:] in (["0.0001", "ok"], ["0.0002", "ok"]) for line in lines[1:])
    assert "Warning" not in found.stderr


def test_a_tolerance_that_nothing_keeps():
    found = run_program("pretrained", "verify", STORED / "bert_qa", "--tolerance=0")
    assert found.status == 1, found.err
    assert found.out.count("DIFFERS") == 2


def test_a_damaged_copy_differs_where_it_is_damaged(tmp_path, program):
    damaged = shutil.copytree(STORED / "t5", tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["decoder.final_layer_norm.weight"] *= 1.01
    save_file(tensors, damaged / "model.safetensors")
    found = program("-c", READS_ANOTHER, "verify", STORED / "t5", damaged)
    assert found.returncode == 1, found.stderr
    results = {line.split()[0]: line.split()[-1] for line in found.stdout.splitlines()[1:]}
    assert results["encoder_last_hidden_state"] == "ok"
    assert results["logits"] == "DIFFERS"


def test_other_tokens_are_told_from_near_ties(transformers):
    ours = from_pretrained(STORED / "gpt2")
    params = dict(ours.params)
    decoder = dict(params["decoder"])
    norm = decoder["final_norm"]
    decoder["final_norm"] = norm | {"bias": norm["bias"] - 3.0}  # moves all logits, and other tokens come
    found = verify.compare(CheckpointFolder(STORED / "gpt2"), ours.config, params | {"decoder": decoder})
    assert [one.is_same for one in found] == [False, False, False]
    assert min(one.difference for one in found) > 1e-3
    assert verify.table(found).count("DIFFERS") == 3


def test_a_folder_that_transformers_does_not_read(tmp_path):
    folder = shutil.copytree(STORED / "bert_qa", tmp_path / "bert")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type"', '"add_cross_attention": true, "model_type"'))
    found = run_program("pretrained", "verify", folder)
    assert found.status == 2
    assert found.err.startswith(f"error: transformers cannot read {folder} as BertForQuestionAnswering: ")
    assert found.out == ""
