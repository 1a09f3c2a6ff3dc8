"""The config of a model: everything in which one Transformer differs from another."""

import copy
import dataclasses
import math
from typing import Annotated, Any, Literal

from transformer_jax.config import ConfigError, Kinds, UnknownNameError, check_types, nearest, read_fields
from transformer_jax.models.attention import ATTENTIONS, AttentionSpec, FullAttention
from transformer_jax.models.front_ends import FRONT_ENDS, FrontEnd, Tokens
from transformer_jax.models.heads import HEADS
from transformer_jax.models.residual import RESIDUALS
from transformer_jax.models.stack_config import CHANGEABLE, Biases, StackConfig
from transformer_jax.types import BOS_ID, EOS_ID, PAD_ID

_TOKENS, _FULL = Tokens(), (FullAttention(),)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Holds everything in which one Transformer differs from another.

    The defaults are the base model of Vaswani et al. 2017, whose names of sizes (section 3 and Table 3) are
    written out. ``transformer_jax.families`` has the variants of other papers.

    Raises:
      ConfigError: a size does not fit another one, or a choice is unknown.
    """

    vocab_size: int  # 0 if nothing that the model reads or predicts is a token
    d_model: int = 512
    num_heads: int = 8
    key_size: int = 64  # per head: d_k in the paper
    value_size: int = 64  # per head: d_v in the paper
    d_feedforward: int = 2048
    num_encoder_layers: int = 6  # 0: decoder only
    num_decoder_layers: int = 6  # 0: encoder only
    max_length: int = 512  # tokens; a longer sequence is an error
    # sinusoidal_halves: all sines before all cosines. relative: T5's bias of attention scores.
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    relative_buckets: int = 32  # number of buckets of distances, for relative positions
    relative_max_distance: int = 128  # tokens; larger distances share a bucket
    num_token_types: int = 0  # BERT's segments, whose embeddings are added to those of the tokens
    front_end: Annotated[FrontEnd, Kinds(FRONT_ENDS)] = _TOKENS  # what the model reads
    # The self-attention of each layer; a shorter pattern is repeated.
    attention: tuple[Annotated[AttentionSpec, Kinds(ATTENTIONS)], ...] = _FULL
    residual: str = "plain"  # how sub-layers are combined: a name of ``models.residual.RESIDUALS``
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-6
    embedding_norm: bool = False  # a norm after the sum of embeddings and positions
    activation: Literal["relu", "gelu", "gelu_tanh", "swish", "gated_gelu_tanh"] = "relu"
    # Of the feed-forward networks, of these and the projections of attention, of none, or of those named.
    biases: Biases = "feedforward"
    scale_attention: bool = True  # scores times 1 / sqrt(key_size); T5 scales its initial weights instead
    # Which share parameters: embeddings of the source, of the target, and the product before the softmax.
    # inputs: the first two. target: the last two.
    share_embeddings: Literal["all", "inputs", "target", "none"] = "all"
    # What sqrt(d_model) multiplies (inputs, section 3.4) or divides (logits, T5).
    embedding_scale: Literal["inputs", "logits", "none"] = "inputs"
    logits_bias: bool = False
    initial_stddev: float = 0.0  # standard deviation of normally distributed weights; 0: Xavier uniform
    head: str = "tokens"  # what the model predicts: a name of ``models.heads.HEADS``
    num_labels: int = 0  # of heads whose outputs are scores of the user's labels
    pooler: Literal["tanh", "relu"] = "tanh"  # activation of the layer that pools the first vector
    pooler_dropout: bool = False  # dropout on what the pooler of the head "classes" reads, too
    dropout: float = 0.1  # rate, on the outputs of sub-layers and on embeddings + positions, section 5.4
    attention_dropout: float = 0.0  # on attention weights
    feedforward_dropout: float = 0.0  # on the hidden layer of feed-forward networks
    # Of the heads "classes", where it has a pooler, and "token_classes" (None: ``dropout``), and of "spans"
    # (None: no dropout). Other heads have no dropout.
    head_dropout: float | None = None
    output_dropout: bool = False  # ``dropout`` on the outputs of stacks too, as in T5
    pad_id: int = PAD_ID
    decoder_start_id: int = BOS_ID
    eos_id: int = EOS_ID
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False  # compile one layer, and loop over all
    remat: bool = False  # gradient checkpointing: recompute activations in the backward pass
    # What gradient checkpointing saves: the inputs of layers, or also the results of matrix products.
    remat_keeps: Literal["inputs", "products"] = "inputs"
    # Fields of ``StackConfig`` that the encoder or the decoder has otherwise, as pairs of name and value.
    encoder_changes: tuple[tuple[str, Any], ...] = ()
    decoder_changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_types(self, "model")
        self._check_fields()
        self._check_changes()
        self._check_parts()
        self.front_end.check(self.part("decoder" if self.is_decoder_only else "encoder"))
        if not self.has_vocabulary:
            return
        if self.vocab_size < 1:
            raise ConfigError(f"model.vocab_size={self.vocab_size} must be at least 1")
        for name in ("pad_id", "decoder_start_id", "eos_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} is outside the vocabulary of "
                    f"{self.vocab_size} tokens"
                )

    def _check_fields(self) -> None:
        """Checks the fields that do not depend on the front end, the head, or which stacks there are."""
        sizes = ("d_model", "num_heads", "key_size", "value_size", "d_feedforward", "max_length")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ConfigError(
                f"model.relative_buckets={self.relative_buckets} must be at least 4, and "
                f"model.relative_max_distance={self.relative_max_distance} above half of it"
            )
        for name in ("num_encoder_layers", "num_decoder_layers", "num_token_types", "num_labels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name}={getattr(self, name)} must not be negative")
        for name in ("dropout", "attention_dropout", "feedforward_dropout", "head_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ConfigError(f"model.{name}={rate} must be in [0, 1)")
        if not self.norm_epsilon > 0:
            raise ConfigError(f"model.norm_epsilon={self.norm_epsilon} must be above 0")
        if not 0 <= self.initial_stddev < math.inf:
            raise ConfigError(f"model.initial_stddev={self.initial_stddev} must be 0 (Xavier) or positive")
        if self.positions.startswith("sinusoidal") and self.d_model % 2:
            raise ConfigError(f"sinusoidal positions need an even model.d_model, not {self.d_model}")
        if self.residual not in RESIDUALS:
            raise UnknownNameError(
                f"model.residual={self.residual!r} is no residual strategy: "
                f"{nearest(self.residual, RESIDUALS)}"
            )
        if not self.attention:
            raise ConfigError("model.attention=() names no attention; give one spec for each layer, or one")
        if self.scan_layers and len(self.attention) > 1:
            raise ConfigError(
                f"model.scan_layers=True compiles one layer for all, but model.attention has "
                f"{len(self.attention)} specs: set model.scan_layers=False"
            )

    @property
    def is_encoder_only(self) -> bool:
        """Whether there is no decoder, as in BERT and ViT."""
        return self.num_decoder_layers == 0

    @property
    def is_decoder_only(self) -> bool:
        """Whether there is no encoder, as in GPT-2."""
        return self.num_encoder_layers == 0

    @property
    def has_vocabulary(self) -> bool:
        """Whether the model reads or predicts tokens, so that it needs a tokenizer."""
        return self.front_end.has_tokens or not self.is_encoder_only

    @property
    def encoder(self) -> StackConfig:
        """What the blocks of the encoder read."""
        return self._stack_config("encoder", self.num_encoder_layers, 0)

    @property
    def decoder(self) -> StackConfig:
        """What the blocks of the decoder read."""
        context_size = 0 if self.is_decoder_only else self.encoder.output_size
        return self._stack_config("decoder", self.num_decoder_layers, context_size)

    @property
    def inputs_max_length(self) -> int:
        """Maximum length of the inputs: positions of the encoder, or of the decoder if it is alone."""
        return (self.decoder if self.is_decoder_only else self.encoder).max_length

    @property
    def targets_max_length(self) -> int:
        """Maximum length of the sequences that the last stack computes."""
        return (self.encoder if self.is_encoder_only else self.decoder).max_length

    @property
    def batch_max_length(self) -> int:
        """Maximum length that the tokens of inputs and targets may both have, as a batch has one for both."""
        return min(self.part(name).max_length for name in self._stacks_of_tokens)

    @property
    def batch_max_length_keys(self) -> str:
        """Names of the config's keys that limit ``batch_max_length``, for messages: raise all of these."""
        names = [
            f"max_length in config.model.{name}_changes"
            if "max_length" in dict(self.encoder_changes if name == "encoder" else self.decoder_changes)
            else "config.model.max_length"
            for name in self._stacks_of_tokens
            if self.part(name).max_length == self.batch_max_length
        ]
        return " and ".join(dict.fromkeys(names))

    @property
    def _stacks_of_tokens(self) -> "tuple[Literal['encoder', 'decoder'], ...]":
        """The stacks whose positions are those of tokens; of one alone without tokens, this one."""
        if self.is_encoder_only:
            return ("encoder",)
        return (
            ("encoder", "decoder") if self.front_end.has_tokens and not self.is_decoder_only else ("decoder",)
        )

    @property
    def output_size(self) -> int:
        """Size of the vectors that the last stack returns."""
        return (self.encoder if self.is_encoder_only else self.decoder).output_size

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the random streams that the model reads in evaluation too."""
        return tuple(dict.fromkeys((*self.encoder.streams, *self.decoder.streams)))

    def part(self, name: Literal["encoder", "decoder"]) -> "TransformerConfig":
        """Returns the config as one stack and its embeddings read it, with the changes of the stack."""
        changes = self.encoder_changes if name == "encoder" else self.decoder_changes
        if not self.encoder_changes and not self.decoder_changes:
            return self
        part = copy.copy(self)  # which checks nothing: the front end need not fit the other stack's changes
        for field, value in (("encoder_changes", ()), ("decoder_changes", ()), *changes):
            object.__setattr__(part, field, value)
        return part

    def _stack_config(
        self, name: Literal["encoder", "decoder"], num_layers: int, context_size: int
    ) -> StackConfig:
        config = self.part(name)
        own = {"num_layers": num_layers, "context_size": context_size}
        names = [field.name for field in dataclasses.fields(StackConfig) if field.name not in own]
        return StackConfig(**own, **{name: getattr(config, name) for name in names})

    def _check_changes(self) -> None:
        """Reads and checks the changes of both stacks."""
        for name in ("encoder", "decoder"):
            where = f"config.model.{name}_changes"
            changes = read_fields(TransformerConfig, getattr(self, f"{name}_changes"), where, CHANGEABLE)
            object.__setattr__(self, f"{name}_changes", changes)
            try:
                self.part(name)._check_fields()
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error

    def _check_parts(self) -> None:
        """Checks that head, encoder and decoder go together."""
        if self.is_encoder_only and self.is_decoder_only:
            raise ConfigError("model.num_encoder_layers and num_decoder_layers must not both be 0")
        if self.head not in HEADS:
            raise UnknownNameError(f"config.model.head={self.head!r} is no head: {nearest(self.head, HEADS)}")
        part = "encoder" if self.is_encoder_only else "decoder"
        if HEADS[self.head].part != part:
            usable = ", ".join(name for name, head in HEADS.items() if head.part == part)
            raise ConfigError(
                f"model.head={self.head!r} follows the {HEADS[self.head].part}, but this model ends "
                f"with its {part}, whose heads are {usable}"
            )
        if self.is_encoder_only and HEADS[self.head].needs_tokens and not self.front_end.has_tokens:
            usable = [name for name, head in HEADS.items() if head.part == part and not head.needs_tokens]
            raise ConfigError(
                f"model.head={self.head!r} is for tokens, but this is a model of {self.front_end.UNIT}. Its "
                f"heads are {', '.join(usable)}"
            )
        if self.is_decoder_only and not self.front_end.has_tokens:
            raise ConfigError(
                f"model.front_end.kind={self.front_end.kind!r} needs an encoder: set model.num_encoder_layers"
            )
        if (self.num_labels > 0) != bool(HEADS[self.head].labelled):
            needed = " and ".join(repr(name) for name, head in HEADS.items() if head.labelled)
            raise ConfigError(
                f"model.num_labels={self.num_labels} does not go with model.head={self.head!r}: the heads "
                f"{needed} need at least 1, the others have none"
            )
        if self.num_token_types and not self.is_encoder_only:
            raise ConfigError(
                f"model.num_token_types={self.num_token_types} is for an encoder alone: set it to 0"
            )
