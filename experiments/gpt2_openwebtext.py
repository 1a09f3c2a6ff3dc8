"""Trains GPT-2 (Radford et al. 2019) on OpenWebText (Gokaslan and Cohen 2019) with nanoGPT's recipe.

    python -m transformer_jax.train --config=experiments/gpt2_openwebtext.py:small --workdir=runs/gpt2_small

Other variants: ``:medium``, ``:large``, ``:xl``.

Data: the 8,013,769 documents of Skylion007/openwebtext on the hub. Prepare them once through TFDS in the
``array_record`` format: run ``pip install -e '.[tfds]' datasets``, then in Python

    import tensorflow_datasets as tfds
    tfds.dataset_builders.HuggingfaceDatasetBuilder(
        hf_repo_id="Skylion007/openwebtext",
        hf_config="plain_text",
        data_dir="data",
        file_format="array_record",
    ).download_and_prepare()

TFDS stores the result as ``skylion007__openwebtext/plain_text``. (This name was read from TFDS's code; the
preparation itself has not been tried.) The last 4,000 documents are held out, about as many as in nanoGPT.

Published, in nats per token on held-out documents (nanoGPT's README): about 2.85 for small trained with this
recipe; 3.12, 2.84, 2.67 and 2.54 for OpenAI's own checkpoints from small to xl, without fine-tuning.

These losses are per token of GPT-2's vocabulary. By default this experiment trains its own byte pairs, whose
losses are not comparable; for a comparison, use GPT-2's tokenizer.json:

    --config.data.tokenizer.path=PATH/tokenizer.json
    --config.model.pad_id=50256 --config.model.decoder_start_id=50256 --config.model.eos_id=50256

Differences from nanoGPT: documents packed into the same row do not attend to one another, and linear maps and
norms have biases. The recipe is the one for small; nanoGPT publishes none for the larger variants.

Measured here: nothing, because neither the data nor the hardware is available here. tests/experiments
trains a shrunk version on generated records with the same features.
"""

import ml_collections

from transformer_jax import families
from transformer_jax.checkpoints import CheckpointConfig
from transformer_jax.data import DataConfig, SourceConfig, TokenizerConfig
from transformer_jax.objectives import CausalLM
from transformer_jax.optimizers import OptimizerConfig
from transformer_jax.runs import Experiment, TrainConfig


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
    """Returns the config, with 480 rows of 1,024 tokens per step.

    Args:
      variant: small (124 million parameters), medium, large or xl.
    """
    return Experiment(
        model=families.gpt2.config(
            variant,
            dropout=0.0,
            attention_dropout=0.0,
            pad_id=0,
            decoder_start_id=2,
            eos_id=2,
            dtype="bfloat16",
            scan_layers=True,
            remat=variant in ("large", "xl"),
        ),
        objective=CausalLM(),
        data=DataConfig(
            source=SourceConfig(
                kind="tfds",
                name="skylion007__openwebtext/plain_text",
                features=(("inputs", "text"),),
                train=("train[:-4000]",),
                validation=("train[-4000:]",),
                test=("train[-4000:]",),
            ),
            tokenizer=TokenizerConfig(
                kind="bpe", vocab_size=families.gpt2.VOCAB_SIZE, max_training_examples=200_000
            ),
            max_length=1024,
            batching="packed",
            batch_size=480,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            peak_rate=6e-4,
            end_rate_factor=0.1,
            warmup_steps=2_000,
            b2=0.95,
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            num_steps=600_000,
            log_every_steps=100,
            evaluate_every_steps=5_000,
            gradient_accumulation_steps=5,
        ),
        checkpoint=CheckpointConfig(every_steps=2_000, keep_latest=2),
    ).to_config_dict()
