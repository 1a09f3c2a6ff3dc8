"""Parameters of a model under another config: what may differ, and what becomes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from tests.pretrained.test_reading import keys_kernel
from tests.tiny_training import tiny_experiment, write_corpus, write_run
from tests.training.test_initialization import assert_same, drawn_on, starting_from, tiny_bert
from transformer_jax.config import ConfigError
from transformer_jax.data import SPLITS
from transformer_jax.families import vit
from transformer_jax.objectives import Classification
from transformer_jax.pretrained import conversion
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.runs.loading import load_run
from transformer_jax.training import initialization
from transformer_jax.training.initialization import check_origin, initial_params
from transformer_jax.training.loop import train

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def tiny_vit(corpus, side=16, scan_layers=False, **sections):
    """Tells three kinds of images of ``side`` pixels apart, in patches of 4."""
    model = vit.config(
        "Ti/16", patch_size=4, image_shape=(side, side, 1), num_labels=3, d_model=16, num_heads=2, key_size=8,
        value_size=8, d_feedforward=32, num_encoder_layers=2, dropout=0.0, scan_layers=scan_layers,
    )  # fmt: skip
    experiment = tiny_experiment(corpus, **sections)
    source = dataclasses.replace(
        experiment.data.source,
        kind="idx",
        folder=str(corpus),
        features=(("images", ""), ("labels", "")),
        **{split: (f"{split}-images.idx", f"{split}-labels.idx") for split in SPLITS},
    )
    return dataclasses.replace(
        experiment,
        model=model,
        objective=Classification(image_size=side),
        data=dataclasses.replace(experiment.data, source=source, batch_size=16, buckets=()),
        evaluate=dataclasses.replace(experiment.evaluate, average_last=1),
    )


def write_images(folder, count=48):
    """Idx files of random images of 16 x 16 pixels and of labels from 0 to 2."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in SPLITS:
        images = rng.integers(0, 256, (count, 16, 16), np.uint8)
        labels = rng.integers(0, 3, count, np.uint8)
        for name, array in (("images", images), ("labels", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{split}-{name}.idx").write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory):
    """A folder with images, and a run of a model of them, with layers beside one another."""
    folder = tmp_path_factory.mktemp("vit")
    write_images(folder / "images")
    write_run(tiny_vit(folder / "images"), folder / "run", (2,))
    return folder / "run"


@pytest.fixture(scope="module")
def bert_run(tmp_path_factory):
    """A run of two layers, in one array each."""
    folder = tmp_path_factory.mktemp("bert")
    write_corpus(folder / "corpus")
    experiment = tiny_bert(folder / "corpus")
    model = dataclasses.replace(experiment.model, num_encoder_layers=2, scan_layers=True)
    write_run(dataclasses.replace(experiment, model=model), folder / "run", (2,))
    return folder / "run"


def test_images_of_another_size_from_a_run(vit_run):
    images = vit_run.parent / "images"
    experiment = starting_from(tiny_vit(images, side=32, scan_layers=True), vit_run)
    drawn, mesh = drawn_on(experiment)
    found, stored = initial_params(experiment, drawn, mesh), load_run(str(vit_run)).params
    table, finer = (params["embed_patches"]["positions"]["embedding"] for params in (stored, found))
    assert table.shape[0] == 17 and finer.shape[0] == 65
    # From 4 x 4 to 8 x 8 places, by Keys 1981, equation 15, along each side; what lies outside has no weight.
    weights = np.array([[keys_kernel((i + 0.5) / 2 - 0.5 - j) for j in range(4)] for i in range(8)])
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = np.einsum("ai,bj,ijd->abd", weights, weights, np.reshape(table[1:], (4, 4, -1)))
    np.testing.assert_array_equal(finer[0], table[0])
    np.testing.assert_allclose(finer[1:], wanted.reshape(64, -1), rtol=1e-5, atol=1e-6)
    # All else is the run's, its head of as many classes too.
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], found["encoder"]["layers"])
        assert_same(layer, stored["encoder"][f"layer_{i}"])
    assert_same(found["head"], stored["head"])
    assert_same(found["embed_patches"]["patches"], stored["embed_patches"]["patches"])
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, drawn)


def test_what_else_differs_of_images_is_named(vit_run):
    images = vit_run.parent / "images"
    experiment = starting_from(tiny_vit(images, side=32), vit_run)
    coarse = dataclasses.replace(
        experiment.model, front_end=experiment.model.front_end.changed(patch_size=8), max_length=17
    )
    with pytest.raises(ConfigError, match=r"shape:\n  config.model.front_end.patch_size: 4 there, 8 here$"):
        check_origin(dataclasses.replace(experiment, model=coarse))
    coloured = dataclasses.replace(
        experiment.model, front_end=experiment.model.front_end.changed(image_shape=(32, 32, 3))
    )
    with pytest.raises(ConfigError, match=r"image_shape: \(16, 16, 1\) there, \(32, 32, 3\) here"):
        check_origin(dataclasses.replace(experiment, model=coloured))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_training_on_larger_images_goes_on_from_a_run(vit_run, tmp_path):
    experiment = tiny_vit(vit_run.parent / "images", side=32, scan_layers=True, train=dict(num_steps=2))
    assert train(starting_from(experiment, vit_run), str(tmp_path / "run"))["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_layers_of_a_run_on_a_mesh(scan_layers, bert_run):
    """Each parameter is read into its shards, and goes into others where layers are unstacked."""
    experiment = tiny_bert(bert_run.parent / "corpus", mesh=dict(data=2, fsdp=2, tensor=2))
    model = dataclasses.replace(experiment.model, num_encoder_layers=2, scan_layers=scan_layers)
    experiment = starting_from(dataclasses.replace(experiment, model=model), bert_run)
    drawn, mesh = drawn_on(experiment, devices=8)
    found, stored = initial_params(experiment, drawn, mesh), load_run(str(bert_run)).params
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stored["encoder"]["layers"])
        own = found["encoder"]
        own = jax.tree.map(lambda leaf, i=i: leaf[i], own["layers"]) if scan_layers else own[f"layer_{i}"]
        assert_same(own, layer)
    assert_same(found["embedding"], stored["embedding"])
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == jax.tree.map(lambda leaf: leaf.sharding, drawn)


def bytes_on_a_device(params):
    """Of the parameters: the most that any device holds."""
    held = {}
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def test_no_device_holds_all_of_a_run(bert_run, monkeypatch):
    experiment = tiny_bert(bert_run.parent / "corpus", mesh=dict(data=2, fsdp=2, tensor=2))
    model = dataclasses.replace(experiment.model, num_encoder_layers=2)
    experiment = starting_from(dataclasses.replace(experiment, model=model), bert_run)
    drawn, mesh = drawn_on(experiment, devices=8)
    read, converted = [], []

    def load(*arguments, **options):
        read.append(load_run(*arguments, **options))
        return read[-1]

    def convert(*arguments):
        converted.append(initialization_converted(*arguments))
        return converted[-1]

    initialization_converted = initialization._converted
    monkeypatch.setattr(initialization, "load_run", load)
    monkeypatch.setattr(initialization, "_converted", convert)
    initial_params(experiment, drawn, mesh)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(drawn))
    assert bytes_on_a_device(drawn) < 0.5 * whole
    assert bytes_on_a_device(read[0].params) == bytes_on_a_device(converted[0]) == bytes_on_a_device(drawn)
    # An evaluation has a copy on every device, as before.
    assert bytes_on_a_device(load_run(str(bert_run), mesh=mesh).params) == whole


@pytest.mark.parametrize(
    ("folder", "changes", "lines"),
    [
        ("gpt2", dict(max_length=48), ["max_length: 24 there, 48 here"]),
        ("gpt2", dict(num_decoder_layers=1, dropout=0.0), ["num_decoder_layers: 2 there, 1 here"]),
        ("gpt2", dict(vocab_size=80, d_model=8), ["vocab_size: 67 there, 80 here", "d_model: 32"]),
        ("t5", dict(num_encoder_layers=1), ["num_encoder_layers: 2 there, 1 here"]),
        ("bert_masked_lm", dict(num_heads=1, key_size=16, value_size=16, head="none"), ["num_heads: 2"]),
        ("vit", dict(image_shape=(64, 64, 3), d_feedforward=8), ["d_feedforward: 28 there, 8 here"]),
    ],
)  # fmt: skip
def test_changes_that_do_not_fit_the_parameters_are_named(folder, changes, lines):
    with pytest.raises(ConfigError) as error:
        from_pretrained(STORED / folder, **changes)
    first, *found = str(error.value).splitlines()
    assert first == f"the parameters in {STORED / folder} are of other shapes than those of a model with"
    assert len(found) == len(set(changes) - {"dropout", "head", "image_shape"})
    for line in lines:
        assert any(own.strip().startswith(line) for own in found), found


@pytest.mark.parametrize(("folder", "length"), [("t5", 7), ("marian", 96)])
def test_a_length_is_free_where_positions_are_not_learned(folder, length):
    stored, found = from_pretrained(STORED / folder), from_pretrained(STORED / folder, max_length=length)
    assert found.config == dataclasses.replace(stored.config, max_length=length)
    tokens = jnp.arange(5, 11)[None]
    logits = [
        jax.jit(one.model.apply)({"params": one.params}, inputs=tokens, targets=tokens)
        for one in (stored, found)
    ]
    np.testing.assert_array_equal(*logits)
    # Whatever no shape follows from may be otherwise as well.
    assert from_pretrained(STORED / folder, eos_id=5, norm_epsilon=1e-3).config.eos_id == 5


@pytest.mark.parametrize("folder", ["t5", "marian"])
def test_a_training_may_have_another_length_where_positions_are_not_learned(folder, corpus):
    stored = from_pretrained(STORED / folder)
    model = dataclasses.replace(stored.config, max_length=44)
    experiment = starting_from(dataclasses.replace(tiny_experiment(corpus), model=model), STORED / folder)
    assert_same(initial_params(experiment, *drawn_on(experiment)), stored.params)


def test_a_training_may_have_another_length_than_a_run_where_positions_are_not_learned(corpus):
    found = tiny_experiment(corpus).model
    assert conversion.differing(found, dataclasses.replace(found, max_length=96)) == []
    learned = dataclasses.replace(found, positions="learned")
    assert conversion.differing(learned, dataclasses.replace(learned, max_length=96)) == ["max_length"]
