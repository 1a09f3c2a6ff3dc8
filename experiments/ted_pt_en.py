"""Translates TED talks from Portuguese to English: 51,785 pairs of spoken language.

    python -m transformer_jax.train --config=experiments/ted_pt_en.py --workdir=runs/ted_pt_en

Data: TFDS ``ted_hrlr_translate/pt_to_en`` (Qi et al. 2018). Prepare it once in the ``array_record`` format,
which needs ``pip install -e '.[tfds]'``; if the data is missing, the error message of the training program
contains the command.

Published: tokenised BLEU 26.2 with an LSTM, 30.3 with pre-trained embeddings (Qi et al. 2018, "When and Why
Are Pre-Trained Word Embeddings Useful for Neural Machine Translation?", Table 2). The shape of the model is
that of TensorFlow's tutorial on this corpus, 4 layers of width 128; the tutorial reports no BLEU.

Measured here: nothing, because the data is not available here. tests/experiments trains a shrunk
version on generated records with the same features.
"""

import ml_collections

from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.families import transformer
from transformer_jax.objectives import Seq2Seq
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

VOCAB_SIZE = 8192


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: width 128, 4 + 4 layers, 8 heads."""
    return Experiment(
        model=transformer.config(
            "tiny",
            vocab_size=VOCAB_SIZE,
            num_heads=8,
            key_size=16,
            value_size=16,
            num_encoder_layers=4,
            num_decoder_layers=4,
            norm_position="pre",
            dropout=0.1,
        ),
        objective=Seq2Seq(label_smoothing=0.1),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="ted_hrlr_translate/pt_to_en",
                features=(("inputs", "pt"), ("targets", "en")),
            ),
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=VOCAB_SIZE),
            max_length=128,
            buckets=(16, 24, 32, 48, 64),
            tokens_per_batch=4096,
        ),
        optimizer=OptimizerConfig(schedule="inverse_square_root", peak_rate=2e-3, warmup_steps=1000),
        train=TrainConfig(num_steps=10_000, evaluate_every_steps=1_000),
        checkpoint=CheckpointConfig(every_steps=500, keep_latest=5, best_metric="nll"),
        evaluate=EvaluateConfig(average_last=5),
    ).to_config_dict()
