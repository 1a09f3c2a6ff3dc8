"""Parameters as a model has them before it is trained."""

from typing import Any

import jax

from transformer_jax.models import TransformerConfig, build, example_inputs
from transformer_jax.sharding.partitioning import unbox
from transformer_jax.types import PyTree


def drawn_params(config: TransformerConfig, seed: int = 0) -> PyTree:
    """Those of ``model.init``, in one compiled program: one operation after the other they take seconds."""
    arguments: dict[str, Any] = example_inputs(config)
    init = jax.jit(lambda key: unbox(build(config).init(key, **arguments)["params"]))
    return init(jax.random.key(seed))
