"""Makes any experiment small enough to be tried in seconds."""

import dataclasses
import math

import jax

from transformer_jax.models import TransformerConfig
from transformer_jax.runs.experiment import Experiment
from transformer_jax.sharding.partitioning import MeshConfig
from transformer_jax.types import BOS_ID, EOS_ID, PAD_ID

_MOST_LAYERS = 2


def shrink(experiment: Experiment, num_steps: int = 2) -> Experiment:
    """Returns the experiment with a tiny model, short batches and ``num_steps`` steps, which takes seconds.

    The choices that define the experiment are kept: the objective, the kinds of source, tokenizer and
    batching, the optimizer and its schedule, the placement of norms, shared embeddings, scan and remat. The
    number of rows is a multiple of the number of devices.
    """
    model, data, section = experiment.model, experiment.data, experiment.data.tokenizer
    # The tokenizer is trained, because the file of the experiment's own one may not exist.
    special = section.special_tokens or (("<cls>", "<sep>", "<mask>") if experiment.train.init_from else ())
    vocab_size, max_length = 300 + len(special), min(data.max_length, 64)
    accumulation = min(experiment.train.gradient_accumulation_steps, 2)
    rows = math.lcm(8, jax.device_count()) * accumulation
    tokenizer = dataclasses.replace(
        section, path="", vocab_size=vocab_size, special_tokens=special, max_training_examples=1_000
    )
    return dataclasses.replace(
        experiment,
        model=_shrink_model(model, vocab_size),
        objective=experiment.objective.shrunk(max_length),
        data=dataclasses.replace(
            data,
            tokenizer=tokenizer,
            max_length=max_length,
            buckets=(),
            tokens_per_batch=max_length * rows,
            batch_size=rows if data.batch_size else 0,
            window=64,
        ),
        optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=1, frozen=()),
        train=dataclasses.replace(
            experiment.train,
            num_steps=num_steps,
            log_every_steps=1,
            evaluate_every_steps=num_steps,
            gradient_accumulation_steps=accumulation,
            init_from="",
        ),
        checkpoint=dataclasses.replace(experiment.checkpoint, every_steps=1),
        evaluate=dataclasses.replace(
            experiment.evaluate,
            extra_length=4,
            batch_size=16,
            num_samples=1,
            beam_size=min(experiment.evaluate.beam_size, vocab_size),
            top_k=min(experiment.evaluate.top_k, vocab_size),
        ),
        mesh=MeshConfig(rules=experiment.mesh.rules, attention=experiment.mesh.attention),
    )


def _shrink_model(model: TransformerConfig, vocab_size: int) -> TransformerConfig:
    sizes = dict(num_heads=2, key_size=8, value_size=8, d_feedforward=32)
    encoder_changes, decoder_changes = (
        tuple(
            (name, value[:_MOST_LAYERS] if name == "attention" else value)
            for name, value in changes
            if name not in (*sizes, "max_length")
        )
        for changes in (model.encoder_changes, model.decoder_changes)
    )
    small = dataclasses.replace(
        model,
        **sizes,
        d_model=16,
        num_encoder_layers=min(_MOST_LAYERS, model.num_encoder_layers),
        num_decoder_layers=min(_MOST_LAYERS, model.num_decoder_layers),
        attention=model.attention[:_MOST_LAYERS],
        encoder_changes=encoder_changes,
        decoder_changes=decoder_changes,
    )
    if not model.has_vocabulary:
        return small
    # The decoder starts with the same special token as before; the trained tokenizer has another id for it.
    start_id = {model.pad_id: PAD_ID, model.eos_id: EOS_ID}.get(model.decoder_start_id, BOS_ID)
    return dataclasses.replace(
        small,
        vocab_size=vocab_size,
        max_length=4096,  # a text has many tokens of so small a vocabulary
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        decoder_start_id=start_id,
    )
