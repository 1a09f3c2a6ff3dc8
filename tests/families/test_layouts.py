"""Weight layouts: each against the formula of the layer that the tensor belongs to."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity.test_fixtures import STORED
from transformer_jax.families import FAMILIES, bert
from transformer_jax.families.base import Tensor
from transformer_jax.families.layouts import (
    SAME,
    Convolution,
    Leading,
    Linear,
    Matrix,
    Part,
    SkippedRows,
    Vector,
)
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

RNG = np.random.default_rng(0)


def written(layout, *parameters):
    """The tensor that holds the parameters, of which each has its own layout if there are several."""
    layouts = layout if isinstance(layout, list) else [layout]
    tensor = np.zeros(layouts[0].shape(parameters[0].shape), np.float32)
    for one, parameter in zip(layouts, parameters, strict=True):
        assert one.shape(parameter.shape) == tensor.shape
        one.write(parameter, tensor)
        np.testing.assert_array_equal(one.read(tensor, parameter.shape), parameter, strict=True)
    return tensor


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_a_linear_map_into_heads():
    kernel, x = drawn(6, 2, 5), drawn(3, 6)  # (d_model, heads, size)
    weight = written(Linear(), kernel)
    assert weight.shape == (10, 6)
    np.testing.assert_allclose(x @ weight.T, np.einsum("bd,dhk->bhk", x, kernel).reshape(3, 10), rtol=1e-4)
    np.testing.assert_array_equal(written(Matrix(), kernel), weight.T)


def test_a_linear_map_out_of_heads():
    kernel, x = drawn(2, 5, 6), drawn(3, 2, 5)
    weight = written(Linear(inputs=2), kernel)
    assert weight.shape == (6, 10)
    wanted = np.einsum("bhk,hkd->bd", x, kernel)
    np.testing.assert_allclose(x.reshape(3, 10) @ weight.T, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(written(Matrix(inputs=2), kernel), weight.T)


def test_a_bias_of_heads():
    bias = drawn(2, 5)
    np.testing.assert_array_equal(written(Vector(), bias), np.concatenate([bias[0], bias[1]]))


@pytest.mark.parametrize("window", [(3,), (2, 3)])
def test_a_convolution(window):
    kernel = drawn(*window, 4, 6)
    weight = written(Convolution(), kernel)
    assert weight.shape == (6, 4, *window)
    for place in np.ndindex(*window):
        np.testing.assert_array_equal(weight[(slice(None), slice(None), *place)], kernel[place].T)


def test_three_maps_side_by_side():
    query, key, value = drawn(6, 2, 5), drawn(6, 2, 5), drawn(6, 2, 5)
    weight = written([Part(i, 3, Matrix()) for i in range(3)], query, key, value)
    wanted = np.concatenate([kernel.reshape(6, 10) for kernel in (query, key, value)], axis=1)
    np.testing.assert_array_equal(weight, wanted)
    # In PyTorch's Linear they lie below each other.
    weight = written([Part(i, 3, Linear(), axis=0) for i in range(3)], query, key, value)
    np.testing.assert_array_equal(weight, wanted.T)


def test_rows_and_axes_in_front():
    table = drawn(4, 3)
    tensor = written(SkippedRows(2), table)
    np.testing.assert_array_equal(tensor, np.concatenate([np.zeros((2, 3)), table]))
    np.testing.assert_array_equal(written(Leading(2, SkippedRows(2)), table), tensor[None, None])
    np.testing.assert_array_equal(written(SAME, table), table)


@dataclasses.dataclass(frozen=True)
class Reversed:
    """Not of the library: the rows come in the opposite order."""

    def shape(self, ours):
        return ours

    def read(self, tensor, shape):
        return tensor[::-1].reshape(shape)

    def write(self, parameter, tensor):
        tensor[...] = parameter[::-1]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_family_has_a_layout_from_elsewhere(scan_layers, tmp_path, monkeypatch):
    plain = from_pretrained(STORED / "gpt2", scan_layers=scan_layers)
    tables = ("transformer.wte.weight", "transformer.h.{i}.mlp.c_fc.bias")
    checkpoint = dataclasses.replace(
        plain.family.checkpoint,
        tensors=tuple(
            dataclasses.replace(tensor, layout=Reversed()) if tensor.theirs in tables else tensor
            for tensor in plain.family.checkpoint.tensors
        ),
    )
    family = dataclasses.replace(plain.family, checkpoint=checkpoint)
    save_pretrained(tmp_path, dataclasses.replace(plain, family=family))
    tensors, known = (load_file(path / "model.safetensors") for path in (tmp_path, STORED / "gpt2"))
    for name in tensors:
        is_reversed = name == tables[0] or name.endswith("mlp.c_fc.bias")
        np.testing.assert_array_equal(tensors[name], known[name][::-1] if is_reversed else known[name])
    monkeypatch.setitem(FAMILIES, "gpt2", family)
    found = from_pretrained(tmp_path, scan_layers=scan_layers).params
    np.testing.assert_array_equal(found["embedding"]["embedding"], plain.params["embedding"]["embedding"])


@pytest.mark.parametrize(
    ("when", "applies"), [(None, True), (("activation", "gelu"), True), (("activation", "relu"), False)]
)
def test_a_tensor_may_be_for_some_configs_only(when, applies):
    assert Tensor("head/dense/kernel", "dense.weight", when=when).applies(bert.config("tiny")) is applies
