"""RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-R (Conneau et al. 2020, arXiv:1911.02116).

They are BERTs without types of texts, whose positions are counted from ``pad_id + 1`` over the tokens that
are not padding. The head "classes" has a pooler of its own. XLM-R and CamemBERT are written as RoBERTa, which
computes the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.families import bert
from transformer_jax.families.base import Checkpoint, Family, Tensor, encoder_size, heads, layer_norm, linear
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import Tokens

VOCAB_SIZE = 50_265
XLM_VOCAB_SIZE = 250_002

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": encoder_size(2, 128, 2),
    "distilroberta": encoder_size(6, 768, 12),  # and all-distilroberta-v1 (Sanh et al. 2019)
    "base": encoder_size(12, 768, 12),
    "large": encoder_size(24, 1024, 16),
    "xlm_roberta_base": encoder_size(12, 768, 12, vocab_size=XLM_VOCAB_SIZE),
    "xlm_roberta_large": encoder_size(24, 1024, 16, vocab_size=XLM_VOCAB_SIZE),
}

FIXED: dict[str, Any] = dict(
    **bert.ENCODER,
    num_token_types=1,  # a vector that is added to every token
    front_end=Tokens(position_offset=2, positions_skip_padding=True),
)

DEFAULTS: dict[str, Any] = {
    **bert.DEFAULTS,
    "head": "masked_tokens",
    "norm_epsilon": 1e-5,
    "pooler_dropout": True,
    "pad_id": 1,
    "decoder_start_id": 0,
    "eos_id": 2,
}


def _of_head(head: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(dataclasses.replace(tensor, when=("head", head)) for tensor in tensors)


TENSORS = (
    *bert.encoder_tensors("roberta"),
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
    """Returns the fields that differ from BERT's: the table has rows before the first position, too."""
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
        fields=bert.FIELDS,
        required={**bert.REQUIRED, "type_vocab_size": 1},
        read=_read,
        write=_write,
        tensors=TENSORS,
        head_dropouts=bert.HEAD_DROPOUTS,
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
