"""What a training may start from: a model of its own family and shape, told before anything else is done."""

import dataclasses
import itertools
import shutil

import pytest

from tests.parity.test_fixtures import STORED
from tests.tiny_training import tiny_experiment
from tests.training.test_initialization import classifier, starting_from, tiny_bert
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.families import FAMILIES, family_of
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import CausalLM
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.runs.folder import store_config
from transformer_jax.training.initialization import check_origin
from transformer_jax.training.loop import train

SIZES = dict(
    vocab_size=260, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32, max_length=48
)  # fmt: skip
ENDS = dict(pad_id=0, eos_id=2, decoder_start_id=1)


def experiment_of(family, corpus):
    """A training of a model of a family, on texts."""
    if family == "bert":
        return classifier(corpus, tiny_bert(corpus).model)
    layers = dict(num_encoder_layers=0 if family == "gpt2" else 1, num_decoder_layers=1)
    variant = {"gpt2": "small", "t5": "small", "bart": "base", "transformer": "tiny"}[family]
    model = getattr(families, family).config(variant, **SIZES, **ENDS, **layers)
    if family != "gpt2":
        return dataclasses.replace(tiny_experiment(corpus), model=model)
    return dataclasses.replace(
        tiny_bert(corpus), model=dataclasses.replace(model, vocab_size=270), objective=CausalLM()
    )


@pytest.fixture
def run(corpus, tmp_path):
    """The folder of a run of the paper's encoder-decoder with its config, which alone matters."""
    (tmp_path / "before" / "checkpoints").mkdir(parents=True)
    store_config(tmp_path / "before", tiny_experiment(corpus))
    return tmp_path / "before"


@pytest.mark.parametrize(
    ("family", "folder", "is_a", "fields"),
    [
        (
            "bert",
            "gpt2",
            "is a gpt2 (num_decoder_layers=2, d_model=32), but this experiment's model is a bert "
            "(num_encoder_layers=1, d_model=16). Start from a bert, or take the model from families.gpt2",
            ["num_encoder_layers: 0 there, 1 here", "norm_position: 'pre' there, 'post' here"],
        ),
        (
            "gpt2",
            "bert_masked_lm",
            "is a bert (num_encoder_layers=2, d_model=16), but this experiment's model is a gpt2 "
            "(num_decoder_layers=1, d_model=16). Start from a gpt2, or take the model from families.bert",
            ["num_decoder_layers: 0 there, 1 here", "num_token_types: 2 there, 0 here"],
        ),
        (
            "t5",
            "bert_base_model",
            "is a bert (num_encoder_layers=2, d_model=16), but this experiment's model is a t5 "
            "(num_encoder_layers=1, num_decoder_layers=1, d_model=16). Start from a t5, or",
            ["positions: 'learned' there, 'relative' here", "norm: 'layer' there, 'rms' here"],
        ),
        (
            "bart",
            "t5",
            "is a t5 (num_encoder_layers=2, d_model=24), but this experiment's model is a bart",
            ["positions: 'relative' there, 'learned' here", "biases: 'none' there, 'all' here"],
        ),
        ("bert", "vit", "is a vit (", ["norm_position: 'pre' there, 'post' here"]),
        ("transformer", "marian", "is a marian (", ["activation: 'swish' there, 'relu' here"]),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_family_is_named(family, folder, is_a, fields, corpus, tmp_path):
    # Neither tensors nor a tokenizer nor texts are there: none of them is looked at before.
    (tmp_path / "bare").mkdir()
    shutil.copy(STORED / folder / "config.json", tmp_path / "bare")
    experiment = starting_from(experiment_of(family, corpus), tmp_path / "bare")
    source = dataclasses.replace(experiment.data.source, folder=str(tmp_path))
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))
    with pytest.raises(ConfigError) as error:
        train(experiment, str(tmp_path / "run"))
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"config.train.init_from: the checkpoint in {tmp_path / 'bare'} {is_a}")
    assert {f"  config.model.{field}" for field in fields} <= set(lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_run_of_another_family_is_named(family, run, corpus, tmp_path):
    experiment = starting_from(experiment_of(family, corpus), run)
    with pytest.raises(ConfigError) as error:
        train(experiment, str(tmp_path / "run"))
    first, *lines = str(error.value).splitlines()
    assert first.startswith(
        f"config.train.init_from: the run in {run} is a transformer (num_encoder_layers=1, "
        f"num_decoder_layers=1, d_model=16), but this experiment's model is a {family} ("
    )
    wanted = "relative" if family == "t5" else "learned"
    assert f"  config.model.positions: 'sinusoidal' there, '{wanted}' here" in lines
    assert not (tmp_path / "run").exists()


def test_another_shape_is_told_before_weights_and_tokenizer(corpus, tmp_path):
    folder = shutil.copytree(STORED / "bert_masked_lm", tmp_path / "bert")
    model = dataclasses.replace(from_pretrained(folder).config, num_encoder_layers=3, max_length=48)
    experiment = classifier(corpus, model)
    with pytest.raises(ConfigError) as error:
        train(starting_from(experiment, folder), str(tmp_path / "run"))
    assert str(error.value).splitlines() == [
        f"config.train.init_from={str(folder)!r} is a model of another shape:",
        "  config.model.num_encoder_layers: 2 there, 3 here",
        "  config.model.max_length: 14 there, 48 here",
    ]
    assert not (tmp_path / "run").exists()


def test_the_families_own_fields_tell_them_apart():
    for name, family in FAMILIES.items():
        for variant in family.variants:
            assert family_of(getattr(families, name).config(variant)).name == name, variant
    # Were a model of two families, whichever comes first would be told.
    fixed = [family.fixed for family in FAMILIES.values() if family.fixed]
    for one, other in itertools.combinations(fixed, 2):
        assert not may_be_both(one, other), (one, other)
    fields = dict(FAMILIES["bert"].fixed)
    assert may_be_both(fields, fields)
    assert may_be_both(fields, {"embedding_norm": True})


def may_be_both(one, other):
    """Whether there is a model with the fixed fields of two families."""
    if any(one[key] != other[key] for key in one.keys() & other.keys()):
        return False
    fields = {**one, **other}
    fields.setdefault("head", "tokens" if fields.get("num_decoder_layers", 1) else "none")
    try:
        TransformerConfig(vocab_size=99, **fields)
    except ConfigError:  # such as two families of which one has no encoder, and the other no decoder
        return False
    return True


def test_a_model_of_the_same_family_and_shape_may_be_started_from(corpus):
    config = from_pretrained(STORED / "bert_masked_lm").config
    check_origin(starting_from(classifier(corpus, config), STORED / "bert_masked_lm"))
    narrow = dataclasses.replace(config, biases="none")
    with pytest.raises(ConfigError, match=r"model is a transformer .*\n  config.model.biases: 'all' there"):
        check_origin(starting_from(classifier(corpus, narrow), STORED / "bert_masked_lm"))


@pytest.mark.parametrize(
    ("folder", "head", "message"),
    [
        ("gpt2", "classes", "no gpt2 with head='classes', only with 'tokens'"),
        ("t5", "masked_tokens", "no t5 with head='masked_tokens', only with 'tokens'"),
        ("bart", "none", "no bart with head='none', only with 'tokens'"),
        ("vit", "spans", "no vit with head='spans', only with 'classes' or"),
        ("bert_masked_lm", "tokens", "no bert with head='tokens', only with 'pretraining' or"),
        ("bert_masked_lm", ["classes"], r"no bert with head=\['classes'\]"),
    ],
)
def test_a_head_that_the_family_does_not_have(folder, head, message):
    with pytest.raises(ConfigError, match=rf"{folder} is a \w+ checkpoint, and .*{message}"):
        from_pretrained(STORED / folder, head=head)
