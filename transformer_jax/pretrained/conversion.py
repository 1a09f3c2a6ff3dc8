"""Parameters of one model as another config has them: which fields may differ, and what changes with them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer_jax.models import TransformerConfig
from transformer_jax.types import PyTree

# What may differ between two models with the same parameters, but for those of a head; see ``differing`` too.
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
    """The fields by which the parameters of ``found``, a head's apart, cannot become those of ``wanted``.

    Images may be of another size, for positions are interpolated; texts of another length, where positions
    are not learned.
    """
    free = {*MAY_DIFFER}
    if found.image_shape[2:] == wanted.image_shape[2:] != ():
        free |= {"image_shape", "max_length"}  # which follows from height and width
    elif found.positions != "learned":
        free.add("max_length")
    names = [field.name for field in dataclasses.fields(wanted)]
    return [name for name in names if name not in free and getattr(found, name) != getattr(wanted, name)]


def conversion(found: TransformerConfig, wanted: TransformerConfig) -> Callable[[PyTree], PyTree] | None:
    """The function, to be traced or not, that makes parameters of ``found`` those of ``wanted``.

    A head's are left as they are. None where nothing has to be done.
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
    """Positions for images of another size: those of the patches interpolated as a picture, bicubic.

    Dosovitskiy et al. 2021, section 3.2.
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
    """``layer_0``, ``layer_1``, … of encoder and decoder as ``layers``, in one array each, or the reverse."""
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
