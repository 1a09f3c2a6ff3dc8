"""N blocks, unrolled or scanned, with or without rematerialisation."""

from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers import kept
from transformer_jax.layers.attention import KeyValue
from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.masks import Causal, Mask
from transformer_jax.layers.norms import NORMS
from transformer_jax.layers.positions import RelativeBias
from transformer_jax.models.block import Block
from transformer_jax.models.config import TransformerConfig

# A tuple with one entry a layer; or, of scanned layers, one KeyValue with the layers on axis 0.
LayerKeyValues: TypeAlias = tuple[KeyValue, ...] | KeyValue


class Stack(nn.Module):
    """``num_layers`` blocks; with pre-norm, the norm that closes the residual stream; T5's position bias.

    With ``config.scan_layers`` the parameters of all layers are stacked on a leading axis ``layers`` and
    the block is compiled once; with ``config.remat`` a layer keeps no more for the backward pass
    than ``config.remat_keeps`` says.
    """

    config: TransformerConfig
    num_layers: int
    cross_attention: bool

    def setup(self) -> None:
        if self.config.scan_layers:
            self.layers = self._block()
        else:
            self.layer = [self._block() for _ in range(self.num_layers)]
        config = self.config
        if config.norm_position == "pre":
            self.final_norm = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype))
        self.dropout = Dropout(config.dropout)
        if config.positions == "relative":
            self.relative_bias = RelativeBias(
                config.num_heads, config.relative_buckets, config.relative_max_distance
            )

    def _block(self) -> Block:
        # Radford et al. 2019, section 2.3: what each of N sub-layers adds to a residual stream is scaled by
        # 1 / sqrt(N) at the start. Xavier kernels are small enough as they are.
        scaled = self.config.initial_stddev > 0 and self.config.norm_position == "pre"
        sublayers = self.num_layers * (3 if self.cross_attention else 2)
        return Block(self.config, self.cross_attention, sublayers**-0.5 if scaled else 1.0)

    def _scan(self, body):
        return nn.scan(
            body,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    def project_context(self, context: Float[Array, "B S D"]) -> LayerKeyValues:
        """Every layer's keys and values of ``context``, for decoding step by step."""
        if not self.config.scan_layers:
            return tuple(block.project_context(context) for block in self.layer)

        def project(block, carry, _):
            return carry, block.project_context(context)

        return self._scan(project)(self.layers, (), None)[1]

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S D"] | LayerKeyValues | None = None,
        *,
        mask: Mask,
        context_mask: Mask | None = None,
        cache: LayerKeyValues | None = None,
        position: Int[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], LayerKeyValues | None]:
        """Runs the blocks.

        Args:
          x: the first block's input.
          context: what blocks with ``cross_attention`` attend to, or ``project_context`` of it.
          mask, context_mask: what each position sees of ``x`` and of ``context``.
          cache: self-attention keys and values of earlier steps.
          position: where in the cache the first row of ``x`` belongs.
          train: whether dropout is on.

        Returns:
          The last block's output and the new cache (None without one).
        """
        bias = None
        if self.config.positions == "relative":
            caches = jax.tree.leaves(cache)
            keys = caches[0].shape[-3] if caches else x.shape[1]
            offset = 0 if position is None else position
            bias = self.relative_bias(x.shape[1], keys, offset, both_directions=not mask.has(Causal))

        def apply(block, x, projected, layer_cache):
            return block(
                x,
                context if projected is None else projected,
                mask=mask,
                bias=bias,
                context_mask=context_mask,
                cache=layer_cache,
                position=position,
                train=train,
            )

        if self.config.remat and train:
            apply = nn.remat(
                apply, prevent_cse=not self.config.scan_layers, policy=kept.policy(self.config.remat_keeps)
            )
        if self.config.scan_layers:
            layer_inputs = (context if isinstance(context, KeyValue) else None, cache)
            x, cache = self._scan(lambda block, x, layer: apply(block, x, *layer))(
                self.layers, x, layer_inputs
            )
        else:
            caches = []
            for i, block in enumerate(self.layer):
                projected = context[i] if isinstance(context, tuple) else None
                x, layer_cache = apply(block, x, projected, cache[i] if isinstance(cache, tuple) else None)
                caches.append(layer_cache)
            cache = None if cache is None else tuple(caches)
        if self.config.norm_position == "pre":
            x = self.final_norm(x)
        if self.config.output_dropout:
            x = self.dropout(x, train=train)
        return x, cache
