"""A tiny experiment of every family with batches to train it on, for tests of meshes."""

import dataclasses
from typing import Any

import jax
import numpy as np

from tests.tiny_training import COMPARABLE
from transformer_jax import families
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import CausalLM, Classification, MaskedLM, Objective, Seq2Seq
from transformer_jax.runs.experiment import Experiment, TrainConfig
from transformer_jax.sharding import partitioning
from transformer_jax.sharding.partitioning import MeshConfig
from transformer_jax.training.step import compile_train_step

VOCAB_SIZE, ROWS, LENGTH, NUM_LABELS = 64, 16, 16, 4
IMAGE_SHAPE, PATCH_SIZE = (16, 16, 3), 4  # 17 vectors: an odd number

_SMALL: dict[str, Any] = dict(d_model=16, num_heads=4, key_size=4, value_size=4, d_feedforward=32)
_TEXT = _SMALL | dict(vocab_size=VOCAB_SIZE, max_length=LENGTH)
_BOTH = dict(num_encoder_layers=1, num_decoder_layers=1)
_DROPOUT = dict(dropout=0.1, attention_dropout=0.1)


def _models() -> dict[str, tuple[TransformerConfig, Objective]]:
    """Of every family a model in which all that it has of its own is there, and what it is trained on."""
    special = dict(pad_id=0, eos_id=2)
    return {
        "transformer": (families.transformer.config("tiny", **_TEXT, **_BOTH, **_DROPOUT), Seq2Seq()),
        "marian": (
            families.marian.config("opus-mt", **_TEXT, **_BOTH, **_DROPOUT, **special, decoder_start_id=0),
            Seq2Seq(),
        ),
        "bert": (
            families.bert.config("tiny", **_TEXT, **_DROPOUT, num_encoder_layers=1, head="masked_tokens"),
            MaskedLM(),
        ),
        "bert classes": (
            families.bert.config(
                "tiny", **_TEXT, **_DROPOUT, num_encoder_layers=1, head="classes", num_labels=NUM_LABELS
            ),
            Classification(),
        ),
        "roberta": (
            families.roberta.config("tiny", **_TEXT, **_DROPOUT, num_encoder_layers=1),
            MaskedLM(),
        ),
        "distilbert": (
            families.distilbert.config(
                "tiny", **_TEXT, **_DROPOUT, num_encoder_layers=1, head="classes", num_labels=NUM_LABELS
            ),
            Classification(),
        ),
        "gpt2": (
            families.gpt2.config(
                "small", **_TEXT, **_DROPOUT, num_decoder_layers=1, eos_id=2, decoder_start_id=2
            ),
            CausalLM(),
        ),
        "t5": (families.t5.config("1.1-small", **_TEXT, **_BOTH, **_DROPOUT), Seq2Seq()),
        "bart": (
            families.bart.config("base", **_TEXT, **_BOTH, **_DROPOUT, **special, decoder_start_id=2),
            Seq2Seq(),
        ),
        "vit": (
            families.vit.config(
                "Ti/16", **_SMALL, **_DROPOUT, image_shape=IMAGE_SHAPE, patch_size=PATCH_SIZE, max_length=17,
                num_encoder_layers=1, num_labels=NUM_LABELS,
            ),
            Classification(),
        ),
    }  # fmt: skip


MODELS = _models()


def family_experiment(name: str, mesh: MeshConfig, **changes: Any) -> Experiment:
    """The experiment of one of ``MODELS``; ``changes`` are of the model."""
    model, objective = MODELS[name]
    features: tuple[tuple[str, str], ...] = (("inputs", "0"),)
    if isinstance(objective, Seq2Seq):
        features += (("targets", "1"),)
    if isinstance(objective, Classification):
        features = (("images" if not model.front_end.has_tokens else "inputs", "0"), ("labels", "1"))
    kind = "tfds" if not model.front_end.has_tokens else "tsv"
    files = dict.fromkeys(("train", "validation", "test"), ("nowhere",))
    return Experiment(
        model=dataclasses.replace(model, **changes),
        objective=objective,
        data=DataConfig(
            source=SourceConfig(kind=kind, features=features, **files),
            tokenizer=TokenizerConfig(kind="byte"),
            max_length=LENGTH,
            batch_size=ROWS,
        ),
        optimizer=COMPARABLE,
        train=TrainConfig(num_steps=5),
        mesh=mesh,
    )


def family_batch(name: str, step: int) -> dict[str, np.ndarray]:
    """The batch of an update: texts of several lengths, some of them two in a row, or images."""
    model, objective = MODELS[name]
    rng = np.random.default_rng(step)
    labels = rng.integers(0, NUM_LABELS, ROWS, np.int32)
    if not model.front_end.has_tokens:
        return {"images": rng.integers(0, 256, (ROWS, *IMAGE_SHAPE)).astype(np.uint8), "labels": labels}
    batch: dict[str, np.ndarray] = {}
    for side in ("inputs",) if isinstance(objective, Classification) else ("inputs", "targets"):
        places = np.arange(LENGTH)[None, :]
        ends = rng.integers(2, LENGTH + 1, (ROWS, 1))
        middles = np.where(rng.random((ROWS, 1)) < 0.5, ends // 2, ends)
        segments = np.where(places < middles, 1, np.where(places < ends, 2, 0)).astype(np.int32)
        batch[side] = np.where(segments > 0, rng.integers(4, VOCAB_SIZE, (ROWS, LENGTH)), 0).astype(np.int32)
        batch[f"{side}_segments"] = segments
        batch[f"{side}_positions"] = np.where(places < middles, places, places - middles).astype(np.int32)
        batch[f"{side}_positions"] *= segments > 0
    if isinstance(objective, CausalLM | MaskedLM):  # a target for each input
        batch |= {f"targets{part}": batch[f"inputs{part}"] for part in ("_segments", "_positions")}
    if isinstance(objective, MaskedLM):
        batch["targets_weights"] = (rng.random((ROWS, LENGTH)) < 0.3).astype(np.int32)
    return batch | ({"labels": labels} if isinstance(objective, Classification) else {})


def train_family(name: str, sizes: dict[str, int], devices: int, num_steps: int = 5, **changes: Any) -> Any:
    """Losses and final parameters of a few updates on a mesh of ``sizes``; ``changes`` are of the model."""
    experiment = family_experiment(name, MeshConfig(**sizes), **changes)
    mesh = partitioning.make_mesh(experiment.mesh, jax.devices()[:devices])
    _, init, step = compile_train_step(experiment, mesh)
    state, losses = init(), []
    for number in range(num_steps):
        state, sums = step(state, partitioning.shard_batch(mesh, family_batch(name, number)))
        losses.append(float(sums["loss"]) / float(sums["tokens"]))
    return np.array(losses), jax.device_get(state.params)
