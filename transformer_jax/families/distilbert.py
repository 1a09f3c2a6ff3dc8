"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): a BERT without types and pooler.

The heads "classes", which has a pooler with ReLU, and "spans" have dropout with rates of their own. In
training, dropout also follows attention, as in BERT, where the released code has none.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families import bert
from transformer_jax.families.base import Checkpoint, Family, Tensor, encoder_size, heads, layer_norm, linear
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 30_522  # of the uncased models
MULTILINGUAL_VOCAB_SIZE = 119_547

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": encoder_size(2, 128, 2),
    "base": encoder_size(6, 768, 12),
    "multilingual": encoder_size(6, 768, 12, vocab_size=MULTILINGUAL_VOCAB_SIZE),
}

FIXED: dict[str, Any] = dict(**bert.ENCODER, num_token_types=0, pooler="relu", front_end=Tokens())

DEFAULTS: dict[str, Any] = {**bert.DEFAULTS, "head": "masked_tokens"}

_MODULES = (
    *(f"attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")),
    *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
)

TENSORS = (
    *bert.encoder_tensors("distilbert", "transformer.layer", _MODULES),
    *linear("head/masked_tokens/transform", "vocab_transform"),
    *layer_norm("head/masked_tokens/norm", "vocab_layer_norm"),
    Tensor("head/masked_tokens/logits/bias", "vocab_projector.bias"),
    *linear("head/pooler/dense", "pre_classifier"),
    *linear("head/classes", "classifier", may_be_zero=True),
    *linear("head/spans", "qa_outputs", may_be_zero=True),
)


# In transformers, the classes of tokens have the rate of the model, and the other heads have no dropout.
_HEAD_DROPOUTS: dict[str, tuple[str, float | None]] = {
    "classes": ("seq_classif_dropout", 0.2),
    "spans": ("qa_dropout", 0.1),
}


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Returns the sizes of heads, and the epsilon of norms, which ``config.json`` does not have."""
    return dict(heads(config["n_heads"], config["dim"]), norm_epsilon=1e-12)


def _write(config: TransformerConfig) -> dict[str, Any]:
    """Returns the rate of the head where the config has None, which ``transformers`` does not read."""
    if config.head_dropout is not None:
        return {}
    unset = {"classes": {"seq_classif_dropout": config.dropout}, "spans": {"qa_dropout": 0.0}}
    return unset.get(config.head, {})


def _derived(fields: Mapping[str, Any]) -> dict[str, Any]:
    _, rate = _HEAD_DROPOUTS.get(fields["head"], ("", None))
    return dict(head_dropout=rate)


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
        head_dropouts=_HEAD_DROPOUTS,
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
    derived=_derived,
)

config = FAMILY.config
