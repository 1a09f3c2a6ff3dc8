"""Multi-head attention (Vaswani et al. 2017, section 3.2.2) with an explicit cache."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.layers.attention_kernels import choose_kernel, target_platform
from transformer_jax.layers.attention_ops import dot_product_attention
from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.kept import keep
from transformer_jax.layers.linear import Linear
from transformer_jax.layers.masks import Mask
from transformer_jax.sharding.placement import constrain


@flax.struct.dataclass
class KeyValue:
    """The projected keys (B, S, H, K) and values (B, S, H, W) of one attention layer."""

    key: Float[Array, "*layers B S H K"]
    value: Float[Array, "*layers B S H W"]


class MultiHeadAttention(nn.Module):
    """Computes ``concat(head_1 .. head_H) W^O``, ``head_i = attention(Q W^Q_i, K W^K_i, V W^V_i)``.

    Attributes:
      d_model: size of the inputs and of the output.
      num_heads: H.
      key_size: K, the size of a query and of a key of one head.
      value_size: W, the size of a value of one head.
      biases: which of the projections ``query``, ``key``, ``value`` and ``output`` have biases. In the paper
        none has.
      dropout: rate of dropout on the attention weights.
      dtype: type of the computation.
      scale: whether to multiply the scores by 1 / sqrt(key_size). If False, the initializer of W^Q is
        scaled by 1 / sqrt(key_size) instead, as in T5.
      initial_stddev: of every W, as in ``Linear``.
      output_scale: factor of the initial W^O.
      context_size: size of the inputs of keys and values; None means ``d_model``.
    """

    d_model: int
    num_heads: int
    key_size: int
    value_size: int
    biases: tuple[str, ...]
    dropout: float
    dtype: jnp.dtype
    scale: bool = True
    initial_stddev: float = 0.0
    output_scale: float = 1.0
    context_size: int | None = None

    def setup(self) -> None:
        def heads(name: str, inputs: int, size: int, scale: float = 1.0) -> Linear:
            return Linear(
                (inputs,),
                (self.num_heads, size),
                ("embed", "heads", "head_size"),
                name in self.biases,
                self.dtype,
                initial_stddev=self.initial_stddev,
                initial_scale=scale,
            )

        context_size = self.context_size or self.d_model
        query_scale = 1.0 if self.scale else self.key_size**-0.5
        self.query = heads("query", self.d_model, self.key_size, query_scale)
        self.key = heads("key", context_size, self.key_size)
        self.value = heads("value", context_size, self.value_size)
        self.output = Linear(
            (self.num_heads, self.value_size),
            (self.d_model,),
            ("heads", "head_size", "embed"),
            "output" in self.biases,
            self.dtype,
            initial_stddev=self.initial_stddev,
            initial_scale=self.output_scale,
        )
        self.weight_dropout = Dropout(self.dropout)

    @nn.nowrap
    def init_cache(self, rows: int, length: int) -> KeyValue:
        """Returns an empty cache for ``rows`` sequences of up to ``length`` tokens; needs no parameters."""
        shape = (rows, length, self.num_heads)
        return KeyValue(
            jnp.zeros((*shape, self.key_size), self.dtype), jnp.zeros((*shape, self.value_size), self.dtype)
        )

    def project(self, context: Float[Array, "B S E"]) -> KeyValue:
        """Returns the keys and values of ``context``, which every decoding step can use again."""
        return KeyValue(self.key(context), self.value(context))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S E"] | KeyValue | None = None,
        *,
        mask: Mask,
        bias: Float[Array, "#B #H #L S"] | None = None,
        cache: KeyValue | None = None,
        position: Int[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue | None]:
        """Attends from ``x`` to ``context`` (to ``x`` itself when None).

        Args:
          x: the inputs of the queries.
          context: the inputs of keys and values, or the projected keys and values.
          mask: which keys each query may attend to.
          bias: is added to the scores before the softmax.
          cache: keys and values of earlier steps, for self-attention only. Those of ``x`` are written to it
            at ``position``, and the queries attend to the whole cache, under ``mask``.
          position: the position in ``cache`` of the first token of ``x``.
          train: whether dropout is on. It needs the ``dropout`` random stream.

        Returns:
          The output, and the cache with the new keys and values, or None if there was no cache.
        """
        query = keep(constrain(self.query(x), "batch", "sequence", "heads", None))
        new = context if isinstance(context, KeyValue) else self.project(x if context is None else context)
        if cache is not None:
            if position is None:
                raise ValueError(
                    "a cache was given without a position: give the position of the first token of x in it"
                )
            start = (0, position, 0, 0)
            new = KeyValue(
                jax.lax.dynamic_update_slice(cache.key, new.key.astype(cache.key.dtype), start),
                jax.lax.dynamic_update_slice(cache.value, new.value.astype(cache.value.dtype), start),
            )

        # If sequences are split over a mesh, every device gathers the keys of the whole sequence (Dubey et
        # al. 2024, "The Llama 3 Herd of Models", section 3.3.2). Then any mask works, and the scores, which
        # are much larger, stay split.
        new = jax.tree.map(lambda leaf: keep(constrain(leaf, "batch", None, "heads", None)), new)

        # A decoding step has few scores, so it does not need a kernel.
        is_step = cache is not None or query.shape[1] == 1
        heads = self._attend(query, new, mask, bias, may_use_kernel=not is_step, train=train)
        heads = constrain(heads, "batch", "sequence", "heads", None)
        return self.output(heads), (new if cache is not None else None)

    def _attend(
        self,
        query: Float[Array, "B L H K"],
        context: KeyValue,
        mask: Mask,
        bias: Float[Array, "#B #H #L S"] | None,
        *,
        may_use_kernel: bool,
        train: bool,
    ) -> Float[Array, "B L H W"]:
        """Returns the means of values, by a kernel if one can compute them, else by plain attention."""
        # Whoever asks for the attention weights needs them stored, which a kernel does not do.
        if may_use_kernel and not (self.is_initializing() or self.is_mutable_collection("intermediates")):
            has_dropout = train and self.dropout > 0
            kernel = choose_kernel(
                query,
                context.key,
                context.value,
                mask,
                needs_weights=f"attention_dropout={self.dropout}" if has_dropout else "",
                bias=bias,
                name=self._place(),
            )
            if kernel is not None:
                return kernel(
                    query,
                    context.key,
                    context.value,
                    mask=mask,
                    scale=self.scale,
                    interpret=target_platform() == "cpu",
                )

        def on_weights(weights):
            self.sow("intermediates", "attention_weights", weights)
            return self.weight_dropout(weights, train=train)

        heads = dot_product_attention(
            query,
            context.key,
            context.value,
            mask=mask.to_array(query.shape[1], context.key.shape[1]),
            bias=bias,
            scale=self.scale,
            on_weights=on_weights,
        )
        return keep(heads)  # kernels mark the activations that they keep themselves

    def _place(self) -> str:
        """Returns the module's path without the number of its layer, so all layers share one message."""
        return "/".join(dict.fromkeys((*self.path[:1], *self.path[-1:])))
