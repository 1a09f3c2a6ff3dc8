"""What turns the last block's vectors into predictions."""

import itertools
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer_jax.layers.dropout import Dropout
from transformer_jax.layers.embeddings import Embedding
from transformer_jax.layers.feedforward import ACTIVATIONS
from transformer_jax.layers.linear import Linear
from transformer_jax.layers.norms import NORMS
from transformer_jax.layers.parameters import parameter
from transformer_jax.models.config import TransformerConfig
from transformer_jax.sharding.placement import constrain, current_placement
from transformer_jax.types import PyTree

# Of the logits of tokens, and which of them: what is wanted of each token.
PerToken: TypeAlias = Callable[[Float[Array, "B L V"], slice], PyTree]
STRETCH_BYTES = 2**28  # the logits of a device are computed in parts of about this size
_MOST_STRETCHES = 4


def dense(config: TransformerConfig, outputs: int, axis: str, name: str, *, use_bias: bool = True) -> Linear:
    """A linear map from d_model with float32 results."""
    return Linear(
        (config.d_model,),
        (outputs,),
        ("embed", axis),
        use_bias,
        jnp.dtype(config.dtype),
        output_dtype=jnp.dtype(jnp.float32),  # as Embedding.attend
        initial_stddev=config.initial_stddev,
        name=name,
    )


class TokenLogits(nn.Module):
    """Scores of the vocabulary: the product before the softmax, shared with an embedding or its own.

    With ``config.embedding_scale == "logits"`` it is divided by sqrt(d_model), as T5 does where it shares.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], embedding: Embedding) -> Float[Array, "*B V"]:
        config = self.config
        if config.embedding_scale == "logits":
            x = x * jnp.asarray(config.d_model**-0.5, x.dtype)
        if config.share_embeddings in ("inputs", "none"):
            logits = dense(config, config.vocab_size, "vocab", "projection", use_bias=False)(x)
        else:
            logits = embedding.attend(x)
        if config.logits_bias:
            zeros = nn.initializers.zeros_init()
            bias = parameter(self, "bias", zeros, (config.vocab_size,), ("vocab",))
            logits = logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
        return constrain(logits, "batch", *("sequence",) * (logits.ndim - 2), "vocab")

    def per_token(
        self, x: Float[Array, "B L D"], embedding: Embedding, function: PerToken | None, *, train: bool
    ) -> Float[Array, "B L V"] | PyTree:
        """Logits, or what a function makes of them, in training stretch by stretch where they are large.

        A stretch's logits are stored until its gradient is computed, and that for one stretch at a time.
        """
        if function is None:
            return self(x, embedding)
        length = x.shape[1]
        count = num_stretches(x.shape[0], length, self.config.vocab_size) if train else 1
        ends = [length * number // count for number in range(count + 1)]
        stretches = [slice(*pair) for pair in itertools.pairwise(ends)]
        found = [function(self(x[:, stretch], embedding), stretch) for stretch in stretches]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *found)


def num_stretches(rows: int, length: int, vocab_size: int) -> int:
    """Into how many stretches of tokens the logits are divided, from the bytes that a device has of them.

    They stay whole where a mesh splits the sequence itself.
    """
    placement = current_placement()
    shares = 1
    if placement is not None:
        if placement.parts("sequence") > 1:
            return 1
        shares = placement.parts("batch") * placement.parts("vocab")
    size = 4 * rows * length * vocab_size // shares
    return max(1, min(_MOST_STRETCHES, length, size // STRETCH_BYTES))


class MaskedTokens(nn.Module):
    """BERT's scores of masked tokens: one more dense layer and norm, then the embedding, then a bias.

    Devlin et al. 2019, section 3.1; the layer is in their released code.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], embedding: Embedding) -> Float[Array, "B L V"]:
        config = self.config
        axes = ("embed", "embed")
        dtype = jnp.dtype(config.dtype)
        sizes = ((config.d_model,), (config.d_model,))
        x = Linear(*sizes, axes, True, dtype, initial_stddev=config.initial_stddev, name="transform")(x)
        x = NORMS[config.norm](config.norm_epsilon, dtype, name="norm")(ACTIVATIONS[config.activation](x))
        return TokenLogits(config, name="logits")(x, embedding)


class Pooler(nn.Module):
    """``tanh(W x_0 + b)`` of the first vector, that of [CLS] or of an image's class."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        return jnp.tanh(dense(self.config, self.config.d_model, "embed", "dense")(x[:, 0]))


class EncoderHead(nn.Module):
    """The head that ``config.head`` names, on an encoder alone.

    * ``masked_tokens``: logits (B, L, V);
    * ``pretraining``: these, and logits (B, 2) of whether the second text follows the first (0) or not (1);
    * ``next_sentence``: the latter alone;
    * ``classes``: logits (B, num_labels), from the pooled vector of a text or the first one of an image;
    * ``token_classes``: logits (B, L, num_labels);
    * ``spans``: logits (B, L, 2), of being an answer's first and last token;
    * ``pooled``: the vectors (B, L, D) and the pooled one (B, D);
    * ``none``: the vectors.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], embedding: Embedding | None, *, train: bool
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "..."]]:
        config = self.config
        dropout = Dropout(config.dropout)
        if config.head == "none":
            return x
        if config.head == "token_classes":
            return dense(config, config.num_labels, "labels", "classes")(dropout(x, train=train))
        if config.head == "spans":
            return dense(config, 2, "labels", "spans")(x)
        if config.image_shape and config.head == "classes":
            return dense(config, config.num_labels, "labels", "classes")(x[:, 0])
        if config.head == "masked_tokens":
            assert embedding is not None  # a model of images has no such head
            return MaskedTokens(config, name="masked_tokens")(x, embedding)
        pooled = Pooler(config, name="pooler")(x)
        if config.head == "pooled":
            return x, pooled
        if config.head in ("pretraining", "next_sentence"):
            follows = dense(config, 2, "labels", "next_sentence")(pooled)
            if config.head == "next_sentence":
                return follows
            assert embedding is not None
            return MaskedTokens(config, name="masked_tokens")(x, embedding), follows
        return dense(config, config.num_labels, "labels", "classes")(dropout(pooled, train=train))
