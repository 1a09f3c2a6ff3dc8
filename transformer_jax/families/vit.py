"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929); Ti and S of Touvron et al. 2021."""

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
from transformer_jax.families.layouts import Convolution, Leading
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import Patches

PATCH_SIZES = (14, 16, 32)

_SIZES = {
    "Ti": encoder_size(12, 192, 3),
    "S": encoder_size(12, 384, 6),
    "B": encoder_size(12, 768, 12),
    "L": encoder_size(24, 1024, 16),
    "H": encoder_size(32, 1280, 16),
}

# In the paper's notation, B/16 has patches of 16 x 16 pixels.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{name}/{patch}": {**size, "patch_size": patch} for name, size in _SIZES.items() for patch in PATCH_SIZES
}

FIXED: dict[str, Any] = dict(
    front_end=Patches(),
    vocab_size=0,
    num_decoder_layers=0,
    positions="learned",
    norm="layer",
    norm_position="pre",
    embedding_norm=False,
    activation="gelu",
    biases="all",
    scale_attention=True,
    num_token_types=0,
)

DEFAULTS: dict[str, Any] = dict(
    image_shape=(224, 224, 3), head="classes", num_labels=1000, norm_epsilon=1e-12, dropout=0.1
)

_LAYER = "encoder/layer_{i}"
_THEIR_LAYER = "vit.encoder.layer.{i}"

TENSORS = (
    Tensor("embed_patches/class", "vit.embeddings.cls_token", Leading(2)),
    Tensor(
        "embed_patches/positions/embedding",
        "vit.embeddings.position_embeddings",
        Leading(1),
        may_be_zero=True,
    ),
    Tensor(
        "embed_patches/patches/kernel", "vit.embeddings.patch_embeddings.projection.weight", Convolution()
    ),
    Tensor("embed_patches/patches/bias", "vit.embeddings.patch_embeddings.projection.bias"),
    *attention(
        f"{_LAYER}/self_attention",
        f"{_THEIR_LAYER}.attention.attention.query",
        f"{_THEIR_LAYER}.attention.attention.key",
        f"{_THEIR_LAYER}.attention.attention.value",
        f"{_THEIR_LAYER}.attention.output.dense",
    ),
    *layer_norm(f"{_LAYER}/self_attention_norm", f"{_THEIR_LAYER}.layernorm_before"),
    *linear(f"{_LAYER}/feedforward/hidden", f"{_THEIR_LAYER}.intermediate.dense"),
    *linear(f"{_LAYER}/feedforward/output", f"{_THEIR_LAYER}.output.dense"),
    *layer_norm(f"{_LAYER}/feedforward_norm", f"{_THEIR_LAYER}.layernorm_after"),
    *layer_norm("encoder/final_norm", "vit.layernorm"),
    *linear("head/pooler/dense", "vit.pooler.dense"),
    *linear("head/classes", "classifier", may_be_zero=True),  # fine-tuning begins with zeros
)


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    (height, width), patch = _sides(config, "image_size", 224), _sides(config, "patch_size", 16)
    if patch[0] != patch[1]:
        raise ValueError(f"patch_size={config['patch_size']!r} must be the side of a square")
    return dict(
        **heads(config["num_attention_heads"], config["hidden_size"]),
        patch_size=patch[0],
        image_shape=(height, width, config.get("num_channels", 3)),
        max_length=(height // patch[0]) * (width // patch[0]) + 1,
    )


def _sides(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """Returns height and width in pixels, given as one number or a list of two; else raises ValueError."""
    value = config.get(key, default)
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"{key}={value!r} must be a number of pixels, or a list of two: height and width")
    return sides


def _write(config: TransformerConfig) -> dict[str, Any]:
    patches = config.front_end
    assert isinstance(patches, Patches)  # or it would be another family's
    height, width, channels = patches.image_shape
    size = height if height == width else [height, width]
    return dict(image_size=size, patch_size=patches.patch_size, num_channels=channels)


def _derived(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the number of positions, one for each patch and one for the class token."""
    height, width, _ = fields["image_shape"]
    patch_size = fields["patch_size"]
    unlabelled = {} if fields["head"] == "classes" else {"num_labels": 0}
    return dict(max_length=(height // patch_size) * (width // patch_size) + 1, **unlabelled)


FAMILY = Family(
    "vit",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="vit",
        fields=(
            ("d_model", "hidden_size"),
            ("num_heads", "num_attention_heads"),
            ("num_encoder_layers", "num_hidden_layers"),
            ("d_feedforward", "intermediate_size"),
            ("norm_epsilon", "layer_norm_eps"),
            ("dropout", "hidden_dropout_prob"),
            ("attention_dropout", "attention_probs_dropout_prob"),
        ),
        required={"hidden_act": "gelu", "qkv_bias": True, "pooler_act": "tanh"},
        read=_read,
        write=_write,
        tensors=TENSORS,
        left_over={"classes": (r"vit\.pooler\..*",)},  # of the model that was fine-tuned
        prefix="vit.",
        heads=(("classes", ("classifier.weight",)), ("pooled", ("pooler.dense.weight",)), ("none", ())),
        architectures={"classes": "ViTForImageClassification", "pooled": "ViTModel", "none": "ViTModel"},
    ),
    derived=_derived,
)

config = FAMILY.config
