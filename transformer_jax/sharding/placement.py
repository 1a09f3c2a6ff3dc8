"""Splits activations over a mesh: models name logical axes, and the caller chooses the mesh axes.

Models call ``constrain`` with the logical axes of an activation (``"batch"``, ``"sequence"``, ``"heads"``,
...). The call changes no value. Within ``placed``, in which training steps are traced, each logical axis is
split over the mesh axes that the placement has for it; elsewhere the call does nothing. Without such
constraints the compiler would follow the shardings of the parameters and might gather activations.
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
    """A mesh and the mesh axes that split each logical axis of activations.

    Attributes:
      mesh: the mesh.
      axes: for each logical axis the mesh axes that split it.
      attention: "auto", "plain" or a name in ``layers.attention_kernels.KERNELS``; see ``MeshConfig``.
    """

    mesh: Mesh
    axes: Mapping[str, tuple[str, ...]]
    attention: str = "auto"

    def parts(self, name: str) -> int:
        """Returns the number of parts of the logical axis ``name``; 1 if no mesh axis splits it."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes.get(name, ()))

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the partition of an array of ``shape`` with these logical axes.

        An axis whose size the number of parts does not divide is not split. ``"sequence"`` is the exception,
        because images have an odd number of tokens; its last part is shorter. Two logical axes never share a
        mesh axis: the later one is not split.
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
    """Applies ``placement`` to the models that are traced within this context."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def current_placement() -> Placement | None:
    """Returns the placement of the innermost ``placed`` around this call, or None."""
    return _placement.get()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns ``x``, sharded by its logical axes; an axis named None is not split."""
    placement = current_placement()
    if placement is None:
        return x
    sharding = NamedSharding(placement.mesh, placement.spec(names, x.shape))
    return jax.lax.with_sharding_constraint(x, sharding)
