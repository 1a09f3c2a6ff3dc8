"""The Transformer of *Attention Is All You Need* (Vaswani et al. 2017, arXiv:1706.03762v7)."""

from typing import Any

from transformer_jax.families.base import Family

PAPER_VOCAB_SIZE = 37_000  # section 5.1: "about 37000 tokens", shared by English and German

BASE: dict[str, Any] = {}  # the defaults of TransformerConfig
BIG: dict[str, Any] = dict(d_model=1024, num_heads=16, d_feedforward=4096, dropout=0.3)


def _heads(num_heads: int, size: int) -> dict[str, Any]:
    return dict(num_heads=num_heads, key_size=size, value_size=size)


def _layers(count: int) -> dict[str, Any]:
    return dict(num_encoder_layers=count, num_decoder_layers=count)


# The rows of Table 3 are named by their letter and by what they change in ``base``.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=128, d_feedforward=512, **_heads(4, 32), **_layers(2)),
    "base": BASE,
    "big": BIG,
    "A-heads-1": _heads(1, 512),
    "A-heads-4": _heads(4, 128),
    "A-heads-16": _heads(16, 32),
    "A-heads-32": _heads(32, 16),
    "B-key-16": dict(key_size=16),
    "B-key-32": dict(key_size=32),
    "C-layers-2": _layers(2),
    "C-layers-4": _layers(4),
    "C-layers-8": _layers(8),
    "C-model-256": dict(d_model=256, **_heads(8, 32)),
    "C-model-1024": dict(d_model=1024, **_heads(8, 128)),
    "C-feedforward-1024": dict(d_feedforward=1024),
    "C-feedforward-4096": dict(d_feedforward=4096),
    "D-dropout-0.0": dict(dropout=0.0),
    "D-dropout-0.2": dict(dropout=0.2),
    "D-smoothing-0.0": BASE,
    "D-smoothing-0.2": BASE,
    "E-learned-positions": dict(positions="learned"),
}

# These rows change training and not the model. Other variants have a label smoothing of 0.1 (section 5.4).
LABEL_SMOOTHING = {"D-smoothing-0.0": 0.0, "D-smoothing-0.2": 0.2}


FAMILY = Family("transformer", VARIANTS, fixed={}, vocab_size=PAPER_VOCAB_SIZE)

config = FAMILY.config
