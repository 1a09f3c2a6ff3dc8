"""Fine-tunes BART to summarise news: CNN/DailyMail (Lewis et al. 2020, section 5.3; data: See et al. 2017).

    python -m transformer_jax.train --config=experiments/bart_summaries.py --workdir=runs/bart_cnn

Data: TFDS ``cnn_dailymail``, 287,113 articles with highlights for training, 13,368 for validation and 11,490
for testing. Prepare it once in the ``array_record`` format, which needs ``pip install -e '.[tfds]'``; if the
data is missing, the error message of the training program contains the command.

The checkpoint, facebook/bart-large, is downloaded from the hub. ``--config.train.init_from=...`` takes a
local folder instead, with weights in the safetensors format (weights in PyTorch's own format are refused, and
the error says how to convert them).

Articles longer than the model's 1,024 tokens are truncated, as in the paper, because the beginning of an
article holds most of what a summary needs. The run reports how many: ``pairs_cut`` counts the truncated
articles of the first training epoch, ``inputs_cut`` those of the evaluated split.

Published: ROUGE-1 44.16, ROUGE-2 21.28, ROUGE-L 40.90 (Table 3). This library does not compute ROUGE. It
computes BLEU and chrF, and writes the summaries to ``translations_test.txt``, one per line in the order of
the split, from which another program can compute ROUGE. The training follows fairseq's recipe, 20,000 steps
of 65,536 tokens. The decoding does not: fairseq restricts a summary to 55 to 140 tokens and lets no three
consecutive tokens occur in it twice.

The rows of summaries are as long as those of their articles, so most of their tokens are padding.

Measured here: nothing, because the data is not available here. tests/experiments trains a shrunk
version on generated records with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig
from transformer_jax.objectives import Seq2Seq
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig


def get_config() -> ml_collections.ConfigDict:
    """Returns the config: BART large with fairseq's learning rate, gradient clipping and label smoothing."""
    return Experiment(
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
        train=TrainConfig(
            num_steps=20_000,
            log_every_steps=100,
            evaluate_every_steps=1_000,
            gradient_accumulation_steps=4,
            init_from="facebook/bart-large",
        ),
        checkpoint=CheckpointConfig(every_steps=1_000, keep_latest=1, best_metric="nll"),
        evaluate=EvaluateConfig(beam_size=4, length_penalty=2.0),
    ).to_config_dict()
