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
from transformer_jax.models.stack_config import StackConfig

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
        total += _stack(config.decoder, source) + _head(config, source)
    elif config.is_encoder_only:
        total += _stack(config.encoder, source) + _head(config, source)
    else:
        target = batch["targets"].shape[1]
        total += _stack(config.encoder, source)
        total += _stack(config.decoder, target, source) + _head(config, target)
    return rows * total * (3 if train else 1)


def decode_flops(config: TransformerConfig, rows: int, source: int, width: int) -> int:
    """Returns the operations of one decoding step for ``rows`` sequences.

    Args:
      config: the model's config.
      rows: number of sequences.
      source: length of the encoder's states; unused by decoder-only models.
      width: length of the decoder's cache.
    """
    stack = config.decoder
    total = sum(stack.attention_of(layer).operations(stack, 1, width) for layer in range(stack.num_layers))
    total += stack.num_layers * (_feedforward(stack) + _queries(stack, source))
    return rows * (total + _head(config, 1))


def _stack(stack: StackConfig, length: int, context: int = 0) -> int:
    """Returns the operations of a stack on one row of ``length`` tokens.

    Args:
      stack: the config of the stack.
      length: tokens of the row.
      context: positions of the encoder that the row also attends to.
    """
    specs = [stack.attention_of(layer) for layer in range(stack.num_layers)]
    total = sum(spec.operations(stack, length, length) for spec in specs)
    layer = length * (_feedforward(stack) + _queries(stack, context)) + context * _keys_and_values(stack)
    return total + stack.num_layers * layer


def _queries(stack: StackConfig, context: int) -> int:
    """Returns the operations per query of attention to ``context`` positions of an encoder.

    They are those of the projections of query and output, of the scores, and of the mean of the values.
    """
    if not stack.context_size:
        return 0
    return 2 * stack.num_heads * (stack.key_size + stack.value_size) * (stack.d_model + context)


def _keys_and_values(stack: StackConfig) -> int:
    """Returns the operations per position of the encoder of the projections of keys and values."""
    return 2 * stack.context_size * stack.num_heads * (stack.key_size + stack.value_size)


def _feedforward(stack: StackConfig) -> int:
    """Returns the operations per token."""
    return 2 * stack.d_model * stack.d_feedforward * (3 if stack.activation.startswith("gated") else 2)


def _head(config: TransformerConfig, length: int) -> int:
    """Returns the operations of the head on one row."""
    return HEADS[config.head].operations(config, length)
