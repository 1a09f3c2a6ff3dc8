"""Reading and writing folders of ``transformers``: mistakes, shards, meshes, heads, memory."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.test_fixtures import STORED
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.inference.model import Pretrained
from transformer_jax.models import abstract_params, build
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import INDEX_FILE, SINGLE_FILE, WeightsError
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh, unbox


@pytest.fixture
def folder(tmp_path):
    """A copy of a tiny BERT, to be damaged."""
    return pathlib.Path(shutil.copytree(STORED / "bert_masked_lm", tmp_path / "bert"))


def change_tensors(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def equal(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_missing_extra_and_misshaped_tensors_are_listed_together(folder):
    def damage(tensors):
        del tensors["bert.embeddings.LayerNorm.weight"], tensors["cls.predictions.transform.dense.bias"]
        tensors["bert.embeddings.token_type_embeddings.weight"] = np.zeros((3, 5), np.float32)
        tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros((2, 2), np.float32)

    change_tensors(folder, damage)
    with pytest.raises(WeightsError) as error:
        from_pretrained(folder)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  missing: bert.embeddings.LayerNorm.weight (16,), cls.predictions.transform.dense.bias (16,)",
        "  of another shape: bert.embeddings.token_type_embeddings.weight: (3, 5) instead of (2, 16)",
        "  not known: bert.encoder.layer.0.adapter.weight (2, 2)",
    ]


@pytest.mark.parametrize("size", [0, 4, 300, -1, -400])
def test_a_truncated_file_is_an_error(folder, size):
    path = folder / SINGLE_FILE
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(WeightsError, match=r"model.safetensors is not a complete safetensors file .*copy or"):
        from_pretrained(folder)


def test_numbers_that_are_none_are_an_error(folder):
    def damage(tensors):
        tensors["cls.predictions.bias"][3] = np.nan

    change_tensors(folder, damage)
    with pytest.raises(WeightsError, match=r"cls.predictions.bias .* not finite"):
        from_pretrained(folder)

    def to_integers(tensors):
        tensors["cls.predictions.bias"] = np.zeros(67, np.int64)

    change_tensors(folder, to_integers)
    with pytest.raises(WeightsError, match=r"cls.predictions.bias .* type int64"):
        from_pretrained(folder)


def test_two_names_of_one_tensor_must_agree(folder):
    words = "bert.embeddings.word_embeddings.weight"

    def add(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors[words].copy()
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]

    change_tensors(folder, add)
    assert equal(from_pretrained(folder).params, from_pretrained(STORED / "bert_masked_lm").params)

    def differ(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors["cls.predictions.decoder.weight"] + 1

    change_tensors(folder, differ)
    with pytest.raises(WeightsError, match=rf"contradictory: cls.predictions.decoder.weight, .* {words} is"):
        from_pretrained(folder)


def test_a_pickle_is_refused_with_the_line_that_converts_it(folder):
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"a pickle, .*transformers\.BertForMaskedLM\.from_pretrained\('.*bert'\)"
    ):
        from_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"has no weights: it has neither model.safetensors nor"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], "import transformers; {model}"),
        (["vocab.txt"], "import transformers; {model}; {tokenizer}"),
        (["source.spm", "vocab.json"], "import transformers; {model}; {tokenizer}"),
        (["preprocessor_config.json"], "import shutil, transformers; {model}; {pixels}"),
        (["modules.json", "vocab.txt"], "import sentence_transformers; {sentences}"),
    ],
    ids=lambda case: "-".join(case) or "alone" if isinstance(case, list) else "",
)
def test_what_stands_beside_a_pickle_is_converted_with_it(folder, files, line):
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")
    for name in files:
        (folder / name).write_text("")
    read, save = f".from_pretrained('{folder}')", f".save_pretrained('{folder}-safetensors')"
    wanted = line.format(
        model=f"transformers.BertForMaskedLM{read}{save}",
        tokenizer=f"transformers.AutoTokenizer{read}{save}",
        pixels=f"shutil.copy(transformers.utils.cached_file('{folder}', 'preprocessor_config.json'), "
        f"'{folder}-safetensors')",
        sentences=f"sentence_transformers.SentenceTransformer('{folder}').save('{folder}-safetensors')",
    )
    with pytest.raises(WeightsError) as error:
        from_pretrained(folder)
    assert str(error.value).endswith(f'installed: python -c "{wanted}"')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(model_type="longbert"),
            r"'longbert', which is not supported; use one of marian, bert, roberta",
        ),
        (dict(hidden_act="relu"), r"hidden_act='relu', but this library supports only 'gelu' for the family"),
        (dict(num_attention_heads=3), r"3 heads cannot share a width of 16"),
        (dict(vocab_size=-1), r"describes a model that cannot exist: model.vocab_size=-1"),
        (dict(hidden_size=None), r"config.json lacks the key 'hidden_size'"),
        (dict(hidden_size="16"), r"config.json has hidden_size='16', which must be one number"),
        (dict(num_attention_heads=0), r"0 heads cannot share a width of 16"),
        (dict(pad_token_id=[0, 1]), r"config.json has pad_token_id=\[0, 1\], which must be one number"),
        (dict(model_type=["bert"]), r"model_type=\['bert'\]"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises((ConfigError, WeightsError), match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t5", dict(dense_act_fn="silu"), r"dense_act_fn='silu' contradicts feed_forward_proj='relu'"),
        ("t5", dict(is_gated_act=True), r"is_gated_act=True contradicts feed_forward_proj='relu'"),
        ("t5_v1_1", dict(dense_act_fn="gelu"), r"'gelu' contradicts feed_forward_proj='gated-gelu'"),
        ("t5", dict(feed_forward_proj="gated-silu"), r"'gated-silu' must be one of relu, gated-gelu"),
        ("t5", dict(feed_forward_proj=["relu"]), r"\['relu'\] must be one of relu, gated-gelu"),
        ("bart", dict(eos_token_id=[2, 3]), r"has eos_token_id=\[2, 3\], which must be one number"),
        ("gpt2", dict(eos_token_id=[2, 3]), r"config.json: eos_token_id=\[2, 3\] must be one number"),
        ("vit", dict(image_size=[32]), r"image_size=\[32\] must be a number of pixels, or a list of two"),
        ("vit", dict(image_size="32"), r"image_size='32' must be a number of pixels"),
        ("vit", dict(patch_size=0), r"patch_size=0 must be a number of pixels"),
        ("vit", dict(patch_size=[8, 4]), r"patch_size=\[8, 4\] must be the side of a square"),
        ("vit", dict(id2label=["cat", "dog"]), r"id2label=\['cat', 'dog'\], which must be an object"),
    ],
)
def test_what_transformers_computes_by_another_key_is_refused(name, changes, message, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("names", [["pad"], ["decoder_start"], ["pad", "decoder_start"]], ids="-".join)
def test_special_tokens_that_config_json_of_t5_leaves_out(names, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / "t5", tmp_path / "t5"))
    change_config(folder, **{f"{name}_token_id": None for name in names})
    assert from_pretrained(folder).config == from_pretrained(STORED / "t5").config


def test_sides_of_images_and_patches_may_be_two_numbers(tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / "vit", tmp_path / "vit"))
    change_config(folder, image_size=[32, 32], patch_size=[8, 8])
    assert from_pretrained(folder).config == from_pretrained(STORED / "vit").config

    def cut(tensors):  # 4 x 2 patches and the class
        name = "vit.embeddings.position_embeddings"
        tensors[name] = np.ascontiguousarray(tensors[name][:, :9])

    change_config(folder, image_size=[32, 16])
    change_tensors(folder, cut)
    assert from_pretrained(folder).config.front_end.input_shape == (32, 16, 3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("bert_masked_lm", (32, 32, 3), r"image_shape=\(32, 32, 3\) does not fit .* a model of tokens"),
        ("vit", (), r"image_shape=\(\) does not fit .* of \(32, 32, 3\): it must be a tuple \(height, width"),
        ("vit", (64, 64), r"image_shape=\(64, 64\) does not fit"),
        ("vit", (64.0, 64.0, 3), r"image_shape=\(64.0, 64.0, 3\) does not fit"),
        ("vit", 64, r"image_shape=64 does not fit"),
        (
            "vit",
            (32, 32, 1),
            r"image_shape=\(32, 32, 1\), patch_size=8\) does not fit .*: only the height and width of images",
        ),
    ],
)
@pytest.mark.parametrize("more", [{}, dict(max_length=17)], ids=str)
def test_an_image_shape_of_another_kind_of_model_is_refused(name, shape, message, more):
    with pytest.raises(ConfigError, match=message):
        from_pretrained(STORED / name, image_shape=shape, **more)


@pytest.mark.parametrize(
    "content", [[], {}, {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "b", "c": []}}]
)
def test_an_index_that_is_none_is_an_error(content, folder):
    (folder / SINGLE_FILE).unlink()
    (folder / INDEX_FILE).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=rf"{INDEX_FILE} is not an index of safetensors files: "):
        from_pretrained(folder)


def test_a_folder_without_a_config_or_with_a_broken_one(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a checkpoint: it has no config.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot be read as JSON"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_shards_are_written_and_read(name, tmp_path):
    ours = from_pretrained(STORED / name)
    save_pretrained(tmp_path, ours, shard_bytes=20_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert len(shards) > 3 and not (tmp_path / SINGLE_FILE).exists()
    assert set(index["weight_map"]) == set(load_file(STORED / name / SINGLE_FILE))
    assert equal(from_pretrained(tmp_path).params, ours.params)
    save_pretrained(tmp_path, ours)  # whole again: no shard stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE_FILE]
    save_pretrained(tmp_path, ours, shard_bytes=20_000)
    shards[1].unlink()
    with pytest.raises(WeightsError, match=rf"names files that do not exist: {shards[1].name}"):
        from_pretrained(tmp_path)


def test_bfloat16_and_old_names_are_read(folder):
    ours = from_pretrained(folder)

    def older(tensors):
        for name in list(tensors):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            tensors[new] = tensors.pop(name).astype(ml_dtypes.bfloat16)

    change_tensors(folder, older)
    found = from_pretrained(folder).params
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype("f"), ours.params)
    assert equal(found, rounded)


def test_one_tensor_under_an_old_and_a_new_name_is_refused(folder):
    def add(tensors):
        tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"] + 1

    change_tensors(folder, add)
    with pytest.raises(WeightsError, match=r"has bert.embeddings.LayerNorm.\w+, and .* as well"):
        from_pretrained(folder)


def test_parameters_go_straight_into_their_shards(tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    ours = from_pretrained(STORED / "bart", scan_layers=True)
    sharded = from_pretrained(STORED / "bart", scan_layers=True, mesh=mesh, rules=(
        ("vocab", None), ("embed", "fsdp"), ("heads", "tensor"), ("head_size", None), ("mlp", "tensor"),
        ("layers", None), ("length", None),
    ))  # fmt: skip
    assert equal(sharded.params, ours.params)
    kernel = sharded.params["encoder"]["layers"]["self_attention"]["query"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 12, 2, 6)
    save_pretrained(tmp_path, sharded)
    assert equal(from_pretrained(tmp_path, scan_layers=True).params, ours.params)


def test_another_head_is_drawn_anew_and_said(folder, capsys):
    stored = from_pretrained(folder)
    found = from_pretrained(folder, head="classes", num_labels=4, seed=3)
    out = capsys.readouterr()
    assert "head/classes/kernel" in out.out + out.err and "head/pooler/dense/bias" in out.out + out.err
    assert equal(found.params["encoder"], stored.params["encoder"])
    assert found.params["head"]["classes"]["kernel"].shape == (16, 4)
    # Of 64 numbers: the standard deviation's own is a share of 1 / sqrt(2 * 64), and this is 5.6 of it.
    assert np.std(found.params["head"]["classes"]["kernel"]) == pytest.approx(0.02, rel=0.5)
    other = from_pretrained(folder, head="classes", num_labels=4, seed=4)
    assert not equal(other.params["head"], found.params["head"])
    kept = from_pretrained(STORED / "bert_sequence", head="pooled")  # has a pooler, loses its classes
    assert equal(
        kept.params["head"]["pooler"], from_pretrained(STORED / "bert_sequence").params["head"]["pooler"]
    )


def keys_kernel(x):
    x = abs(x)
    if x >= 2:
        return 0.0
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2


def test_images_of_another_size_interpolate_positions():
    stored = from_pretrained(STORED / "vit")
    larger = from_pretrained(STORED / "vit", image_shape=(64, 64, 3))
    table, finer = (model.params["embed_patches"]["positions"]["embedding"] for model in (stored, larger))
    assert table.shape[0] == 17 and finer.shape[0] == 65
    np.testing.assert_array_equal(finer[0], table[0])
    # From 4 x 4 to 8 x 8 places, by Keys 1981, equation 15, along each side; what lies outside has no weight.
    weights = np.array([[keys_kernel((i + 0.5) / 2 - 0.5 - j) for j in range(4)] for i in range(8)])
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = np.einsum("ai,bj,ijd->abd", weights, weights, np.reshape(table[1:], (4, 4, -1)))
    np.testing.assert_allclose(finer[1:], wanted.reshape(64, -1), rtol=1e-5, atol=1e-6)
    logits = jax.jit(larger.model.apply)({"params": larger.params}, images=jnp.zeros((1, 64, 64, 3)))
    assert logits.shape == (1, 5) and bool(jnp.isfinite(logits).all())
    with pytest.raises(ConfigError, match=r"only the height and width of images may differ"):
        from_pretrained(STORED / "vit", image_shape=(64, 64, 1))
    with pytest.raises(ConfigError, match=r"only the height and width of images may differ"):
        from_pretrained(STORED / "vit", patch_size=4)
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) do not fit a model of \(32, 32, 3\)"):
        jax.jit(stored.model.apply)({"params": stored.params}, images=jnp.zeros((1, 64, 64, 3)))


def test_a_model_that_transformers_does_not_have_is_not_written(tmp_path):
    config = families.transformer.config("tiny", vocab_size=50)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), unbox(abstract_params(config)))
    with pytest.raises(ConfigError, match=r"transformers has no model like this one"):
        save_pretrained(tmp_path / "new", Pretrained(families.FAMILIES["transformer"], config, zeros))
    assert not (tmp_path / "new").exists()


LOAD = """
import resource, sys, threading, time
import jax
from transformer_jax.pretrained.reading import from_pretrained
jax.numpy.zeros(()).block_until_ready()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
model = from_pretrained(sys.argv[1])
jax.block_until_ready(model.params)
done = True; thread.join()
print((peak - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)))
"""


@pytest.mark.slow
def test_reading_takes_little_more_memory_than_the_parameters(tmp_path, single_device_environment):
    config = families.gpt2.config("small", scan_layers=True)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, "f"), unbox(abstract_params(config)))
    save_pretrained(tmp_path, Pretrained(families.FAMILIES["gpt2"], config, params))
    environment = os.environ | single_device_environment
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1.3, found.stdout


def test_the_model_is_built_from_its_config():
    ours = from_pretrained(STORED / "gpt2")
    assert ours.model == build(ours.config)
