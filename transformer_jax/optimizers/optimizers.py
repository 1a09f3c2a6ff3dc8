"""Learning-rate schedules and optimizers, by name, from one config section."""

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

# Parameters with these names are never decayed, whatever their rank: a bias of attention is
# (H, K), and a scanned stack gives each bias and scale one more dimension.
UNDECAYED_NAMES = ("bias", "scale")
_STACKS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and the learning rate of each of its updates.

    The defaults are the paper's (Vaswani et al. 2017, section 5.3), except ``peak_rate``: take
    ``paper_peak_rate(d_model, warmup_steps)`` for equation 3.

    ``adafactor`` (Shazeer and Stern 2018) multiplies the rate by each parameter's root mean square
    and has that paper's own constants: ``b1``, ``b2`` and ``epsilon`` are not for it.

    Raises:
      ValueError: a value out of range, or one the chosen optimizer or schedule would ignore.
    """

    name: Literal["adam", "adamw", "adafactor"] = "adam"
    schedule: Literal["inverse_square_root", "cosine", "linear", "constant"] = "inverse_square_root"
    peak_rate: float = 1e-3  # the rate of update number warmup_steps
    warmup_steps: int = 4000  # updates; the rate rises linearly over them
    warmup_start_factor: float = 0.0  # where it rises from / peak rate; 1: it does not rise, as in T5
    end_rate_factor: float = 0.0  # cosine, linear: last rate / peak rate
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0  # adamw: subtracts rate * weight_decay * parameter
    clip_norm: float = 0.0  # largest global norm of the gradients; 0 does not clip
    # Regular expressions; a parameter that one of them matches at its path's start, as "embedding|encoder/",
    # stays as it is.
    frozen: tuple[str, ...] = ()
    layer_decay: float = 1.0  # of the rate, for each layer further from the output

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
                f"end_rate_factor={self.end_rate_factor} is for the schedules cosine and linear: "
                f"set it to 0 for schedule={self.schedule!r}"
            )
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"frozen has {pattern!r}, which is no regular expression: {error}"
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
                    f"{name}={getattr(self, name)} is for the names adam and adamw: leave it at "
                    f"{defaults[name]} for name='adafactor'"
                )
        if self.weight_decay and self.name != "adamw":
            raise ValueError(
                f"weight_decay={self.weight_decay} is for name='adamw': set it to 0 for name={self.name!r}"
            )


def fine_tuning(peak_rate: float, num_steps: int, epsilon: float = 1e-6) -> OptimizerConfig:
    """What BERT is fine-tuned with (Devlin et al. 2019, sections A.2 and A.3, and the released code).

    AdamW with decay 0.01, gradients clipped to norm 1; the rate rises over a tenth of the updates and falls
    linearly to 0. ``epsilon`` is the release's; PyTorch's AdamW has 1e-8. As in PyTorch, and unlike the
    release, moments are corrected for their start at 0, and the fall begins where the rise ends.
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
    """The ``peak_rate`` that makes ``inverse_square_root`` equation 3 of Vaswani et al. 2017.

    The equation's rate at update ``n``, ``d_model**-0.5 * min(n**-0.5, n * warmup_steps**-1.5)``,
    peaks at ``n == warmup_steps`` with ``(d_model * warmup_steps)**-0.5``.

    Raises:
      ValueError: either number is below 1.
    """
    if d_model < 1 or warmup_steps < 1:
        raise ValueError(f"{d_model=} and {warmup_steps=} must be at least 1")
    return (d_model * warmup_steps) ** -0.5


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Builds the function from the count of updates made so far to the rate of the next update.

    Update number ``n = count + 1`` counts from 1, so the first update (``count`` 0) already moves,
    by ``peak_rate / warmup_steps``, and update number ``warmup_steps`` is made at ``peak_rate``. With
    ``warmup_start_factor`` f, the rate up to there is ``peak_rate * (f + (1 - f) * n / warmup_steps)``.
    For ``n > warmup_steps`` the rate is ``peak_rate`` times:

    * ``inverse_square_root``: ``sqrt(max(warmup_steps, 1) / n)``;
    * ``linear``, ``cosine``: from 1 down to ``end_rate_factor`` at ``n == num_steps``, along a
      straight line or half a cosine wave, and constant from there on;
    * ``constant``: 1.

    Args:
      config: schedule, peak and warm-up.
      num_steps: updates in the whole training; only ``linear`` and ``cosine`` depend on it.

    Raises:
      ValueError: ``num_steps`` below 1, or a warm-up that leaves ``linear`` or ``cosine`` no step.
    """
    if num_steps < 1:
        raise ValueError(f"{num_steps=} must be at least 1")
    warmup = config.warmup_steps
    decays = config.schedule in ("cosine", "linear")
    if decays and warmup >= num_steps:
        raise ValueError(
            f"the {config.schedule} schedule falls from step warmup_steps={warmup} to the last, "
            f"{num_steps}: set optimizer.warmup_steps to at most {num_steps - 1}"
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
    """Builds the optimizer: clipping (if any), then Adam, AdamW or Adafactor at the scheduled rate.

    * ``adam``: Kingma and Ba 2015, with both bias corrections.
    * ``adamw``: Loshchilov and Hutter 2019; see ``decay_mask`` for what is decayed.
    * ``adafactor``: Shazeer and Stern 2018, without momentum; factored as optax does, over the two
      largest axes where both have 128 at least; each layer of a scanned stack by itself.

    The count of updates lives in the optimizer's state, so a restored state continues its schedule.

    Raises:
      ValueError: as ``make_schedule``.
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
    if config.layer_decay < 1:  # around the partition: frozen layers count
        optimizer = optax.chain(optimizer, scale_by_depth(config.layer_decay))
    return optimizer


def _per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same of each layer of a scanned stack by itself: Adafactor takes means over a whole parameter."""

    def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
        """Over the layers; there are none where a model is not scanned or has one stack alone."""
        return lambda tree, *more: (jax.vmap(function) if jax.tree.leaves(tree) else function)(tree, *more)

    layers = optax.GradientTransformation(mapped(optimizer.init), mapped(optimizer.update))

    def kind(path: tuple[Any, ...], _: Any) -> str:
        stack, *rest = _path(path).split("/")
        return stack if rest and rest[0] == "layers" and stack in _STACKS else "other"

    kinds: dict[Any, Any] = {**dict.fromkeys(_STACKS, layers), "other": optimizer}
    return optax.partition(kinds, partial(jax.tree_util.tree_map_with_path, kind))


def _path(path: tuple[Any, ...]) -> str:
    """The names of a parameter, such as ``encoder/layer_0/feedforward/hidden/kernel``."""
    return "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _trained_or_frozen(params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """Which of the two each parameter is.

    Raises:
      ValueError: a pattern matches none, or all parameters are frozen.
    """
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.match(pattern, path) for path in paths):
            raise ValueError(
                f"optimizer.frozen has {pattern!r}, which matches no parameter; there are {', '.join(paths)}"
            )
    if all(any(re.match(pattern, path) for pattern in patterns) for path in paths):
        raise ValueError(f"optimizer.frozen={patterns} leaves no parameter to be trained")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if any(re.match(p, _path(path)) for p in patterns) else "trained", params
    )


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiplies each update by ``decay`` to the number of layers between it and its stack's output.

    Layer-wise decay of the rate (Howard and Ruder 2018, section 3.2; Clark et al. 2020, appendix B): of N
    layers the last has ``decay ** 1``, the first ``decay ** N``, embeddings ``decay ** (N + 1)``, heads and
    final norms 1. An encoder and a decoder are counted each by itself.
    """

    def update(updates: PyTree) -> PyTree:
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        counts = _layer_counts([(_path(path), leaf) for path, leaf in leaves])
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * _depth_factor(_path(path), leaf, counts, decay), updates
        )

    return optax.stateless(lambda updates, _: update(updates))


def _layer_counts(leaves: list[tuple[str, Any]]) -> dict[str, int]:
    """The number of layers of each stack."""
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
    """A pytree of bools like ``params``: whether weight decay applies to each parameter.

    It applies to matrices (kernels and embeddings), not to a parameter called ``bias`` or ``scale``
    nor to anything with fewer than two dimensions.
    """

    def is_decayed(path: tuple[Any, ...], parameter: Any) -> bool:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return jnp.ndim(parameter) >= 2 and not (names and names[-1] in UNDECAYED_NAMES)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
