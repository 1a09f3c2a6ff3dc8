"""The floating-point operations that a model needs, in closed form: what utilization is measured with.

After Chowdhery et al. 2022 (PaLM), appendix B: the matrix products of a forward pass, of attention those of
every query with every key, and twice as many for the backward pass; nothing for what is computed a second
time (rematerialisation), for lookups, norms, the softmax or the optimizer. For a decoder alone whose heads
have d_model in all that is 6 N + 12 L H K T a token, with N the parameters of its matrices and the logits'.
"""

from collections.abc import Mapping

import jax

from transformer_jax.config import TransformerConfig

FORMULA = "matrix products of the model, forward once and backward twice (Chowdhery et al. 2022, appendix B)"


def model_flops(
    config: TransformerConfig, batch: Mapping[str, jax.ShapeDtypeStruct], *, train: bool = True
) -> int:
    """Operations of one training step, or of one forward pass, on a whole batch.

    Args:
      config: of the model.
      batch: its shapes, padding included.
      train: whether there is a backward pass.
    """
    rows = next(iter(batch.values())).shape[0]
    source = config.num_patches + 1 if config.image_shape else batch["inputs"].shape[1]
    if config.is_decoder_only:
        total = _stack(config, config.num_decoder_layers, source, 0) + source * _logits(config)
    elif config.is_encoder_only:
        total = _stack(config, config.num_encoder_layers, source, 0) + _head(config, source)
        if config.image_shape:
            total += 2 * config.num_patches * config.patch_size**2 * config.image_shape[2] * config.d_model
    else:
        target = batch["targets"].shape[1]
        total = _stack(config, config.num_encoder_layers, source, 0)
        total += _stack(config, config.num_decoder_layers, target, source) + target * _logits(config)
    return rows * total * (3 if train else 1)


def decode_flops(config: TransformerConfig, rows: int, source: int, width: int) -> int:
    """Operations of one token more for each of ``rows``, with caches of ``width`` and ``source`` places."""
    context = 0 if config.is_decoder_only else source
    layer = _projections(config) + _feedforward(config) + _scores(config, width)
    if context:
        layer += _projections(config, only_queries=True) + _scores(config, context)
    return rows * (config.num_decoder_layers * layer + _logits(config))


def _stack(config: TransformerConfig, layers: int, length: int, context: int) -> int:
    """Of one row of ``length`` tokens, which also attend to ``context`` ones of an encoder."""
    layer = length * (_projections(config) + _scores(config, length) + _feedforward(config))
    if context:
        layer += length * (_projections(config, only_queries=True) + _scores(config, context))
        layer += context * (_projections(config) - _projections(config, only_queries=True))
    return layers * layer


def _projections(config: TransformerConfig, *, only_queries: bool = False) -> int:
    """Of a token: queries and outputs, and keys and values."""
    sizes = config.key_size + config.value_size
    return 2 * config.d_model * config.num_heads * sizes * (1 if only_queries else 2)


def _scores(config: TransformerConfig, length: int) -> int:
    """Of a query: its products with ``length`` keys, and their weights' with the values."""
    return 2 * length * config.num_heads * (config.key_size + config.value_size)


def _feedforward(config: TransformerConfig) -> int:
    return 2 * config.d_model * config.d_feedforward * (3 if config.activation.startswith("gated") else 2)


def _logits(config: TransformerConfig) -> int:
    """Of a target."""
    return 2 * config.d_model * config.vocab_size


def _head(config: TransformerConfig, length: int) -> int:
    """Of a row of an encoder alone."""
    width = config.d_model
    pooled, masked = 2 * width * width, length * (2 * width * width + _logits(config))
    return {
        "masked_tokens": masked,
        "pretraining": masked + pooled + 4 * width,
        "next_sentence": pooled + 4 * width,
        "classes": (0 if config.image_shape else pooled) + 2 * width * config.num_labels,
        "token_classes": length * 2 * width * config.num_labels,
        "spans": length * 4 * width,
        "pooled": pooled,
        "none": 0,
    }[config.head]
