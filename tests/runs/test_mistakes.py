"""Mistakes of a user, and bad luck: each is one clear error or line, and nothing is lost by it."""

import json
import shutil

import pytest

from tests.tiny_training import tiny_experiment, write_run
from transformer_jax.config import ConfigError
from transformer_jax.data import DataError, TokenizerConfig, train_tokenizer
from transformer_jax.reporting.progress import read_metrics
from transformer_jax.runs.loading import load_run
from transformer_jax.training.loop import train

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_another_experiments_folder_is_refused_and_untouched(corpus, tmp_path):
    workdir = tmp_path / "run"
    write_run(tiny_experiment(corpus), workdir, (2,))
    before = (workdir / "config.json").read_bytes()
    other = tiny_experiment(corpus, model=dict(d_feedforward=64), optimizer=dict(peak_rate=1.0))
    with pytest.raises(ConfigError, match=r"(?s)another experiment.*d_feedforward: 32 there, 64.*peak_rate"):
        train(other, str(workdir))
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_cannot_go_back(corpus, tmp_path):
    train(tiny_experiment(corpus, train=dict(num_steps=4)), str(tmp_path))
    with pytest.raises(ConfigError, match=r"already at step 4, beyond config.train.num_steps=2; set it to 4"):
        train(tiny_experiment(corpus, train=dict(num_steps=2)), str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_tokenizer_of_another_vocabulary_is_refused(corpus, tmp_path):
    train(tiny_experiment(corpus, train=dict(num_steps=2)), str(tmp_path))
    path = tmp_path / "tokenizer.json"
    original = path.read_text()
    train_tokenizer(TokenizerConfig(vocab_size=270), ["red blue"] * 9).save(path)
    with pytest.raises(ConfigError, match=r"has 26[0-9] tokens, the model only config.model.vocab_size=260"):
        train(tiny_experiment(corpus), str(tmp_path))
    swapped = json.loads(original)  # of the same size, with two bytes changing places
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(swapped))
    with pytest.raises(DataError, match="is not the tokenizer that the checkpoint was trained with"):
        train(tiny_experiment(corpus), str(tmp_path))
    with pytest.raises(DataError, match="put the original back"):
        load_run(str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match="is missing: put it back"):
        train(tiny_experiment(corpus), str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_an_untrained_folder_does_not_hold_an_experiment(corpus, tmp_path):
    wrong = tiny_experiment(corpus, optimizer=dict(schedule="cosine", warmup_steps=6))
    with pytest.raises(ValueError, match=r"warmup_steps=\d+ leaves none of the .* use at most 5"):
        train(wrong, str(tmp_path))
    train(tiny_experiment(corpus, train=dict(num_steps=2)), str(tmp_path))
    stored = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError):
        train(tiny_experiment(corpus, train=dict(num_steps=1)), str(tmp_path))
    assert (tmp_path / "config.json").read_bytes() == stored  # a refused value is not kept


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.target", "one line\n", "train.target"),
        ("test.target", "one line\n", "test.target"),
        ("validation.source", "", "validation"),
        ("test.source", None, "test.source"),
    ],
)
def test_bad_corpora_are_found_before_training(corpus, tmp_path, name, content, message):
    shutil.copytree(corpus, tmp_path / "corpus")
    path = tmp_path / "corpus" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        train(tiny_experiment(tmp_path / "corpus"), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_test_pair_longer_than_the_model_is_found_before_training(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    for side in ("source", "target"):
        with open(tmp_path / "corpus" / f"test.{side}", "a") as file:
            file.write("x" * 60 + "\n")
    with pytest.raises(DataError, match=r"example 38 .* has 61 tokens .* accepts 48"):
        train(tiny_experiment(tmp_path / "corpus"), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            dict(train=dict(gradient_accumulation_steps=3)),
            "tokens_per_batch=256 makes .* is not divisible by .*; use tokens_per_batch=",
        ),
        (
            dict(data=dict(batch_size=9)),
            "config.data.batch_size=9 makes batches of 9 rows .* not divisible by .* batch_size=8 or 16 or",
        ),
        (dict(checkpoint=dict(best_metric="los")), "best_metric='los' must be one of loss"),
        (dict(checkpoint=dict(best_metric="accuracy")), "'accuracy' needs config.checkpoint.best_mode='max'"),
        (dict(evaluate=dict(split="tset")), "'tset' must be one of train, validation, test"),
        (dict(evaluate=dict(average_last=9)), "average_last=9 needs as many"),
        (dict(evaluate=dict(beam_size=999)), "beam_size=999 must be at most config.model.vocab_size="),
        (
            dict(model=dict(eos_id=5)),
            r"eos_id=5 must be 2 \(eos\), as in the tokenizer of the training split",
        ),
        (dict(data=dict(max_length=64)), "max_length=64 is longer"),
        (dict(mesh=dict(data=3)), "8 device"),
    ],
)
def test_configs_that_do_not_fit_are_refused_before_anything_is_written(corpus, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_experiment(corpus, **sections), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_falling_schedule_with_another_end_is_said(corpus, tmp_path, capsys):
    optimizer = dict(schedule="linear", warmup_steps=1)
    train(tiny_experiment(corpus, optimizer=optimizer, train=dict(num_steps=2)), str(tmp_path))
    assert "schedule" not in capsys.readouterr().err
    train(tiny_experiment(corpus, optimizer=optimizer, train=dict(num_steps=4)), str(tmp_path))
    assert "num_steps was 2 and is now 4, which changes the linear schedule" in capsys.readouterr().err


def test_a_loss_that_explodes_stops_the_run_with_advice(corpus, tmp_path):
    experiment = tiny_experiment(
        corpus,
        optimizer=dict(schedule="constant", peak_rate=1e30, warmup_steps=0),
        train=dict(log_every_steps=100, evaluate_every_steps=2),
        checkpoint=dict(every_steps=100),
    )
    with pytest.raises(FloatingPointError, match=r"config\.optimizer.peak_rate"):
        train(experiment, str(tmp_path))
    assert read_metrics(tmp_path) == []  # no score of what is lost
