"""Weight layouts: where the numbers of one of this library's parameters lie in a tensor of a checkpoint.

A family names a layout for each of its tensors. A new layout is a class with the three methods of ``Layout``;
it may be defined anywhere, and layouts nest: ``Part(0, 3, Matrix())`` is the first of three matrices.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import numpy as np

Shape = tuple[int, ...]


@runtime_checkable
class Layout(Protocol):
    """How one parameter is stored in one tensor."""

    def shape(self, ours: Shape) -> Shape:
        """Returns the tensor's shape, given the parameter's."""
        ...

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns the parameter, of this shape, from the tensor; it may be a view."""
        ...

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        """Writes the parameter into its place in the tensor, which is filled with zeros before."""
        ...


@dataclasses.dataclass(frozen=True)
class Same:
    """The tensor is the parameter."""

    def shape(self, ours: Shape) -> Shape:
        return ours

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return tensor.reshape(shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        tensor[...] = parameter


SAME = Same()


@dataclasses.dataclass(frozen=True)
class Vector:
    """The tensor is the parameter, flattened: the bias of heads, (heads, size) here."""

    def shape(self, ours: Shape) -> Shape:
        return (math.prod(ours),)

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return tensor.reshape(shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        tensor[...] = parameter.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The tensor is the kernel of a linear map as (inputs, outputs), like GPT-2's ``Conv1D``.

    Attributes:
      inputs: number of leading axes of the parameter that the map contracts.
    """

    inputs: int = 1

    def shape(self, ours: Shape) -> Shape:
        return math.prod(ours[: self.inputs]), math.prod(ours[self.inputs :])

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return tensor.reshape(shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        tensor[...] = parameter.reshape(tensor.shape)


@dataclasses.dataclass(frozen=True)
class Linear:
    """The tensor is the kernel of a linear map as (outputs, inputs), like PyTorch's ``Linear``.

    Attributes:
      inputs: number of leading axes of the parameter that the map contracts.
    """

    inputs: int = 1

    def shape(self, ours: Shape) -> Shape:
        return Matrix(self.inputs).shape(ours)[::-1]

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return tensor.T.reshape(shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        Matrix(self.inputs).write(parameter, tensor.T)


LINEAR = Linear()


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The tensor is a kernel as (outputs, channels, *window), like PyTorch's ``Conv1d`` and ``Conv2d``.

    The parameter is (*window, channels, outputs).
    """

    def shape(self, ours: Shape) -> Shape:
        *window, channels, outputs = ours
        return outputs, channels, *window

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return np.moveaxis(tensor, (0, 1), (-1, -2)).reshape(shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        tensor[...] = np.moveaxis(parameter, (-1, -2), (0, 1))


@dataclasses.dataclass(frozen=True)
class Part:
    """The tensor holds several parameters side by side, and this is one of them.

    Attributes:
      index: the parameter's position among them.
      count: number of parameters in the tensor; all have one shape.
      of: layout of each part.
      axis: axis of the tensor along which they lie.
    """

    index: int
    count: int
    of: Layout = SAME
    axis: int = -1

    def shape(self, ours: Shape) -> Shape:
        shape = list(self.of.shape(ours))
        shape[self.axis] *= self.count
        return tuple(shape)

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return self.of.read(self._slice(tensor), shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        self.of.write(parameter, self._slice(tensor))

    def _slice(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a view of this part."""
        return np.split(tensor, self.count, self.axis)[self.index]


@dataclasses.dataclass(frozen=True)
class Leading:
    """The tensor has axes of size 1 in front.

    Attributes:
      count: number of these axes.
      of: layout of what follows them.
    """

    count: int
    of: Layout = SAME

    def shape(self, ours: Shape) -> Shape:
        return (1,) * self.count + self.of.shape(ours)

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return self.of.read(tensor[(0,) * self.count], shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        self.of.write(parameter, tensor[(0,) * self.count])


@dataclasses.dataclass(frozen=True)
class SkippedRows:
    """The tensor has rows in front that the model never reads; they are written as zeros.

    Attributes:
      count: number of these rows.
      of: layout of the rows that follow.
    """

    count: int
    of: Layout = SAME

    def shape(self, ours: Shape) -> Shape:
        rows, *others = self.of.shape(ours)
        return rows + self.count, *others

    def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        return self.of.read(tensor[self.count :], shape)

    def write(self, parameter: np.ndarray, tensor: np.ndarray) -> None:
        self.of.write(parameter, tensor[self.count :])
