"""The config of a model: everything that tells one Transformer from another."""

import dataclasses
import math
from typing import Annotated, Literal

from transformer_jax.config import ConfigError, check_types, nearest
from transformer_jax.models.front_ends import FRONT_ENDS, FrontEnd, Tokens
from transformer_jax.models.heads import HEADS
from transformer_jax.types import BOS_ID, EOS_ID, PAD_ID

_TOKENS = Tokens()


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that tells one Transformer from another; the defaults are the paper's base model.

    Sizes carry the names of Vaswani et al. 2017 (section 3 and Table 3) in full. Variants live in
    ``transformer_jax.families``.

    Raises:
      ConfigError: a size that does not fit another, or an unknown choice.
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
    # Halves: the sines first, then the cosines. Relative: T5's bias of attention scores.
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    relative_buckets: int = 32  # of relative positions, and the distance beyond which all share one
    relative_max_distance: int = 128  # tokens
    num_token_types: int = 0  # embeddings of BERT's segments, added to those of tokens
    front_end: Annotated[FrontEnd, FRONT_ENDS] = _TOKENS  # what the model reads
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-6
    embedding_norm: bool = False  # normalise embeddings + positions too
    activation: Literal["relu", "gelu", "gelu_tanh", "swish", "gated_gelu_tanh"] = "relu"
    biases: Literal["feedforward", "all", "none"] = "feedforward"  # all: in attention's projections too
    scale_attention: bool = True  # scores by 1 / sqrt(key_size); T5 has the scale in its initial weights
    # Of source tokens, target tokens and the product before the softmax; inputs: the first two.
    share_embeddings: Literal["all", "inputs", "target", "none"] = "all"
    # What sqrt(d_model) multiplies (inputs, section 3.4) or divides (logits, T5).
    embedding_scale: Literal["inputs", "logits", "none"] = "inputs"
    logits_bias: bool = False
    initial_stddev: float = 0.0  # of weights drawn from N(0, it^2); 0: Xavier uniform
    head: str = "tokens"  # what the model predicts: a name of ``models.heads.HEADS``
    num_labels: int = 0  # of heads whose outputs are scores of the user's labels
    dropout: float = 0.1  # on each sub-layer's output and on embeddings + positions, section 5.4
    attention_dropout: float = 0.0  # on attention weights
    feedforward_dropout: float = 0.0  # between the two feed-forward products
    output_dropout: bool = False  # ``dropout`` on what a stack gives as well, as T5 has it
    pad_id: int = PAD_ID
    decoder_start_id: int = BOS_ID
    eos_id: int = EOS_ID
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False  # one compiled layer, looped over
    remat: bool = False  # recompute activations in the backward pass, from
    remat_keeps: Literal["inputs", "products"] = "inputs"  # of layers, and what layers/kept.py marks as well

    def __post_init__(self) -> None:
        check_types(self, "model")
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
        for name in ("dropout", "attention_dropout", "feedforward_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be in [0, 1)")
        if not self.norm_epsilon > 0:
            raise ConfigError(f"model.norm_epsilon={self.norm_epsilon} must be above 0")
        if not 0 <= self.initial_stddev < math.inf:
            raise ConfigError(f"model.initial_stddev={self.initial_stddev} must be 0 (Xavier) or positive")
        if self.positions.startswith("sinusoidal") and self.d_model % 2:
            raise ConfigError(f"sinusoidal positions need an even model.d_model, not {self.d_model}")
        self._check_parts()
        self.front_end.check(self)
        if self.is_encoder_only and not self.front_end.has_tokens:
            return
        if self.vocab_size < 1:
            raise ConfigError(f"model.vocab_size={self.vocab_size} must be at least 1")
        for name in ("pad_id", "decoder_start_id", "eos_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} is outside the vocabulary of "
                    f"{self.vocab_size} tokens"
                )

    @property
    def is_encoder_only(self) -> bool:
        """Whether there is no decoder: BERT, ViT."""
        return self.num_decoder_layers == 0

    @property
    def is_decoder_only(self) -> bool:
        """Whether there is no encoder: GPT-2."""
        return self.num_encoder_layers == 0

    def _check_parts(self) -> None:
        """Checks that head, encoder and decoder go together."""
        if self.is_encoder_only and self.is_decoder_only:
            raise ConfigError("model.num_encoder_layers and num_decoder_layers must not both be 0")
        if self.head not in HEADS:
            raise ConfigError(f"config.model.head={self.head!r} is no head: {nearest(self.head, HEADS)}")
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
