"""Vision Transformers on ImageNet alone (Dosovitskiy et al. 2021; Ti and S: Touvron et al. 2021, "DeiT").

    python -m transformer_jax.train --config=experiments/vit_imagenet.py:B/16 --workdir=runs/vit_b16

or ``:Ti/16``, ``:S/16``, ``:B/32``, ``:L/16`` and any other of ``families.vit``; what follows the colon may
have a slash.

Data: TFDS ``imagenet2012``, 1,281,167 photographs to train on and 50,000 to validate, to be prepared once
in the ``array_record`` format, which needs ``pip install -e '.[tfds]'`` and the files of image-net.org in
``downloads/manual`` within the data folder; the error that training gives without it has the command. The
labels of its test split are not public: as everywhere, the validation split is what is scored. The host
keeps its 50,000 images ready, 7.5 GB, twice that while it makes batches of them. One thread of each process
decodes all images and cuts parts out, for which a fast accelerator will have to wait.

Published: 77.9 % for B/16 and 76.5 % for L/16, trained so but with batches of 4,096, and fine-tuned on
images of 384 pixels (Dosovitskiy et al. 2021, Tables 3 and 5). DeiT has 72.2 % (Ti), 79.8 % (S) and 81.8 %
(B) at 224 pixels, with augmentations that are not here: RandAugment, Mixup, CutMix, random erasing,
repeated augmentation, stochastic depth. Less than that is to be expected.

Batches are a quarter of the paper's, and so is the rate; the warm-up has four times its 10,000 steps. The
head is one linear map, where the paper pretrains with a hidden layer.

Measured here: nothing, for want of the data and the hardware. tests/test_experiments.py trains it shrunk,
on photographs of many sizes in records with the same features.
"""

import ml_collections

from transformer_jax import experiment, families
from transformer_jax.checkpoint import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig
from transformer_jax.objectives import Classification
from transformer_jax.optimizers import OptimizerConfig

IMAGES, EPOCHS, BATCH_SIZE, SIDE = 1_281_167, 300, 1024, 224


def get_config(variant: str = "B/16") -> ml_collections.ConfigDict:
    """``variant``: size and patch, such as B/16. Random parts of images, mirrored or not; Table 3."""
    return experiment.Experiment(
        model=families.vit.config(
            variant,
            image_shape=(SIDE, SIDE, 3),
            num_labels=1000,
            dropout=0.1,
            feedforward_dropout=0.1,  # within the MLP too, as in the released code
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
            window=2 * BATCH_SIZE,  # these are in memory as they were photographed
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
        train=experiment.TrainConfig(
            num_steps=EPOCHS * IMAGES // BATCH_SIZE, log_every_steps=100, evaluate_every_steps=5_000
        ),
        checkpoint=CheckpointConfig(
            every_steps=2_500, keep_latest=2, best_metric="accuracy", best_mode="max"
        ),
        evaluate=experiment.EvaluateConfig(split="validation"),
    ).to_config_dict()
