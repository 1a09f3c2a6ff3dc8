"""One encoder or decoder block: its sub-layers, each with residual and normalisation."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.attention import KeyValue, MultiHeadAttention
from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.feedforward import FeedForward
from transformer_jax.layers.kept import keep
from transformer_jax.layers.masks import Mask
from transformer_jax.layers.norms import NORMS
from transformer_jax.models.config import TransformerConfig
from transformer_jax.sharding.placement import constrain


class Block(nn.Module):
    """Self-attention, attention to a context if there is one, and feed-forward.

    Each sub-layer is ``Norm(x + Dropout(sublayer(x)))`` (post-norm, section 3.1 of Vaswani et al. 2017) or
    ``x + Dropout(sublayer(Norm(x)))`` (pre-norm, Xiong et al. 2020), by config.

    Attributes:
      output_scale: of the initial kernels that write to the residual stream.
    """

    config: TransformerConfig
    cross_attention: bool
    output_scale: float

    def setup(self) -> None:
        self.self_attention = self._attention()
        if self.cross_attention:
            self.context_attention = self._attention()

    def _attention(self) -> MultiHeadAttention:
        config = self.config
        return MultiHeadAttention(
            d_model=config.d_model,
            num_heads=config.num_heads,
            key_size=config.key_size,
            value_size=config.value_size,
            use_bias=config.biases == "all",
            dropout=config.attention_dropout,
            dtype=jnp.dtype(config.dtype),
            scale=config.scale_attention,
            initial_stddev=config.initial_stddev,
            output_scale=self.output_scale,
        )

    def project_context(self, context: Float[Array, "B S D"]) -> KeyValue:
        """Keys and values of ``context`` for this block's attention to it."""
        return self.context_attention.project(context)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S D"] | KeyValue | None = None,
        *,
        mask: Mask,
        bias: Float[Array, "#B H L keys"] | None = None,
        context_mask: Mask | None = None,
        cache: KeyValue | None = None,
        position: Int[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue | None]:
        """Returns the block's output and the self-attention cache (None without one)."""
        config = self.config
        cached = None

        def residual(x, name: str, sublayer: Callable):
            norm = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype), name=name)
            dropout = Dropout(config.dropout)
            if config.norm_position == "pre":
                x = keep(x + dropout(sublayer(norm(x)), train=train))
            else:
                x = norm(keep(x + dropout(sublayer(x), train=train)))
            return constrain(x, "batch", "sequence", None)

        def attend_self(x):
            nonlocal cached
            y, cached = self.self_attention(
                x, mask=mask, bias=bias, cache=cache, positions=position, train=train
            )
            return y

        x = residual(x, "self_attention_norm", attend_self)
        if self.cross_attention:
            if context is None or context_mask is None:
                raise ValueError("a block with cross_attention needs a context and its mask")
            x = residual(
                x,
                "context_attention_norm",
                lambda x: self.context_attention(x, context, mask=context_mask, train=train)[0],
            )
        feedforward = FeedForward(
            config.d_feedforward,
            config.activation,
            config.biases != "none",
            config.feedforward_dropout,
            jnp.dtype(config.dtype),
            config.initial_stddev,
            self.output_scale,
            name="feedforward",
        )
        x = residual(x, "feedforward_norm", lambda x: feedforward(x, train=train))
        self.sow("intermediates", "block_output", x)
        return x, cached
