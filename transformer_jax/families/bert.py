"""BERT (Devlin et al. 2019, arXiv:1810.04805); smaller sizes of Turc et al. 2019, arXiv:1908.08962."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import (
    Checkpoint,
    Family,
    Tensor,
    attention,
    encoder_size,
    heads,
    layer_norm,
    linear,
)
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 30_522  # of the released uncased models

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": encoder_size(2, 128, 2),
    "mini": encoder_size(4, 256, 4),
    "small": encoder_size(4, 512, 8),
    "medium": encoder_size(8, 512, 8),
    "base": encoder_size(12, 768, 12),
    "large": encoder_size(24, 1024, 16),
    "minilm": encoder_size(6, 384, 12),  # all-MiniLM-L6-v2 of sentence-transformers (Wang et al. 2020)
}

# What RoBERTa and DistilBERT share with BERT.
ENCODER: dict[str, Any] = dict(
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
)

FIXED: dict[str, Any] = dict(**ENCODER, num_token_types=2, front_end=Tokens())

DEFAULTS: dict[str, Any] = dict(
    head="pretraining",
    max_length=512,
    norm_epsilon=1e-12,
    dropout=0.1,
    attention_dropout=0.1,
    initial_stddev=0.02,
    pad_id=0,
)

_MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def encoder_tensors(
    model: str, layers: str = "encoder.layer", modules: tuple[str, ...] = _MODULES
) -> tuple[Tensor, ...]:
    """Returns the tensors of the embeddings and of the layers.

    Args:
      model: the name that all tensors of the model without its head begin with.
      layers: the name of the list of layers in the model.
      modules: the names in a layer of query, key, value, output and norm of the attention, and of the hidden
        map, output and norm of the feed-forward network.
    """
    ours, theirs = "encoder/layer_{i}", f"{model}.{layers}.{{i}}"
    query, key, value, output, attention_norm, hidden, feedforward_output, feedforward_norm = (
        f"{theirs}.{module}" for module in modules
    )
    embeddings = f"{model}.embeddings"
    return (
        Tensor("embedding/embedding", f"{embeddings}.word_embeddings.weight"),
        Tensor("embed_inputs/positions/embedding", f"{embeddings}.position_embeddings.weight"),
        # The table of types is zero in models that were trained without types.
        Tensor(
            "embed_inputs/types/embedding", f"{embeddings}.token_type_embeddings.weight", may_be_zero=True
        ),
        *layer_norm("embed_inputs/norm", f"{embeddings}.LayerNorm"),
        *attention(f"{ours}/self_attention", query, key, value, output),
        *layer_norm(f"{ours}/self_attention_norm", attention_norm),
        *linear(f"{ours}/feedforward/hidden", hidden),
        *linear(f"{ours}/feedforward/output", feedforward_output),
        *layer_norm(f"{ours}/feedforward_norm", feedforward_norm),
    )


TENSORS = (
    *encoder_tensors("bert"),
    *linear("head/pooler/dense", "bert.pooler.dense"),
    *linear("head/masked_tokens/transform", "cls.predictions.transform.dense"),
    *layer_norm("head/masked_tokens/norm", "cls.predictions.transform.LayerNorm"),
    Tensor("head/masked_tokens/logits/bias", "cls.predictions.bias"),
    *linear("head/next_sentence", "cls.seq_relationship", may_be_zero=True),
    *linear("head/classes", "classifier", may_be_zero=True),  # some fine-tunings begin with zeros
    *linear("head/spans", "qa_outputs", may_be_zero=True),
)


FIELDS = (
    ("vocab_size", "vocab_size"),
    ("d_model", "hidden_size"),
    ("num_heads", "num_attention_heads"),
    ("num_encoder_layers", "num_hidden_layers"),
    ("d_feedforward", "intermediate_size"),
    ("max_length", "max_position_embeddings"),
    ("norm_epsilon", "layer_norm_eps"),
    ("dropout", "hidden_dropout_prob"),
    ("attention_dropout", "attention_probs_dropout_prob"),
    ("pad_id", "pad_token_id"),
)

REQUIRED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "tie_word_embeddings": True,
}


# Heads without a key have no dropout in transformers.
HEAD_DROPOUTS: dict[str, tuple[str, float | None]] = dict.fromkeys(
    ("classes", "token_classes"), ("classifier_dropout", None)
)


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return heads(config["num_attention_heads"], config["hidden_size"])


FAMILY = Family(
    "bert",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="bert",
        fields=FIELDS,
        required={**REQUIRED, "type_vocab_size": 2},
        read=_read,
        tensors=TENSORS,
        head_dropouts=HEAD_DROPOUTS,
        aliases={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        ignored=(r".*embeddings\.position_ids",),
        # Checkpoints with these heads may keep the pooler of the model that they were fine-tuned from.
        left_over=dict.fromkeys(("masked_tokens", "spans", "token_classes"), (r"bert\.pooler\..*",)),
        prefix="bert.",
        heads=(
            ("pretraining", ("cls.predictions.bias", "cls.seq_relationship.weight")),
            ("masked_tokens", ("cls.predictions.bias",)),
            ("next_sentence", ("cls.seq_relationship.weight", "pooler.dense.weight")),
            ("spans", ("qa_outputs.weight",)),
            ("classes", ("classifier.weight", "pooler.dense.weight")),
            ("token_classes", ("classifier.weight",)),
            ("pooled", ("pooler.dense.weight",)),
            ("none", ()),
        ),
        architectures={
            "pretraining": "BertForPreTraining",
            "masked_tokens": "BertForMaskedLM",
            "next_sentence": "BertForNextSentencePrediction",
            "spans": "BertForQuestionAnswering",
            "classes": "BertForSequenceClassification",
            "token_classes": "BertForTokenClassification",
            "pooled": "BertModel",
            "none": "BertModel",
        },
    ),
    vocab_size=VOCAB_SIZE,
)

config = FAMILY.config
