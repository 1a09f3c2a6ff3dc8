"""Converts the parameters of a model for another config: layers stacked or not, images of another size."""

import dataclasses
from collections.abc import Callable

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
    "initial_stddev",
    "dtype",
    "scan_layers",
    "remat",
    "remat_keeps",
)


def differing(found: TransformerConfig, wanted: TransformerConfig) -> list[str]:
    """Returns the fields because of which parameters of ``found`` cannot be converted for ``wanted``.

    The head does not count. Images may have another size, because positions are interpolated; texts may have
    another length if positions are not learned.
    """
    free = {*MAY_DIFFER}
    if found.image_shape[2:] == wanted.image_shape[2:] != ():
        free |= {"image_shape", "max_length"}  # which follows from height and width
    elif found.positions != "learned":
        free.add("max_length")
    names = [field.name for field in dataclasses.fields(wanted)]
    return [name for name in names if name not in free and getattr(found, name) != getattr(wanted, name)]


def conversion(found: TransformerConfig, wanted: TransformerConfig) -> Callable[[PyTree], PyTree] | None:
    """Returns a function that converts parameters of ``found`` for ``wanted``; None if they are the same.

    The function may be traced. It does not change the head's parameters.
    """
    is_scaled, is_restacked = (
        getattr(found, name) != getattr(wanted, name) for name in ("image_shape", "scan_layers")
    )

    def convert(params: PyTree) -> PyTree:
        if is_scaled:
            params = with_positions(params, found, wanted)
        return restacked(params, stack=wanted.scan_layers) if is_restacked else params

    return convert if is_scaled or is_restacked else None


def with_positions(params: PyTree, found: TransformerConfig, wanted: TransformerConfig) -> PyTree:
    """Returns ``params`` with bicubic interpolation of the patches' positions for images of another size.

    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    table = params["embed_patches"]["positions"]["embedding"]
    old, new = (
        (shape[0] // wanted.patch_size, shape[1] // wanted.patch_size)
        for shape in (found.image_shape, wanted.image_shape)
    )
    grid = table[1:].reshape(*old, -1)
    resized = jax.image.resize(grid, (*new, grid.shape[-1]), "bicubic", antialias=False)
    table = jnp.concatenate([table[:1], resized.reshape(-1, grid.shape[-1])])
    return params | {"embed_patches": params["embed_patches"] | {"positions": {"embedding": table}}}


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
