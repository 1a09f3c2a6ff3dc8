"""The config of one stack: what the blocks of an encoder or of a decoder read."""

import dataclasses
from typing import Literal, TypeAlias

from transformer_jax.config import ConfigError
from transformer_jax.models.attention import AttentionSpec
from transformer_jax.models.residual import RESIDUALS

Projection: TypeAlias = Literal["query", "key", "value", "output", "feedforward"]
Biases: TypeAlias = Literal["feedforward", "all", "none"] | tuple[Projection, ...]


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """What the blocks of a stack read: the fields of ``TransformerConfig`` of the same names, and two more.

    Attributes:
      num_layers: number of blocks.
      context_size: size of the vectors that the blocks attend to besides their own, which are the outputs of
        an encoder; 0 if there are none.

    Raises:
      ConfigError: the pattern of attention has more specs than there are layers.
    """

    num_layers: int
    context_size: int
    d_model: int
    num_heads: int
    key_size: int
    value_size: int
    d_feedforward: int
    max_length: int
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"]
    relative_buckets: int
    relative_max_distance: int
    attention: tuple[AttentionSpec, ...]
    residual: str
    norm: Literal["layer", "rms"]
    norm_position: Literal["post", "pre"]
    norm_epsilon: float
    activation: Literal["relu", "gelu", "gelu_tanh", "swish", "gated_gelu_tanh"]
    biases: Biases
    scale_attention: bool
    initial_stddev: float
    dropout: float
    attention_dropout: float
    feedforward_dropout: float
    output_dropout: bool
    dtype: str
    scan_layers: bool
    remat: bool
    remat_keeps: Literal["inputs", "products"]

    def __post_init__(self) -> None:
        if 0 < self.num_layers < len(self.attention):
            raise ConfigError(
                f"the pattern of attention has {len(self.attention)} specs, but there are only "
                f"{self.num_layers} layers: give at most one spec for each layer"
            )

    @property
    def output_size(self) -> int:
        """Size of the vectors that the stack returns."""
        return self.d_model * RESIDUALS[self.residual].WIDTH

    @property
    def output_scale(self) -> float:
        """Factor of the initial kernels that write to the residual stream.

        With normally distributed kernels and pre-norm it is 1 / sqrt(N) for N sub-layers (Radford et al.
        2019, section 2.3). Xavier uniform kernels are small enough without it.
        """
        if not self.initial_stddev or self.norm_position != "pre":
            return 1.0
        return (self.num_layers * (3 if self.context_size else 2)) ** -0.5

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the random streams that the stack reads in evaluation too."""
        return tuple(dict.fromkeys(name for spec in self.attention for name in spec.STREAMS))

    def has_bias(self, projection: str) -> bool:
        """Returns whether a projection of attention, or the feed-forward network, has biases."""
        if isinstance(self.biases, tuple):
            return projection in self.biases
        return self.biases == "all" or (self.biases == "feedforward" and projection == "feedforward")

    def attention_of(self, layer: int) -> AttentionSpec:
        """Returns the spec of the self-attention of a layer: the pattern is repeated over the layers."""
        return self.attention[layer % len(self.attention)]


# What encoder and decoder of one model may have differently.
CHANGEABLE = (
    "num_heads",
    "key_size",
    "value_size",
    "d_feedforward",
    "max_length",
    "positions",
    "relative_buckets",
    "relative_max_distance",
    "attention",
    "residual",
    "norm",
    "norm_position",
    "norm_epsilon",
    "activation",
    "biases",
    "scale_attention",
    "dropout",
    "attention_dropout",
    "feedforward_dropout",
    "output_dropout",
)
