"""BERT's pretraining on English Wikipedia: masked words, and what follows what (Devlin et al. 2019).

    python -m transformer_jax.train --config=experiments/bert_wikipedia.py:base --workdir=runs/bert_base
    python -m transformer_jax.train --config=experiments/bert_wikipedia.py:large --workdir=runs/bert_large

Data: TFDS ``wikipedia/20230601.en``, 6.7 million articles, to be prepared once in the ``array_record``
format, which needs ``pip install -e '.[tfds]'``; the error that training gives without it has the command.
The last 5,000 articles are held out.

Published: perplexity 3.99 of masked words on held-out text for the shape of base, 3.23 for that of large
(Table 6). It is of other tokens: the paper has BooksCorpus too, and a WordPiece vocabulary of lower-case
words, where 30,522 byte pairs with case are trained here. GLUE's average is 79.6 and 82.1 after fine-tuning
(Table 1): ``experiments/bert_glue.py`` starts from such a run with
``--config.train.init_from=runs/bert_base``.

Where the paper differs: nine tenths of its steps have sequences of 128 tokens. Here all have up to 512, one
pair of texts to a row, for a label cannot be packed; rows of similar length share a batch.

Measured here: nothing, for want of the data and the hardware. tests/test_experiments.py trains it shrunk,
on records with the same features.
"""

import ml_collections

from transformer_jax import experiment, families
from transformer_jax.checkpoint import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import MaskedLM
from transformer_jax.optimizers import OptimizerConfig


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """``variant``: base, large, or a smaller one of ``families.bert``. Section A.2."""
    return experiment.Experiment(
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
        train=experiment.TrainConfig(num_steps=1_000_000, log_every_steps=100, evaluate_every_steps=10_000),
        checkpoint=CheckpointConfig(every_steps=5_000, keep_latest=2, best_metric="nll"),
    ).to_config_dict()
