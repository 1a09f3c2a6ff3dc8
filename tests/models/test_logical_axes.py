"""The shape and the logical axes of each parameter of an encoder–decoder."""

import flax.linen as nn
import jax
import pytest

from tests.models.test_transformer import change
from transformer_jax.models import abstract_params

# Shapes are those of ``test_transformer.CONFIG``: vocabulary 23, width 16, 2 heads, keys of 4 and values
# of 6, hidden units 24.
ATTENTION = {
    "query/kernel": ((16, 2, 4), ("embed", "heads", "head_size")),
    "key/kernel": ((16, 2, 4), ("embed", "heads", "head_size")),
    "value/kernel": ((16, 2, 6), ("embed", "heads", "head_size")),
    "output/kernel": ((2, 6, 16), ("heads", "head_size", "embed")),
}
NORM = {"scale": ((16,), ("embed",)), "bias": ((16,), ("embed",))}
FEED_FORWARD = {
    "hidden/kernel": ((16, 24), ("embed", "mlp")),
    "hidden/bias": ((24,), ("mlp",)),
    "output/kernel": ((24, 16), ("mlp", "embed")),
    "output/bias": ((16,), ("embed",)),
}


def within(name, leaves):
    return {f"{name}/{rest}": leaf for rest, leaf in leaves.items()}


ENCODER_LAYER = (
    within("self_attention", ATTENTION)
    | within("self_attention_norm", NORM)
    | within("feedforward", FEED_FORWARD)
    | within("feedforward_norm", NORM)
)
DECODER_LAYER = (
    ENCODER_LAYER | within("context_attention", ATTENTION) | within("context_attention_norm", NORM)
)


@pytest.mark.smoke
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_parameter_has_its_shape_and_its_logical_axes(scan_layers):
    leaves = jax.tree_util.tree_leaves_with_path(
        abstract_params(change(scan_layers=scan_layers)),
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )
    found = {"/".join(key.key for key in path): (box.value.shape, box.names) for path, box in leaves}
    expected = {"embedding/embedding": ((23, 16), ("vocab", "embed"))}
    for side, layer in (("encoder", ENCODER_LAYER), ("decoder", DECODER_LAYER)):
        if scan_layers:
            stacked = {name: ((2, *shape), ("layers", *axes)) for name, (shape, axes) in layer.items()}
            expected |= within(f"{side}/layers", stacked)
        else:
            for number in range(2):
                expected |= within(f"{side}/layer_{number}", layer)
    assert found == expected
