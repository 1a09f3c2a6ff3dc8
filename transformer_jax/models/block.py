"""One block of an encoder or decoder: its sub-layers, each with residual and norm."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.attention import KeyValue
from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.feedforward import FeedForward
from transformer_jax.layers.masks import Mask
from transformer_jax.layers.norms import NORMS
from transformer_jax.models.attention import multi_head_attention
from transformer_jax.models.residual import RESIDUALS, Function
from transformer_jax.models.stack_config import StackConfig
from transformer_jax.types import PyTree


class Block(nn.Module):
    """Computes self-attention, attention to a context if there is one, and a feed-forward network.

    The residual strategy combines each sub-layer with its norm and with what comes before; see ``Residual``.

    Attributes:
      layer: number of the layer, from 0; its self-attention is ``config.attention_of(layer)``.
    """

    config: StackConfig
    layer: int

    def setup(self) -> None:
        self.self_attention = self.config.attention_of(self.layer).build(self.config, self.layer)
        if self.config.context_size:
            self.context_attention = multi_head_attention(self.config, context_size=self.config.context_size)

    def project_context(self, context: Float[Array, "B S E"]) -> KeyValue:
        """Returns the keys and values of ``context`` for the attention of this block."""
        return self.context_attention.project(context)

    @nn.compact
    def __call__(
        self,
        state: PyTree,
        context: Float[Array, "B S E"] | KeyValue | None = None,
        *,
        mask: Mask,
        bias: Float[Array, "#B H L keys"] | None = None,
        context_mask: Mask | None = None,
        cache: PyTree | None = None,
        position: Int[Array, ""] | None = None,
        train: bool,
    ) -> tuple[PyTree, PyTree | None]:
        """Computes the sub-layers, one after the other.

        Args:
          state: the state of the residual strategy: (B, L, D) for the plain one.
          context: what a block with ``config.context_size`` attends to, or ``project_context`` of it.
          mask, bias: which positions of the state each one attends to, and what is added to the scores.
          context_mask: which positions of ``context`` each one attends to.
          cache: what self-attention remembers of earlier positions.
          position: the position in the cache of the first token of the state.
          train: whether dropout is on.

        Returns:
          The state after the last sub-layer, and the new cache, or None if there was none.
        """
        config = self.config
        residual = RESIDUALS[config.residual](config.norm_position)
        new_cache = None

        def add(state: PyTree, name: str, sublayer: Function) -> PyTree:
            norm = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype), name=name)
            dropout = Dropout(config.dropout)
            return residual.add(state, sublayer, norm, lambda y: dropout(y, train=train))

        def attend_self(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
            nonlocal new_cache
            y, new_cache = self.self_attention(
                x, mask=mask, bias=bias, cache=cache, position=position, train=train
            )
            return y

        def attend_context(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
            if context is None or context_mask is None:
                raise ValueError("a block with a context_size needs a context and its mask: give it both")
            return self.context_attention(x, context, mask=context_mask, train=train)[0]

        state = add(state, "self_attention_norm", attend_self)
        if config.context_size:
            state = add(state, "context_attention_norm", attend_context)
        feedforward = FeedForward(
            config.d_feedforward,
            config.activation,
            config.has_bias("feedforward"),
            config.feedforward_dropout,
            jnp.dtype(config.dtype),
            config.initial_stddev,
            config.output_scale,
            name="feedforward",
        )
        state = add(state, "feedforward_norm", lambda x: feedforward(x, train=train))
        self.sow("intermediates", "block_output", residual.end(state))
        return state, new_cache
