"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): a BERT without types and pooler.

The head "classes" has a pooler with ReLU. In training, dropout is BERT's: its rate is that of the model in
heads too, and it also follows attention, where the released code has none.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor, attention, heads, layer_norm, linear
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 30_522  # of the uncased models
MULTILINGUAL_VOCAB_SIZE = 119_547


def _size(num_layers: int, d_model: int, num_heads: int, **fields: Any) -> dict[str, Any]:
    return dict(
        num_encoder_layers=num_layers, d_feedforward=4 * d_model, **heads(num_heads, d_model), **fields
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": _size(2, 128, 2),
    "base": _size(6, 768, 12),
    "multilingual": _size(6, 768, 12, vocab_size=MULTILINGUAL_VOCAB_SIZE),
}

FIXED: dict[str, Any] = dict(
    num_decoder_layers=0,
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
    pooler="relu",
    front_end=Tokens(),
)

DEFAULTS: dict[str, Any] = dict(
    head="masked_tokens",
    max_length=512,
    norm_epsilon=1e-12,
    dropout=0.1,
    attention_dropout=0.1,
    initial_stddev=0.02,
    pad_id=0,
)

_LAYER = "encoder/layer_{i}"
_THEIR_LAYER = "distilbert.transformer.layer.{i}"

TENSORS = (
    Tensor("embedding/embedding", "distilbert.embeddings.word_embeddings.weight"),
    Tensor("embed_inputs/positions/embedding", "distilbert.embeddings.position_embeddings.weight"),
    *layer_norm("embed_inputs/norm", "distilbert.embeddings.LayerNorm"),
    *attention(
        f"{_LAYER}/self_attention",
        *(f"{_THEIR_LAYER}.attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")),
    ),
    *layer_norm(f"{_LAYER}/self_attention_norm", f"{_THEIR_LAYER}.sa_layer_norm"),
    *linear(f"{_LAYER}/feedforward/hidden", f"{_THEIR_LAYER}.ffn.lin1"),
    *linear(f"{_LAYER}/feedforward/output", f"{_THEIR_LAYER}.ffn.lin2"),
    *layer_norm(f"{_LAYER}/feedforward_norm", f"{_THEIR_LAYER}.output_layer_norm"),
    *linear("head/masked_tokens/transform", "vocab_transform"),
    *layer_norm("head/masked_tokens/norm", "vocab_layer_norm"),
    Tensor("head/masked_tokens/logits/bias", "vocab_projector.bias"),
    *linear("head/pooler/dense", "pre_classifier"),
    *linear("head/classes", "classifier", may_be_zero=True),
    *linear("head/spans", "qa_outputs", may_be_zero=True),
)


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Returns the sizes of heads, and the epsilon of norms, which ``config.json`` does not have."""
    return dict(heads(config["n_heads"], config["dim"]), norm_epsilon=1e-12)


def _write(config: TransformerConfig) -> dict[str, Any]:
    return dict.fromkeys(("seq_classif_dropout", "qa_dropout"), config.dropout)


FAMILY = Family(
    "distilbert",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="distilbert",
        fields=(
            ("vocab_size", "vocab_size"),
            ("d_model", "dim"),
            ("num_heads", "n_heads"),
            ("num_encoder_layers", "n_layers"),
            ("d_feedforward", "hidden_dim"),
            ("max_length", "max_position_embeddings"),
            ("dropout", "dropout"),
            ("attention_dropout", "attention_dropout"),
            ("pad_id", "pad_token_id"),
        ),
        required={"activation": "gelu", "tie_word_embeddings": True},
        read=_read,
        write=_write,
        tensors=TENSORS,
        aliases={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ignored=(r".*embeddings\.position_ids",),
        prefix="distilbert.",
        heads=(
            ("masked_tokens", ("vocab_projector.bias",)),
            ("spans", ("qa_outputs.weight",)),
            ("classes", ("classifier.weight", "pre_classifier.weight")),
            ("token_classes", ("classifier.weight",)),
            ("none", ()),
        ),
        architectures={
            "masked_tokens": "DistilBertForMaskedLM",
            "spans": "DistilBertForQuestionAnswering",
            "classes": "DistilBertForSequenceClassification",
            "token_classes": "DistilBertForTokenClassification",
            "none": "DistilBertModel",
        },
    ),
    vocab_size=VOCAB_SIZE,
)

config = FAMILY.config
