"""RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-R (Conneau et al. 2020, arXiv:1911.02116).

They are BERTs without types of texts, whose positions are counted from ``pad_id + 1`` over the tokens that
are not padding. The head "classes" has a pooler of its own. XLM-R and CamemBERT are written as RoBERTa, which
computes the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor, attention, heads, layer_norm, linear
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 50_265
XLM_VOCAB_SIZE = 250_002


def _size(num_layers: int, d_model: int, num_heads: int, **fields: Any) -> dict[str, Any]:
    return dict(
        num_encoder_layers=num_layers, d_feedforward=4 * d_model, **heads(num_heads, d_model), **fields
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": _size(2, 128, 2),
    "distilroberta": _size(6, 768, 12),  # distilroberta-base and all-distilroberta-v1 (Sanh et al. 2019)
    "base": _size(12, 768, 12),
    "large": _size(24, 1024, 16),
    "xlm_roberta_base": _size(12, 768, 12, vocab_size=XLM_VOCAB_SIZE),
    "xlm_roberta_large": _size(24, 1024, 16, vocab_size=XLM_VOCAB_SIZE),
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
    num_token_types=1,  # a vector that is added to every token
    pooler_dropout=True,
    front_end=Tokens(position_offset=2, positions_skip_padding=True),
)

DEFAULTS: dict[str, Any] = dict(
    head="masked_tokens",
    max_length=512,
    norm_epsilon=1e-5,
    dropout=0.1,
    attention_dropout=0.1,
    initial_stddev=0.02,
    pad_id=1,
    decoder_start_id=0,
    eos_id=2,
)

_LAYER = "encoder/layer_{i}"
_THEIR_LAYER = "roberta.encoder.layer.{i}"


def _of_head(head: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(dataclasses.replace(tensor, when=("head", head)) for tensor in tensors)


TENSORS = (
    Tensor("embedding/embedding", "roberta.embeddings.word_embeddings.weight"),
    Tensor("embed_inputs/positions/embedding", "roberta.embeddings.position_embeddings.weight"),
    Tensor(
        "embed_inputs/types/embedding", "roberta.embeddings.token_type_embeddings.weight", may_be_zero=True
    ),
    *layer_norm("embed_inputs/norm", "roberta.embeddings.LayerNorm"),
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
    *linear("head/masked_tokens/transform", "lm_head.dense"),
    *layer_norm("head/masked_tokens/norm", "lm_head.layer_norm"),
    Tensor("head/masked_tokens/logits/bias", "lm_head.bias"),
    *linear("head/spans", "qa_outputs", may_be_zero=True),
    *_of_head("pooled", linear("head/pooler/dense", "roberta.pooler.dense")),
    # The classifier of texts does not use the pooler of the model, but has one of its own.
    *_of_head("classes", linear("head/pooler/dense", "classifier.dense")),
    *_of_head("classes", linear("head/classes", "classifier.out_proj", may_be_zero=True)),
    *_of_head("token_classes", linear("head/classes", "classifier", may_be_zero=True)),
)

_CLASSES = {
    "masked_tokens": "ForMaskedLM",
    "spans": "ForQuestionAnswering",
    "classes": "ForSequenceClassification",
    "token_classes": "ForTokenClassification",
    "pooled": "Model",
    "none": "Model",
}


def _classes(name: str) -> dict[str, str]:
    return {head: name + ending for head, ending in _CLASSES.items()}


def _offset(pad_id: int) -> int:
    """Returns the row of the table of positions that the first token gets."""
    return pad_id + 1


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    offset = _offset(config.get("pad_token_id", DEFAULTS["pad_id"]))
    return dict(
        heads(config["num_attention_heads"], config["hidden_size"]),
        position_offset=offset,
        max_length=config["max_position_embeddings"] - offset,
        norm_epsilon=config.get("layer_norm_eps", 1e-12),  # as transformers, whose default is BERT's
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return dict(max_position_embeddings=config.max_length + _offset(config.pad_id))


def _derived(fields: Mapping[str, Any]) -> dict[str, Any]:
    return dict(position_offset=_offset(fields["pad_id"]))


FAMILY = Family(
    "roberta",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="roberta",
        fields=(
            ("vocab_size", "vocab_size"),
            ("d_model", "hidden_size"),
            ("num_heads", "num_attention_heads"),
            ("num_encoder_layers", "num_hidden_layers"),
            ("d_feedforward", "intermediate_size"),
            ("max_length", "max_position_embeddings"),  # and the offset: see _read and _write
            ("norm_epsilon", "layer_norm_eps"),
            ("dropout", "hidden_dropout_prob"),
            ("attention_dropout", "attention_probs_dropout_prob"),
            ("pad_id", "pad_token_id"),
        ),
        required={
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "tie_word_embeddings": True,
        },
        read=_read,
        write=_write,
        tensors=TENSORS,
        aliases={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        ignored=(r".*embeddings\.position_ids",),
        # The released models have the pooler, which no head but "pooled" reads.
        left_over=dict.fromkeys(_CLASSES.keys() - {"pooled", "none"}, (r"roberta\.pooler\..*",)),
        prefix="roberta.",
        heads=(
            ("masked_tokens", ("lm_head.bias",)),
            ("spans", ("qa_outputs.weight",)),
            ("classes", ("classifier.out_proj.weight",)),
            ("token_classes", ("classifier.weight",)),
            ("pooled", ("pooler.dense.weight",)),
            ("none", ()),
        ),
        architectures=_classes("Roberta"),
        also={"xlm-roberta": _classes("XLMRoberta"), "camembert": _classes("Camembert")},
    ),
    vocab_size=VOCAB_SIZE,
    derived=_derived,
)

config = FAMILY.config
