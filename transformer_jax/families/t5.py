"""T5 (Raffel et al. 2020, arXiv:1910.10683), version 1.0, and 1.1 (Shazeer 2020, arXiv:2002.05202).

Version 1.1 has gated feed-forward networks, does not share the embeddings with the logits, and is pretrained
without dropout.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.families.base import Checkpoint, Family, Tensor
from transformer_jax.families.layouts import Linear
from transformer_jax.models import TransformerConfig

VOCAB_SIZE = 32_128  # 32,000 pieces and 100 sentinels, rounded up to a multiple of 128


def _size(
    d_model: int, d_feedforward: int, num_heads: int, num_layers: int, size: int = 64
) -> dict[str, Any]:
    return dict(
        d_model=d_model,
        d_feedforward=d_feedforward,
        num_heads=num_heads,
        key_size=size,
        value_size=size,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
    )


_1_0: dict[str, Any] = dict(activation="relu", share_embeddings="all", embedding_scale="logits")
_1_1: dict[str, Any] = dict(activation="gated_gelu_tanh", share_embeddings="inputs", embedding_scale="none")

VARIANTS: dict[str, dict[str, Any]] = {
    "small": {**_1_0, **_size(512, 2048, 8, 6)},
    "base": {**_1_0, **_size(768, 3072, 12, 12)},
    "large": {**_1_0, **_size(1024, 4096, 16, 24)},
    "3b": {**_1_0, **_size(1024, 16_384, 32, 24, 128)},
    "11b": {**_1_0, **_size(1024, 65_536, 128, 24, 128)},
    "1.1-small": {**_1_1, **_size(512, 1024, 6, 8)},
    "1.1-base": {**_1_1, **_size(768, 2048, 12, 12)},
    "1.1-large": {**_1_1, **_size(1024, 2816, 16, 24)},
    "1.1-xl": {**_1_1, **_size(2048, 5120, 32, 24)},
    "1.1-xxl": {**_1_1, **_size(4096, 10_240, 64, 24)},
}

FIXED: dict[str, Any] = dict(
    positions="relative",
    norm="rms",
    norm_position="pre",
    embedding_norm=False,
    biases="none",
    scale_attention=False,
    logits_bias=False,
    num_token_types=0,
    head="tokens",
)

DEFAULTS: dict[str, Any] = dict(
    max_length=512,
    norm_epsilon=1e-6,
    dropout=0.1,
    attention_dropout=0.1,
    feedforward_dropout=0.1,
    output_dropout=True,
    pad_id=0,
    decoder_start_id=0,
    eos_id=1,
)


def stack_tensors(stack: str, sublayers: tuple[tuple[str, str], ...]) -> tuple[Tensor, ...]:
    """Returns the tensors of the encoder or decoder; ``sublayers`` names its attentions, ours and theirs."""
    tensors = [
        Tensor(
            f"{stack}/relative_bias/embedding",
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        Tensor(f"{stack}/final_norm/scale", f"{stack}.final_layer_norm.weight"),
    ]
    for number, (ours, theirs) in enumerate((*sublayers, ("feedforward", ""))):
        place, their_place = f"{stack}/layer_{{i}}", f"{stack}.block.{{i}}.layer.{number}"
        tensors.append(Tensor(f"{place}/{ours}_norm/scale", f"{their_place}.layer_norm.weight"))
        if theirs:
            tensors += [
                Tensor(
                    f"{place}/{ours}/{name}/kernel",
                    f"{their_place}.{theirs}.{name[0]}.weight",
                    Linear(inputs=2 if name == "output" else 1),
                )
                for name in ("query", "key", "value", "output")
            ]
    dense = f"{their_place}.DenseReluDense"
    is_gated = ("activation", "gated_gelu_tanh")
    return (
        *tensors,
        Tensor(
            f"{place}/feedforward/hidden/kernel", f"{dense}.wi.weight", Linear(), when=("activation", "relu")
        ),
        Tensor(f"{place}/feedforward/gate/kernel", f"{dense}.wi_0.weight", Linear(), when=is_gated),
        Tensor(f"{place}/feedforward/hidden/kernel", f"{dense}.wi_1.weight", Linear(), when=is_gated),
        Tensor(f"{place}/feedforward/output/kernel", f"{dense}.wo.weight", Linear()),
    )


SELF_ATTENTION = ("self_attention", "SelfAttention")

TENSORS = (
    Tensor("embedding/embedding", "shared.weight"),
    *stack_tensors("encoder", (SELF_ATTENTION,)),
    *stack_tensors("decoder", (SELF_ATTENTION, ("context_attention", "EncDecAttention"))),
    Tensor("logits/projection/kernel", "lm_head.weight", Linear(), when=("share_embeddings", "inputs")),
)


# For each supported feed_forward_proj, the keys that transformers derives from it and follows.
_FEEDFORWARDS = {
    "relu": dict(dense_act_fn="relu", is_gated_act=False),
    "gated-gelu": dict(dense_act_fn="gelu_new", is_gated_act=True),
}


def read_stack(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the encoder, which the decoder shares."""
    activation = config.get("feed_forward_proj", "relu")
    if activation not in list(_FEEDFORWARDS):  # a list, because the value may be unhashable
        raise ValueError(f"feed_forward_proj={activation!r} must be one of {', '.join(_FEEDFORWARDS)}")
    for key, value in _FEEDFORWARDS[activation].items():
        if config.get(key, value) != value:
            raise ValueError(f"{key}={config[key]!r} contradicts feed_forward_proj={activation!r}")
    return dict(
        value_size=config["d_kv"],
        activation={"relu": "relu", "gated-gelu": "gated_gelu_tanh"}[activation],
        attention_dropout=config.get("dropout_rate", 0.1),
        feedforward_dropout=config.get("dropout_rate", 0.1),
    )


def write_stack(config: TransformerConfig) -> dict[str, Any]:
    """Returns the keys for the fields of ``read_stack``."""
    return dict(feed_forward_proj="gated-gelu" if config.activation == "gated_gelu_tanh" else "relu")


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    # transformers 5 writes tie_word_embeddings=true for version 1.1 too, but only that has lm_head.weight.
    is_scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    # It writes the same for mT5, whose logits it never scales.
    is_scaled = is_scaled and config["model_type"] != "mt5"
    is_tied = "lm_head.weight" not in names or is_scaled
    # transformers, too, starts decoding with padding by default.
    start = config.get("decoder_start_token_id", config.get("pad_token_id", DEFAULTS["pad_id"]))
    return dict(
        **read_stack(config),
        num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        share_embeddings="all" if is_tied else "inputs",
        embedding_scale="logits" if is_scaled else "none",
        decoder_start_id=start,
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    if (config.share_embeddings == "all") != (config.embedding_scale == "logits"):
        raise ValueError(
            "transformers ties embeddings and scales logits by one key, tie_word_embeddings, so that "
            "share_embeddings='all' needs embedding_scale='logits' and the reverse, but this model has "
            f"share_embeddings={config.share_embeddings!r} and embedding_scale={config.embedding_scale!r}"
        )
    return dict(
        **write_stack(config),
        num_decoder_layers=config.num_decoder_layers,
        tie_word_embeddings=config.embedding_scale == "logits",
        is_encoder_decoder=True,
    )


FIELDS = (
    ("vocab_size", "vocab_size"),
    ("d_model", "d_model"),
    ("num_heads", "num_heads"),
    ("key_size", "d_kv"),
    ("d_feedforward", "d_ff"),
    ("num_encoder_layers", "num_layers"),
    ("norm_epsilon", "layer_norm_epsilon"),
    ("dropout", "dropout_rate"),
    ("pad_id", "pad_token_id"),
    ("eos_id", "eos_token_id"),
    ("max_length", "n_positions"),
    ("relative_buckets", "relative_attention_num_buckets"),
    ("relative_max_distance", "relative_attention_max_distance"),
)

FAMILY = Family(
    "t5",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="t5",
        fields=(*FIELDS, ("decoder_start_id", "decoder_start_token_id")),
        read=_read,
        write=_write,
        tensors=TENSORS,
        aliases={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        architectures={"tokens": "T5ForConditionalGeneration"},
        also={"mt5": {"tokens": "MT5ForConditionalGeneration"}},
    ),
    vocab_size=VOCAB_SIZE,
)

config = FAMILY.config
