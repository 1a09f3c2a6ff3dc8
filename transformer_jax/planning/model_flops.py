"""Counts the floating-point operations that a model needs, in closed form; utilization is measured with them.

As in Chowdhery et al. 2022 (PaLM), appendix B: the matrix products of a forward pass, including those of
every query with every key in attention, and twice as many for the backward pass. Recomputation (gradient
checkpointing), lookups, norms, the softmax and the optimizer do not count. For a decoder-only model whose
heads have d_model dimensions in total this is 6 N + 12 L H K T per token, where N is the number of parameters
in the matrices, those of the logits included.
"""

from collections.abc import Mapping

import jax

from transformer_jax.models import TransformerConfig
from transformer_jax.models.heads import HEADS

FORMULA = "matrix products of the model, forward once and backward twice (Chowdhery et al. 2022, appendix B)"


def model_flops(
    config: TransformerConfig, batch: Mapping[str, jax.ShapeDtypeStruct], *, train: bool = True
) -> int:
    """Returns the operations of one training step, or of one forward pass, on a whole batch.

    Args:
      config: the model's config.
      batch: the shapes of the batch, padding included.
      train: whether there is a backward pass.
    """
    rows = next(iter(batch.values())).shape[0]
    source = config.front_end.length(config, batch)
    total = config.front_end.operations(config)
    if config.is_decoder_only:
        total += _stack(config, config.num_decoder_layers, source, 0) + _head(config, source)
    elif config.is_encoder_only:
        total += _stack(config, config.num_encoder_layers, source, 0) + _head(config, source)
    else:
        target = batch["targets"].shape[1]
        total += _stack(config, config.num_encoder_layers, source, 0)
        total += _stack(config, config.num_decoder_layers, target, source) + _head(config, target)
    return rows * total * (3 if train else 1)


def decode_flops(config: TransformerConfig, rows: int, source: int, width: int) -> int:
    """Returns the operations of one decoding step for ``rows`` sequences.

    Args:
      config: the model's config.
      rows: number of sequences.
      source: length of the encoder's states; unused by decoder-only models.
      width: length of the decoder's cache.
    """
    context = 0 if config.is_decoder_only else source
    layer = _projections(config) + _feedforward(config) + _scores(config, width)
    if context:
        layer += _projections(config, only_queries=True) + _scores(config, context)
    return rows * (config.num_decoder_layers * layer + _head(config, 1))


def _stack(config: TransformerConfig, layers: int, length: int, context: int) -> int:
    """Returns the operations of a stack on one row of ``length`` tokens.

    Args:
      config: the model's config.
      layers: number of layers.
      length: tokens of the row.
      context: tokens of the encoder that the row also attends to; 0 for none.
    """
    layer = length * (_projections(config) + _scores(config, length) + _feedforward(config))
    if context:
        layer += length * (_projections(config, only_queries=True) + _scores(config, context))
        layer += context * (_projections(config) - _projections(config, only_queries=True))
    return layers * layer


def _projections(config: TransformerConfig, *, only_queries: bool = False) -> int:
    """Returns the operations per token of the linear maps of attention.

    Args:
      config: the model's config.
      only_queries: count queries and outputs, but not keys and values.
    """
    sizes = config.key_size + config.value_size
    return 2 * config.d_model * config.num_heads * sizes * (1 if only_queries else 2)


def _scores(config: TransformerConfig, length: int) -> int:
    """Returns the operations per query: its products with ``length`` keys, and the weighted sum of values."""
    return 2 * length * config.num_heads * (config.key_size + config.value_size)


def _feedforward(config: TransformerConfig) -> int:
    return 2 * config.d_model * config.d_feedforward * (3 if config.activation.startswith("gated") else 2)


def _head(config: TransformerConfig, length: int) -> int:
    """Returns the operations of the head on one row."""
    return HEADS[config.head].operations(config, length)
