"""Pretrains BERT on English Wikipedia: masked words and next-sentence prediction (Devlin et al. 2019).

    python -m transformer_jax.train --config=experiments/bert_wikipedia.py:base --workdir=runs/bert_base
    python -m transformer_jax.train --config=experiments/bert_wikipedia.py:large --workdir=runs/bert_large

Data: TFDS ``wikipedia/20230601.en``, 6.7 million articles. Prepare it once in the ``array_record`` format,
which needs ``pip install -e '.[tfds]'``; if the data is missing, the error message of the training program
contains the command. The last 5,000 articles are held out.

Published: perplexity of masked words on held-out text 3.99 for the shape of base and 3.23 for that of large
(Table 6). These values are not directly comparable: the paper also trains on BooksCorpus and uses a
lower-case WordPiece vocabulary, whereas this experiment trains 30,522 cased byte pairs. The average on GLUE
after fine-tuning is 79.6 and 82.1 (Table 1). To fine-tune such a run, start ``experiments/bert_glue.py`` with
``--config.train.init_from=runs/bert_base``.

Difference from the paper: the paper uses sequences of 128 tokens for nine tenths of its steps. Here sequences
have up to 512 tokens in all steps. Each row holds one pair of texts, because an example with a label cannot
be packed with others; rows of similar length are batched together.

Measured here: nothing, because neither the data nor the hardware is available here. tests/experiments
trains a shrunk version on generated records with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import MaskedLM
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import Experiment, TrainConfig


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of the pretraining in section A.2.

    Args:
      variant: base, large, or a smaller one of ``families.bert``.
    """
    return Experiment(
        model=families.bert.config(variant, head="pretraining", scan_layers=True, dtype="bfloat16"),
        objective=MaskedLM(next_sentence=True),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="wikipedia/20230601.en",
                features=(("inputs", "text"),),
                train=("train[:-5000]",),
                validation=("train[-5000:]",),
                test=("train[-5000:]",),
            ),
            tokenizer=TokenizerConfig(
                kind="bpe",
                vocab_size=families.bert.VOCAB_SIZE,
                special_tokens=("<cls>", "<sep>", "<mask>"),
                max_training_examples=500_000,
            ),
            max_length=512,
            buckets=(64, 128, 256),
            batch_size=256,
            window=16_384,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="linear",
            peak_rate=1e-4,
            warmup_steps=10_000,
            b2=0.999,
            epsilon=1e-6,  # as in the release
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        train=TrainConfig(num_steps=1_000_000, log_every_steps=100, evaluate_every_steps=10_000),
        checkpoint=CheckpointConfig(every_steps=5_000, keep_latest=2, best_metric="nll"),
    ).to_config_dict()
