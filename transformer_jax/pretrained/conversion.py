"""Converts the parameters of a model for another config: stacks or unstacks its layers, resizes images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.models import TransformerConfig
from transformer_jax.types import PyTree

# Fields that may differ between two models whose parameters, except those of a head, are the same.
MAY_DIFFER = (
    "head",
    "num_labels",
    "dropout",
    "attention_dropout",
    "feedforward_dropout",
    "head_dropout",
    "pooler_dropout",
    "output_dropout",
    "initial_stddev",
    "dtype",
    "scan_layers",
    "remat",
    "remat_keeps",
)


def differing(found: TransformerConfig, wanted: TransformerConfig) -> list[str]:
    """Returns the differing fields that prevent converting parameters of ``found`` for ``wanted``.

    The head is not compared. Fields of the front end are named ``front_end.FIELD``. Some front ends can be
    resized: for another image size, positions are interpolated. ``max_length`` may differ if positions are
    not learned.
    """
    free = {*MAY_DIFFER}
    if resizable := wanted.front_end.resizable(found.front_end):
        free |= {f"front_end.{name}" for name in resizable} | {"max_length"}
    elif found.positions != "learned":
        free.add("max_length")
    one, other = fields_of(found), fields_of(wanted)
    return [name for name in {**other, **one} if name not in free and one.get(name) != other.get(name)]


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Returns the fields of a config; those of its front end by names such as ``front_end.kind``."""
    fields = {name: value for name, value in vars(config).items() if name != "front_end"}
    return fields | {f"front_end.{name}": value for name, value in vars(config.front_end).items()}


def conversion(found: TransformerConfig, wanted: TransformerConfig) -> Callable[[PyTree], PyTree] | None:
    """Returns a function that converts parameters of ``found`` for ``wanted``; None if they are the same.

    The function may be traced. It does not change the head's parameters.
    """
    is_resized, is_restacked = (
        getattr(found, name) != getattr(wanted, name) for name in ("front_end", "scan_layers")
    )

    def convert(params: PyTree) -> PyTree:
        if is_resized:
            params = wanted.front_end.resized(params, found.front_end)
        return restacked(params, stack=wanted.scan_layers) if is_restacked else params

    return convert if is_resized or is_restacked else None


def restacked(params: PyTree, *, stack: bool) -> PyTree:
    """Stacks ``layer_0``, ``layer_1``, … of the encoder and decoder into ``layers``, or unstacks them."""
    return params | {
        name: (_stacked if stack else _unstacked)(params[name])
        for name in ("encoder", "decoder")
        if name in params
    }


def _stacked(tree: PyTree) -> PyTree:
    names = [name for name in tree if name.startswith("layer_")]
    layers = [tree[f"layer_{i}"] for i in range(len(names))]
    others = {name: part for name, part in tree.items() if name not in names}
    return others | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def _unstacked(tree: PyTree) -> PyTree:
    layers = tree["layers"]
    count = len(jax.tree.leaves(layers)[0])
    others = {name: part for name, part in tree.items() if name != "layers"}
    return others | {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count)}
