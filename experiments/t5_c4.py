"""Pretrains T5 on web pages with span corruption (Raffel et al. 2020; version 1.1: Shazeer 2020).

    python -m transformer_jax.train --config=experiments/t5_c4.py:base --workdir=runs/t5_base
    python -m transformer_jax.train --config=experiments/t5_c4.py:1.1-base --workdir=runs/t5_1.1_base

Other variants: ``:small``, ``:large``, ``:3b``, ``:11b``, ``:1.1-small``, ``:1.1-large``, ``:1.1-xl``,
``:1.1-xxl``. The parameters of the largest must be sharded over devices: ``--config.mesh.fsdp=...``.

Data: TFDS ``c4/en``, 365 million pages, 800 GB. Prepare it once in the ``array_record`` format, which needs
``pip install -e '.[tfds]' apache-beam`` and a cluster, because the preparation starts from Common Crawl; if
the data is missing, the error message of the training program contains the command. Evaluation uses 5,000
pages of the validation split.

Published: log-perplexity on held-out pages 1.677 for the shape of base and 1.633 for that of 1.1-base, both
without dropout, after the same 2**19 steps of 128 x 512 tokens (Shazeer 2020, Table 1). The average on GLUE
after fine-tuning base is 83.28 (Raffel et al. 2020, Table 1).

Differences from the papers: pages are packed whole or in pieces of at most 512 tokens and do not attend to
one another; the vocabulary of 32,000 unigrams and 100 sentinels is trained here on English alone; Shazeer's
learning rate falls to 0 over the last tenth of the steps, the one here does not. The targets are rows of 512
tokens too, where the paper has 114, so a batch costs more. ``:base`` and the other variants of the first
paper have its dropout of 0.1, ``:1.1-...`` have none. The released checkpoints have seen many more pages.

Measured here: nothing, because neither the data nor the hardware is available here. tests/experiments
trains a shrunk version on generated records with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import SpanCorruption
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import Experiment, TrainConfig

SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))
WARMUP_STEPS = 10_000  # k in the learning rate 1 / sqrt(max(n, k)), section 3.1.2


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of the pretraining in sections 3.1.2 to 3.1.4 of Raffel et al.

    Args:
      variant: any of ``families.t5``.
    """
    dropouts = ("dropout", "attention_dropout", "feedforward_dropout")
    is_large = variant in ("large", "3b", "11b", "1.1-large", "1.1-xl", "1.1-xxl")
    return Experiment(
        model=families.t5.config(
            variant,
            **(dict.fromkeys(dropouts, 0.0) if variant.startswith("1.1") else {}),
            eos_id=2,  # the id that this library's own tokenizers use
            dtype="bfloat16",
            scan_layers=True,
            remat=is_large,
        ),
        objective=SpanCorruption(),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="c4/en",
                features=(("inputs", "text"),),
                train=("train",),
                validation=("validation[:5000]",),
                test=("validation[:5000]",),
            ),
            tokenizer=TokenizerConfig(
                kind="unigram",
                vocab_size=32_000 + len(SENTINELS),
                special_tokens=SENTINELS,
                max_training_examples=200_000,
            ),
            max_length=512,
            batching="packed",
            batch_size=128,
        ),
        optimizer=OptimizerConfig(
            name="adafactor",
            schedule="inverse_square_root",
            peak_rate=WARMUP_STEPS**-0.5,
            warmup_steps=WARMUP_STEPS,
            warmup_start_factor=1.0,
        ),
        train=TrainConfig(num_steps=2**19, log_every_steps=100, evaluate_every_steps=10_000),
        checkpoint=CheckpointConfig(every_steps=5_000, keep_latest=2),
    ).to_config_dict()
