"""The run folder, its tokenizer, and experiments made small."""

import dataclasses

import jax
import pytest

from tests.training import OWN_WORDS, tiny_experiment
from transformer_jax.config import ConfigError
from transformer_jax.data import TokenizerConfig, rows_per_batch, train_tokenizer
from transformer_jax.experiment import load_config, load_or_train_tokenizer, run_folder, shrink, store_config
from transformer_jax.partitioning import make_mesh
from transformer_jax.train import train
from transformer_jax.train_step import compile_train_step


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


@pytest.mark.parametrize("devices", [6, 8, 16])
def test_a_shrunk_batch_divides_over_any_number_of_devices(corpus, monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    data = shrink(tiny_experiment(corpus)).data
    assert rows_per_batch(data.tokens_per_batch, data.max_length) % devices == 0


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
