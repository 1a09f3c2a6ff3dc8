"""Chooses the program that computes an attention: plain XLA, or a kernel that does not store the scores.

The choice is made while a model is traced, for the devices of its placement. Those need not be the devices of
this process, because a program can be compiled for others. If only plain XLA can compute an attention on an
accelerator, a warning says so once, with the reason.

To add a kernel, add an object to ``KERNELS``; nothing else has to know it.
"""

import functools
import logging
import math
from typing import Any, cast

import jax
from jaxtyping import Array, Float

from transformer_jax.layers.cudnn_attention import CudnnAttention
from transformer_jax.layers.kernel import Kernel
from transformer_jax.layers.masks import Mask
from transformer_jax.layers.splash_attention import SplashAttention
from transformer_jax.layers.triton_attention import TritonAttention
from transformer_jax.sharding.placement import current_placement

_log = logging.getLogger(__name__)

# By name. Of the kernels of one platform, the first that can compute an attention is chosen.
KERNELS: dict[str, Kernel] = {
    kernel.NAME: kernel for kernel in (SplashAttention(), CudnnAttention(), TritonAttention())
}
# How many scores a kernel may compute for each one that is needed, because tokens are padded to whole blocks.
# Compiled plans for v5e show: without padding a step of GPT-2 small (1,024 tokens) takes 47 % less time than
# with plain attention, and one of Transformer big (256 tokens) 20 % less. One of ViT-L/16 (197 tokens, 1.7
# scores for each one needed) takes 6 % more.
_MOST_PADDING = 1.5


def target_platform() -> str:
    """Returns the platform that the program being traced is for: "cpu", "gpu" or "tpu"."""
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
    needs_weights: str = "",
    bias: Float[Array, "#B #H #L S"] | None = None,
    name: str,
) -> Kernel | None:
    """Returns a kernel that can compute an attention, or None: use plain XLA.

    On a CPU the answer is None unless the placement names a kernel, which has to be interpreted there.

    Args:
      needs_weights, bias: as in ``Kernel.obstacle``.
      name: of the attention, for messages.

    Raises:
      ValueError: the placement names a kernel that cannot compute this attention.
    """
    placement, platform = current_placement(), target_platform()
    asked = "auto" if placement is None else placement.attention
    check_attention(asked)
    candidates = kernels_of(platform)
    if asked == "plain" or (asked == "auto" and not candidates):
        return None
    reasons: list[str] = []
    for kernel in candidates if asked == "auto" else [KERNELS[asked]]:
        reason = _platform_reason(kernel, platform) or kernel.obstacle(
            query, key, value, mask, needs_weights=needs_weights, bias=bias
        )
        if asked == "auto":
            reason = reason or _slowness_reason(kernel, query.shape[1], key.shape[1])
        if not reason:
            return kernel
        reasons.append(reason)
    joined = "; ".join(dict.fromkeys(reasons))
    if asked != "auto":
        raise ValueError(
            f"mesh.attention={asked!r} cannot compute {name}: {joined}; use mesh.attention='auto' or 'plain'"
        )
    _warn_plain(name, platform, joined)
    return None


def check_attention(name: str) -> None:
    """Raises ValueError if ``name`` is neither "auto" nor "plain" nor the name of a kernel."""
    allowed = ("auto", "plain", *KERNELS)
    if name not in allowed:
        raise ValueError(f"mesh.attention={name!r} is unknown; use one of {', '.join(map(repr, allowed))}")


def kernels_of(platform: str) -> list[Kernel]:
    """Returns the kernels that run on a platform, the preferred one first."""
    return [kernel for kernel in KERNELS.values() if platform in kernel.PLATFORMS]


def _platform_reason(kernel: Kernel, platform: str) -> str:
    """Returns the reason why a kernel does not run on a platform, or ""."""
    if platform == "cpu" or platform in kernel.PLATFORMS:
        return ""
    names = " and ".join(other.NAME for other in kernels_of(platform)) or "no kernel"
    return f"a {platform.upper()} has {names}"


def _slowness_reason(kernel: Kernel, length: int, num_keys: int) -> str:
    """Returns the reason to prefer plain XLA although the kernel can compute the attention, or ""."""
    if current_placement() is None and (count := jax.device_count()) > 1:
        return f"the model is not called within partitioning.on_mesh, and may be split over {count} devices"
    shape = (length, num_keys)
    # The numbers are left out, so that all short rows have one message.
    if math.prod(kernel.padded_shape(*shape)) > _MOST_PADDING * math.prod(shape):
        return f"of so few tokens a kernel computes more than {_MOST_PADDING} scores for each that is needed"
    return ""


@functools.cache
def _warn_plain(name: str, platform: str, reason: str) -> None:
    """Logs the reason why an attention is plain XLA, once for each name, platform and reason."""
    _log.warning("%s is plain XLA on this %s: %s", name, platform.upper(), reason)
