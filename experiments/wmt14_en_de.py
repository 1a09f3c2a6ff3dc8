"""Translates WMT 2014 English to German, the paper's own experiment (Vaswani et al. 2017, sections 5, 6.1).

    python -m transformer_jax.train --config=experiments/wmt14_en_de.py:base --workdir=runs/wmt14_base
    python -m transformer_jax.train --config=experiments/wmt14_en_de.py:big --workdir=runs/wmt14_big

Data: TFDS ``wmt14_translate/de-en``, 4.5 million pairs. Prepare it once in the ``array_record`` format, which
needs ``pip install -e '.[tfds]'``; if the data is missing, the error message of the training program contains
the command.

Published: newstest2014 BLEU 27.3 (base, 100,000 steps) and 28.4 (big, 300,000 steps), Table 2. These are of
tokenised text; evaluation here reports sacreBLEU on raw text, a different measure. A batch of the paper holds
about 25,000 source and 25,000 target tokens; here 24,576 of each, padding included.

Measured here: nothing, because neither the data nor the hardware is available here. tests/experiments
trains a shrunk version on generated records with the same features.
"""

import ml_collections

from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.families import transformer
from transformer_jax.objectives import Seq2Seq
from transformer_jax.optimizers import OptimizerConfig, paper_peak_rate
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

VOCAB_SIZE = 37_000
WARMUP_STEPS = 4_000


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of one of the paper's models.

    Args:
      variant: base, big, or any row of Table 3, such as C-layers-2.
    """
    model = transformer.config(
        variant,
        vocab_size=VOCAB_SIZE,
        scan_layers=True,
        dtype="bfloat16",
        **(dict(remat=True, remat_keeps="products") if variant == "big" else {}),
    )
    # Sections 5.2 and 6.1. The rows of Table 3 are trained like base; their checkpoints are not averaged.
    num_steps, average_last = {"base": (100_000, 5), "big": (300_000, 20)}.get(variant, (100_000, 1))
    return Experiment(
        model=model,
        objective=Seq2Seq(label_smoothing=transformer.LABEL_SMOOTHING.get(variant, 0.1)),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds", name="wmt14_translate/de-en", features=(("inputs", "en"), ("targets", "de"))
            ),
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=VOCAB_SIZE),
            max_length=256,
            buckets=(16, 32, 64, 128),
            tokens_per_batch=24_576,  # 96 rows of the longest bucket, 1,536 of the shortest: 16 divides both
            window=65_536,
        ),
        optimizer=OptimizerConfig(
            schedule="inverse_square_root",
            peak_rate=paper_peak_rate(model.d_model, WARMUP_STEPS),
            warmup_steps=WARMUP_STEPS,
        ),
        train=TrainConfig(num_steps=num_steps, log_every_steps=100, evaluate_every_steps=5_000),
        checkpoint=CheckpointConfig(every_steps=1_500, keep_latest=average_last, best_metric="nll"),
        evaluate=EvaluateConfig(average_last=average_last, beam_size=4, length_penalty=0.6),
    ).to_config_dict()
