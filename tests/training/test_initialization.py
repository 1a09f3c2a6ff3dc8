"""Starting a training from another one's parameters, or from a checkpoint of transformers."""

import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.drawn import drawn_params
from tests.parity.test_fixtures import STORED
from tests.tiny_training import tiny_experiment, write_corpus, write_run
from transformer_jax.checkpoints.files import CheckpointError
from transformer_jax.config import ConfigError
from transformer_jax.data import DataError, TokenizerConfig
from transformer_jax.families import bert
from transformer_jax.objectives import Classification, MaskedLM
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.runs.folder import check_workdir, load_or_train_tokenizer
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding import partitioning
from transformer_jax.training import initialization
from transformer_jax.training.initialization import initial_params
from transformer_jax.training.loop import train
from transformer_jax.training.step import compile_train_step

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

STILL = dict(peak_rate=1e-12)  # an update leaves the parameters where they were, within float32
BPE = TokenizerConfig(kind="bpe", vocab_size=270, special_tokens=("<cls>", "<sep>", "<mask>"))


def tiny_bert(corpus, **sections):
    """A masked language model on the sources of the corpus."""
    experiment = tiny_experiment(corpus, **sections)
    files = {split: (f"{split}.source",) for split in ("train", "validation", "test")}
    source = dataclasses.replace(experiment.data.source, features=(("inputs", ""),), **files)
    return dataclasses.replace(
        experiment,
        model=bert.config(
            "tiny", vocab_size=270, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32,
            num_encoder_layers=1, max_length=48, head="masked_tokens", pad_id=0, eos_id=2, decoder_start_id=1,
        ),
        objective=MaskedLM(mask_rate=0.3),
        data=dataclasses.replace(experiment.data, source=source, tokenizer=BPE),
        evaluate=dataclasses.replace(experiment.evaluate, average_last=1),
    )  # fmt: skip


def classifier(corpus, model, labels="abc"):
    """Classifies texts, with the encoder of ``model``."""
    experiment = tiny_bert(corpus)
    source = dataclasses.replace(
        experiment.data.source,
        features=(("inputs", ""), ("labels", "")),
        **{split: (f"{split}.source", f"{split}.target") for split in ("train", "validation", "test")},
    )
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(model, head="classes", num_labels=len(labels)),
        objective=Classification(labels=tuple(labels)),
        data=dataclasses.replace(
            experiment.data, source=source, tokenizer=TokenizerConfig(kind="byte"), max_length=12, buckets=()
        ),
    )


def drawn_on(experiment, devices=1):
    mesh = partitioning.make_mesh(experiment.mesh, jax.devices()[:devices])
    _, init, _ = compile_train_step(experiment, mesh)
    return init().params, mesh


def shifted_params(config, seed):
    """Biases and scales differ too, from seed to seed."""
    return jax.tree.map(lambda leaf: leaf + seed + 1, drawn_params(config, seed))


def starting_from(experiment, folder, **train_settings):
    settings = dataclasses.replace(experiment.train, init_from=str(folder), **train_settings)
    return dataclasses.replace(experiment, train=settings)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def validation_losses(workdir):
    return {
        record["step"]: record["validation/loss"]
        for record in read_metrics(workdir)
        if "validation/loss" in record
    }


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The folder of a run, with a tokenizer of its own corpus."""
    folder = tmp_path_factory.mktemp("first")
    write_corpus(folder / "corpus")
    write_run(tiny_bert(folder / "corpus"), folder / "run", (6,))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_training_goes_on_with_parameters_and_tokenizer_of_a_run(corpus, tmp_path):
    source = tmp_path / "source"
    train(tiny_bert(corpus), str(source))
    other = tmp_path / "corpus"
    write_other_corpus(other)
    plain = tiny_bert(other, optimizer=STILL, train=dict(num_steps=1, evaluate_every_steps=1))
    train(starting_from(plain, source), str(tmp_path / "run"))
    assert (tmp_path / "run/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    # The same parameters on the same held-out texts: what the first run ended with.
    before = validation_losses(source)
    after = validation_losses(tmp_path / "run")
    np.testing.assert_allclose(after[1], before[max(before)], rtol=1e-5)

    train(plain, str(tmp_path / "anew"))
    assert (tmp_path / "anew/tokenizer.json").read_bytes() != (source / "tokenizer.json").read_bytes()
    assert abs(validation_losses(tmp_path / "anew")[1] - after[1]) > 0.01

    # Once begun, it needs the other run no more.
    shutil.rmtree(source)
    train(starting_from(plain, source, num_steps=2), str(tmp_path / "run"))
    assert sorted(validation_losses(tmp_path / "run")) == [1, 2]


@pytest.mark.slow
def test_the_parameters_of_a_run_on_a_mesh(first_run, corpus):
    experiment = starting_from(tiny_bert(corpus, mesh=dict(data=2, fsdp=2, tensor=2)), first_run)
    drawn, mesh = drawn_on(experiment, devices=8)
    found = initial_params(experiment, drawn, mesh)
    assert_same(found, load_run(str(first_run)).params)
    assert all(
        jax.tree.leaves(jax.tree.map(lambda leaf, place: leaf.sharding == place.sharding, found, drawn))
    )


def test_another_head_is_drawn_and_all_else_kept(first_run, corpus, capsys):
    model = dataclasses.replace(tiny_bert(corpus).model, dropout=0.4)
    experiment = starting_from(classifier(corpus, model), first_run)
    drawn, mesh = drawn_on(experiment)
    found = initial_params(experiment, drawn, mesh)
    assert_same(found["head"], drawn["head"])
    trained = load_run(str(first_run)).params
    assert found.keys() == trained.keys()
    assert_same(*({**tree, "head": {}} for tree in (found, trained)))
    assert (
        "randomly initialized, because the other model does not have it: head/classes/bias, "
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (("pretraining", 0), ("classes", 3), {"pooler"}),
        (("pretraining", 0), ("masked_tokens", 0), {"masked_tokens"}),
        (("classes", 3), ("classes", 3), {"pooler", "classes"}),
        (("classes", 3), ("classes", 4), {"pooler"}),
        (("token_classes", 3), ("classes", 3), set()),
    ],
    ids=["pooler", "masked_tokens", "all", "another number", "another kind"],
)
def test_what_two_heads_share_is_kept(corpus, before, after, kept, monkeypatch):
    head, num_labels = before
    plain = tiny_bert(corpus)
    trained = dataclasses.replace(plain.model, head=head, num_labels=num_labels)
    params = [shifted_params(trained, 0)]
    run = types.SimpleNamespace(params=params[0], steps=(1,), experiment=types.SimpleNamespace(model=trained))
    monkeypatch.setattr(initialization, "load_run", lambda *_, **__: run)

    head, num_labels = after
    experiment = classifier(corpus, plain.model, "abcd"[:num_labels]) if num_labels else plain
    assert experiment.model.head == head
    mesh = partitioning.make_mesh(experiment.mesh, jax.devices()[:1])
    template, _, _ = compile_train_step(experiment, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template.params)
    params += [jax.device_put(shifted_params(experiment.model, 1), shardings)]
    found = initial_params(experiment, params[1], mesh, corpus)
    assert found.keys() == params[1].keys() and found["head"].keys() == params[1]["head"].keys()
    assert_same(found["encoder"], params[0]["encoder"])
    for part, tree in found["head"].items():
        assert_same(tree, params[0 if part in kept else 1]["head"][part])
    assert not kept - found["head"].keys()


def test_tensors_of_a_checkpoint_of_transformers(corpus):
    tensors = load_file(STORED / "bert_masked_lm/model.safetensors")
    config = from_pretrained(STORED / "bert_masked_lm").config
    heads = []
    for seed in (0, 1):
        experiment = starting_from(classifier(corpus, config), STORED / "bert_masked_lm", seed=seed)
        found = initial_params(experiment, *drawn_on(experiment))
        words = tensors["bert.embeddings.word_embeddings.weight"]
        np.testing.assert_array_equal(found["embedding"]["embedding"], words)
        heads.append(found["head"])
    kernels = [max(jax.tree.leaves(head), key=np.std) for head in heads]
    assert np.std(kernels[0]) > 0 and not np.array_equal(*kernels)  # drawn, with the run's seed


def test_a_folder_of_another_objective_holds_another_experiment(first_run, corpus):
    with pytest.raises(ConfigError, match="holds another experiment") as error:
        check_workdir(first_run, classifier(corpus, tiny_bert(corpus).model))
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "config.objective.mask_rate: 0.3 there, 'nothing' here" in lines
    assert "config.objective.labels: 'nothing' there, ('a', 'b', 'c') here" in [
        line.replace("['a', 'b', 'c']", "('a', 'b', 'c')") for line in lines
    ]


def test_every_field_of_another_shape_is_named(first_run, corpus):
    for folder in (first_run, STORED / "bert_masked_lm"):
        model = dataclasses.replace(tiny_bert(corpus).model, d_feedforward=48, num_encoder_layers=3)
        experiment = starting_from(dataclasses.replace(tiny_bert(corpus), model=model), folder)
        drawn, mesh = drawn_on(experiment)
        with pytest.raises(ConfigError) as error:
            initial_params(experiment, drawn, mesh)
        first, *fields = str(error.value).splitlines()
        assert first == f"config.train.init_from={str(folder)!r} is a model of another shape:"
        assert "  config.model.d_feedforward: 32 there, 48 here" in fields or folder != first_run
        assert {field.split(":")[0].strip() for field in fields} >= {
            "config.model.d_feedforward", "config.model.num_encoder_layers"
        }  # fmt: skip


def write_other_corpus(folder):
    """A tokenizer that is trained on it is another one."""
    write_corpus(folder)
    (folder / "train.source").write_text("wholly other words, each of them rare\n" * 96)


def test_a_run_that_was_not_begun_takes_the_tokenizer_of_what_it_starts_from_now(first_run, tmp_path):
    write_other_corpus(tmp_path / "corpus")
    experiment, workdir = tiny_bert(tmp_path / "corpus"), tmp_path / "run"
    load_or_train_tokenizer(workdir, experiment)
    own = (workdir / "tokenizer.json").read_bytes()
    load_or_train_tokenizer(workdir, starting_from(experiment, first_run))
    theirs = (first_run / "tokenizer.json").read_bytes()
    assert (workdir / "tokenizer.json").read_bytes() == theirs != own


def test_nothing_to_start_from_is_one_error(first_run, corpus, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = shutil.copytree(first_run, tmp_path / "unfinished")
    for step in (unfinished / "checkpoints").iterdir():
        shutil.rmtree(step)
    fitting = classifier(corpus, from_pretrained(STORED / "bert_masked_lm").config)
    for experiment, folder, kind, message in (
        (tiny_bert(corpus), empty, ConfigError, "empty is not a checkpoint: it has no config.json"),
        (
            fitting,
            STORED / "bert_masked_lm",
            DataError,
            "bert_masked_lm has no tokenizer.json.*config.data.tokenizer.path",
        ),
        (tiny_bert(corpus), tmp_path / "nowhere", ValueError, "nowhere"),
        (tiny_bert(corpus), unfinished, CheckpointError, "has no checkpoint yet"),
    ):
        with pytest.raises(kind, match=message):
            train(starting_from(experiment, folder), str(tmp_path / "run"))
    assert not (tmp_path / "run/checkpoints").exists() or not list((tmp_path / "run/checkpoints").iterdir())
