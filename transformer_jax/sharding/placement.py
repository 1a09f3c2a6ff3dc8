"""How activations are split over a mesh: models name their axes, and what calls the model says the rest.

Models name the axes of their activations (``"batch"``, ``"sequence"``, ``"heads"``, ...) in ``constrain``.
That changes no value, and does nothing at all unless the model is traced within ``placed``, as a training
step is: there each named axis is split over the mesh axes that the placement has for it. Left to itself
the compiler follows the shardings of parameters and of the batch, and may just as well gather activations.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and how the logical axes of activations are split over it.

    Attributes:
      axes: the mesh axes over which each logical axis is split.
      attention: what computes attention: "auto", "plain" or a name in ``layers.attention_kernels.KERNELS``.
    """

    mesh: Mesh
    axes: Mapping[str, tuple[str, ...]]
    attention: str = "auto"

    def parts(self, name: str) -> int:
        """Into how many parts the logical axis ``name`` is split; 1 where it has no mesh axis."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes.get(name, ()))

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """How an array of ``shape`` with these logical axes is split.

        An axis that its parts do not divide is whole, but for ``"sequence"``, whose last part is then
        shorter: images have an odd number of vectors. Two logical axes never share a mesh axis: the later one
        is whole.
        """
        used: set[str] = set()
        entries: list[tuple[str, ...] | None] = []
        for name, size in zip(names, shape, strict=True):
            parts = 1 if name is None else self.parts(name)
            is_split = parts > 1 and (size % parts == 0 or (name == "sequence" and size > parts))
            axes = self.axes[name] if name is not None and is_split else ()
            entries.append(axes if axes and not used & set(axes) else None)
            used |= set(entries[-1] or ())
        return PartitionSpec(*entries)


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Models that are traced within it are split so."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def current_placement() -> Placement | None:
    """What the innermost ``placed`` around this call was given."""
    return _placement.get()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """``x``, split as its logical axes say; None is an axis that is whole on every device."""
    placement = current_placement()
    if placement is None:
        return x
    sharding = NamedSharding(placement.mesh, placement.spec(names, x.shape))
    return jax.lax.with_sharding_constraint(x, sharding)
