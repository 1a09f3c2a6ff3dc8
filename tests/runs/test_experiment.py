"""The run folder, its tokenizer, and experiments made small."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest
import tokenizers
from absl import flags
from ml_collections import config_flags
from tokenizers import models

from tests.tiny_training import OWN_WORDS, SIZES, tiny_experiment
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, TokenizerConfig, load_sources, rows_per_batch, train_tokenizer
from transformer_jax.data.sources import SQUAD_FEATURES
from transformer_jax.models.attention import FullAttention
from transformer_jax.models.front_ends import Patches
from transformer_jax.objectives import QuestionAnswering, TokenObjective
from transformer_jax.runs.experiment import EvaluateConfig, make_transform, read_experiment
from transformer_jax.runs.folder import (
    check_workdir,
    load_config,
    load_or_train_tokenizer,
    load_tokenizer,
    run_folder,
    store_config,
)
from transformer_jax.runs.shrinking import shrink
from transformer_jax.sharding.partitioning import make_mesh
from transformer_jax.training.loop import _open_data, train
from transformer_jax.training.step import compile_train_step


@pytest.mark.slow
def test_a_home_folder_is_spelt_out_for_everything_in_the_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    experiment = tiny_experiment(corpus, train=dict(num_steps=1))
    train(experiment, "~/runs/a")
    names = {path.name for path in (tmp_path / "runs" / "a").iterdir()}
    assert names >= {"config.json", "tokenizer.json", "checkpoints", "metrics.jsonl", "summary.json"}
    assert not (tmp_path / "~").exists()
    with pytest.raises(ConfigError, match="another experiment"):
        train(tiny_experiment(corpus, optimizer=dict(peak_rate=1.0)), "~/runs/a")


def test_a_url_is_no_run_folder():
    with pytest.raises(ConfigError, match=r"gs://bucket/run is a URL.*mount the bucket"):
        run_folder("gs://bucket/run")


def test_checkpoints_without_a_config_are_said(corpus, tmp_path):
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"has checkpoints but no config.json.*put it back"):
        load_config(tmp_path / "run")


def test_the_tokenizer_sees_the_training_split_only(corpus, tmp_path):
    section = dict(tokenizer=TokenizerConfig(kind="bpe", vocab_size=400))
    experiment = tiny_experiment(corpus, data=section, model=dict(vocab_size=400))
    tokenizer = load_or_train_tokenizer(tmp_path, experiment)
    lengths = {split: len(tokenizer.encode(word)) for split, word in OWN_WORDS.items()}
    assert lengths["train"] == 1 and lengths["validation"] > 1 and lengths["test"] > 1


@dataclasses.dataclass(frozen=True)
class Captioning(TokenObjective):
    FEATURES = ("images", "targets")
    ARGUMENTS = ("images", "targets")

    name: str = "captioning"

    def encode(self, example, tokenizer):
        raise NotImplementedError


def test_a_decoder_needs_a_tokenizer_whatever_the_encoder_reads(corpus, tmp_path):
    tiny = tiny_experiment(corpus)
    path = tmp_path / "mine.json"
    train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["red blue green small large"] * 9).save(
        path
    )
    source = dataclasses.replace(
        tiny.data.source, kind="tfds", train=("train",), validation=(), test=(),
        features=(("images", "image"), ("targets", "text")),
    )  # fmt: skip
    data = dataclasses.replace(tiny.data, source=source, tokenizer=TokenizerConfig(path=str(path)))
    model = dataclasses.replace(tiny.model, front_end=Patches(image_shape=(8, 8, 1), patch_size=4))
    experiment = dataclasses.replace(tiny, model=model, objective=Captioning(), data=data)
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"mine.json has 2[0-9]+ tokens, the model only"):
        load_or_train_tokenizer(run, experiment)
    model = dataclasses.replace(model, vocab_size=300)
    experiment = dataclasses.replace(experiment, model=model)
    tokenizer = load_or_train_tokenizer(run, experiment)
    assert tokenizer.fingerprint == load_tokenizer(run, experiment).fingerprint
    assert tokenizer.fingerprint == Tokenizer.load(path).fingerprint
    with pytest.raises(ConfigError, match=r"config\.data\.max_length=99 is longer than the model's"):
        dataclasses.replace(experiment, data=dataclasses.replace(data, max_length=99))
    assert shrink(experiment).model.vocab_size == 300 and shrink(experiment).model.d_model == 16


def test_a_tokenizer_file_that_was_mended_is_read_again(corpus, tmp_path):
    path = tmp_path / "mine.json"
    section = dict(tokenizer=TokenizerConfig(path=str(path), vocab_size=300))
    experiment = tiny_experiment(corpus, data=section, model=dict(vocab_size=300))
    run = tmp_path / "run"
    train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=320), ["red blue green small large"] * 9).save(
        path
    )
    with pytest.raises(ConfigError, match=r"tokenizer of .*mine.json has 2[0-9]+ tokens, the model only"):
        load_or_train_tokenizer(run, tiny_experiment(corpus, data=section, model=dict(vocab_size=264)))
    assert not run.exists()  # what does not fit is not kept
    first = load_or_train_tokenizer(run, experiment)
    train_tokenizer(TokenizerConfig(kind="byte"), []).save(path)
    second = load_or_train_tokenizer(run, experiment)
    assert second.vocab_size == 260 < first.vocab_size
    store_config(run, experiment)
    (run / "checkpoints" / "1").mkdir(parents=True)  # from here on the run's own is the only one
    path.unlink()
    assert load_or_train_tokenizer(run, experiment).fingerprint == second.fingerprint


BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}
BART = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}
T5 = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}


@pytest.mark.parametrize(
    ("vocabulary", "ids", "message"),
    [
        (BERT, (0, 1, 2), r"mine\.json has no token that ends a decoder's"),
        (BART, (1, 0, 2), None),
        (BART, (1, 2, 2), None),  # the decoder begins with eos
        (BART, (1, 3, 2), r"decoder_start_id=3 must be 0 \(bos\) or 1 \(pad\) or 2 \(eos\)"),
        (BART, (0, 1, 2), r"pad_id=0 must be 1 \(pad\), as in the tokenizer of .*mine\.json"),
        (T5, (0, 0, 1), None),
        (T5, (0, 0, 2), r"eos_id=2 must be 1 \(eos\)"),
    ],
)
def test_the_models_special_ids_are_those_of_the_tokenizer(corpus, tmp_path, vocabulary, ids, message):
    unknown = next(token for token in vocabulary if "unk" in token.lower())
    path = tmp_path / "mine.json"
    tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown)).save(str(path))
    names = ("pad_id", "decoder_start_id", "eos_id")
    experiment = tiny_experiment(
        corpus,
        data=dict(tokenizer=TokenizerConfig(path=str(path))),
        model=dict(zip(names, ids, strict=True)),
    )
    run = tmp_path / "run"
    if message is None:
        load_or_train_tokenizer(run, experiment)
        load_tokenizer(run, experiment)
        return
    with pytest.raises(ConfigError, match=message):
        load_or_train_tokenizer(run, experiment)
    assert not run.exists()


def test_an_objective_gets_the_features_that_it_needs(corpus):
    experiment = tiny_experiment(corpus)
    source = dataclasses.replace(
        experiment.data.source,
        kind="jsonl",
        train=("a",),
        validation=(),
        test=(),
        features=(("inputs", "a"),),
    )
    with pytest.raises(
        ConfigError, match=r"Seq2Seq\.FEATURES.*no targets: config\.data\.source\.features gives inp"
    ):
        tiny_experiment(corpus, data=dict(source=source))


def test_several_sources_are_kept_in_the_config_and_trained_on(corpus, tmp_path):
    source = tiny_experiment(corpus).data.source
    more = dataclasses.replace(
        source, train=tuple(f"{name}[:25%]" for name in source.train), prefix="again: "
    )
    experiment = tiny_experiment(corpus, data=dict(more_sources=(more,)))
    assert read_experiment(experiment.to_config_dict()) == experiment
    assert read_experiment(json.loads(experiment.to_config_dict().to_json())) == experiment
    store_config(tmp_path, experiment)
    assert load_config(tmp_path) == experiment
    assert len(load_sources(experiment.data.sources, "train")) == 96 + 24
    mesh = make_mesh(experiment.mesh)
    tokenizer = load_or_train_tokenizer(tmp_path, experiment)
    iterator, validation = _open_data(experiment, tokenizer, mesh)
    assert iterator.get_state()["settings"]["num_examples"] == 96 + 24
    iterator.close()
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    moved = dataclasses.replace(more, folder="elsewhere")
    check_workdir(tmp_path, tiny_experiment(corpus, data=dict(more_sources=(moved,))))
    with pytest.raises(ConfigError, match=r"config\.data\.more_sources: "):
        check_workdir(tmp_path, tiny_experiment(corpus, data=dict(more_sources=(moved, moved))))
    rows = sum(int((batch["inputs_segments"][:, 0] > 0).sum()) for batch in validation)
    assert rows == SIZES["validation"]  # evaluated on the first source alone


@pytest.mark.parametrize("devices", [6, 8, 16])
def test_a_shrunk_batch_divides_over_any_number_of_devices(corpus, monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    data = shrink(tiny_experiment(corpus)).data
    assert rows_per_batch(data.tokens_per_batch, data.max_length) % devices == 0
    data = shrink(tiny_experiment(corpus, data=dict(batch_size=1024))).data
    assert data.batch_size % devices == 0 and data.batch_size < 100


def test_shrinking_makes_anything_small(corpus):
    experiment = tiny_experiment(corpus, mesh=dict(data=1, fsdp=2, tensor=4))
    tokenizer = dataclasses.replace(experiment.data.tokenizer, path="large.json")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, vocab_size=9_000),
        data=dataclasses.replace(experiment.data, tokenizer=tokenizer),
        train=dataclasses.replace(experiment.train, gradient_accumulation_steps=16),
        evaluate=dataclasses.replace(experiment.evaluate, temperature=1.0, top_k=500, beam_size=400),
    )
    small = shrink(experiment)
    assert small.data.tokenizer.path == ""
    mesh = make_mesh(small.mesh)
    compile_train_step(small, mesh)  # its rows divide over all devices
    assert mesh.shape["data"] == jax.device_count()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_key_that_is_none_is_a_flag_too(corpus, tmp_path, monkeypatch):
    (tmp_path / "experiment.py").write_text(
        "import pathlib\nfrom tests.tiny_training import tiny_experiment\n"
        f"def get_config():\n    return tiny_experiment(pathlib.Path({str(corpus)!r})).to_config_dict()\n"
    )

    def parse(rate):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        arguments = [f"--config={tmp_path / 'experiment.py'}", f"--config.model.head_dropout={rate}"]
        monkeypatch.setattr(sys, "argv", ["train", *arguments])  # ml_collections reads it too
        values(sys.argv)
        return read_experiment(values.config).model

    assert parse("0.3").head_dropout == 0.3
    with pytest.raises(flags.IllegalFlagValueError, match="head_dropout"):
        parse("much")


def test_shrinking_cuts_patterns_of_attention(corpus):
    experiment = tiny_experiment(corpus)
    full = FullAttention()
    model = dataclasses.replace(
        experiment.model,
        num_encoder_layers=4,
        num_decoder_layers=3,
        attention=(full,) * 3,
        encoder_changes=(("attention", (full,) * 4),),
    )
    small = shrink(dataclasses.replace(experiment, model=model)).model
    assert len(small.encoder.attention) == small.encoder.num_layers == 2
    assert len(small.decoder.attention) == small.decoder.num_layers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(beam_size=0), "evaluate.beam_size=0 must be at least 1"),
        (dict(top_p=0.0), "evaluate.top_p=0.0 must be above 0 and at most 1"),
        (dict(top_k=3), "evaluate.top_k and top_p are for sampling: set temperature above 0, such as 1"),
        (dict(batch_size=0), "evaluate.batch_size=0 must be at least 1"),
        (dict(num_samples=-1), "evaluate.num_samples=-1 must be at least 0"),
    ],
)
def test_settings_of_evaluation_are_named_with_their_section(corpus, changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        EvaluateConfig(**changes)
    config = tiny_experiment(corpus).to_config_dict()
    with config.ignore_type():
        config.evaluate.update(changes)
    with pytest.raises(ConfigError, match=f"^config.{re.escape(message)}"):
        read_experiment(config)


def test_a_shrunk_question_leaves_room_for_its_context(corpus):
    """Of so small a vocabulary a question of SQuAD has more tokens than the shrunk length."""
    experiment = tiny_experiment(corpus)
    source = dataclasses.replace(
        experiment.data.source,
        kind="jsonl",
        train=("a",),
        validation=("b",),
        test=(),
        features=SQUAD_FEATURES,
    )
    model = families.bert.config("tiny", head="spans", vocab_size=330)
    asking = dataclasses.replace(
        experiment,
        model=model,
        objective=QuestionAnswering(),
        data=dataclasses.replace(experiment.data, source=source),
        train=dataclasses.replace(experiment.train, init_from="bert"),
    )
    small = shrink(asking)
    context = "It is " + "red " * 30
    example = {"inputs": "?" * 200, "context": context, "answers": ["red"], "answer_starts": [6]}
    tokenizer = train_tokenizer(small.data.tokenizer, [context])
    transform = make_transform(small, tokenizer, train=False)
    pieces = transform.pieces(transform.encode(example), np.random.default_rng(0), dict)
    assert pieces and max(len(piece["inputs"]) for piece in pieces) <= small.data.max_length
