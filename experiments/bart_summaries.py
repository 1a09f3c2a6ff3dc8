"""Fine-tunes BART to summarise news: CNN/DailyMail (Lewis et al. 2020, section 5.3; data: See et al. 2017).

    python -m transformer_jax.train --config=experiments/bart_summaries.py --workdir=runs/bart_cnn

Data: TFDS ``cnn_dailymail``, 287,113 articles with highlights to train on, 13,368 to validate, 11,490 to
test, to be prepared once in the ``array_record`` format, which needs ``pip install -e '.[tfds]'``; the
error that training gives without it has the command.

The checkpoint is facebook/bart-large, fetched from the hub; ``--config.train.init_from=...`` takes a folder
of it (with safetensors: weights in PyTorch's own format are refused, and the error says how to convert
them).

Articles longer than the model's 1,024 tokens are cut, as the paper's are, because most of what a summary
needs stands at the beginning. How many is said: ``pairs_cut`` of the first epoch, ``inputs_cut`` of what is
scored.

Published: ROUGE-1 44.16, ROUGE-2 21.28, ROUGE-L 40.90 (Table 3). ROUGE is not measured here: BLEU and chrF
are, and the summaries are in ``translations_test.txt``, one a line in the order of the split, for a program
that does. fairseq's recipe is followed, 20,000 steps of 65,536 tokens; not its decoding, which lets a
summary have 55 to 140 tokens and no three of them twice.

Rows of summaries are as long as those of their articles, most of it padding.

Measured here: nothing, for want of the data. tests/test_experiments.py trains it shrunk, on records with
the same features.
"""

import ml_collections

from transformer_jax import experiment, families
from transformer_jax.checkpoint import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig
from transformer_jax.objectives import Seq2Seq
from transformer_jax.optimizers import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """BART large, with fairseq's rate, clipping and label smoothing."""
    return experiment.Experiment(
        model=families.bart.config("large"),
        objective=Seq2Seq(label_smoothing=0.1, cut_long=True),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="cnn_dailymail",
                features=(("inputs", "article"), ("targets", "highlights")),
            ),
            max_length=1024,
            buckets=(256, 512, 768),
            tokens_per_batch=65_536,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="linear",
            peak_rate=3e-5,
            warmup_steps=500,
            b2=0.999,
            epsilon=1e-8,
            weight_decay=0.01,
            clip_norm=0.1,
        ),
        train=experiment.TrainConfig(
            num_steps=20_000,
            log_every_steps=100,
            evaluate_every_steps=1_000,
            gradient_accumulation_steps=4,
            init_from="facebook/bart-large",
        ),
        checkpoint=CheckpointConfig(every_steps=1_000, keep_latest=1, best_metric="nll"),
        evaluate=experiment.EvaluateConfig(beam_size=4, length_penalty=2.0),
    ).to_config_dict()
