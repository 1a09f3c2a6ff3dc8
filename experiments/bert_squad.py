"""Fine-tunes BERT to find answers in paragraphs of Wikipedia: SQuAD 1.1 (Devlin et al. 2019, section 4.2).

    python -m transformer_jax.train --config=experiments/bert_squad.py:base --workdir=runs/bert_squad
    python -m transformer_jax.train --config=experiments/bert_squad.py:large --workdir=runs/bert_large_squad

Data: TFDS ``squad/v1.1``, 87,599 questions for training and 10,570 for validation (Rajpurkar et al. 2016).
Prepare it once in the ``array_record`` format, which needs ``pip install -e '.[tfds]'``; if the data is
missing, the error message of the training program contains the command. The test split is not public, so the
validation split is evaluated.

The checkpoints, google-bert/bert-base-uncased and bert-large-uncased, are downloaded from the hub;
``--config.train.init_from=...`` takes a local folder of one of them.

Published: 80.8 exact match and 88.5 F1 (base), 84.1 and 90.9 (large) on the validation split (Table 2), for a
single model trained on SQuAD alone. The scores are computed as in the official script: the best over all
reference answers of a question.

Measured here: nothing, because the data is not available here. tests/experiments trains a shrunk
version on generated records with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import SQUAD_FEATURES, DataConfig, SourceConfig
from transformer_jax.objectives import QuestionAnswering
from transformer_jax.optimizers import fine_tuning
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

WINDOWS = 88_500  # windows of the training split; few contexts need more than one
BATCH_SIZE, EPOCHS = 32, 3


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config: 384 tokens, windows 128 tokens apart, three epochs, as in the original release.

    Args:
      variant: base or large.
    """
    num_steps = EPOCHS * WINDOWS // BATCH_SIZE
    return Experiment(
        model=families.bert.config(variant, head="spans"),
        objective=QuestionAnswering(stride=128, max_question_length=64),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="squad/v1.1",
                features=SQUAD_FEATURES,
                train=("train",),
                validation=("validation",),
                test=(),
            ),
            max_length=384,
            buckets=(128, 192, 256),
            batch_size=BATCH_SIZE,
        ),
        optimizer=fine_tuning(5e-5, num_steps),
        train=TrainConfig(
            num_steps=num_steps,
            log_every_steps=100,
            evaluate_every_steps=1_000,
            init_from=f"google-bert/bert-{variant}-uncased",
        ),
        checkpoint=CheckpointConfig(every_steps=1_000, keep_latest=1),
        evaluate=EvaluateConfig(split="validation"),
    ).to_config_dict()
