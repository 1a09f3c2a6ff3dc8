"""MarianMT (Junczys-Dowmunt et al. 2018, "Marian"; Tiedemann and Thottingal 2020, "OPUS-MT").

The paper's base model, trained for more than a thousand pairs of languages. It has biases in attention and
after the logits, swish instead of ReLU, and the sinusoids in another order.
"""

from typing import Any

from transformer_jax.families.bart import ALIASES, FIELDS, LOGITS_BIAS, read, stack_tensors, write
from transformer_jax.families.base import Checkpoint, Family, Tensor
from transformer_jax.models import TransformerConfig

VOCAB_SIZE = 58_101  # of opus-mt-en-de, padding included; each pair of languages has its own

VARIANTS: dict[str, dict[str, Any]] = {"opus-mt": {}}  # the sizes of the paper's base model

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
)


def config(variant: str = "opus-mt", *, vocab_size: int = VOCAB_SIZE, **changes: Any) -> TransformerConfig:
    """The config of a variant, with ``changes`` to any field of ``TransformerConfig``.

    The last token of the vocabulary is padding, and what decoding starts with.

    Raises:
      ConfigError: an unknown variant or field, or a change that does not fit.
    """
    ends = dict.fromkeys(("pad_id", "decoder_start_id"), vocab_size - 1)
    return FAMILY.config(variant, **{**ends, "vocab_size": vocab_size, **changes})
