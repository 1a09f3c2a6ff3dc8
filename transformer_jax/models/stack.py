"""A stack of blocks, unrolled or scanned, with or without gradient checkpointing (remat)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers import kept
from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.masks import Causal, Mask, Segments
from transformer_jax.layers.norms import NORMS
from transformer_jax.layers.positions import RelativeBias
from transformer_jax.models.block import Block
from transformer_jax.models.cache import DecoderCache, EncodedContext, row_axis
from transformer_jax.models.residual import RESIDUALS
from transformer_jax.models.stack_config import StackConfig
from transformer_jax.types import PyTree


class Stack(nn.Module):
    """The blocks of an encoder or decoder, and with pre-norm the last norm of the residual stream.

    With ``config.scan_layers`` the parameters of all layers are stacked on a leading axis ``layers``, and the
    block is compiled once. With ``config.remat`` a layer saves for the backward pass only what
    ``config.remat_keeps`` names. With ``config.positions="relative"`` the stack computes T5's bias of
    attention scores, which all layers share.
    """

    config: StackConfig

    def setup(self) -> None:
        config = self.config
        if config.scan_layers:
            self.layers = Block(config, 0)
        else:
            self.layer = [Block(config, layer) for layer in range(config.num_layers)]
        if config.norm_position == "pre":
            self.final_norm = NORMS[config.norm](config.norm_epsilon, jnp.dtype(config.dtype))
        self.dropout = Dropout(config.dropout)
        if config.positions == "relative":
            self.relative_bias = RelativeBias(
                config.num_heads, config.relative_buckets, config.relative_max_distance
            )

    def project_context(self, context: Float[Array, "B S E"], segments: Int[Array, "B S"]) -> EncodedContext:
        """Returns the keys and values of ``context`` for every layer, for decoding step by step.

        Args:
          context: the output of the encoder.
          segments: 0 on padding of the context, else 1.
        """
        if self.config.scan_layers:
            _, layers = self._scan(lambda block, state, _: (state, block.project_context(context)))(
                self.layers, (), None
            )
        else:
            layers = tuple(block.project_context(context) for block in self.layer)
        return EncodedContext(layers, segments, row_axis(self.config))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S E"] | None = None,
        *,
        mask: Mask,
        context_mask: Mask | None = None,
        train: bool,
    ) -> Float[Array, "B L E"]:
        """Runs the blocks on whole sequences.

        Args:
          x: the input of the first block.
          context: what blocks with a ``context_size`` attend to.
          mask, context_mask: which positions of ``x`` and of ``context`` each position attends to.
          train: whether dropout is on.

        Returns:
          The output of the last block.
        """
        bias = self._bias(x.shape[1], x.shape[1], 0, mask)

        def apply(block: Block, state: PyTree, _: Any) -> tuple[PyTree, None]:
            state, _ = block(state, context, mask=mask, bias=bias, context_mask=context_mask, train=train)
            return state, None

        if self.config.remat and train:
            apply = nn.remat(
                apply, prevent_cse=not self.config.scan_layers, policy=kept.policy(self.config.remat_keeps)
            )
        return self._run(apply, x, (), train=train)[0]

    def advance(
        self, x: Float[Array, "B L D"], cache: DecoderCache, context: EncodedContext | None, mask: Mask
    ) -> tuple[Float[Array, "B L E"], DecoderCache]:
        """Runs the blocks on the next positions of sequences, without dropout.

        Args:
          x: the input of the first block at the positions ``cache.index`` and after.
          cache: what the layers remember of the earlier positions.
          context: what blocks with a ``context_size`` attend to.
          mask: which positions of the cache each position may attend to, causality apart.

        Returns:
          The output of the last block, and the new cache.
        """
        mask = mask & Causal(cache.index)
        bias = self._bias(x.shape[1], cache.length, cache.index, mask)
        context_mask = None if context is None else Mask(Segments(None, context.segments))

        def apply(block: Block, state: PyTree, states: tuple[Any, PyTree]) -> tuple[PyTree, PyTree]:
            projected, own = states
            return block(
                state,
                projected,
                mask=mask,
                bias=bias,
                context_mask=context_mask,
                cache=own,
                position=cache.index,
                train=False,
            )

        projected = None if context is None else context.layers
        y, layers = self._run(apply, x, (projected, cache.layers), train=False)
        return y, dataclasses.replace(cache, layers=layers, index=cache.index + x.shape[1])

    def _run(
        self, apply: Callable[..., Any], x: Float[Array, "B L D"], layers: tuple[PyTree, ...], *, train: bool
    ) -> tuple[Float[Array, "B L E"], PyTree]:
        """Calls ``apply(block, state, of_layer) -> (state, output)`` for each layer.

        Args:
          apply: computes one layer.
          x: the input of the first block.
          layers: what the layers are given: pytrees laid out as ``DecoderCache.layers``, or None for nothing.
          train: whether dropout is on.

        Returns:
          The output of the stack, and what ``apply`` returned for all layers, laid out in the same way.
        """
        residual = RESIDUALS[self.config.residual](self.config.norm_position)
        state = residual.begin(x)
        if self.config.scan_layers:
            state, outputs = self._scan(apply)(self.layers, state, layers)
        else:
            found = []
            for number, block in enumerate(self.layer):
                of_layer = tuple(None if tree is None else tree[number] for tree in layers)
                state, output = apply(block, state, of_layer)
                found.append(output)
            outputs = tuple(found)
        x = residual.end(state)
        if self.config.norm_position == "pre":
            x = self.final_norm(x)
        if self.config.output_dropout:
            x = self.dropout(x, train=train)
        return x, outputs

    def _scan(self, body: Callable[..., Any]) -> Callable[..., Any]:
        streams = ("params", "dropout", *self.config.streams)
        return nn.scan(
            body,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs=dict.fromkeys(streams, True),
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    def _bias(
        self, queries: int, keys: int, offset: Int[Array, ""] | int, mask: Mask
    ) -> Float[Array, "1 H L S"] | None:
        if self.config.positions != "relative":
            return None
        return self.relative_bias(queries, keys, offset, both_directions=not mask.has(Causal))
