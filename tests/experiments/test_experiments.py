"""Every file in experiments/ loads, is complete, and trains two steps when it is shrunk."""

import ast
import dataclasses
import functools
import importlib.util
import itertools
import json
import pathlib

import absl.flags
import jax
import numpy as np
import pytest
from ml_collections import config_flags

from tests.experiments.test_caption_questions import mixed_facts, write_captions
from tests.mock_dataset import prepare, small_slice
from tests.mock_files import write_files
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.data import SPLITS, load_source, training_iterator
from transformer_jax.data.catalogue import OUR_BUILDERS
from transformer_jax.data.datasets.number_words import number_words
from transformer_jax.data.text_files import split_name
from transformer_jax.decoding.settings import DECODING_FIELDS
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import OBJECTIVES, Objective
from transformer_jax.pretrained.config_json import describe
from transformer_jax.runs.experiment import Experiment, make_transform, read_experiment
from transformer_jax.runs.folder import load_or_train_tokenizer
from transformer_jax.runs.shrinking import shrink
from transformer_jax.sharding.partitioning import MESH_AXES
from transformer_jax.training.loop import train
from transformer_jax.training.step import make_init, make_train_step

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
LIBRARY = FOLDER.parent / "transformer_jax"
FILES = sorted(path.name for path in FOLDER.glob("*.py"))
VARIANTS = {
    "wmt14_en_de.py": ("base", "big", "D-smoothing-0.2"),
    "number_words.py": ("de", "fr", "es"),
    "bert_wikipedia.py": ("base", "large"),
    "gpt2_openwebtext.py": ("small", "medium", "large", "xl"),
    "t5_c4.py": tuple(families.t5.VARIANTS),
    "vit_imagenet.py": ("B/16", "Ti/16", "L/32"),
    "bert_glue.py": ("mrpc", "sst2", "qqp", "mnli", "qnli", "rte", "wnli", "cola"),
    "bert_squad.py": ("base", "large"),
    "bert_mlm.py": ("scratch", "minilm"),
    "t5_multi30k.py": ("pretrained", "scratch"),
}
CASES = [(name, variant) for name in FILES for variant in VARIANTS.get(name, (None,))]


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def module_of(name):
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def experiment_of(name, variant):
    arguments = () if variant is None else (variant,)
    return read_experiment(module_of(name).get_config(*arguments))


# For every change: each objective with each family, each kind of data, and each way of batching once.
TRAINED_IN_FAST_TESTS = ("gpt2_chars.py", "vit_fashion.py")
TRAINED_IN_SLOW_TESTS = (
    "bart_denoise.py",
    "bart_summaries.py",
    "bert_glue.py",
    "bert_mlm.py",
    "bert_squad.py",
    "bert_wikipedia.py",
    "gpt2_openwebtext.py",
    "t5_c4.py",
    "vit_imagenet.py",
    "wmt14_en_de.py",
)


@functools.cache
def distinct():
    """The cases whose shrunk configs differ: each config is tried once."""
    cases = {}
    for name, variant in CASES:
        shrunk = json.dumps(shrink(experiment_of(name, variant)).to_config_dict().to_dict(), sort_keys=True)
        cases.setdefault(shrunk, (name, variant))
    return tuple(cases.values())


def is_trained_for_every_change(name, variant):
    is_first = variant == VARIANTS.get(name, (None,))[0]
    return is_first and name in (*TRAINED_IN_FAST_TESTS, *TRAINED_IN_SLOW_TESTS)


def trained():
    for name, variant in distinct():
        is_fast, is_rare = name in TRAINED_IN_FAST_TESTS, not is_trained_for_every_change(name, variant)
        marks = [pytest.mark.slow] * (not is_fast) + [pytest.mark.everything] * is_rare
        yield pytest.param(name, variant, marks=marks)


@pytest.fixture
def with_data(tmp_path):
    """The experiment with its corpus replaced by a few pairs of the same kind, features and names."""

    def replace(experiment):
        source = experiment.data.source
        folder = tmp_path / "data"
        if source.kind != "tfds":
            more = tuple(write_files(other, folder) for other in experiment.data.more_sources)
            data = dataclasses.replace(experiment.data, source=write_files(source, folder), more_sources=more)
            return dataclasses.replace(experiment, data=data)
        if source.name.startswith("caption_questions"):
            facts = mixed_facts(160)
            parts = {"train": facts[:100], "val": facts[100:130], "test_2016_flickr": facts[130:]}
            write_captions(folder, parts)
        if source.builder_class or source.name.split("/")[0] in OUR_BUILDERS:
            return experiment
        changes = {split: tuple(small_slice(name) for name in getattr(source, split)) for split in SPLITS}
        splits = {split_name(name)[0] for names in changes.values() for name in names}
        prepare(source.name, sorted(splits), folder)
        source = dataclasses.replace(source, folder=str(folder), **changes)
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))

    return replace


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_loads_and_says_what_it_is(name, variant):
    experiment = experiment_of(name, variant)
    assert read_experiment(experiment.to_config_dict()) == experiment
    text = module_of(name).__doc__
    assert f"--config=experiments/{name}" in text
    assert "Measured here" in text and "Published" in text


@pytest.fixture
def shrunk(with_data, tmp_path, monkeypatch, one_device):
    """A function of a case: its experiment, small enough to be tried in seconds, and its data."""
    monkeypatch.setenv("TRANSFORMER_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(number_words, "SPLIT_SIZES", {"train": 2_000, "validation": 20, "test": 20})

    def make(name, variant):
        experiment = with_data(shrink(experiment_of(name, variant)))
        evaluation = dataclasses.replace(experiment.evaluate, beam_size=2, average_last=1)
        return dataclasses.replace(experiment, evaluate=evaluation)

    return make


@pytest.mark.parametrize(("name", "variant"), list(trained()))
def test_trains_two_steps_shrunk(name, variant, shrunk, tmp_path):
    summary = train(shrunk(name, variant), str(tmp_path / "run"))
    assert summary["steps"] == 2 and summary["loss"] > 0
    if name == "bart_summaries.py":  # its articles are longer than the shrunk batches
        assert summary["pairs_cut"] > 0 and summary["inputs_cut"] > 0 and summary["pairs_too_long"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"), [case for case in distinct() if not is_trained_for_every_change(*case)]
)
def test_batches_fit_the_training_step(name, variant, shrunk, tmp_path):
    """The shapes of a step on the first batch, of those that only ``make everything`` trains."""
    experiment = shrunk(name, variant)
    tokenizer = load_or_train_tokenizer(tmp_path, experiment)
    transform = make_transform(experiment, tokenizer, train=True)
    batches = training_iterator(experiment.data, load_source(experiment.data.source, "train"), transform)
    batch = next(batches)
    batches.close()
    state = jax.eval_shape(make_init(experiment))
    after, sums = jax.eval_shape(make_train_step(experiment), state, batch)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    assert sums["loss"].shape == ()


def test_rows_of_table_3_differ_from_base_where_the_paper_says():
    row, base = (experiment_of("wmt14_en_de.py", name) for name in ("D-smoothing-0.2", "base"))
    assert (row.objective.label_smoothing, row.evaluate.average_last) == (0.2, 1)
    assert (base.objective.label_smoothing, base.evaluate.average_last) == (0.1, 5)
    assert row.model == base.model and row.train == base.train


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"no variant 'huge'.*base, big"):
        module_of("wmt14_en_de.py").get_config("huge")


# What config.json of the checkpoints on the hub says of their models.
BERT_JSON = dict(
    model_type="bert", hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    initializer_range=0.02, layer_norm_eps=1e-12, max_position_embeddings=512, pad_token_id=0,
    type_vocab_size=2, vocab_size=30522,
)  # fmt: skip
CHECKPOINTS = {
    "google-bert/bert-base-uncased": BERT_JSON
    | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12),
    "google-bert/bert-large-uncased": BERT_JSON
    | dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24),
    "facebook/bart-large": dict(
        model_type="bart", activation_function="gelu", activation_dropout=0.1, attention_dropout=0.1,
        dropout=0.1, d_model=1024, decoder_attention_heads=16, decoder_ffn_dim=4096, decoder_layers=12,
        encoder_attention_heads=16, encoder_ffn_dim=4096, encoder_layers=12, bos_token_id=0, eos_token_id=2,
        pad_token_id=1, decoder_start_token_id=2, init_std=0.02, max_position_embeddings=1024,
        scale_embedding=False, is_encoder_decoder=True, vocab_size=50265,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variant", "changes"),
    [
        ("bert_glue.py", "mnli", {"head": "classes", "num_labels": 3}),
        ("bert_squad.py", "base", {"head": "spans"}),
        ("bert_squad.py", "large", {"head": "spans"}),
        ("bart_summaries.py", None, {"feedforward_dropout": 0.0}),
    ],
)
def test_the_model_is_that_of_the_checkpoint_it_starts_from(name, variant, changes):
    experiment = experiment_of(name, variant)
    content = CHECKPOINTS[experiment.train.init_from]
    stored = describe(content, frozenset({"bert.pooler.dense.weight"}), pathlib.Path()).config
    assert dataclasses.replace(stored, **changes) == experiment.model


def test_images_of_another_size_than_the_models_are_refused():
    config = module_of("vit_imagenet.py").get_config()
    config.objective.image_size = 192
    with pytest.raises(ConfigError, match=r"image_size=192 makes images of 192 x 192 .*\(224, 224, 3\)"):
        read_experiment(config)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_slash_in_what_follows_the_colon():
    flags = absl.flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flags)
    flags(["", f"--config={FOLDER / 'vit_imagenet.py'}:Ti/16"])
    config = read_experiment(flags.config)
    assert (config.model.d_model, config.model.front_end.patch_size) == (192, 16)


def sections_of(cls, prefix):
    for field in dataclasses.fields(cls):
        if field.type is Objective:
            for objective in OBJECTIVES.values():
                yield from sections_of(objective, f"{prefix}{field.name}.")
        elif dataclasses.is_dataclass(field.type):
            yield from sections_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", cls, field.name


HOLDERS = {"config", "_config", "settings", "_settings", "section"}


@functools.cache
def modules():
    """Text and syntax tree of every module of the library."""
    texts = [path.read_text() for path in LIBRARY.rglob("*.py")]
    return [(text, ast.parse(text)) for text in texts]


@functools.cache
def mentions(tree, class_name, section):
    """Whether a module has a class, or takes a section out of something; importing a module is neither."""
    for node in ast.walk(tree):
        if getattr(node, "attr", "") == section or class_name in (
            getattr(node, "id", ""),
            getattr(node, "name", ""),
            getattr(node, "value", ""),  # of an annotation in quotes
        ):
            return True
    return False


@functools.cache
def inside_and_outside(tree, class_name):
    """Nodes of a class of a module, without its own checks, and all nodes that are not of it."""
    inside, outside, waiting = [], [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            methods = [item for item in node.body if getattr(item, "name", "") != "__post_init__"]
            inside += ast.walk(ast.Module(methods, []))
        else:
            outside.append(node)
            waiting += ast.iter_child_nodes(node)
    return inside, outside


def is_read(name, holders, nodes):
    """Whether one of the nodes takes ``name`` out of one of the holders."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == name
        and getattr(node.value, "id", getattr(node.value, "attr", "")) in holders
        for node in nodes
    )


@pytest.mark.parametrize(
    ("key", "owner", "name"), [pytest.param(*case, id=case[0]) for case in sections_of(Experiment, "")]
)
def test_every_config_key_is_read_by_something(key, owner, name):
    if key in ("objective.name", "extensions"):
        return  # read_experiment reads these before there are sections
    section = key.split(".")[-2]
    # The blocks of a model read its fields from the config of their stack.
    classes = [owner.__name__, "StackConfig"] if owner is TransformerConfig else [owner.__name__]
    reads = False
    for (text, tree), class_name in itertools.product(modules(), classes):
        # "config" is this section only where its class, or the section by its name, is at hand.
        at_hand = class_name in text or f".{section}" in text
        if at_hand and mentions(tree, class_name, section):
            inside, outside = inside_and_outside(tree, class_name)
            reads |= is_read(name, {"self", *HOLDERS}, inside) or is_read(name, {section, *HOLDERS}, outside)
    # Names of splits, decoding settings and mesh axes are read by their names in a list.
    lists = {"source": SPLITS, "evaluate": DECODING_FIELDS, "mesh": MESH_AXES}
    assert reads or name in lists.get(section, ()), f"nothing reads config.{key}"
