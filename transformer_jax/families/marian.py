"""MarianMT (Junczys-Dowmunt et al. 2018, "Marian"; Tiedemann and Thottingal 2020, "OPUS-MT").

OPUS-MT has models of more than a thousand language pairs. Each is the base model of Vaswani et al. 2017 with
biases in attention and on the logits, swish instead of ReLU, and the sinusoids in another order.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.bart import ALIASES, FIELDS, LOGITS_BIAS, read, stack_tensors, write
from transformer_jax.families.base import Checkpoint, Family, Tensor

VOCAB_SIZE = 58_101  # opus-mt-en-de with padding; other language pairs have other sizes

VARIANTS: dict[str, dict[str, Any]] = {"opus-mt": {}}  # the defaults of TransformerConfig

FIXED: dict[str, Any] = dict(
    positions="sinusoidal_halves",
    norm="layer",
    norm_position="post",
    embedding_norm=False,
    activation="swish",
    biases="all",
    scale_attention=True,
    share_embeddings="all",
    embedding_scale="inputs",
    logits_bias=True,
    num_token_types=0,
    head="tokens",
)

DEFAULTS: dict[str, Any] = dict(max_length=512, norm_epsilon=1e-5, dropout=0.1, eos_id=0)


def _starts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the id of padding, the last token of the vocabulary, which also starts decoding."""
    return dict.fromkeys(("pad_id", "decoder_start_id"), fields["vocab_size"] - 1)


FAMILY = Family(
    "marian",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="marian",
        fields=FIELDS,
        required={
            "activation_function": "swish",
            "scale_embedding": True,
            "static_position_embeddings": True,
            "normalize_before": False,
            "normalize_embedding": False,
            "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True,
        },
        read=read,
        write=write,
        tensors=(
            Tensor("embedding/embedding", "model.shared.weight"),
            *stack_tensors("encoder", cross_attention=False),
            *stack_tensors("decoder", cross_attention=True),
            LOGITS_BIAS,
        ),
        aliases=ALIASES,
        ignored=(r"model\.(en|de)coder\.embed_positions\.weight",),  # sinusoids
        prefix="model.",
        architectures={"tokens": "MarianMTModel"},
    ),
    vocab_size=VOCAB_SIZE,
    derived=_starts,
)

config = FAMILY.config
