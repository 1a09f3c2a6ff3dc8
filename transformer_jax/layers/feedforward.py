"""Position-wise feed-forward network (Vaswani et al. 2017, section 3.3, equation 2)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.linear import Linear

ACTIVATIONS = {"relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False)}


class FeedForward(nn.Module):
    """``activation(x W_1 + b_1) W_2 + b_2``, the same at every position; Xavier-uniform kernels."""

    d_feedforward: int
    activation: str
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], *, train: bool) -> Float[Array, "B L D"]:
        d_model = x.shape[-1]
        hidden = Linear((d_model,), (self.d_feedforward,), ("embed", "mlp"), True, self.dtype, name="hidden")(
            x
        )
        hidden = Dropout(self.dropout)(ACTIVATIONS[self.activation](hidden), train=train)
        return Linear((self.d_feedforward,), (d_model,), ("mlp", "embed"), True, self.dtype, name="output")(
            hidden
        )
