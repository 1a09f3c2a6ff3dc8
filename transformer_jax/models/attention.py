"""Attention specs: which self-attention each layer of a stack has, as values of a config.

A new kind of attention is one entry of ``ATTENTIONS``; nothing else has to be edited for it.
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.layers.attention import MultiHeadAttention

if TYPE_CHECKING:  # the config checks itself against ATTENTIONS
    from transformer_jax.models.stack_config import StackConfig


class AttentionSpec:
    """The base of all attention specs, which are frozen dataclasses.

    Attributes:
      STREAMS: names of the random streams that the module reads in training and in evaluation. ``dropout``
        is not one of them, because it is read in training only.
      kind: the spec's key in ``ATTENTIONS``.
    """

    STREAMS: ClassVar[tuple[str, ...]] = ()
    kind: str

    def build(self, config: "StackConfig", layer: int) -> nn.Module:
        """Returns the module of one layer.

        The module has two methods:

        * ``(x, context=None, *, mask, bias=None, cache=None, position=None, train) -> (y, cache)``, with the
          arguments of ``layers.attention.MultiHeadAttention``;
        * ``init_cache(rows, length)``, which returns an empty cache for ``rows`` sequences of up to
          ``length`` positions. The cache is any pytree of arrays that all have the rows on their first axis.
          The method must not read parameters or submodules.

        Args:
          config: the config of the stack.
          layer: number of the layer, from 0. Scanned layers share one module, which is built with 0.
        """
        raise NotImplementedError

    def operations(self, config: "StackConfig", queries: int, keys: int) -> int:
        """Returns the floating-point operations of the forward pass on one row.

        Args:
          config: the config of the stack.
          queries: number of positions that are computed.
          keys: number of positions that each of them may attend to, those of the cache included.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FullAttention(AttentionSpec):
    """Attention to all positions that the mask allows (Vaswani et al. 2017, section 3.2)."""

    kind: str = "full"

    def build(self, config: "StackConfig", layer: int) -> MultiHeadAttention:
        """Returns multi-head attention with the sizes of the stack."""
        return multi_head_attention(config)

    def operations(self, config: "StackConfig", queries: int, keys: int) -> int:
        """Returns the operations of the four projections, the scores and the means of values."""
        per_size = config.num_heads * (config.key_size + config.value_size)
        return queries * 2 * per_size * (2 * config.d_model + keys)


ATTENTIONS: dict[str, type[AttentionSpec]] = {"full": FullAttention}


def multi_head_attention(config: "StackConfig", *, context_size: int = 0) -> MultiHeadAttention:
    """Returns multi-head attention with the sizes of a stack.

    Args:
      config: the config of the stack.
      context_size: size of the vectors that give keys and values; 0 means that of the queries.
    """
    projections = ("query", "key", "value", "output")
    return MultiHeadAttention(
        d_model=config.d_model,
        num_heads=config.num_heads,
        key_size=config.key_size,
        value_size=config.value_size,
        biases=tuple(name for name in projections if config.has_bias(name)),
        dropout=config.attention_dropout,
        dtype=jnp.dtype(config.dtype),
        scale=config.scale_attention,
        initial_stddev=config.initial_stddev,
        output_scale=config.output_scale,
        context_size=context_size or config.d_model,
    )
