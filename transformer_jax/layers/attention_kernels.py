"""Which program computes an attention: plain XLA, or a kernel that stores no scores.

It is chosen while a model is traced, for the devices of its placement, which need not be those of this
process: a program can be compiled for others. Where plain XLA is all that is left on an accelerator, that is
said once, with the reason.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
from jaxtyping import Array, Float

from transformer_jax.layers import splash_attention, triton_attention
from transformer_jax.layers.cudnn_attention import cudnn_attention, cudnn_obstacle
from transformer_jax.layers.masks import Mask
from transformer_jax.placement import current_placement

_log = logging.getLogger(__name__)

Kernel: TypeAlias = Callable[..., Float[Array, "B L H W"]]

# Of each platform, the best first. On a CPU the Pallas kernels are interpreted, if asked for: for tests.
KERNELS = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}
_CALLS: dict[str, Kernel] = {
    "splash": splash_attention.splash_attention,
    "cudnn": cudnn_attention,
    "triton": triton_attention.triton_attention,
}
_PADDED_SHAPES = {"splash": splash_attention.padded_shape, "triton": triton_attention.padded_shape}
# How many scores a kernel may compute for each that is needed, as tokens are padded to blocks. Plans for v5e
# say: without padding a step of GPT-2 small (1,024 tokens) takes 47 % less time than with plain attention, of
# Transformer big (256 tokens) 20 % less; one of ViT-L/16 (197 tokens, 1.7 scores for each) takes 6 % more.
_MOST_PADDING = 1.5


def target_platform() -> str:
    """What the program that is being traced is for: "cpu", "gpu" or "tpu"."""
    placement = current_placement()
    if placement is not None:
        return placement.mesh.devices.flat[0].platform
    device = cast(Any, jax.config).jax_default_device
    return device if isinstance(device, str) else getattr(device, "platform", jax.default_backend())


def choose_kernel(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H W"],
    mask: Mask,
    *,
    obstacle: str,
    name: str,
) -> Kernel | None:
    """A kernel for this attention, or None: plain XLA.

    Args:
      obstacle: why no kernel will do, whatever the arrays; "" where nothing is in the way.
      name: of the attention, for messages.

    Returns:
      A function of query, key, value, ``mask`` and ``scale``, as ``splash_attention`` is.

    Raises:
      ValueError: the placement asks for a kernel that will not do.
    """
    placement, platform = current_placement(), target_platform()
    asked = "auto" if placement is None else placement.attention
    if asked == "plain" or (asked == "auto" and platform not in KERNELS):
        return None
    obstacles: list[str] = []
    for kernel in KERNELS[platform] if asked == "auto" else (asked,):
        found = obstacle or _misfit(kernel, platform, query, key, value, mask)
        if asked == "auto":
            found = found or _loss(kernel, query.shape[1], key.shape[1])
        if not found:
            return functools.partial(_CALLS[kernel], interpret=platform == "cpu")
        obstacles.append(found)
    reason = "; ".join(dict.fromkeys(obstacles))
    if asked != "auto":
        raise ValueError(f"mesh.attention={asked!r} will not do for {name}: {reason}; 'auto' or 'plain' will")
    _say_plain(name, platform, reason)
    return None


def _misfit(kernel, platform, query, key, value, mask) -> str:
    """Why a kernel cannot compute this attention, or ""."""
    if platform != "cpu" and kernel not in KERNELS[platform]:
        return f"a {platform.upper()} has {' and '.join(KERNELS[platform])}"
    if kernel == "cudnn":
        return _cudnn_misfit(query, key, value, mask)
    if kernel == "triton":
        return triton_attention.triton_obstacle(query.shape[3], value.shape[3])
    return ""


def _cudnn_misfit(query, key, value, mask) -> str:
    placement = current_placement()
    if placement is not None and placement.parts("sequence") > 1:
        return "cuDNN: queries are split over the mesh"
    return cudnn_obstacle(query, key, value, mask)


def _loss(kernel: str, length: int, num_keys: int) -> str:
    """Why a kernel had better not compute this attention, or ""."""
    if current_placement() is None and (count := jax.device_count()) > 1:
        return f"the model is not called within partitioning.on_mesh, and may be split over {count} devices"
    shape = (length, num_keys)
    padded = _PADDED_SHAPES[kernel](*shape) if kernel in _PADDED_SHAPES else shape
    if math.prod(padded) > _MOST_PADDING * math.prod(shape):  # and there is one message for all short rows
        return f"of so few tokens a kernel computes more than {_MOST_PADDING} scores for each that is needed"
    return ""


@functools.cache
def _say_plain(name: str, platform: str, reason: str) -> None:
    _log.warning("%s is plain XLA on this %s: %s", name, platform.upper(), reason)
