"""BART (Lewis et al. 2020, arXiv:1910.13461)."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor, attention, heads, layer_norm, linear
from transformer_jax.families.layouts import Leading, SkippedRows
from transformer_jax.models import TransformerConfig

VOCAB_SIZE = 50_265


def _size(num_layers: int, d_model: int, num_heads: int) -> dict[str, Any]:
    return dict(
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        d_feedforward=4 * d_model,
        **heads(num_heads, d_model),
    )


VARIANTS: dict[str, dict[str, Any]] = {"base": _size(6, 768, 12), "large": _size(12, 1024, 16)}

FIXED: dict[str, Any] = dict(
    positions="learned",
    norm="layer",
    norm_position="post",
    embedding_norm=True,
    activation="gelu",
    biases="all",
    scale_attention=True,
    share_embeddings="all",
    embedding_scale="none",
    logits_bias=True,
    num_token_types=0,
    head="tokens",
)

# The released models start decoding with </s>.
DEFAULTS: dict[str, Any] = dict(
    max_length=1024,
    norm_epsilon=1e-5,
    dropout=0.1,
    attention_dropout=0.1,
    initial_stddev=0.02,
    pad_id=1,
    decoder_start_id=2,
    eos_id=2,
)


def stack_tensors(ours: str, *, cross_attention: bool) -> tuple[Tensor, ...]:
    """Returns the tensors of the layers of BART's encoder or decoder; Marian's have the same names."""
    place, their_place = f"{ours}/layer_{{i}}", f"model.{ours}.layers.{{i}}"
    names = {"self_attention": "self_attn"} | (
        {"context_attention": "encoder_attn"} if cross_attention else {}
    )
    tensors: list[Tensor] = []
    for name, theirs in names.items():
        parts = (f"{their_place}.{theirs}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj"))
        tensors += attention(f"{place}/{name}", *parts)
        tensors += layer_norm(f"{place}/{name}_norm", f"{their_place}.{theirs}_layer_norm")
    return (
        *tensors,
        *linear(f"{place}/feedforward/hidden", f"{their_place}.fc1"),
        *linear(f"{place}/feedforward/output", f"{their_place}.fc2"),
        *layer_norm(f"{place}/feedforward_norm", f"{their_place}.final_layer_norm"),
    )


def _embedded(ours: str, theirs: str) -> tuple[Tensor, ...]:
    return (
        Tensor(f"{ours}/positions/embedding", f"{theirs}.embed_positions.weight", SkippedRows(2)),
        *layer_norm(f"{ours}/norm", f"{theirs}.layernorm_embedding"),
    )


LOGITS_BIAS = Tensor("logits/bias", "final_logits_bias", Leading(1), is_optional=True)

TENSORS = (
    Tensor("embedding/embedding", "model.shared.weight"),
    *_embedded("embed_inputs", "model.encoder"),
    *_embedded("embed_targets", "model.decoder"),
    *stack_tensors("encoder", cross_attention=False),
    *stack_tensors("decoder", cross_attention=True),
    LOGITS_BIAS,
)

FIELDS = (
    ("vocab_size", "vocab_size"),
    ("d_model", "d_model"),
    ("num_heads", "encoder_attention_heads"),
    ("num_heads", "decoder_attention_heads"),
    ("num_encoder_layers", "encoder_layers"),
    ("num_decoder_layers", "decoder_layers"),
    ("d_feedforward", "encoder_ffn_dim"),
    ("d_feedforward", "decoder_ffn_dim"),
    ("max_length", "max_position_embeddings"),
    ("dropout", "dropout"),
    ("attention_dropout", "attention_dropout"),
    ("feedforward_dropout", "activation_dropout"),
    ("pad_id", "pad_token_id"),
    ("eos_id", "eos_token_id"),
    ("decoder_start_id", "decoder_start_token_id"),
)

ALIASES = {
    name: "model.shared.weight"
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
}


def read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Returns the sizes of heads, and the epsilon of norms, which ``config.json`` does not have."""
    return dict(heads(config["encoder_attention_heads"], config["d_model"]), norm_epsilon=1e-5)


def write(config: TransformerConfig) -> dict[str, Any]:
    """Returns the keys that ``transformers`` needs in addition."""
    return dict(is_encoder_decoder=True, tie_word_embeddings=True)


FAMILY = Family(
    "bart",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="bart",
        fields=FIELDS,
        required={"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True},
        read=read,
        write=write,
        tensors=TENSORS,
        aliases=ALIASES,
        prefix="model.",
        architectures={"tokens": "BartForConditionalGeneration"},
    ),
    vocab_size=VOCAB_SIZE,
)

config = FAMILY.config
