"""Fine-tunes BERT on tasks of GLUE (Wang et al. 2019; Devlin et al. 2019, section 4.1).

    python -m transformer_jax.train --config=experiments/bert_glue.py:mrpc --workdir=runs/bert_mrpc

Other tasks: ``:sst2``, ``:qqp``, ``:mnli``, ``:qnli``, ``:rte``, ``:wnli``, ``:cola``. GLUE's ninth task,
STS-B, is not included: it is a regression to scores from 0 to 5, and the library has no regression objective.

Data: TFDS ``glue/mrpc`` and so on. Prepare it once in the ``array_record`` format, which needs ``pip install
-e '.[tfds]'``; if the data is missing, the error message of the training program contains the command. The
labels of GLUE's test splits are not public (TFDS has -1), so the validation split is evaluated; for MNLI it
is the matched one.

The checkpoint, google-bert/bert-base-uncased, is downloaded from the hub. ``--config.train.init_from=...``
takes a local folder of it, or a run of ``experiments/bert_wikipedia.py``.

Published for base, per cent, on the test splits (Table 1): SST-2 93.5, MRPC 88.9, QQP 71.2, MNLI 84.6, QNLI
90.5, RTE 66.4, CoLA 52.1; MRPC and QQP are F1, CoLA is Matthews' correlation. Accuracy on the validation
splits, which are evaluated here (Table 5): SST-2 92.7, MRPC 86.7, MNLI 84.4, QNLI 88.4. F1 and Matthews'
correlation are computed here too for tasks with two classes. The paper reports the best of four learning
rates from 2e-5 to 5e-5. It omits WNLI, on which no system had yet beaten the most frequent class (65.1).

Texts longer than 128 tokens are truncated as in the original release, and counted.

Measured here: nothing, because the data is not available here. tests/experiments trains a shrunk
version on generated records with the same features.
"""

from typing import NamedTuple

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.config import ConfigError, nearest
from transformer_jax.data import DataConfig, SourceConfig
from transformer_jax.objectives import Classification
from transformer_jax.optimizers import fine_tuning
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

CHECKPOINT = "google-bert/bert-base-uncased"
BATCH_SIZE, EPOCHS = 32, 3


class Task(NamedTuple):
    """Describes one task of GLUE."""

    examples: int  # number of examples in the training split
    texts: tuple[str, ...]  # TFDS's feature names of the one or two texts
    labels: tuple[str, ...]  # class names, in the order of TFDS's label ids
    validation: str = "validation"


TASKS = {
    "sst2": Task(67_349, ("sentence",), ("negative", "positive")),
    "mrpc": Task(3_668, ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": Task(363_849, ("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": Task(
        392_702, ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "validation_matched"
    ),
    "qnli": Task(104_743, ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Task(2_490, ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Task(635, ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "cola": Task(8_551, ("sentence",), ("unacceptable", "acceptable")),
}


def get_config(name: str = "mrpc") -> ml_collections.ConfigDict:
    """Returns the config of a task: three epochs of AdamW (Devlin et al. 2019, section A.3).

    Args:
      name: sst2, mrpc, qqp, mnli, qnli, rte, wnli or cola.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r} here: {nearest(name, TASKS)}")
    task = TASKS[name]
    num_steps = EPOCHS * task.examples // BATCH_SIZE
    features = tuple(zip(("inputs", "pair"), task.texts, strict=False))
    return Experiment(
        model=families.bert.config("base", head="classes", num_labels=len(task.labels)),
        objective=Classification(labels=task.labels, cut_long=True),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name=f"glue/{name}",
                features=(*features, ("labels", "label")),
                train=("train",),
                validation=(task.validation,),
                test=(),
            ),
            max_length=128,
            buckets=(32, 64),
            batch_size=BATCH_SIZE,
        ),
        optimizer=fine_tuning(2e-5, num_steps),
        train=TrainConfig(
            num_steps=num_steps,
            log_every_steps=50,
            evaluate_every_steps=max(100, num_steps // 12),
            init_from=CHECKPOINT,
        ),
        checkpoint=CheckpointConfig(
            every_steps=500,
            keep_latest=1,
            best_metric="matthews" if name == "cola" else "accuracy",
            best_mode="max",
        ),
        evaluate=EvaluateConfig(split="validation"),
    ).to_config_dict()
