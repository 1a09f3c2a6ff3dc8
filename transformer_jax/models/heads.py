"""Heads: the modules that turn the last block's vectors into predictions, and the registry of them.

A new head is one entry of ``HEADS``; nothing else has to be edited for it.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

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
from transformer_jax.models.embedded import Embedded
from transformer_jax.sharding.placement import constrain, current_placement
from transformer_jax.types import PyTree

if TYPE_CHECKING:  # the config checks itself against HEADS
    from transformer_jax.models.config import TransformerConfig

# A function of the logits of some tokens, and of the slice that says which tokens these are. It returns
# arrays (B, L', ...), such as losses.
PerToken: TypeAlias = Callable[[Float[Array, "B L V"], slice], PyTree]
STRETCH_BYTES = 2**28  # the logits of a device are computed in parts of about this size
_MOST_STRETCHES = 4


def dense(
    config: "TransformerConfig", inputs: int, outputs: int, axis: str, name: str, *, use_bias: bool = True
) -> Linear:
    """Returns a linear map from vectors of ``inputs`` numbers to ``outputs`` float32 numbers.

    Vectors of the last stack have ``config.output_size`` numbers, those of ``Pooler`` ``config.d_model``.
    """
    return Linear(
        (inputs,),
        (outputs,),
        ("embed", axis),
        use_bias,
        jnp.dtype(config.dtype),
        output_dtype=jnp.dtype(jnp.float32),  # as Embedding.attend
        initial_stddev=config.initial_stddev,
        name=name,
    )


class TokenLogits(nn.Module):
    """Returns the logits of all tokens: the product of ``x`` with an embedding or with a kernel of its own.

    If ``config.embedding_scale`` is "logits", ``x`` is divided by sqrt(d_model) first, as in T5 with a shared
    embedding.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], embedding: Embedding) -> Float[Array, "*B V"]:
        config = self.config
        if config.embedding_scale == "logits":
            x = x * jnp.asarray(config.d_model**-0.5, x.dtype)
        if config.share_embeddings in ("inputs", "none"):
            sizes = x.shape[-1], config.vocab_size
            logits = dense(config, *sizes, "vocab", "projection", use_bias=False)(x)
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
        """Returns the logits or, if ``function`` is given, what it returns for them.

        While training, large logits are computed for one stretch of the sequence at a time, so that the
        memory never holds the gradients of all of them.
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
    """Returns into how many stretches of tokens the logits are divided, given their bytes on one device.

    It is 1 if the mesh splits the sequence already.
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
    """Returns BERT's logits of masked tokens: a dense layer, a norm, the shared embedding, and a bias.

    Devlin et al. 2019, section 3.1. The paper does not mention the dense layer; the released code has it.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], embedding: Embedding) -> Float[Array, "B L V"]:
        config = self.config
        axes = ("embed", "embed")
        dtype = jnp.dtype(config.dtype)
        sizes = ((config.output_size,), (config.d_model,))  # as large as the embedding of the vocabulary
        x = Linear(*sizes, axes, True, dtype, initial_stddev=config.initial_stddev, name="transform")(x)
        x = NORMS[config.norm](config.norm_epsilon, dtype, name="norm")(ACTIVATIONS[config.activation](x))
        return TokenLogits(config, name="logits")(x, embedding)


class Pooler(nn.Module):
    """Returns ``tanh(W x_0 + b)``, where x_0 is the first vector: that of [CLS] or of an image's class.

    It has d_model numbers, whatever the size of x_0. The activation is ``config.pooler``.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B D"]:
        activation = {"tanh": jnp.tanh, "relu": nn.relu}[self.config.pooler]
        sizes = self.config.output_size, self.config.d_model
        return activation(dense(self.config, *sizes, "embed", "dense")(x[:, 0]))


class PooledVectors(nn.Module):
    """Returns the vectors (B, L, E) and the pooled one (B, D)."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], embedded: Embedded, *, train: bool
    ) -> tuple[Float[Array, "B L E"], Float[Array, "B D"]]:
        return x, Pooler(self.config, name="pooler")(x)


class Vectors(nn.Module):
    """Returns the vectors as they are."""

    config: "TransformerConfig"

    def __call__(self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool) -> Float[Array, "B L D"]:
        return x


class MaskedTokenLogits(nn.Module):
    """Returns logits (B, L, V) of the tokens that were masked."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool) -> Float[Array, "B L V"]:
        return MaskedTokens(self.config, name="masked_tokens")(x, _table(embedded))


class NextSentence(nn.Module):
    """Returns logits (B, 2) of whether the second text follows the first (0) or not (1)."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool) -> Float[Array, "B 2"]:
        pooled = Pooler(self.config, name="pooler")(x)
        return dense(self.config, self.config.d_model, 2, "labels", "next_sentence")(pooled)


class Pretraining(nn.Module):
    """Returns the logits of ``MaskedTokenLogits`` and ``NextSentence`` (Devlin et al. 2019, section 3.1)."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B 2"]]:
        pooled = Pooler(self.config, name="pooler")(x)
        follows = dense(self.config, self.config.d_model, 2, "labels", "next_sentence")(pooled)
        return MaskedTokens(self.config, name="masked_tokens")(x, _table(embedded)), follows


def _dropout(config: "TransformerConfig") -> Dropout:
    """Returns the dropout of a head that has some even if the config names no rate for it."""
    return Dropout(config.dropout if config.head_dropout is None else config.head_dropout)


class Classes(nn.Module):
    """Returns logits (B, num_labels) of the classes of a whole input.

    They are computed from the pooled vector, with dropout (Devlin et al. 2019, section 4.1), or from the
    first vector as it is (Dosovitskiy et al. 2021, section 3.1). With ``config.pooler_dropout`` there is
    dropout before the pooler too (Liu et al. 2019, the released code). The rate is ``config.head_dropout``
    or, if that is None, ``config.dropout``.
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool
    ) -> Float[Array, "B num_labels"]:
        config = self.config
        vector = x[:, 0]
        if pools_classes(config):
            if config.pooler_dropout:
                x = _dropout(config)(x[:, :1], train=train)
            vector = _dropout(config)(Pooler(config, name="pooler")(x), train=train)
        return dense(config, vector.shape[-1], config.num_labels, "labels", "classes")(vector)


class TokenClasses(nn.Module):
    """Returns logits (B, L, num_labels) of the class of each token, with the dropout of ``Classes``."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool
    ) -> Float[Array, "B L num_labels"]:
        config = self.config
        sizes = config.output_size, config.num_labels
        return dense(config, *sizes, "labels", "classes")(_dropout(config)(x, train=train))


class Spans(nn.Module):
    """Returns logits (B, L, 2) of being the first and the last token of an answer.

    Dropout comes first if ``config.head_dropout`` is a rate, as in the released code of DistilBERT. BERT has
    none here (Devlin et al. 2019, the released code).
    """

    config: "TransformerConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], embedded: Embedded, *, train: bool) -> Float[Array, "B L 2"]:
        if self.config.head_dropout is not None:
            x = Dropout(self.config.head_dropout)(x, train=train)
        return dense(self.config, self.config.output_size, 2, "labels", "spans")(x)


def _table(embedded: Embedded) -> Embedding:
    if embedded.table is None:
        raise ValueError("this head predicts tokens, but the front end of the model has no vocabulary")
    return embedded.table


def pools_classes(config: "TransformerConfig") -> bool:
    """Returns whether the head "classes" has a pooler."""
    return config.front_end.pools_classes


class Output(NamedTuple):
    """One array that a head returns.

    Attributes:
      name: the name of the same array in Hugging Face's ``transformers``.
      has_positions: whether its second axis counts the positions of the sequence.
    """

    name: str
    has_positions: bool


def _as_tuple(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


@dataclasses.dataclass(frozen=True)
class Head:
    """One way to predict: a module and what others have to know about it.

    Attributes:
      module: makes the module from the config. The head of a model without a decoder is called as
        ``(x, embedded, train=train)``, where ``x`` (B, L, D) is the output of the last block and ``embedded``
        an ``Embedded``. Its parameters are below ``head/``. The head of a decoder is called as
        ``TokenLogits`` is.
      outputs: the arrays that the module returns, in their order.
      operations: the floating-point operations on one row, given the config and the number of positions.
      part: the last stack of the model, which the head follows.
      task: the head that this one stands in for in another architecture. An objective that needs the head
        "classes" accepts every head whose task is "classes". By default the task is the head's own name.
      needs_tokens: whether the input has to be tokens.
      labelled: the names below ``head/`` of the parameters that depend on the user's labels. A head that has
        some needs ``num_labels``, and another set of labels starts with new ones.
      is_bare: whether the head only returns vectors; ``transformers`` has it as the model without a head.
      arrays: splits the result of the module into the arrays of ``outputs``.
    """

    module: Callable[["TransformerConfig"], Any]
    outputs: tuple[Output, ...]
    operations: Callable[["TransformerConfig", int], int]
    part: Literal["encoder", "decoder"] = "encoder"
    task: str = ""
    needs_tokens: bool = False
    labelled: tuple[str, ...] = ()
    is_bare: bool = False
    arrays: Callable[[Any], tuple[Array, ...]] = _as_tuple


def logits_operations(config: "TransformerConfig", length: int) -> int:
    """Returns the operations of ``TokenLogits`` on one row of ``length`` tokens."""
    return length * 2 * config.output_size * config.vocab_size


def pooler_operations(config: "TransformerConfig") -> int:
    """Returns the operations of ``Pooler`` on one row."""
    return 2 * config.output_size * config.d_model


def _masked_operations(config: "TransformerConfig", length: int) -> int:
    return length * 2 * config.d_model * (config.output_size + config.vocab_size)


def _next_sentence_operations(config: "TransformerConfig", length: int) -> int:
    return pooler_operations(config) + 4 * config.d_model


def _classes_operations(config: "TransformerConfig", length: int) -> int:
    if not pools_classes(config):
        return 2 * config.output_size * config.num_labels
    return pooler_operations(config) + 2 * config.d_model * config.num_labels


_LOGITS = (Output("logits", True),)
_STATES = Output("last_hidden_state", True)

HEADS: dict[str, Head] = {
    "tokens": Head(TokenLogits, _LOGITS, logits_operations, part="decoder", needs_tokens=True),
    "masked_tokens": Head(MaskedTokenLogits, _LOGITS, _masked_operations, needs_tokens=True),
    "pretraining": Head(
        Pretraining,
        (Output("prediction_logits", True), Output("seq_relationship_logits", False)),
        lambda config, length: _masked_operations(config, length) + _next_sentence_operations(config, length),
        needs_tokens=True,
    ),
    "next_sentence": Head(
        NextSentence, (Output("logits", False),), _next_sentence_operations, needs_tokens=True
    ),
    "classes": Head(Classes, (Output("logits", False),), _classes_operations, labelled=("classes",)),
    "token_classes": Head(
        TokenClasses,
        _LOGITS,
        lambda config, length: length * 2 * config.output_size * config.num_labels,
        needs_tokens=True,
        labelled=("classes",),
    ),
    "spans": Head(
        Spans,
        (Output("start_logits", True), Output("end_logits", True)),
        lambda config, length: length * 4 * config.output_size,
        needs_tokens=True,
        arrays=lambda result: (result[..., 0], result[..., 1]),
    ),
    "pooled": Head(
        PooledVectors,
        (_STATES, Output("pooler_output", False)),
        lambda config, length: pooler_operations(config),
        is_bare=True,
    ),
    "none": Head(Vectors, (_STATES,), lambda config, length: 0, is_bare=True),
}


def task_of(head: str) -> str:
    """Returns the task of a head, by which objectives ask for it."""
    return HEADS[head].task or head
