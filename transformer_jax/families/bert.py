"""BERT (Devlin et al. 2019, arXiv:1810.04805); smaller sizes of Turc et al. 2019, arXiv:1908.08962."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor, attention, heads, layer_norm, linear
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 30_522  # of the released uncased models


def _size(num_layers: int, d_model: int, num_heads: int) -> dict[str, Any]:
    return dict(num_encoder_layers=num_layers, d_feedforward=4 * d_model, **heads(num_heads, d_model))


VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": _size(2, 128, 2),
    "mini": _size(4, 256, 4),
    "small": _size(4, 512, 8),
    "medium": _size(8, 512, 8),
    "base": _size(12, 768, 12),
    "large": _size(24, 1024, 16),
    "minilm": _size(6, 384, 12),  # all-MiniLM-L6-v2 of sentence-transformers (Wang et al. 2020)
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
    num_token_types=2,
    front_end=Tokens(),
)

DEFAULTS: dict[str, Any] = dict(
    head="pretraining",
    max_length=512,
    norm_epsilon=1e-12,
    dropout=0.1,
    attention_dropout=0.1,
    initial_stddev=0.02,
    pad_id=0,
)

_LAYER = "encoder/layer_{i}"
_THEIR_LAYER = "bert.encoder.layer.{i}"

TENSORS = (
    Tensor("embedding/embedding", "bert.embeddings.word_embeddings.weight"),
    Tensor("embed_inputs/positions/embedding", "bert.embeddings.position_embeddings.weight"),
    # The table of types is zero in models that were trained without types.
    Tensor("embed_inputs/types/embedding", "bert.embeddings.token_type_embeddings.weight", may_be_zero=True),
    *layer_norm("embed_inputs/norm", "bert.embeddings.LayerNorm"),
    *attention(
        f"{_LAYER}/self_attention",
        f"{_THEIR_LAYER}.attention.self.query",
        f"{_THEIR_LAYER}.attention.self.key",
        f"{_THEIR_LAYER}.attention.self.value",
        f"{_THEIR_LAYER}.attention.output.dense",
    ),
    *layer_norm(f"{_LAYER}/self_attention_norm", f"{_THEIR_LAYER}.attention.output.LayerNorm"),
    *linear(f"{_LAYER}/feedforward/hidden", f"{_THEIR_LAYER}.intermediate.dense"),
    *linear(f"{_LAYER}/feedforward/output", f"{_THEIR_LAYER}.output.dense"),
    *layer_norm(f"{_LAYER}/feedforward_norm", f"{_THEIR_LAYER}.output.LayerNorm"),
    *linear("head/pooler/dense", "bert.pooler.dense"),
    *linear("head/masked_tokens/transform", "cls.predictions.transform.dense"),
    *layer_norm("head/masked_tokens/norm", "cls.predictions.transform.LayerNorm"),
    Tensor("head/masked_tokens/logits/bias", "cls.predictions.bias"),
    *linear("head/next_sentence", "cls.seq_relationship", may_be_zero=True),
    *linear("head/classes", "classifier", may_be_zero=True),  # some fine-tunings begin with zeros
    *linear("head/spans", "qa_outputs", may_be_zero=True),
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
        fields=(
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
        ),
        required={
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "tie_word_embeddings": True,
        },
        read=_read,
        tensors=TENSORS,
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
