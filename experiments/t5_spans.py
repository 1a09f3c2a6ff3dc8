"""Pretrains T5 with span corruption on the English and German captions of Multi30k, for two CPU cores.

    python -m transformer_jax.train --config=experiments/t5_spans.py --workdir=runs/t5_spans

``experiments/t5_multi30k.py`` starts from this run. Data: see ``experiments/multi30k_en_de.py``.

Published: nothing at this size. Raffel et al. 2020 pretrain on 34 billion tokens, this experiment on about
0.8 million.

Measured here with the command above (one core of a shared Intel Xeon with AVX-512, beside other work, jax
0.10.2, 2026-11-23), on the targets of the English captions of test2016: 1.806 nats per token, and 72.20 % of
the tokens predicted correctly, sentinels included.
"""

from typing import Any

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.models import TransformerConfig
from transformer_jax.objectives import SpanCorruption
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import Experiment, TrainConfig

NUM_SENTINELS = 100
VOCAB_SIZE = 6144


def model() -> TransformerConfig:
    """Returns a T5 1.1 with width 256, 3 + 3 layers and the ids of this library's own tokenizers."""
    return families.t5.config(
        "1.1-small",
        vocab_size=VOCAB_SIZE,
        d_model=256,
        num_heads=4,
        d_feedforward=512,
        num_encoder_layers=3,
        num_decoder_layers=3,
        max_length=128,
        dropout=0.1,
        attention_dropout=0.0,
        feedforward_dropout=0.0,
        pad_id=0,
        decoder_start_id=0,
        eos_id=2,
    )


def tokenizer() -> TokenizerConfig:
    """Returns the config of a byte-pair tokenizer for both languages, with the sentinels."""
    sentinels = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))
    return TokenizerConfig(kind="bpe", vocab_size=VOCAB_SIZE, special_tokens=sentinels)


def captions(language: str) -> SourceConfig:
    """Returns the source of the captions in one language, en or de."""
    names = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    splits: dict[str, Any] = {split: (f"multi30k/{name}.{language}.gz",) for split, name in names.items()}
    return SourceConfig(kind="text", features=(("inputs", ""),), **splits)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: 1,200 updates, about two epochs of the captions in both languages."""
    return Experiment(
        model=model(),
        objective=SpanCorruption(),
        data=DataConfig(
            source=captions("en"),
            more_sources=(captions("de"),),
            tokenizer=tokenizer(),
            max_length=64,
            batching="packed",
            tokens_per_batch=1536,
        ),
        optimizer=OptimizerConfig(name="adafactor", schedule="cosine", peak_rate=2e-2, warmup_steps=100),
        train=TrainConfig(num_steps=1200, log_every_steps=50, evaluate_every_steps=400),
        checkpoint=CheckpointConfig(every_steps=400, keep_latest=1),
    ).to_config_dict()
