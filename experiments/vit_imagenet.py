"""Trains Vision Transformers on ImageNet (Dosovitskiy et al. 2021; Ti and S: Touvron et al. 2021, "DeiT").

    python -m transformer_jax.train --config=experiments/vit_imagenet.py:B/16 --workdir=runs/vit_b16

Other variants: ``:Ti/16``, ``:S/16``, ``:B/32``, ``:L/16`` and every other one of ``families.vit``.

Data: TFDS ``imagenet2012``, 1,281,167 images for training and 50,000 for validation. Prepare it once in the
``array_record`` format, which needs ``pip install -e '.[tfds]'`` and the files of image-net.org in
``downloads/manual`` under the data folder; if the data is missing, the error message of the training program
contains the command. The labels of the test split are not public, so the validation split is evaluated. The
host keeps its 50,000 images in memory: 7.5 GB, and twice as much while it makes batches of them. In each
process one thread decodes and crops all images, so a fast accelerator will wait for it.

Published: 77.9 % for B/16 and 76.5 % for L/16, with this recipe but batches of 4,096, after fine-tuning on
images of 384 pixels (Dosovitskiy et al. 2021, Tables 3 and 5). DeiT reaches 72.2 % (Ti), 79.8 % (S) and 81.8
% (B) at 224 pixels, with augmentations that this library does not have: RandAugment, Mixup, CutMix, random
erasing, repeated augmentation, stochastic depth. Expect lower accuracy here.

The batch size and the learning rate are a quarter of the paper's, and the warm-up has four times its 10,000
steps. The head is one linear map; the paper pretrains with a hidden layer in the head.

Measured here: nothing, because neither the data nor the hardware is available here. tests/experiments
trains a shrunk version on generated images of many sizes with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig
from transformer_jax.objectives import Classification
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import EvaluateConfig, Experiment, TrainConfig

IMAGES, EPOCHS, BATCH_SIZE, SIDE = 1_281_167, 300, 1024, 224


def get_config(variant: str = "B/16") -> ml_collections.ConfigDict:
    """Returns the config of Table 3: randomly cropped images, half of them mirrored.

    Args:
      variant: size and patch, such as B/16.
    """
    return Experiment(
        model=families.vit.config(
            variant,
            image_shape=(SIDE, SIDE, 3),
            num_labels=1000,
            dropout=0.1,
            feedforward_dropout=0.1,  # inside the feed-forward network too, as in the released code
            dtype="bfloat16",
            scan_layers=True,
            remat=variant[0] in "LH",
        ),
        objective=Classification(image_size=SIDE, flip=True),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="imagenet2012",
                features=(("images", "image"), ("labels", "label")),
                train=("train",),
                validation=("validation",),
                test=(),
            ),
            batch_size=BATCH_SIZE,
            window=2 * BATCH_SIZE,  # small, because images wait here in their original size
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            peak_rate=3e-3 / 4,
            warmup_steps=40_000,
            b2=0.999,
            epsilon=1e-8,
            weight_decay=0.3,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            num_steps=EPOCHS * IMAGES // BATCH_SIZE, log_every_steps=100, evaluate_every_steps=5_000
        ),
        checkpoint=CheckpointConfig(
            every_steps=2_500, keep_latest=2, best_metric="accuracy", best_mode="max"
        ),
        evaluate=EvaluateConfig(split="validation"),
    ).to_config_dict()
