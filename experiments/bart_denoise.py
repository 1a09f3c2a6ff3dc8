"""Pretrains BART on the English captions of Multi30k: the model restores a text from a corrupted copy.

    python -m transformer_jax.train --config=experiments/bart_denoise.py --workdir=runs/bart_denoise

Data: the English files of ``experiments/multi30k_en_de.py``.

Published: nothing at this size; Lewis et al. 2020 report only the scores after fine-tuning.

Measured here with the command above (one core of a shared Intel Xeon with AVX-512, beside other work, jax
0.10.2, 2026-11-23), on the 1,000 captions of test2016: with teacher forcing, 79.72 % of the tokens are
predicted correctly, at 1.076 nats per token. When the model generates a caption from the corrupted one alone,
2.2 % of the captions are exact, because a masked span of several words can be filled in many ways.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import Denoising
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

VOCAB_SIZE = 4096


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: width 256, 3 + 3 layers; a caption is one or two sentences."""
    return Experiment(
        model=families.bart.config(
            "base",
            vocab_size=VOCAB_SIZE,
            d_model=256,
            num_heads=4,
            d_feedforward=512,
            num_encoder_layers=3,
            num_decoder_layers=3,
            max_length=128,
            dropout=0.1,
            attention_dropout=0.0,
            pad_id=0,
            decoder_start_id=2,
            eos_id=2,
        ),
        objective=Denoising(),
        data=DataConfig(
            source=SourceConfig(
                kind="text",
                features=(("inputs", ""),),
                train=("multi30k/train.en.gz",),
                validation=("multi30k/val.en.gz",),
                test=("multi30k/test_2016_flickr.en.gz",),
            ),
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=VOCAB_SIZE, special_tokens=("<mask>",)),
            max_length=64,
            buckets=(12, 16, 20, 24, 32),
            tokens_per_batch=1536,
        ),
        optimizer=OptimizerConfig(schedule="cosine", peak_rate=1e-3, warmup_steps=200, clip_norm=1.0),
        train=TrainConfig(num_steps=2000, log_every_steps=50, evaluate_every_steps=500),
        checkpoint=CheckpointConfig(every_steps=500, keep_latest=1),
        evaluate=EvaluateConfig(beam_size=1),
    ).to_config_dict()
