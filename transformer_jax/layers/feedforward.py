"""Position-wise feed-forward network (Vaswani et al. 2017, section 3.3, equation 2)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.kept import keep
from transformer_jax.layers.linear import Linear
from transformer_jax.sharding.placement import constrain

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "swish": nn.silu,
}
GATED = "gated_"


class FeedForward(nn.Module):
    """Computes ``activation(x W_1 + b_1) W_2 + b_2`` at every position.

    If the name of the activation begins with ``gated_``, the hidden layer is
    ``activation(x W_gate) * (x W_1)`` (Shazeer 2020, "GLU Variants Improve Transformer").

    Attributes:
      activation: a key of ``ACTIVATIONS``, or one after ``gated_``.
      use_bias: whether there are ``b_1`` and ``b_2`` (and ``b_gate``).
      dropout: rate of dropout on the hidden layer.
      initial_stddev: of every W, as in ``Linear``.
      output_scale: factor of the initial W_2.
    """

    d_feedforward: int
    activation: str
    use_bias: bool
    dropout: float
    dtype: jnp.dtype
    initial_stddev: float = 0.0
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], *, train: bool) -> Float[Array, "B L D"]:
        d_model = x.shape[-1]

        def linear(name: str, inputs: int, outputs: int, axes: tuple[str, str], scale: float = 1.0) -> Linear:
            return Linear(
                (inputs,),
                (outputs,),
                axes,
                self.use_bias,
                self.dtype,
                initial_stddev=self.initial_stddev,
                initial_scale=scale,
                name=name,
            )

        hidden = keep(linear("hidden", d_model, self.d_feedforward, ("embed", "mlp"))(x))
        activation = ACTIVATIONS[self.activation.removeprefix(GATED)]
        if self.activation.startswith(GATED):
            gate = keep(linear("gate", d_model, self.d_feedforward, ("embed", "mlp"))(x))
            hidden = activation(gate) * hidden
        else:
            hidden = activation(hidden)
        hidden = constrain(hidden, "batch", "sequence", "mlp")
        hidden = Dropout(self.dropout)(hidden, train=train)
        return linear("output", self.d_feedforward, d_model, ("mlp", "embed"), self.output_scale)(hidden)
