"""A tiny experiment for tests of training, and its corpus."""

import dataclasses
import pathlib
import types
from collections.abc import Mapping

import jax
import numpy as np

from transformer_jax.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.families import transformer
from transformer_jax.objectives import Seq2Seq
from transformer_jax.optimizers.optimizers import OptimizerConfig
from transformer_jax.runs.experiment import EvaluateConfig, Experiment, TrainConfig
from transformer_jax.runs.folder import CHECKPOINTS_FOLDER, load_or_train_tokenizer, store_config
from transformer_jax.sharding.partitioning import unbox
from transformer_jax.training.step import make_init

# Adam divides by the root of the mean square of a gradient, plus epsilon. With the paper's 1e-9 a gradient
# that is 0 but for rounding (of a key's bias) moves its parameter as far as any other; not with this one.
COMPARABLE = OptimizerConfig(peak_rate=3e-3, warmup_steps=1, epsilon=1e-3, schedule="constant")
# A ReLU whose input is 0 within rounding has another gradient where sums are computed in another order.
SMOOTH = dict(activation="gelu")

WORDS = ["red", "blue", "green", "small", "large", "round", "old", "new", "fast", "slow"]


# Each split has words that no other has, so that a mix-up cannot go unnoticed.
OWN_WORDS = {"train": "apple", "validation": "pear", "test": "plum"}
SIZES = {"train": 96, "validation": 40, "test": 37}


def write_corpus(folder: pathlib.Path) -> None:
    """Two aligned files a split: one or two short words, and the same words backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    for offset, (split, own) in enumerate(OWN_WORDS.items()):
        words = [*WORDS, own]
        lines = [
            [words[(i * 7 + j * (i % 5 + 1) + offset) % len(words)] for j in range(1 + i % 2)]
            for i in range(SIZES[split])
        ]
        (folder / f"{split}.source").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{split}.target").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))


def tiny_experiment(folder: pathlib.Path, **sections: dict) -> Experiment:
    """Trains in a second; ``train=dict(num_steps=...)`` and the like change keys of a section."""
    files = {split: (f"{split}.source", f"{split}.target") for split in SIZES}
    experiment = Experiment(
        model=transformer.config(
            "tiny", vocab_size=260, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32,
            num_encoder_layers=1, num_decoder_layers=1, max_length=48, dropout=0.1,
        ),
        objective=Seq2Seq(),
        data=DataConfig(
            source=SourceConfig(kind="text", folder=str(folder), **files),
            tokenizer=TokenizerConfig(kind="byte"),
            max_length=40,
            buckets=(16,),
            tokens_per_batch=256,
            window=32,
        ),
        optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=5),
        train=TrainConfig(num_steps=6, log_every_steps=2, evaluate_every_steps=3),
        checkpoint=CheckpointConfig(every_steps=2, keep_latest=3),
        evaluate=EvaluateConfig(beam_size=1, extra_length=4, batch_size=64, num_samples=1, average_last=2),
    )  # fmt: skip
    return dataclasses.replace(
        experiment,
        **{name: dataclasses.replace(getattr(experiment, name), **keys) for name, keys in sections.items()},
    )


def write_run(
    experiment: Experiment,
    workdir: pathlib.Path,
    steps: tuple[int, ...],
    losses: Mapping[int, float] = types.MappingProxyType({}),
) -> None:
    """The folder as ``train`` leaves it, with drawn parameters, others at every step, for tests that read it.

    ``losses`` are of the validation, at some of the steps. A training would take seconds, most of them for
    the programs of an update and of an evaluation.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer = load_or_train_tokenizer(workdir, experiment)
    store_config(workdir, experiment)
    state = jax.jit(lambda: unbox(make_init(experiment)()))()
    data_state = {"log": {}, "iterator": {}, "tokenizer": tokenizer.fingerprint, "seconds": 0.0}
    with Checkpointer(workdir / CHECKPOINTS_FOLDER, experiment.checkpoint) as checkpointer:
        for step in steps:
            rng = np.random.default_rng(step)
            params = jax.tree.map(
                lambda leaf, rng=rng: (leaf + rng.normal(0, 0.1, leaf.shape)).astype(leaf.dtype), state.params
            )
            scores = {"loss": losses[step]} if step in losses else None
            checkpointer.save(step, state.replace(step=np.int32(step), params=params), data_state, scores)


def assert_equal_training(found, wanted, num_steps: int = 5) -> None:
    """Losses and parameters after ``COMPARABLE`` updates agree within float32 rounding.

    One rounding is up to 2^-24 = 6e-8 of a number, and a sum of a few hundred terms in another order is off
    by about the root of that many: losses by 1e-6 of themselves, gradients, means of terms below 1, by 1e-7.
    An update of Adam moves a parameter by at most rate / epsilon times that.
    """
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    most = num_steps * COMPARABLE.peak_rate / COMPARABLE.epsilon * 1e-7
    pairs = zip(jax.tree_util.tree_leaves_with_path(found[1]), jax.tree.leaves(wanted[1]), strict=True)
    for (path, leaf), other in pairs:
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=most, err_msg=jax.tree_util.keystr(path))
