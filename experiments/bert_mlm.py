"""Trains BERT's masked language model on the English captions of Multi30k and on tiny Shakespeare.

    python -m transformer_jax.train --config=experiments/bert_mlm.py --workdir=runs/bert_mlm
    python -m transformer_jax.train --config=experiments/bert_mlm.py:minilm --workdir=runs/bert_mlm_minilm

``scratch`` (the default) initializes all parameters randomly. ``minilm`` starts from MiniLM's parameters;
only the head is random, because the checkpoint has none. Both use MiniLM's vocabulary, so their losses are
comparable. The held-out texts are captions of Multi30k.

Data: see ``experiments/multi30k_en_de.py`` and ``experiments/gpt2_chars.py``. Checkpoint: see
``experiments/bert_sst2.py``.

Published: nothing on these texts.

Measured here with the commands above (one core of a shared Intel Xeon with AVX-512, beside other work, jax
0.10.2, 2026-11-23), on the masked tokens of test2016: 4.969 nats and 24.83 % correct from scratch, 3.264 nats
and 43.47 % from MiniLM. Always predicting by token frequency (``benchmarks/masked_unigrams.py``) gives 5.944
nats and 12.44 %.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import MaskedLM
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import Experiment, TrainConfig

CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"


def get_config(variant: str = "scratch") -> ml_collections.ConfigDict:
    """Returns the config: whole words are masked; captions and lines are packed into rows of 64 tokens.

    Args:
      variant: scratch or minilm.
    """
    if variant not in ("scratch", "minilm"):
        raise ValueError(f"unknown variant {variant!r}: use 'scratch' or 'minilm'")
    is_scratch = variant == "scratch"
    return Experiment(
        model=families.bert.config("minilm", head="masked_tokens"),
        objective=MaskedLM(whole_words=True),
        data=DataConfig(
            source=SourceConfig(
                kind="text",
                features=(("inputs", ""),),
                train=("multi30k/train.en.gz",),
                validation=("multi30k/val.en.gz",),
                test=("multi30k/test_2016_flickr.en.gz",),
            ),
            more_sources=(
                SourceConfig(
                    kind="text",
                    features=(("inputs", ""),),
                    train=("tinyshakespeare/input.txt.gz[:90%]",),
                    validation=(),
                    test=(),
                ),
            ),
            tokenizer=TokenizerConfig(
                special_tokens=("<cls>", "<sep>", "<mask>"),
                path=CHECKPOINT if is_scratch else "",
            ),
            max_length=64,
            batching="packed",
            tokens_per_batch=1024,
        ),
        optimizer=OptimizerConfig(
            name="adamw", schedule="linear", peak_rate=5e-4, warmup_steps=50, b2=0.999, weight_decay=0.01
        ),
        train=TrainConfig(
            num_steps=400,
            log_every_steps=50,
            evaluate_every_steps=200,
            init_from="" if is_scratch else CHECKPOINT,
        ),
        checkpoint=CheckpointConfig(every_steps=200, keep_latest=1),
    ).to_config_dict()
