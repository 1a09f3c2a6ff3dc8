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
from transformer_jax.placement import constrain


@flax.struct.dataclass
class KeyValue:
    """Projected keys (B, S, H, K) and values (B, S, H, W) of one attention layer."""

    key: Float[Array, "*layers B S H K"]
    value: Float[Array, "*layers B S H W"]


class MultiHeadAttention(nn.Module):
    """``concat(head_1 .. head_H) W^O``, ``head_i = attention(Q W^Q_i, K W^K_i, V W^V_i)``.

    The paper has no biases; ``use_bias`` adds them for the families that do.

    Attributes:
      scale: scores by 1 / sqrt(key_size). Without it the initial queries are, as in T5.
      initial_stddev, output_scale: of the kernels, as ``Linear``; the scale is of W^O alone.
    """

    d_model: int
    num_heads: int
    key_size: int
    value_size: int
    use_bias: bool
    dropout: float
    dtype: jnp.dtype
    scale: bool = True
    initial_stddev: float = 0.0
    output_scale: float = 1.0

    def setup(self) -> None:
        def heads(size: int, scale: float = 1.0) -> Linear:
            return Linear(
                (self.d_model,),
                (self.num_heads, size),
                ("embed", "heads", "head_size"),
                self.use_bias,
                self.dtype,
                initial_stddev=self.initial_stddev,
                initial_scale=scale,
            )

        self.query = heads(self.key_size, 1.0 if self.scale else self.key_size**-0.5)
        self.key = heads(self.key_size)
        self.value = heads(self.value_size)
        self.output = Linear(
            (self.num_heads, self.value_size),
            (self.d_model,),
            ("heads", "head_size", "embed"),
            self.use_bias,
            self.dtype,
            initial_stddev=self.initial_stddev,
            initial_scale=self.output_scale,
        )
        self.weight_dropout = Dropout(self.dropout)

    def project(self, context: Float[Array, "B S D"]) -> KeyValue:
        """Keys and values of ``context``, to be computed once and given to every decoding step."""
        return KeyValue(self.key(context), self.value(context))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S E"] | KeyValue | None = None,
        *,
        mask: Mask,
        bias: Float[Array, "#B #H #L S"] | None = None,
        cache: KeyValue | None = None,
        positions: Int[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue | None]:
        """Attends from ``x`` to ``context`` (to ``x`` itself when None).

        Args:
          x: queries' inputs.
          context: inputs of keys and values, or already projected ones.
          mask: what each query may see.
          bias: added to the scores before the softmax.
          cache: keys and values of earlier steps, for self-attention only; those of ``x`` are written
            at ``positions`` and the whole of the cache is attended to, under ``mask``.
          positions: place in ``cache`` of the first row of ``x``.
          train: whether dropout is on; it needs the ``dropout`` random stream.

        Returns:
          The output and the cache with the new keys and values (None without one).
        """
        query = keep(constrain(self.query(x), "batch", "sequence", "heads", None))
        new = context if isinstance(context, KeyValue) else self.project(x if context is None else context)
        if cache is not None:
            if positions is None:
                raise ValueError("a cache needs positions: the place of the first row of x in it")
            place = (0, positions, 0, 0)
            new = KeyValue(
                jax.lax.dynamic_update_slice(cache.key, new.key.astype(cache.key.dtype), place),
                jax.lax.dynamic_update_slice(cache.value, new.value.astype(cache.value.dtype), place),
            )

        # A query sees keys of the whole sequence: where that is split they are gathered (Dubey et al. 2024,
        # "The Llama 3 Herd of Models", section 3.3.2). Any mask works so, and the large scores stay split.
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
        """Its name without the number of its layer: one message is enough for all of them."""
        return "/".join(dict.fromkeys((*self.path[:1], *self.path[-1:])))
