"""Makes learning-rate schedules and optimizers, by name, from one config section."""

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from transformer_jax.config import check_types
from transformer_jax.types import PyTree

# Parameters with these names are never decayed. Their rank does not identify them: a bias of attention is
# (H, K), and a scanned stack adds a dimension to each bias and scale.
UNDECAYED_NAMES = ("bias", "scale")
_STACKS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Describes the optimizer and its learning-rate schedule.

    The defaults are those of Vaswani et al. 2017, section 5.3, except ``peak_rate``; for equation 3 use
    ``paper_peak_rate(d_model, warmup_steps)``.

    ``adafactor`` (Shazeer and Stern 2018) multiplies the learning rate by each parameter's root mean square.
    It uses the constants of its paper and ignores ``b1``, ``b2`` and ``epsilon``, which must keep their
    defaults.

    Raises:
      ValueError: a value is out of range, or the chosen optimizer or schedule would ignore it.
    """

    name: Literal["adam", "adamw", "adafactor"] = "adam"
    schedule: Literal["inverse_square_root", "cosine", "linear", "constant"] = "inverse_square_root"
    peak_rate: float = 1e-3  # the learning rate at update warmup_steps
    warmup_steps: int = 4000  # number of updates over which the learning rate rises linearly
    warmup_start_factor: float = 0.0  # first rate / peak rate; 1 means no rise, as in T5
    end_rate_factor: float = 0.0  # cosine, linear: last rate / peak rate
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0  # adamw: each update subtracts rate * weight_decay * parameter
    clip_norm: float = 0.0  # maximum global norm of the gradients; 0 for no clipping
    # Regular expressions, such as "embedding|encoder/". A parameter is not trained if one of them matches the
    # start of its path.
    frozen: tuple[str, ...] = ()
    layer_decay: float = 1.0  # factor of the learning rate for each layer further from the output

    def __post_init__(self) -> None:
        check_types(self, "optimizer")
        if not 0 < self.peak_rate < math.inf:
            raise ValueError(f"peak_rate={self.peak_rate} must be a positive number, such as 1e-3")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 (no warm-up) or more")
        for name in ("warmup_start_factor", "end_rate_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
        if self.end_rate_factor and self.schedule not in ("cosine", "linear"):
            raise ValueError(
                f"end_rate_factor={self.end_rate_factor} applies only to the schedules cosine and linear; "
                f"set it to 0 for schedule={self.schedule!r}"
            )
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"frozen has {pattern!r}, which is not a regular expression: {error}"
                ) from error
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon} must be a positive number, such as 1e-9")
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 (off) or positive")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("b1", "b2", "epsilon"):
            if self.name == "adafactor" and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)} applies only to name='adam' and 'adamw'; leave it at "
                    f"{defaults[name]} for name='adafactor'"
                )
        if self.weight_decay and self.name != "adamw":
            raise ValueError(
                f"weight_decay={self.weight_decay} applies only to name='adamw'; set it to 0 for "
                f"name={self.name!r}"
            )


def fine_tuning(peak_rate: float, num_steps: int, epsilon: float = 1e-6) -> OptimizerConfig:
    """Returns the settings for fine-tuning BERT (Devlin et al. 2019, sections A.2 and A.3, and released
    code).

    AdamW with weight decay 0.01 and gradients clipped to norm 1. The learning rate rises over a tenth of the
    updates and then falls linearly to 0. The default of ``epsilon`` is that of the released code; PyTorch's
    AdamW has 1e-8. As in PyTorch and unlike in the released code, moments are bias-corrected, and the rate
    falls from its peak.
    """
    return OptimizerConfig(
        name="adamw",
        schedule="linear",
        peak_rate=peak_rate,
        warmup_steps=num_steps // 10,
        b2=0.999,
        epsilon=epsilon,
        weight_decay=0.01,
        clip_norm=1.0,
    )


def paper_peak_rate(d_model: int, warmup_steps: int) -> float:
    """Returns the ``peak_rate`` with which ``inverse_square_root`` is equation 3 of Vaswani et al. 2017.

    The rate of that equation at update ``n``, ``d_model**-0.5 * min(n**-0.5, n * warmup_steps**-1.5)``,
    peaks at ``n == warmup_steps`` with ``(d_model * warmup_steps)**-0.5``.

    Raises:
      ValueError: either number is below 1.
    """
    if d_model < 1 or warmup_steps < 1:
        raise ValueError(f"{d_model=} and {warmup_steps=} must be at least 1")
    return (d_model * warmup_steps) ** -0.5


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns a function from the number of updates so far to the learning rate of the next update.

    Updates are counted from 1: ``n = count + 1``. The first update (``count`` 0) has the rate
    ``peak_rate / warmup_steps``, and update ``warmup_steps`` has ``peak_rate``. With ``warmup_start_factor``
    f, the rate of the warm-up is ``peak_rate * (f + (1 - f) * n / warmup_steps)``. For ``n > warmup_steps``
    the rate is ``peak_rate`` times:

    * ``inverse_square_root``: ``sqrt(max(warmup_steps, 1) / n)``;
    * ``linear``, ``cosine``: from 1 down to ``end_rate_factor`` at ``n == num_steps``, along a straight line
      or half a cosine wave, and constant afterwards;
    * ``constant``: 1.

    Args:
      config: the schedule, its peak and warm-up.
      num_steps: number of updates of the training; only ``linear`` and ``cosine`` depend on it.

    Raises:
      ValueError: ``num_steps`` is below 1, or the warm-up leaves no update for ``linear`` or ``cosine``.
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps=} must be at least 1")
    warmup = config.warmup_steps
    decays = config.schedule in ("cosine", "linear")
    if decays and warmup >= num_steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} leaves none of the {num_steps} steps for the {config.schedule} "
            f"schedule to decay; use at most {num_steps - 1}"
        )

    def decay(n: jax.Array) -> jax.Array:
        if config.schedule == "inverse_square_root":
            return jnp.sqrt(max(warmup, 1) / n)
        if not decays:
            return jnp.ones_like(n)
        done = jnp.clip((n - warmup) / (num_steps - warmup), 0.0, 1.0)
        left = 1 - done if config.schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done))
        return config.end_rate_factor + (1 - config.end_rate_factor) * left

    def schedule(count: Any) -> jax.Array:
        n = jnp.asarray(count, jnp.float32) + 1
        start = config.warmup_start_factor
        rising = start + (1 - start) * n / max(warmup, 1)
        return config.peak_rate * jnp.where(n < warmup, rising, decay(n))

    return schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer: clipping if configured, then Adam, AdamW or Adafactor with the schedule.

    * ``adam``: Kingma and Ba 2015, with bias correction of both moments.
    * ``adamw``: Loshchilov and Hutter 2019; ``decay_mask`` says which parameters are decayed.
    * ``adafactor``: Shazeer and Stern 2018, without momentum. As in optax, second moments are factored over
      the two largest axes if both have at least 128 elements. Each layer of a scanned stack is treated
      separately.

    The number of updates is part of the optimizer's state, so a restored state continues its schedule.

    Raises:
      ValueError: see ``make_schedule``.
    """
    schedule = make_schedule(config, num_steps)
    builders: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adam": lambda: optax.adam(schedule, b1=config.b1, b2=config.b2, eps=config.epsilon),
        "adamw": lambda: optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
        "adafactor": lambda: _per_layer(optax.adafactor(schedule)),
    }
    parts = [builders[config.name]()]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    optimizer = optax.chain(*parts) if len(parts) > 1 else parts[0]
    if config.frozen:
        kinds: dict[Any, Any] = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(kinds, cast(Any, partial(_trained_or_frozen, patterns=config.frozen)))
    if config.layer_decay < 1:  # outside the partition, so that frozen layers count
        optimizer = optax.chain(optimizer, scale_by_depth(config.layer_decay))
    return optimizer


def _per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies Adafactor, which takes means over a whole parameter, to each layer of a scanned stack."""

    def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
        """Maps over the layers; the tree is empty if the stack is not scanned or does not exist."""
        return lambda tree, *more: (jax.vmap(function) if jax.tree.leaves(tree) else function)(tree, *more)

    layers = optax.GradientTransformation(mapped(optimizer.init), mapped(optimizer.update))

    def kind(path: tuple[Any, ...], _: Any) -> str:
        stack, *rest = _path(path).split("/")
        return stack if rest and rest[0] == "layers" and stack in _STACKS else "other"

    kinds: dict[Any, Any] = {**dict.fromkeys(_STACKS, layers), "other": optimizer}
    return optax.partition(kinds, partial(jax.tree_util.tree_map_with_path, kind))


def _path(path: tuple[Any, ...]) -> str:
    """Returns the path of a parameter, such as ``encoder/layer_0/feedforward/hidden/kernel``."""
    return "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _trained_or_frozen(params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """Labels each parameter "trained" or "frozen".

    Raises:
      ValueError: a pattern matches no parameter, or all parameters are frozen.
    """
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.match(pattern, path) for path in paths):
            raise ValueError(
                f"optimizer.frozen has {pattern!r}, which matches no parameter; the parameters are "
                f"{', '.join(paths)}"
            )
    if all(any(re.match(pattern, path) for pattern in patterns) for path in paths):
        raise ValueError(
            f"optimizer.frozen={patterns} freezes all parameters; remove a pattern, so that some are trained"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if any(re.match(p, _path(path)) for p in patterns) else "trained", params
    )


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiplies each update by ``decay`` to the power of its distance from the output of its stack.

    This is layer-wise decay of the learning rate (Howard and Ruder 2018, section 3.2; Clark et al. 2020,
    appendix B). The last of N layers has the factor ``decay ** 1``, the first ``decay ** N``, embeddings
    ``decay ** (N + 1)``, heads and final norms 1. The layers of encoder and decoder are counted separately.
    """

    def update(updates: PyTree) -> PyTree:
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        counts = _layer_counts([(_path(path), leaf) for path, leaf in leaves])
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * _depth_factor(_path(path), leaf, counts, decay), updates
        )

    return optax.stateless(lambda updates, _: update(updates))


def _layer_counts(leaves: list[tuple[str, Any]]) -> dict[str, int]:
    """Returns the number of layers of each stack."""
    counts: dict[str, int] = {}
    for path, leaf in leaves:
        stack, *rest = path.split("/")
        if rest and (found := re.fullmatch(r"layer_(\d+)", rest[0])):
            counts[stack] = max(counts.get(stack, 0), int(found[1]) + 1)
        elif rest and rest[0] == "layers":
            counts[stack] = leaf.shape[0]
    return counts


def _depth_factor(path: str, leaf: Any, counts: dict[str, int], decay: float) -> Any:
    stack, *rest = path.split("/")
    if stack in counts:
        count = counts[stack]
        if found := re.fullmatch(r"layer_(\d+)", rest[0]):
            return decay ** (count - int(found[1]))
        if rest[0] == "layers":
            factors = decay ** (count - jnp.arange(count, dtype=leaf.dtype))
            return factors.reshape(-1, *(1,) * (leaf.ndim - 1))
        return decay ** (count + 1) if rest[0] == "relative_bias" else 1.0
    is_embedding = stack.startswith(("embed", "target_embedding"))
    return decay ** (max(counts.values(), default=0) + 1) if is_embedding else 1.0


def decay_mask(params: PyTree) -> PyTree:
    """Returns a pytree of bools like ``params``: whether weight decay applies to each parameter.

    It applies to kernels and embeddings, but not to parameters called ``bias`` or ``scale`` and not to
    parameters with fewer than two dimensions.
    """

    def is_decayed(path: tuple[Any, ...], parameter: Any) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return jnp.ndim(parameter) >= 2 and not (names and names[-1] in UNDECAYED_NAMES)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
