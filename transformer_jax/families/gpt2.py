"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor, heads, layer_norm, linear
from transformer_jax.families.layouts import Matrix, Part, Vector
from transformer_jax.models import TransformerConfig

VOCAB_SIZE = 50_257


def _size(num_layers: int, d_model: int, num_heads: int) -> dict[str, Any]:
    return dict(num_decoder_layers=num_layers, d_feedforward=4 * d_model, **heads(num_heads, d_model))


VARIANTS: dict[str, dict[str, Any]] = {
    "small": _size(12, 768, 12),
    "medium": _size(24, 1024, 16),
    "large": _size(36, 1280, 20),
    "xl": _size(48, 1600, 25),
}

FIXED: dict[str, Any] = dict(
    num_encoder_layers=0,
    positions="learned",
    norm="layer",
    norm_position="pre",
    embedding_norm=False,
    activation="gelu_tanh",
    biases="all",
    scale_attention=True,
    share_embeddings="all",
    embedding_scale="none",
    logits_bias=False,
    num_token_types=0,
    head="tokens",
)

DEFAULTS: dict[str, Any] = dict(
    max_length=1024, norm_epsilon=1e-5, dropout=0.1, attention_dropout=0.1, initial_stddev=0.02
)

_LAYER = "decoder/layer_{i}"
_THEIR_LAYER = "transformer.h.{i}"

TENSORS = (
    Tensor("embedding/embedding", "transformer.wte.weight"),
    Tensor("embed_inputs/positions/embedding", "transformer.wpe.weight"),
    *(
        tensor
        for k, name in enumerate(("query", "key", "value"))
        for tensor in (
            Tensor(
                f"{_LAYER}/self_attention/{name}/kernel",
                f"{_THEIR_LAYER}.attn.c_attn.weight",
                Part(k, 3, Matrix()),
            ),
            Tensor(
                f"{_LAYER}/self_attention/{name}/bias",
                f"{_THEIR_LAYER}.attn.c_attn.bias",
                Part(k, 3, Vector()),
            ),
        )
    ),
    *linear(f"{_LAYER}/self_attention/output", f"{_THEIR_LAYER}.attn.c_proj", Matrix(inputs=2)),
    *layer_norm(f"{_LAYER}/self_attention_norm", f"{_THEIR_LAYER}.ln_1"),
    *linear(f"{_LAYER}/feedforward/hidden", f"{_THEIR_LAYER}.mlp.c_fc", Matrix()),
    *linear(f"{_LAYER}/feedforward/output", f"{_THEIR_LAYER}.mlp.c_proj", Matrix()),
    *layer_norm(f"{_LAYER}/feedforward_norm", f"{_THEIR_LAYER}.ln_2"),
    *layer_norm("decoder/final_norm", "transformer.ln_f"),
)


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    eos_id = config.get("eos_token_id")
    eos_id = config["vocab_size"] - 1 if eos_id is None else eos_id
    if not isinstance(eos_id, int):
        raise ValueError(f"eos_token_id={eos_id!r} must be one number")
    inner = config.get("n_inner")
    return dict(
        **heads(config["n_head"], config["n_embd"]),
        d_feedforward=4 * config["n_embd"] if inner is None else inner,
        eos_id=eos_id,
        decoder_start_id=eos_id,
        pad_id=eos_id,  # GPT-2 has no padding token, and its model here finds padding by segments
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    return dict(
        n_inner=config.d_feedforward, eos_token_id=config.eos_id, bos_token_id=config.decoder_start_id
    )


def _ends(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the id of ``<|endoftext|>``, the last token, which starts and ends documents."""
    return dict.fromkeys(("pad_id", "decoder_start_id", "eos_id"), fields["vocab_size"] - 1)


FAMILY = Family(
    "gpt2",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="gpt2",
        fields=(
            ("vocab_size", "vocab_size"),
            ("d_model", "n_embd"),
            ("num_heads", "n_head"),
            ("num_decoder_layers", "n_layer"),
            ("max_length", "n_positions"),
            ("norm_epsilon", "layer_norm_epsilon"),
            ("dropout", "resid_pdrop"),
            ("dropout", "embd_pdrop"),
            ("attention_dropout", "attn_pdrop"),
        ),
        required={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        read=_read,
        write=_write,
        tensors=TENSORS,
        aliases={"lm_head.weight": "transformer.wte.weight"},
        ignored=(r".*\.attn\.(masked_)?bias",),
        prefix="transformer.",
        architectures={"tokens": "GPT2LMHeadModel"},
    ),
    vocab_size=VOCAB_SIZE,
    derived=_ends,
)

config = FAMILY.config
