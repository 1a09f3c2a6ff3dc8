"""The encoder of T5 alone (Raffel et al. 2020, arXiv:1910.10683), which encodes prompts of diffusion models.

The family reads checkpoints of ``T5EncoderModel``. With ``from_pretrained(..., family="t5_encoder")`` it also
reads the encoder of a whole T5: versions 1.0 and 1.1, Flan-T5 (Chung et al. 2022, arXiv:2210.11416) and mT5
(Xue et al. 2021, arXiv:2010.11934), which has a vocabulary of 101 languages.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families import t5
from transformer_jax.families.base import Checkpoint, Family, Tensor
from transformer_jax.models import TransformerConfig

MT5_VOCAB_SIZE = 250_112

FIXED: dict[str, Any] = {
    **t5.FIXED,
    "num_decoder_layers": 0,
    "share_embeddings": "all",
    "embedding_scale": "none",
    "head": "none",
}

_T5 = {
    name: {field: value for field, value in fields.items() if field not in FIXED}
    for name, fields in t5.VARIANTS.items()
}

# mT5 has the sizes of version 1.1.
VARIANTS: dict[str, dict[str, Any]] = _T5 | {
    f"mt5-{name.removeprefix('1.1-')}": {**fields, "vocab_size": MT5_VOCAB_SIZE}
    for name, fields in _T5.items()
    if name.startswith("1.1-")
}


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return t5.read_stack(config)


def _write(config: TransformerConfig) -> dict[str, Any]:
    return dict(t5.write_stack(config), is_encoder_decoder=False, tie_word_embeddings=True)


FAMILY = Family(
    "t5_encoder",
    VARIANTS,
    FIXED,
    t5.DEFAULTS,
    Checkpoint(
        model_type="t5",
        fields=t5.FIELDS,
        read=_read,
        write=_write,
        tensors=(
            Tensor("embedding/embedding", "shared.weight"),
            *t5.stack_tensors("encoder", (t5.SELF_ATTENTION,)),
        ),
        aliases={"encoder.embed_tokens.weight": "shared.weight"},
        left_over={"none": (r"decoder\..*", r"lm_head\.weight")},  # of a whole T5
        heads=(("none", ()),),
        architectures={"none": "T5EncoderModel"},
        also={"mt5": {"none": "MT5EncoderModel"}},
    ),
    vocab_size=t5.VOCAB_SIZE,
)

config = FAMILY.config
